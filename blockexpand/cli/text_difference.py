"""A comparison of two checkpoints as text and as JSON. It prints nothing itself.

Tensors that fared alike and differ in the number of their layer or expert share a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from ..messages import join_lines
from ..models.decoder import split_name
from ..verification.difference import Difference, Status, TensorDifference
from .text_sizes import describe_shared, format_size

# What a reader looks for comes first.
_LISTED: tuple[Status, ...] = ("changed", "missing", "new", "same")

_STATUSES: tuple[Status, ...] = ("same", "changed", "new", "missing")


def describe_difference(difference: Difference, *, verbose: bool) -> str:
    """Return the counts, then every tensor by how it fared; one line each if `verbose`."""
    lines = [difference.matched_by]
    for status in _STATUSES:
        tensors = [tensor for tensor in difference.tensors if tensor.status == status]
        size = format_size(sum(tensor.nbytes for tensor in tensors))
        lines.append(f"{status:8}{len(tensors):6} tensors, {size}" + _where(tensors))
    for status in _LISTED:
        tensors = [tensor for tensor in difference.tensors if tensor.status == status]
        shown = map(_line, tensors) if verbose else _group(tensors)
        lines += [f"  {status:8} {line}" for line in shown]
    originals = [t for t in difference.tensors if t.base_name and not t.in_new_block]
    if difference.lost:
        dropped = sum(t.status == "missing" and t.message is not None for t in difference.lost)
        lines.append(
            f"{len(difference.lost)} of {len(originals)} original tensors are not as in BASE"
            + (f", {dropped} of them in layers that were dropped" if dropped else "")
        )
    else:
        lines.append(f"all {len(originals)} original tensors are bit-identical")
    if difference.shared:
        lines.append(describe_shared(difference.shared))
    measured = [tensor for tensor in difference.tensors if tensor.statistics is not None]
    if any(tensor.status != "same" for tensor in measured):
        lines += _statistics_lines(difference, verbose=verbose)
    return join_lines(lines)


def describe_differences(differences: Sequence[Difference], *, verbose: bool) -> str:
    """Return several comparisons with one base, each under its name."""
    if len(differences) == 1:
        return describe_difference(differences[0], verbose=verbose)
    parts = []
    for difference in differences:
        head = join_lines([f"{difference.other}:"])
        parts.append(f"{head}\n{describe_difference(difference, verbose=verbose)}")
    return "\n\n".join(parts)


def differences_as_json(differences: Sequence[Difference]) -> dict[str, Any]:
    """Return one comparison as it is, several as a list."""
    if len(differences) == 1:
        return difference_as_json(differences[0])
    return {"comparisons": [difference_as_json(difference) for difference in differences]}


def _statistics_lines(difference: Difference, *, verbose: bool) -> list[str]:
    """Return how far tensors have come, those of one kind in new blocks on a line together."""
    lines = ["distance from where it began, by the norm of its source; share of changed elements"]
    groups: dict[str, list[TensorDifference]] = {}
    for tensor in difference.tensors:
        if tensor.statistics is None or tensor.status == "same":
            continue
        split = split_name(tensor.name, difference.layer_prefix) if tensor.in_new_block else None
        kind = tensor.name if verbose or split is None else f"new blocks: {split[1]}"
        groups.setdefault(kind, []).append(tensor)
    width = max(map(len, groups))
    for kind, tensors in groups.items():
        found = [tensor.statistics for tensor in tensors if tensor.statistics is not None]
        distances = [s.distance for s in found if s.distance is not None]
        shares = [100 * s.changed_share for s in found]
        lines.append(f"  {kind:{width}}  {_span(distances, ''):>17}  {_span(shares, ' %'):>13}")
    return lines


def _span(values: Sequence[float], unit: str) -> str:
    if not values:
        return "-"
    ends = dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values)))
    return "–".join(ends) + unit


def difference_as_json(difference: Difference) -> dict[str, Any]:
    """Return every tensor for scripts; `offset` is the first differing byte of the tensor."""
    tensors = difference.tensors
    return {
        "base": difference.base,
        "other": difference.other,
        "matched_by": difference.matched_by,
        "originals_identical": not difference.lost,
        "shared": difference.shared,
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
                "statistics": None
                if tensor.statistics is None
                else {
                    "compared_with": tensor.statistics.compared_with,
                    "began_at": tensor.statistics.began_at,
                    "distance": tensor.statistics.distance,
                    "changed_share": tensor.statistics.changed_share,
                },
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
