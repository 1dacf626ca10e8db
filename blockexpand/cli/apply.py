"""`blockexpand apply`: a base with the blocks of adapters in it. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import add_hub_options, add_output_options, not_empty
from .console import print_outcome
from .parsing import Parser
from .reporting import reporting


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand apply",
        usage="blockexpand apply BASE BLOCKS [BLOCKS ...] --out OUT [options]",
        description="Put block adapters on their base: every tensor as it was trained. The base "
        "is proven first to be the one that the blocks were trained in.",
        epilog="examples:\n\n"
        "  blockexpand apply org/name me/my-blocks --out ./model\n"
        "  blockexpand apply ./base ./my-blocks --out ./half --scale 0.5\n"
        "  blockexpand apply ./base ./one ./other --out ./both",
    )
    add = parser.add_argument
    add("base", type=not_empty, metavar="BASE", help="a folder or a Hub repository")
    add(
        "adapters",
        type=not_empty,
        nargs="+",
        metavar="BLOCKS",
        help="folders that `blockexpand extract` made, or Hub repositories of them",
    )
    add("--out", type=not_empty, required=True, help="folder to create for the whole model")
    add(
        "--scale",
        type=float,
        default=1.0,
        metavar="S",
        help="scale what the blocks add: 1 is the trained model (the default), 0 the base, exactly",
    )
    add(
        "--trust-base",
        action="store_true",
        help="do not read the base to prove it; config and headers are still compared",
    )
    add(
        "--force-base",
        action="store_true",
        help="take another base of the same shape, and say in the card what differs",
    )
    add(
        "--reflink",
        nargs="?",
        const="always",
        default="auto",
        choices=("auto", "always", "never"),
        metavar="WHEN",
        help="share unchanged blocks with the base: auto (the default), always or never",
    )
    add("--hardlink", action="store_true", help="link shards of the base that do not change")
    add("--overwrite", action="store_true", help="replace OUT once the new one is complete")
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    add = add_hub_options(parser).add_argument
    add("--push-to-hub", metavar="REPO", help="upload OUT to the model repository REPO")
    add("--private", action="store_true", help="with --push-to-hub: make a new REPO private")
    add_output_options(parser, verbose="print every file", progress=True)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    from ..api.application import apply, plan_apply
    from . import text

    hub = {name: getattr(options, name) for name in ("revision", "token", "cache_dir")}
    common = {
        "out": options.out,
        "scale": options.scale,
        "force_base": options.force_base,
        "overwrite": options.overwrite,
        **hub,
    }
    if options.dry_run:
        plan, name = plan_apply(options.base, *options.adapters, **common)
        print_outcome(options, text.plan_as_json, text.describe_plan, plan, name, Path(options.out))
        return 0
    with reporting(options) as progress:
        result = apply(
            options.base,
            *options.adapters,
            **common,
            trust_base=options.trust_base,
            reflink=options.reflink,
            hardlink=options.hardlink,
            push_to_hub=options.push_to_hub,
            private=options.private,
            progress=progress,
        )
    print_outcome(options, text.expansion_as_json, text.describe_expansion, result)
    return 0
