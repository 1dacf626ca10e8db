"""`blockexpand families`: which model types can be expanded, and where not. Parser and run."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from .arguments import add_output_options
from .console import print_outcome
from .parsing import Parser

_WIDTH = 79


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand families",
        usage="blockexpand families [NAME | --infer DIR] [--json]",
        description="List the model types that can be expanded, or say what holds for one of "
        "them: what is zeroed in its new blocks, and what cannot be done.",
        epilog="examples:\n  blockexpand families qwen3\n  blockexpand families --json",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the 'model_type' of a config.json")
    parser.add_argument(
        "--infer",
        metavar="DIR",
        help="print the row that would be inferred for the checkpoint in DIR, as YAML to edit and "
        "to give to --family; it is a guess until --family has proven it",
    )
    add_output_options(parser)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    from ..api.support import list_families, look_up_family

    if options.infer is not None:
        return _infer(options)
    if options.name is None:
        print_outcome(options, _list_as_json, _describe_list, list_families())
        return 0
    print_outcome(options, _family_as_json, _describe_family, look_up_family(options.name))
    return 0


def _infer(options: argparse.Namespace) -> int:
    from ..api.rows import infer_folder

    if options.name is not None:
        raise UsageError("NAME does not go with --infer DIR")
    print_outcome(options, lambda row: row, _describe_row, infer_folder(options.infer))
    return 0


def _describe_row(row: dict[str, Any], *, verbose: bool) -> str:
    import yaml

    return str(yaml.safe_dump(row, sort_keys=False, default_flow_style=None)).rstrip()


def _describe_list(support: Any, *, verbose: bool) -> str:
    lines = [f"{len(support.decoders)} decoders:", *_wrap(support.decoders)]
    lines += ["", f"{len(support.multimodal)} models that see or hear, around one of these:"]
    lines += [*_wrap(support.multimodal), "", "refused whatever the position:"]
    for reason, names in support.refused.items():
        lines += [*_wrap([f"{reason}:"]), *_wrap(names, "    ")]
    lines += ["", "`blockexpand families NAME` says what holds for one of them."]
    return "\n".join(lines)


def _list_as_json(support: Any) -> dict[str, Any]:
    return {
        "decoders": list(support.decoders),
        "multimodal": list(support.multimodal),
        "refused": {name: why for why, names in support.refused.items() for name in names},
    }


def _describe_family(family: Any, *, verbose: bool) -> str:
    lines = _wrap([f"{family.name}: {family.status}"], "")
    lines += [line for remark in family.remarks for line in _wrap([remark])]
    return "\n".join(lines)


def _family_as_json(family: Any) -> dict[str, Any]:
    return {
        "name": family.name,
        "supported": family.is_supported,
        "status": family.status,
        "remarks": list(family.remarks),
    }


def _wrap(words: Sequence[str], indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        ", ".join(words),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
