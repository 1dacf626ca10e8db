"""`blockexpand suggest`: how many blocks fit a model, and their cost. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .arguments import add_hub_options, add_output_options
from .console import note_unused_options, print_outcome
from .parsing import Parser

_REMARKS = """\
Equal groups suit every trainer. * is nearest to LLaMA Pro's own, a block after each 4 layers,
which did best there (arXiv 2401.02415, table 5). "to train" is the memory for the weights as they
are and, for each parameter of the new blocks, 16 bytes (float32 copy, gradient, Adam's moments);
activations come on top."""


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand suggest",
        usage="blockexpand suggest SRC [options]",
        description="List the numbers of new blocks that make equal groups, with the size of the "
        "output, its parameters and the memory to train the new blocks. Of a Hub repository only "
        "headers are fetched.",
        epilog="examples:\n  blockexpand suggest ./model\n  blockexpand suggest org/name",
    )
    parser.add_argument("src", metavar="SRC", help="a folder or a Hub repository")
    add_hub_options(parser)
    add_output_options(parser)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    note_unused_options(options, options.src)
    from ..api.suggesting import suggest

    found = suggest(
        options.src, revision=options.revision, token=options.token, cache_dir=options.cache_dir
    )
    print_outcome(options, _as_json, _describe, found)
    return 0


def _describe(found: Any, *, verbose: bool) -> str:
    import textwrap

    from ..planning.parameters import spell_count
    from .text_batch import make_table
    from .text_sizes import format_size

    rows = []
    for row in found.rows:
        share = row.parameters.new_share
        rows.append(
            (
                f"{row.new_layers}{'*' if row.is_papers else ''}",
                f"{row.position}, each {row.group}" if row.position != "end" else "end",
                f"{row.layers}",
                format_size(row.nbytes),
                spell_count(row.parameters.total),
                spell_count(row.parameters.new) + ("" if share is None else f" ({share:.1%})"),
                format_size(row.training_nbytes),
            )
        )
    head = ("new", "position", "layers", "size", "parameters", "trainable", "to train")
    lines = [f"{found.name} ({found.model_type}): {found.layers} layers", ""]
    lines += make_table(head, rows)
    lines += ["", *textwrap.wrap(_REMARKS, 79), *(f"note: {note}" for note in found.notes)]
    return "\n".join(lines)


def _as_json(found: Any) -> dict[str, Any]:
    from .text import parameters_as_json

    return {
        "source": found.name,
        "model_type": found.model_type,
        "original_layers": found.layers,
        "suggestions": [
            {
                "new_layers": row.new_layers,
                "position": row.position,
                "group": row.group,
                "layers": row.layers,
                "nbytes": row.nbytes,
                "parameters": parameters_as_json(row.parameters),
                "training_nbytes": row.training_nbytes,
                "nearest_to_llama_pro": row.is_papers,
            }
            for row in found.rows
        ],
        "notes": list(found.notes),
    }
