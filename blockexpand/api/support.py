"""What the table of families says of a model type, in words. It opens no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from ..models.families import FAMILIES, MULTIMODAL
from ..models.families.family import Family
from ..models.families.refused import REFUSED

_MOST_ALIKE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Model types by how they fare; `refused` maps each reason to those that it holds for."""

    decoders: tuple[str, ...]
    multimodal: tuple[str, ...]
    refused: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySupport:
    """How one model type fares: `status` in a few words, `remarks` on what it means."""

    name: str
    is_supported: bool
    status: str
    remarks: tuple[str, ...] = ()


def list_families() -> Support:
    """Return every model type that is known."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in REFUSED.items():
        by_reason.setdefault(reason, []).append(name)
    return Support(
        decoders=tuple(sorted(FAMILIES)),
        multimodal=tuple(sorted(MULTIMODAL)),
        refused={reason: tuple(names) for reason, names in by_reason.items()},
    )


def look_up_family(name: str) -> FamilySupport:
    """Return what holds for a model type; for one that is unknown also the closest names."""
    if name in MULTIMODAL:
        text_type = MULTIMODAL[name].text_type
        decoder = look_up_family(text_type)
        return FamilySupport(
            name=name,
            is_supported=decoder.is_supported,
            status=f"supported: its text decoder is {text_type}",
            remarks=("if the config names no other decoder", *decoder.remarks),
        )
    if name in FAMILIES:
        return FamilySupport(
            name=name,
            is_supported=True,
            status="supported",
            remarks=tuple(_describe(FAMILIES[name])),
        )
    if name in REFUSED:
        return FamilySupport(name=name, is_supported=False, status=f"refused: {REFUSED[name]}")
    alike = get_close_matches(
        name.lower(), sorted({*FAMILIES, *MULTIMODAL, *REFUSED}), _MOST_ALIKE, 0.5
    )
    remarks = [f"closest names: {', '.join(alike)}"] if alike else []
    remarks.append(
        "expanding it infers which of its tensors must be zero, proves that with the class of "
        "transformers for this type, and refuses where it cannot; --family takes a row of your own"
    )
    return FamilySupport(
        name=name,
        is_supported=False,
        status="not in the table of families",
        remarks=tuple(remarks),
    )


def _describe(family: Family) -> list[str]:
    remarks = [f"layers are {family.prefixes[0]}<number>"]
    zeroed: list[str] = []
    norms: list[str] = []
    for branch in family.branches:
        for form in branch:
            zeroed += form.outputs
            norms += [f"{norm} (to {form.norm_value:g})" for norm in form.norms]
    remarks.append(f"zeroed in a new block, where a layer has them: {_join(zeroed)}")
    if norms:
        remarks.append(f"set instead, where a norm closes the branch: {_join(norms)}")
    if family.first_layer_differs:
        remarks.append("layer 0 has other tensors than the rest and cannot be cloned")
    if family.index_scaled is not None:
        remarks.append(
            "a layer may depend on its number: where it does, only --position end is possible"
        )
    if family.places:
        remarks.append("new blocks cannot stand everywhere; the run says where not")
    remarks += [f"refused where {refusal.reason}" for refusal in family.refuse]
    return remarks


def _join(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))
