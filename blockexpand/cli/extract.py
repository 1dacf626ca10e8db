"""`blockexpand extract`: the trained new blocks of a model, alone. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import add_commit_options, add_hub_options, add_output_options, check_upload_options
from .console import print_outcome
from .parsing import Parser
from .reporting import reporting


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand extract",
        usage="blockexpand extract TRAINED --base BASE --out OUT [options]",
        description="Save the new blocks of a trained expansion alone, as a block adapter of its "
        "base. Every original tensor has to be the base's, bit for bit: one that was trained too "
        "is named and refused. A checkpoint folder of a trainer will do.",
        epilog="examples:\n\n"
        "  blockexpand extract ./trained --base org/name --out ./my-blocks\n"
        "  blockexpand extract ./trained --base ./base --out ./my-blocks \\\n"
        "      --push-to-hub me/my-blocks",
    )
    add = parser.add_argument
    add("trained", metavar="TRAINED", help="the trained model: a folder")
    add("--base", required=True, help="the model that was expanded")
    add("--out", required=True, help="folder to create for the adapter")
    add(
        "--with-changed",
        action="store_true",
        help="store originals that were trained too, instead of refusing them",
    )
    add("--overwrite", action="store_true", help="replace OUT once the new one is complete")
    hub = add_hub_options(parser)
    hub.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="upload the adapter to the model repository REPO (or REPO@BRANCH), made if there is "
        "none",
    )
    add_commit_options(hub)
    add_output_options(parser, verbose="print every tensor", progress=True)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    check_upload_options(options)
    from ..api.extraction import extract
    from . import text_adapters

    with reporting(options) as progress:
        result = extract(
            options.trained,
            options.out,
            base=options.base,
            with_changed=options.with_changed,
            overwrite=options.overwrite,
            revision=options.revision,
            token=options.token,
            cache_dir=options.cache_dir,
            push_to_hub=options.push_to_hub,
            private=options.private,
            commit_message=options.commit_message,
            create_pr=options.create_pr,
            progress=progress,
        )
    print_outcome(
        options, text_adapters.extraction_as_json, text_adapters.describe_extraction, result
    )
    return 0
