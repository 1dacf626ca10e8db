"""How many parameters a plan's output has, and how many of them are new: from headers alone. Pure.

Counted is what is stored: a tied head that a checkpoint leaves out counts once, as in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..formats.tensor_spec import TensorSpec
from .origins import Gather
from .plan import Plan

# An element of these is a number that the model computes with.
_COUNTED = frozenset(
    {"F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ"}
    | {"F6_E2M3", "F6_E3M2", "F4"}
)

# Quantisation packs several weights into an element of these, or keeps its scales and offsets in
# them; how many a tensor holds is not in the header. Indices and masks have other dtypes.
_PACKED = frozenset({"U8", "I8", "U16", "I16", "U32", "I32", "F8_E8M0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """`total` and `new` count elements of floating-point tensors, of any width.

    `packed_nbytes` and `new_packed_nbytes` are bytes of tensors that hold quantised weights in
    integers, whose number a header does not tell: they are in neither count.
    """

    total: int
    new: int
    packed_nbytes: int = 0
    new_packed_nbytes: int = 0

    @property
    def original(self) -> int:
        """The parameters outside of the new blocks."""
        return self.total - self.new

    @property
    def new_share(self) -> float | None:
        """The part of all parameters that is new; None where packed weights hide the number."""
        if self.packed_nbytes or not self.total:
            return None
        return self.new / self.total


def count_parameters(plan: Plan) -> Parameters:
    """Count the parameters of a plan's whole output and those in its new blocks."""
    tables = {t.name for t in plan.changed_tensors if isinstance(t.origin, Gather)}
    tensors = ((name, spec) for file in plan.files for name, spec, _, _ in file.tensors)
    layers = len(plan.layer_map)
    return count_tensors(tensors, plan.layer_prefix, plan.new_layers, tables=tables, layers=layers)


def count_tensors(
    tensors: Iterable[tuple[str, TensorSpec]],
    layer_prefix: str,
    new_layers: Collection[int],
    *,
    tables: Collection[str] = (),
    layers: int = 1,
) -> Parameters:
    """Count the parameters of tensors by name; layers are called `layer_prefix` and a number.

    `tables` have a part for each of all `layers`.
    """
    prefixes = tuple(f"{layer_prefix}{layer}." for layer in new_layers)
    total = new = packed = new_packed = 0
    for name, spec in tensors:
        is_counted = spec.dtype in _COUNTED
        count = math.prod(spec.shape) if is_counted else 0
        nbytes = 0 if is_counted or spec.dtype not in _PACKED else spec.nbytes
        total += count
        packed += nbytes
        if name.startswith(prefixes):
            new += count
            new_packed += nbytes
        elif name in tables:
            new += count // layers * len(prefixes)
    return Parameters(total=total, new=new, packed_nbytes=packed, new_packed_nbytes=new_packed)


def spell_count(count: int) -> str:
    """Return a number of parameters in three digits: `7.24B`, `805M`."""
    number = float(count)
    for unit in ("", "K", "M", "B"):
        if number < 999.5:
            return f"{number:.3g}{unit}" if number < 99.95 else f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def describe_parameters(parameters: Parameters) -> str:
    """Return one line: `8.11B parameters: 7.24B original + 872M new (10.8 %)`."""
    share = parameters.new_share
    text = f"{spell_count(parameters.total)} parameters"
    if parameters.new:
        part = "" if share is None else f" ({100 * share:.3g} %)"
        text += (
            f": {spell_count(parameters.original)} original + "
            f"{spell_count(parameters.new)} new{part}"
        )
    if parameters.packed_nbytes:
        text += (
            f"; not counted: quantised weights packed in {parameters.packed_nbytes:,} bytes of "
            f"integers, {parameters.new_packed_nbytes:,} of them new"
        )
    return text
