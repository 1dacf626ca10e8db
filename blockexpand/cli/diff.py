"""`blockexpand diff`: compare two checkpoints tensor by tensor. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import add_hub_options, add_output_options
from .console import print_outcome, tell_difference
from .parsing import Parser
from .reporting import reporting


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand diff",
        usage="blockexpand diff BASE OTHER [options]",
        description="List which tensors of two checkpoints are the same bit for bit, changed, new "
        "or missing. Where one is an expansion of the other, each original layer is compared with "
        "the layer that it was taken from. Exit status 1 if a tensor of BASE, but for those of new "
        "blocks, is changed or missing in OTHER.",
    )
    add = parser.add_argument
    add("base", metavar="BASE", help="a folder or a Hub repository")
    add("other", metavar="OTHER", help="a folder: BASE expanded, trained, or both")
    add_hub_options(parser)
    add_output_options(parser, verbose="print a line for every tensor", progress=True)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    from ..api.comparing import diff
    from . import text_difference as report_difference

    with reporting(options) as progress:
        difference = diff(
            options.base,
            options.other,
            revision=options.revision,
            token=options.token,
            cache_dir=options.cache_dir,
            progress=progress,
        )
    print_outcome(
        options,
        report_difference.difference_as_json,
        report_difference.describe_difference,
        difference,
    )
    if not difference.lost:
        return 0
    first = difference.lost[0]
    return tell_difference(
        f"{options.other}: {len(difference.lost)} original tensors are changed or missing, the "
        f"first: {first.name!r} is {first.status}"
    )
