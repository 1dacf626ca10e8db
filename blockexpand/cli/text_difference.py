"""A comparison of two checkpoints as text and as JSON. It prints nothing itself.

Tensors that fared alike and differ in the number of their layer or expert share a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from typing import Any

from ..messages import join_lines
from ..verification.difference import Difference, Status, TensorDifference
from .text import format_size

_STATUSES: tuple[Status, ...] = ("same", "changed", "new", "missing")


def describe_difference(difference: Difference, *, verbose: bool) -> str:
    """Return the counts, then every tensor by how it fared; one line each if `verbose`."""
    lines = [difference.matched_by]
    for status in _STATUSES:
        tensors = [tensor for tensor in difference.tensors if tensor.status == status]
        size = format_size(sum(tensor.nbytes for tensor in tensors))
        lines.append(f"{status:8}{len(tensors):6} tensors, {size}" + _where(tensors))
    for status in _STATUSES:
        tensors = [tensor for tensor in difference.tensors if tensor.status == status]
        shown = map(_line, tensors) if verbose else _group(tensors)
        lines += [f"  {status:8} {line}" for line in shown]
    originals = [t for t in difference.tensors if t.base_name and not t.in_new_block]
    if difference.lost:
        lines.append(
            f"{len(difference.lost)} of {len(originals)} original tensors are not as in BASE"
        )
    else:
        lines.append(f"all {len(originals)} original tensors are bit-identical")
    return join_lines(lines)


def difference_as_json(difference: Difference) -> dict[str, Any]:
    """Return every tensor for scripts; `offset` is the first differing byte of the tensor."""
    tensors = difference.tensors
    return {
        "base": difference.base,
        "other": difference.other,
        "matched_by": difference.matched_by,
        "originals_identical": not difference.lost,
        "counts": {s: sum(tensor.status == s for tensor in tensors) for s in _STATUSES},
        "tensors": [
            {
                "name": tensor.name,
                "base_name": tensor.base_name,
                "other_name": tensor.other_name,
                "status": tensor.status,
                "in_new_block": tensor.in_new_block,
                "nbytes": tensor.nbytes,
                "offset": tensor.offset,
                "message": tensor.message,
            }
            for tensor in tensors
        ],
    }


def _where(tensors: list[TensorDifference]) -> str:
    inside = sum(tensor.in_new_block for tensor in tensors)
    if not inside:
        return ""
    return ", all in new blocks" if inside == len(tensors) else f", {inside} of them in new blocks"


def _line(tensor: TensorDifference) -> str:
    renamed = tensor.base_name and tensor.other_name and tensor.base_name != tensor.other_name
    name = f"{tensor.base_name} → {tensor.other_name}" if renamed else tensor.name
    return f"{name}: {tensor.message}" if tensor.message else name


def _group(tensors: Iterable[TensorDifference]) -> list[str]:
    """Fold names that differ in numbers only, if all combinations of the numbers are there:
    `model.layers.{0-31}.mlp.up_proj.weight`."""
    groups: dict[str, list[tuple[int, ...]]] = {}
    for tensor in tensors:
        pieces = re.split(r"(?<=\.)(\d+)(?=\.)", tensor.name)
        # A name may hold braces of its own.
        between = [piece.replace("{", "{{").replace("}", "}}") for piece in pieces[::2]]
        groups.setdefault("{}".join(between), []).append(tuple(map(int, pieces[1::2])))
    lines = []
    for pattern, numbers in groups.items():
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        if prod(map(len, columns)) == len(numbers):
            lines.append(pattern.format(*map(_ranges, columns)))
        else:
            lines += [pattern.format(*row) for row in numbers]
    return lines


def _ranges(numbers: list[int]) -> str:
    """Write sorted numbers as `7`, or `{0-3,5}`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
