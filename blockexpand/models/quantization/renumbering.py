"""Where layers go, and the proof that a rewritten config says of each what it said before. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .find import Quantization
from .matchers import SKIPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class Renumbering:
    """Where each layer of the source goes; `full` are the output's layers stored unquantised.

    `prefix` stands before a layer's number in tensor names, `spellings` are the prefixes that the
    config may use for it, `others` those by which a loader may call the layers of a model whose
    parts it regroups.
    """

    prefix: str
    spellings: tuple[str, ...]
    others: tuple[str, ...] = ()
    places: Mapping[int, tuple[int, ...]]
    full: frozenset[int]

    def spell(self, layer: int, rest: str) -> list[str]:
        """Return all names of a module of an output's layer."""
        return [f"{prefix}{layer}.{rest}" for prefix in (self.prefix, *self.others)]

    def split(self, module: str) -> tuple[int | None, str]:
        """Return a module's layer, None outside of the layers, and what follows the number."""
        if module.startswith(self.prefix):
            number, _, rest = module[len(self.prefix) :].partition(".")
            if number.isdecimal():
                return int(number), rest
        return None, module


def find_fault(
    quantization: Quantization,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    modules: Mapping[str, bool],
    renumbering: Renumbering,
) -> str:
    """Say which module some loader takes for something else than its source; nothing if none."""
    for engine, read in quantization.method.engines.items():
        for module, is_quantized in modules.items():
            layer, rest = renumbering.split(module)
            if layer is None:
                places = [(module, read(before, module))]
            else:
                # Layers as the files call them, and as a loader may that regroups the model.
                places = [
                    (
                        f"{prefix}{j}.{rest}",
                        SKIPPED
                        if j in renumbering.full
                        else read(before, f"{prefix}{layer}.{rest}"),
                    )
                    for prefix in (renumbering.prefix, *renumbering.others)
                    for j in renumbering.places.get(layer, ())
                    if is_quantized or j not in renumbering.full
                ]
            for name, wanted in places:
                # What is not quantised may be named now, and have been left out without a name.
                is_right = (found := read(after, name)) == wanted or (
                    not is_quantized and found == SKIPPED
                )
                if not is_right:
                    return f"to {engine}, {name!r} would be {found} instead of {wanted}"
    return ""
