"""Plan → the mergekit passthrough recipe of the same model, for the model card. Pure.

Source: mergekit's documentation of its configuration file (`slices`, `layer_range`, `scale`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...formats.tensor_spec import FLOAT_DTYPES
from ...models.decoder import split_name
from ..origins import Convert, Copy, Fill, Zeros
from ..plan import Plan


def make_recipe(plan: Plan, model: str) -> dict[str, Any] | None:
    """Return the mergekit recipe that makes the plan's tensors of `model`, as plain data.

    None where mergekit has no words for it: it scales tensors, so it can make a weight 0, but not
    -1.
    """
    dtype = {"dtype": plan.options.dtype} if _names_dtype(plan) else {}
    fills = any(isinstance(tensor.origin, Fill) for tensor in plan.changed_tensors)
    if plan.quantization is not None or fills:
        return None
    zeroed: dict[int, dict[str, bool]] = {}
    new = tuple(f"{plan.layer_prefix}{layer}." for layer in plan.new_layers)
    for name, _, _, origin in plan.changed_tensors:
        if name.startswith(new):
            layer, suffix = split_name(name, plan.layer_prefix) or (0, "")
            zeroed.setdefault(layer, {})[suffix] = isinstance(origin, Zeros)
    names = (tensor.name for file in plan.files for tensor in file.tensors)
    outside = [name for name in names if not name.startswith(plan.layer_prefix)]
    slices: list[dict[str, Any]] = []
    for index, entry in enumerate(plan.layer_map):
        source: dict[str, Any] = {
            "model": model,
            "layer_range": [entry.source, entry.source + 1],
        }
        last = slices[-1]["sources"][0] if slices else None
        if entry.is_new:
            prefix = f"{plan.layer_prefix}{entry.source}."
            filters = _filters(prefix, zeroed[index], plan.neutral, outside)
            rules: list[dict[str, Any]] = [{"filter": name, "value": 0.0} for name in filters]
            source["parameters"] = {"scale": [*rules, {"value": 1.0}]}
        elif last and "parameters" not in last and last["layer_range"][1] == entry.source:
            last["layer_range"][1] += 1
            continue
        slices.append({"sources": [source]})
    return {"slices": slices, "merge_method": "passthrough", **dtype}


def render_recipe(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as the YAML that mergekit reads."""
    import yaml

    # libyaml, which comes with PyYAML almost everywhere, writes the same ten times as fast.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(dict(recipe), Dumper=dumper, sort_keys=False, default_flow_style=None)
    return text


def _names_dtype(plan: Plan) -> bool:
    """Tell whether the recipe names a dtype.

    To mergekit a dtype is that of every tensor, so it may not be named where a tensor is kept wider
    than the others and nothing has to be converted.
    """
    if plan.options.dtype == "source":
        return False
    if any(isinstance(tensor.origin, Convert) for tensor in plan.changed_tensors):
        return True
    tensors = (tensor for file in plan.files for tensor in file.tensors)
    copied = {spec.dtype for _, spec, _, origin in tensors if isinstance(origin, Copy)}
    return len(copied & FLOAT_DTYPES) <= 1


def _filters(
    prefix: str, zeroed: Mapping[str, bool], order: Iterable[str], outside: Sequence[str]
) -> Sequence[str]:
    """Return mergekit's filters, parts of the source's tensor names, for a new layer's zeros."""
    wanted = [suffix for suffix in order if zeroed.get(suffix)]
    names = []
    for suffix in wanted:
        name = re.sub(r"(\.weight|\.bias|_bias)$", "", suffix)
        # The names of experts' projections differ only in the expert's number.
        names.append(name.rpartition(".")[2] if re.search(r"\.\d+\.", name) else name)
    short = list(dict.fromkeys(names))
    hit = {suffix for suffix in zeroed if any(name in prefix + suffix for name in short)}
    # Where a short form would hit another tensor too, the whole name says which. A first or a last
    # slice's filters are held against what is outside of the layers as well.
    others = any(name in other for name in short for other in outside)
    return short if hit == set(wanted) and not others else [prefix + s for s in wanted]
