"""`blockexpand show`: what a model is. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .arguments import add_hub_options, add_output_options
from .console import note_unused_options, print_outcome
from .parsing import Parser

_STRIP_WIDTH = 72

_EPILOG = """\
examples:
  blockexpand show ./bigger
  blockexpand show org/name --json

In the strip a low mark is an original layer, a high one a new block: ▁▁▁█▁▁▁█"""


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand show",
        usage="blockexpand show MODEL [options]",
        description="Say what a model is: its layers and which of them are new, parameters, files, "
        "what it was made from, and whether its new blocks were trained. Of a Hub repository only "
        "headers are fetched.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or a Hub repository")
    add_hub_options(parser)
    add_output_options(parser)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    note_unused_options(options, options.model)
    from ..api.overview import show

    overview = show(
        options.model, revision=options.revision, token=options.token, cache_dir=options.cache_dir
    )
    print_outcome(options, _as_json, _describe, overview)
    return 0


def _describe(overview: Any, *, verbose: bool) -> str:
    from ..planning.parameters import describe_parameters
    from .text_sizes import format_size

    facts = [("family", overview.model_type), ("dtype", overview.dtype)]
    if overview.quantized is not None:
        facts.append(("quantized", overview.quantized))
    lines = [overview.name]
    if overview.layer_map is not None:
        new = len(overview.new_layers)
        total = len(overview.layer_map)
        facts.append(("layers", f"{total - new} + {new} new = {total}" if new else f"{total}"))
    facts.append(("parameters", describe_parameters(overview.parameters)))
    facts.append(("weights", f"{format_size(overview.nbytes)} in {_count(overview.files, 'file')}"))
    if overview.trained is not None:
        state = (
            f"trained: {overview.trained} of {overview.closing} closing tensors have changed"
            if overview.trained
            else "untrained: they pass their input through"
        )
        facts.append(("new blocks", state))
    facts += [("made from", generation) for generation in overview.lineage[:1]]
    facts += [("that from", generation) for generation in overview.lineage[1:]]
    if overview.is_inferred:
        facts.append(
            ("expansion", "by a row that a run infers and proves: the table does not know the type")
        )
    if overview.refusal is not None:
        facts.append(("expansion", f"not possible: {overview.refusal}"))
    lines += [f"  {name:12}{_wrap(text)}" for name, text in facts]
    if overview.layer_map is not None:
        lines += ["", *_strip(overview.layer_map)]
    return "\n".join(lines)


def _strip(layer_map: Any) -> list[str]:
    """Draw the depth of a model, lowest layer first, a mark for each layer."""
    marks = "".join("█" if entry.is_new else "▁" for entry in layer_map)
    return [
        f"  {begin:5} {marks[begin : begin + _STRIP_WIDTH]}"
        for begin in range(0, len(marks), _STRIP_WIDTH)
    ]


def _wrap(text: str) -> str:
    import textwrap

    return ("\n" + " " * 14).join(
        textwrap.wrap(text, 65, break_long_words=False, break_on_hyphens=False) or [""]
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _as_json(overview: Any) -> dict[str, Any]:
    from .text import parameters_as_json

    entries = overview.layer_map
    return {
        "model": overview.name,
        "model_type": overview.model_type,
        "dtype": overview.dtype,
        "quantized": overview.quantized,
        "layers": None if entries is None else len(entries),
        "layer_map": None if entries is None else [entry.source for entry in entries],
        "new_layers": list(overview.new_layers),
        "parameters": parameters_as_json(overview.parameters),
        "nbytes": overview.nbytes,
        "files": overview.files,
        "lineage": list(overview.lineage),
        "closing_tensors": overview.closing,
        "trained_tensors": overview.trained,
        "refusal": overview.refusal,
        "row_inferred": overview.is_inferred,
    }
