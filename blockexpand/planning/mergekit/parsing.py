"""mergekit YAML → `MergeRecipe`: every fault with its line, all of them together.

Only the passthrough method is understood; what belongs to another method, or would change what a
token means, is refused by its name. It opens no checkpoint.
Source: mergekit 0.1.5, as it reads its configuration file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import yaml

from ...errors import RecipeError
from ...formats.yaml_nodes import (
    Members,
    NodeReader,
    compose,
    did_you_mean,
    has_key,
    line_of,
    number,
    show,
    whole_number,
)
from ...models.layer_map import MAX_LAYERS
from .recipe import Condition, MergeRecipe, MergeSlice, Scale

METHODS = (
    *("arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "core_space", "dare_linear", "dare_ties"),
    *("della", "della_linear", "karcher", "linear", "model_stock", "multislerp", "nearswap"),
    *("nuslerp", "sce", "slerp", "task_arithmetic", "ties"),
)

_DTYPES = ("bfloat16", "float16", "float32", "float64")

_RECIPE_KEYS = (
    *("slices", "models", "modules", "merge_method", "base_model", "dtype", "out_dtype"),
    *("parameters", "tokenizer_source", "tokenizer"),
)

# Known to mergekit, and beyond what moving and scaling tensors can mean.
_REFUSED = {
    "chat_template": "the output keeps the chat template of its tokenizer; remove it",
    "tokens": "token embeddings are not merged; make this merge with mergekit",
    "pad_to_multiple_of": "the vocabulary is not resized; make this merge with mergekit",
    "lora": "LoRA adapters are not merged: merge the adapter into its model first",
    "override_architecture": "the architecture is that of the model's config.json; remove it",
    "residual_weight": "passthrough has no such parameter; remove it",
}

# Each is tried on every tensor.
_MOST_CONDITIONS = 256

_A_MODEL = "a folder or a Hub repository org/name"


def parse_recipe(text: bytes, file: str) -> MergeRecipe:
    """Read a recipe. `file` is what messages call it.

    Raises: RecipeError with every fault, each with file and line, on one line.
    """
    root, decoded = compose(text, file)
    if root is None:
        raise RecipeError(f"{file}:1: is empty; expected a mergekit recipe")
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{file}:1: expected a mergekit recipe, found {show(root)}")
    if has_key(root, "jobs", "matrix") and not has_key(root, "merge_method"):
        raise RecipeError(f"{file}: is a jobs file, not a recipe: `blockexpand batch {file}`")
    nodes = NodeReader(file, _REFUSED)
    recipe = _read_recipe(nodes, root, MergeRecipe(file=file, text=decoded, slices=()))
    nodes.check()
    return recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What holds for every slice: settings of the outer objects, and the base model."""

    scales: tuple[Scale, ...]
    base_model: str | None


def _read_recipe(nodes: NodeReader, root: yaml.Node, recipe: MergeRecipe) -> MergeRecipe:
    top = nodes.members(root, "the recipe", _RECIPE_KEYS)
    _check_method(nodes, root, top)
    base = _read_model(nodes, top["base_model"], "base_model") if "base_model" in top else None
    common = _Common(scales=_read_parameters(nodes, top), base_model=base)
    forms = [key for key in ("slices", "models", "modules") if key in top]
    if len(forms) != 1:
        found = ", ".join(forms) or "none"
        nodes.fault(root, f"expected one of slices, models and modules, found {found}")
    if "modules" in top:
        slices = _read_modules(nodes, top["modules"], common)
    else:
        slices = _read_stack(nodes, top, common)
    recipe = replace(
        recipe,
        slices=slices,
        dtype=_read_dtype(nodes, top, "dtype"),
        out_dtype=_read_dtype(nodes, top, "out_dtype"),
        base_model=base,
    )
    tokenizer = _read_tokenizer(nodes, top)
    if tokenizer == "base" and slices:
        tokenizer = recipe.base
    return replace(recipe, tokenizer_source=tokenizer)


def _check_method(nodes: NodeReader, root: yaml.Node, top: Members) -> None:
    if "merge_method" not in top:
        nodes.fault(root, "merge_method is missing; expected merge_method: passthrough")
        return
    node = top["merge_method"]
    method = nodes.text(node, "merge_method", "passthrough")
    if method in METHODS:
        nodes.fault(
            node,
            f"merge_method: {method} computes new weights; expected passthrough, make other merges "
            "with mergekit",
        )
    elif method not in ("passthrough", None):
        hint = did_you_mean(method, ("passthrough", *METHODS))
        nodes.fault(
            node, f"merge_method: expected passthrough, found {show(node)}; {hint}".rstrip("; ")
        )


def _read_modules(nodes: NodeReader, node: yaml.Node, common: _Common) -> tuple[MergeSlice, ...]:
    """Read the form that names a model's parts; only models of one part can be meant."""
    modules = nodes.names(node, "modules")
    if set(modules) != {"default"}:
        found = ", ".join(modules) or "none"
        nodes.fault(
            node,
            f"modules: expected one, default, found {found}: give slices, which leave a multimodal "
            "model's other parts as they are",
        )
        return ()
    keys = ("slices", "models", "parameters")
    module = nodes.members(modules["default"], "modules.default", keys)
    if ("slices" in module) == ("models" in module):
        nodes.fault(modules["default"], "modules.default: expected either slices or models")
    scales = (*_read_parameters(nodes, module), *common.scales)
    return _read_stack(nodes, module, replace(common, scales=scales))


def _read_stack(nodes: NodeReader, members: Members, common: _Common) -> tuple[MergeSlice, ...]:
    if "slices" in members:
        items = nodes.items(members["slices"], "slices", "a list of slices")
        if len(items) > MAX_LAYERS:
            nodes.fault(items[0], f"slices: expected at most {MAX_LAYERS}, found {len(items)}")
            return ()
        read = [_read_slice(nodes, item, common) for item in items]
        slices = tuple(part for part in read if part is not None)
        layers = sum((part.last or 0) - (part.first or 0) for part in slices)
        if layers > MAX_LAYERS:
            nodes.fault(items[0], f"slices: expected at most {MAX_LAYERS} layers, found {layers}")
            return slices[:1]
        return slices
    if "models" in members:
        return _read_models(nodes, members["models"], common)
    return ()


def _read_models(nodes: NodeReader, node: yaml.Node, common: _Common) -> tuple[MergeSlice, ...]:
    items = nodes.items(node, "models", "a list of one model")
    if len(items) > 1:
        nodes.fault(items[1], f"models: passthrough takes one, found {len(items)}")
    slices = []
    for item in items:
        source = nodes.members(item, "models", ("model", "parameters"))
        model = _read_source_model(nodes, item, source)
        if model and common.base_model not in (None, model):
            nodes.fault(
                item,
                "models: mergekit adds the base_model to them, and passthrough takes one; "
                f"expected {common.base_model!r} or no base_model, found {model!r}",
            )
        scales = (*_read_parameters(nodes, source), *common.scales)
        slices.append(MergeSlice(model=model or "", line=line_of(item), scales=scales))
    return tuple(slices)


def _read_slice(nodes: NodeReader, node: yaml.Node, common: _Common) -> MergeSlice | None:
    members = nodes.members(node, "slices", ("sources", "parameters", "base_model"))
    outer = (*_read_parameters(nodes, members), *common.scales)
    if "base_model" in members:
        # mergekit reads it too, and passthrough has no use for it.
        _read_model(nodes, members["base_model"], "base_model")
    if "sources" not in members:
        if isinstance(node, yaml.MappingNode):
            nodes.fault(node, "sources is missing; expected a list of one source")
        return None
    items = nodes.items(members["sources"], "sources", "a list of one source")
    if len(items) > 1:
        nodes.fault(items[1], f"sources: passthrough takes one in a slice, found {len(items)}")
    slices = []
    for item in items:
        source = nodes.members(item, "sources", ("model", "layer_range", "parameters"))
        model = _read_source_model(nodes, item, source)
        first, last = _read_range(nodes, item, source)
        slices.append(
            MergeSlice(
                model=model or "",
                line=line_of(source.get("layer_range", item)),
                first=first,
                last=last,
                scales=(*_read_parameters(nodes, source), *outer),
            )
        )
    return slices[0] if slices else None


def _read_range(nodes: NodeReader, item: yaml.Node, source: Members) -> tuple[int, int]:
    wanted = "two whole numbers [first, last)"
    node = source.get("layer_range")
    if node is None:
        if isinstance(item, yaml.MappingNode):
            nodes.fault(item, f"layer_range is missing; expected {wanted}")
        return 0, 1
    parts = node.value if isinstance(node, yaml.SequenceNode) else ()
    numbers = [found for part in parts if (found := whole_number(part)) is not None]
    if len(parts) != 2 or len(numbers) != 2:
        nodes.fault(node, f"layer_range: expected {wanted}, found {show(node)}")
        return 0, 1
    first, last = numbers
    # mergekit reads [8, 8] as no layers: at the end, it says whose norm and head are taken.
    if not 0 <= first <= last <= MAX_LAYERS:
        nodes.fault(
            node,
            "layer_range: expected 0 <= first <= last (layers count from 0, the last is not "
            f"taken), found {show(node)}",
        )
        return 0, 1
    return first, last


def _read_source_model(nodes: NodeReader, item: yaml.Node, source: Members) -> str | None:
    if "model" in source:
        return _read_model(nodes, source["model"], "model")
    if isinstance(item, yaml.MappingNode):
        nodes.fault(item, f"model is missing; expected {_A_MODEL}")
    return None


def _read_model(nodes: NodeReader, node: yaml.Node, key: str) -> str | None:
    """Read a model: its name, or the form in which mergekit spells names with spaces."""
    revision = None
    for inner, keys in (("model", ("model",)), ("path", ("path", "revision"))):
        if not isinstance(node, yaml.MappingNode):
            break
        members = nodes.members(node, key, keys)
        if inner not in members:
            nodes.fault(node, f"{key}: {inner} is missing; expected {_A_MODEL}")
            return None
        node = members[inner]
        if "revision" in members:
            revision = nodes.text(members["revision"], "revision", "a branch, tag or commit")
    name = nodes.text(node, key, _A_MODEL)
    if name is not None and "+" in name:
        nodes.fault(node, f"{key}: {show(node)} has a +, before a LoRA adapter: {_REFUSED['lora']}")
        return None
    return f"{name}@{revision}" if name and revision else name


def _read_tokenizer(nodes: NodeReader, top: Members) -> str | None:
    node, key = top.get("tokenizer_source"), "tokenizer_source"
    if "tokenizer" in top:
        if node is not None:
            nodes.fault(top["tokenizer"], "tokenizer: expected it or tokenizer_source, found both")
        keys, key = ("source",), "source"
        node = nodes.members(top["tokenizer"], "tokenizer", keys).get("source")
        if node is None:
            nodes.fault(top["tokenizer"], "tokenizer: source is missing; expected a model, or base")
    if node is None:
        return None
    if isinstance(node, yaml.ScalarNode) and node.value == "union":
        nodes.fault(node, f"{key}: union makes a new vocabulary; expected one model, or base")
        return None
    return _read_model(nodes, node, key)


def _read_parameters(nodes: NodeReader, members: Members) -> tuple[Scale, ...]:
    """Return the scale that an object's parameters state, if they do."""
    if "parameters" not in members:
        return ()
    found = nodes.members(members["parameters"], "parameters", ("scale",))
    return tuple(_read_scale(nodes, node) for node in found.values())


def _read_scale(nodes: NodeReader, node: yaml.Node) -> Scale:
    if isinstance(node, yaml.MappingNode):
        return (_read_condition(nodes, node),)
    if isinstance(node, yaml.SequenceNode) and len(node.value) > _MOST_CONDITIONS:
        expected = f"at most {_MOST_CONDITIONS} values or conditions"
        nodes.fault(node, f"scale: expected {expected}, found {len(node.value)}")
        return ()
    if isinstance(node, yaml.SequenceNode) and any(
        isinstance(item, yaml.MappingNode) for item in node.value
    ):
        return tuple(_read_condition(nodes, item) for item in node.value)
    return (Condition(values=_read_values(nodes, node, "scale")),)


def _read_condition(nodes: NodeReader, node: yaml.Node) -> Condition:
    members = nodes.members(node, "scale", ("filter", "value"))
    pattern = None
    if "filter" in members:
        pattern = nodes.text(members["filter"], "filter", "a part of tensor names")
    if "value" not in members:
        if isinstance(node, yaml.MappingNode):
            nodes.fault(node, "scale: value is missing; expected a number")
        return Condition(values=(1.0,), filter=pattern)
    return Condition(values=_read_values(nodes, members["value"], "value"), filter=pattern)


def _read_values(nodes: NodeReader, node: yaml.Node, key: str) -> tuple[float, ...]:
    wanted = "a number, or a list of numbers from the slice's first layer to its last"
    parts: Sequence[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else [node]
    values = [found for part in parts if (found := number(part)) is not None]
    if not values or len(values) != len(parts):
        nodes.fault(node, f"{key}: expected {wanted}, found {show(node)}")
        return (1.0,)
    return tuple(values)


def _read_dtype(nodes: NodeReader, top: Members, key: str) -> str | None:
    name = nodes.text(top[key], key, "the name of a dtype") if key in top else None
    name = name.removeprefix("torch.") if name else None
    if name is not None and name not in _DTYPES:
        hint = did_you_mean(name, _DTYPES) or f"expected {', '.join(_DTYPES)}"
        nodes.fault(top[key], f"{key}: {show(top[key])} is no dtype for weights; {hint}")
    return name
