"""`blockexpand train-config`: print a trainer's settings. Its parser and its run."""

from __future__ import annotations

import argparse

from .arguments import add_output_options
from .console import print_outcome
from .parsing import Parser


def make_train_config_parser() -> Parser:
    from ..training.settings import FRAMEWORKS, PLACES

    parser = Parser(
        prog="blockexpand train-config",
        description="Print the settings with which a trainer trains the new blocks of an expansion "
        "and nothing else.",
        epilog=PLACES,
    )
    add = parser.add_argument
    add("out", metavar="OUT", help="the folder that blockexpand made")
    add("--framework", required=True, choices=tuple(FRAMEWORKS), help="the trainer")
    add_output_options(add)
    return parser


def run_train_config(options: argparse.Namespace) -> int:
    from ..training import settings as trainer_settings

    settings = trainer_settings.make_settings(options.out, options.framework)
    print_outcome(
        options, trainer_settings.settings_as_json, trainer_settings.describe_settings, settings
    )
    return 0
