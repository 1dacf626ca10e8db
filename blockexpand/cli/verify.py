"""`blockexpand verify`: prove an output against its source. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import add_hub_options, add_output_options, add_paranoid_option
from .console import note_unused_options, print_outcome, tell_difference
from .parsing import Parser


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand verify",
        usage="blockexpand verify SRC OUT [options]",
        description="Compare every byte of an expansion with what its source and its recipe say "
        "it must be. New blocks may have been trained, and another tool may have made or saved the "
        "expansion: then its tensors are compared. Nothing that the Hub can show to be a copy is "
        "downloaded. Exit status 1 if anything else differs.",
    )
    add = parser.add_argument
    add("src", metavar="SRC", help="the source: a folder or a Hub repository")
    add("out", metavar="OUT", help="the expansion: a folder or a Hub repository")
    add(
        "--logits",
        action="store_true",
        help="also load both with transformers and compare their logits, bit for bit",
    )
    add(
        "--untrained",
        action="store_true",
        help="also fail where new blocks were trained, or another program saved the files",
    )
    add_paranoid_option(parser)
    add(
        "--trust-remote-code",
        action="store_true",
        help="let --logits run the code that SRC brings with it (auto_map), in a child process; "
        "read it first",
    )
    add_hub_options(parser)
    add_output_options(parser, verbose="print every difference in full", progress=True)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    note_unused_options(options, options.src)
    from ..api.comparing import verify
    from . import text_verification as report
    from .reporting import reporting

    with reporting(options) as progress:
        verification, proof = verify(
            options.src,
            options.out,
            logits=options.logits,
            untrained=options.untrained,
            paranoid=options.paranoid,
            trust_remote_code=options.trust_remote_code,
            revision=options.revision,
            token=options.token,
            cache_dir=options.cache_dir,
            progress=progress,
        )
    print_outcome(
        options,
        report.verification_as_json,
        report.describe_verification,
        verification,
        proof,
        Path(options.out),
    )
    if not verification.findings:
        return 0
    return tell_difference(report.describe_differences(verification, Path(options.out)))
