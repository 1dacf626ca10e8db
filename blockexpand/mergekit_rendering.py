"""Layer map → mergekit passthrough recipe, for the model card. It writes no files.

Source: mergekit's documentation of its configuration file (`slices`, `layer_range`, `scale`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .layer_map import LayerMap


def make_recipe(
    model: str, layer_map: LayerMap, neutral: Mapping[str, float], dtype: str
) -> dict[str, Any] | None:
    """Return the mergekit recipe that describes an expansion of `model`, as plain data.

    `neutral` maps suffixes to constants. None where mergekit has no words for it: it scales
    tensors, so it can make a weight 0, but not -1.
    """
    if any(neutral.values()):
        return None
    scale = [{"filter": name, "value": 0.0} for name in _filters(neutral)] + [{"value": 1.0}]
    slices: list[dict[str, Any]] = []
    for entry in layer_map:
        source: dict[str, Any] = {
            "model": model,
            "layer_range": [entry.source, entry.source + 1],
        }
        last = slices[-1]["sources"][0] if slices else None
        if entry.is_new:
            source["parameters"] = {"scale": [dict(rule) for rule in scale]}
        elif last and "parameters" not in last and last["layer_range"][1] == entry.source:
            last["layer_range"][1] += 1
            continue
        slices.append({"sources": [source]})
    recipe: dict[str, Any] = {"slices": slices, "merge_method": "passthrough"}
    if dtype != "source":
        recipe["dtype"] = dtype
    return recipe


def render_recipe(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as the YAML that mergekit reads."""
    import yaml

    return yaml.safe_dump(dict(recipe), sort_keys=False, default_flow_style=None)


def _filters(neutral: Mapping[str, float]) -> list[str]:
    """Return mergekit's filters: parts of tensor names, each standing for weight and bias."""
    names = []
    for suffix in neutral:
        name = re.sub(r"(\.weight|\.bias|_bias)$", "", suffix)
        # The names of experts' projections differ only in the expert's number.
        names.append(name.rpartition(".")[2] if re.search(r"\.\d+\.", name) else name)
    return list(dict.fromkeys(names))
