"""Which layers an output has and what is neutral in the new ones, as runs and as text. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..checkpoints.sources import ModelRef
from ..models.layer_map import LayerMap
from .markdown import code, fold
from .plan import Plan

_FOLDED_RUNS = 12  # a longer table of layers is folded


def render_layers(plan: Plan, source: ModelRef, others: Mapping[str, ModelRef]) -> str:
    """Return the card's table of layers; `others` are the further models of a recipe."""
    rows = ["| layers | taken from |", "|---|---|"]
    runs = layer_runs(plan.layer_map)
    for first, last, origin, is_new in runs:
        other = others.get(plan.name_model(plan.layer_map[first].model) or "", source)
        # In a table a bar ends the cell, even within code.
        model = f" of {code(other.public)}".replace("|", "\\|") if others else ""
        count = last - first
        layers = f"{first}" if not count else f"{first}–{last}"
        if is_new:
            rows.append(f"| **{layers}** | new: clone of layer {origin} |")
        else:
            taken = f"{origin}" if not count else f"{origin}–{origin + count}"
            rows.append(f"| {layers} | {taken}{model} |")
    table = "\n".join(rows)
    if len(runs) > _FOLDED_RUNS:
        table = fold(f"All {len(plan.layer_map)} layers", table)
    if plan.new_layers:
        table += f"\n\nLayers count from 0. In every new layer:\n\n{render_neutral(plan.neutral)}"
    return table


def layer_runs(layer_map: LayerMap) -> list[tuple[int, int, int, bool]]:
    """Return runs of a layer map as (first, last, source of the first, is new), last included."""
    runs: list[tuple[int, int, int, bool]] = []
    for index, entry in enumerate(layer_map):
        if runs:
            first, _, source, is_new = runs[-1]
            follows = source if is_new else source + index - first
            same = (is_new, layer_map[first].model) == (entry.is_new, entry.model)
            if same and entry.source == follows:
                runs[-1] = (first, index, source, is_new)
                continue
        runs.append((index, index, entry.source, entry.is_new))
    return runs


def describe_neutral(neutral: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return suffixes with their constant, the numbers of experts written as one `{e}`."""
    seen = {re.sub(r"\.\d+\.", ".{e}.", suffix): constant for suffix, constant in neutral.items()}
    return list(seen.items())


def render_neutral(neutral: Mapping[str, float]) -> str:
    lines = []
    for suffix, constant in describe_neutral(neutral):
        lines.append(f"- {code(suffix)} is {'zeroed' if constant == 0 else f'set to {constant:g}'}")
    return "\n".join(lines)
