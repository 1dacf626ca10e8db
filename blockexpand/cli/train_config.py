"""`blockexpand train-config`: print a trainer's settings. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import add_output_options
from .console import print_outcome
from .parsing import Parser


def make_parser() -> Parser:
    from ..training.settings import FRAMEWORKS, PLACES

    parser = Parser(
        prog="blockexpand train-config",
        usage="blockexpand train-config OUT --framework NAME [options]",
        description="Print the settings with which a trainer trains the new blocks of an expansion "
        "and nothing else.",
        epilog=PLACES,
    )
    add = parser.add_argument
    add("out", metavar="OUT", help="the folder that blockexpand made")
    add(
        "--framework",
        required=True,
        choices=tuple(FRAMEWORKS),
        metavar="NAME",
        help=f"the trainer: {', '.join(FRAMEWORKS)}",
    )
    add_output_options(parser)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    from ..training import settings as trainer_settings

    settings = trainer_settings.make_settings(options.out, options.framework)
    print_outcome(
        options, trainer_settings.settings_as_json, trainer_settings.describe_settings, settings
    )
    return 0
