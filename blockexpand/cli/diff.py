"""`blockexpand diff`: compare two checkpoints tensor by tensor. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from .arguments import add_hub_options, add_output_options, add_paranoid_option
from .console import note_unused_options, print_outcome, tell_difference
from .parsing import Parser

if TYPE_CHECKING:
    from ..verification.difference import Difference


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand diff",
        usage="blockexpand diff BASE OTHER [OTHER ...] [options]",
        description="List which tensors of two checkpoints are the same bit for bit, changed, new "
        "or missing. Where one is an expansion of the other, each original layer is compared with "
        "the layer that it was taken from. Exit status 1 if a tensor of BASE, but for those of new "
        "blocks, is changed or missing in OTHER.",
    )
    add = parser.add_argument
    add("base", metavar="BASE", help="a folder or a Hub repository")
    add(
        "others",
        metavar="OTHER",
        nargs="+",
        help="a folder: BASE expanded, trained, or both; several are each compared with BASE, "
        "such as the checkpoints of a training run in their order",
    )
    add(
        "--stats",
        action="store_true",
        help="also measure how far each tensor has come: its distance, and the share of its "
        "elements that changed",
    )
    add(
        "--html",
        metavar="FILE",
        help="write a page that shows the layers, what changed in the new blocks and how they "
        "grew over the checkpoints; implies --stats",
    )
    add_paranoid_option(parser)
    add_hub_options(parser)
    add_output_options(parser, verbose="print a line for every tensor", progress=True)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    note_unused_options(options, options.base)
    from ..api.comparing import diff
    from . import text_difference as report_difference
    from .reporting import reporting

    if options.html is not None:
        _check_page(options.html)
    with reporting(options) as progress:
        differences = [
            diff(
                options.base,
                other,
                stats=options.stats or options.html is not None,
                paranoid=options.paranoid,
                revision=options.revision,
                token=options.token,
                cache_dir=options.cache_dir,
                progress=progress,
            )
            for other in options.others
        ]
    if options.html is not None:
        _write_page(options.html, differences)
    print_outcome(
        options,
        report_difference.differences_as_json,
        report_difference.describe_differences,
        differences,
    )
    losses = [difference for difference in differences if difference.lost]
    if not losses:
        return 0
    first = losses[0].lost[0]
    why = f" ({first.message})" if first.status == "missing" and first.message else ""
    return tell_difference(
        f"{losses[0].other}: {len(losses[0].lost)} original tensors are changed or missing, the "
        f"first: {first.name!r} is {first.status}{why or _cure(losses[0])}"
    )


def _cure(difference: Difference) -> str:
    """Say what to compare with where an expansion in another dtype than BASE's was trained."""
    if not difference.of_other_dtypes:
        return ""
    first = difference.lost[0]
    if not difference.layer_map:
        return f" ({first.message})"
    return (
        f" ({first.message}): none has the dtype of BASE, so no values were compared; compare with "
        "the expansion that was trained"
    )


def _check_page(file: str) -> None:
    """Refuse what could not be written before the models are read, which may take an hour."""
    from ..fs.paths import expand_home

    path = expand_home(file)
    if path.is_file() and not _is_page(path):
        raise OutputError(f"{file}: exists and is no page of `blockexpand diff`; give another name")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"no folder {path.parent}"
        raise OutputError(f"{file}: {what}; give the name of a page to write, such as diff.html")


def _is_page(path: Path) -> bool:
    """Tell whether a file is a page of an earlier comparison, or empty: no other is replaced."""
    from .page_difference import PAGE_MARK

    with path.open("rb") as stream:
        start = stream.read(200)
    return not start or PAGE_MARK.encode() in start


def _write_page(file: str, differences: Sequence[Difference]) -> None:
    from ..fs.paths import expand_home
    from .page_difference import render_page

    path = expand_home(file)
    try:
        path.write_text(render_page(differences), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"{file}: cannot write: {error.strerror}; give another name") from None
