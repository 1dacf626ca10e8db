"""What `extract` has done, as text and as JSON."""

from __future__ import annotations

import math
from typing import Any

from ..api.extraction import Extraction
from ..planning.parameters import spell_count
from .text_sizes import format_size


def describe_extraction(result: Extraction, *, verbose: bool) -> str:
    """Return some lines on an adapter."""
    adapter = result.adapter
    numbers = ", ".join(map(str, adapter.new_layers))
    parameters = sum(math.prod(tensor.spec.shape) for tensor in adapter.tensors.values())
    lines = [
        f"{result.out}: layers {numbers} of {len(adapter.layer_map)}, "
        f"{format_size(result.nbytes)}, {spell_count(parameters)} parameters",
        f"base {adapter.base.name.model}: all {len(adapter.base.tensors)} tensors "
        + ("are in the trained model" if not adapter.changed else "compared"),
    ]
    if adapter.changed:
        lines.append(f"{len(adapter.changed)} changed original tensors are stored too")
    if verbose:
        lines += [f"  {name}" for name in (*adapter.tensors, *adapter.changed)]
    lines += [f"note: {note}" for note in result.notes]
    if result.pushed:
        lines.append(f"uploaded: {result.pushed}")
    return "\n".join(lines)


def extraction_as_json(result: Extraction) -> dict[str, Any]:
    """Return the same as plain data."""
    adapter = result.adapter
    return {
        "out": str(result.out),
        "base": adapter.base.name.model,
        "new_layers": list(adapter.new_layers),
        "layers": len(adapter.layer_map),
        "files": list(adapter.files),
        "nbytes": result.nbytes,
        "tensors": len(adapter.tensors),
        "changed": list(adapter.changed),
        "notes": list(result.notes),
        "pushed": result.pushed,
    }
