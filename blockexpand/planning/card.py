"""Plan → the mergekit passthrough recipe of the same model, for the model card. Pure.

Source: mergekit's documentation of its configuration file (`slices`, `layer_range`, `scale`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from .._version import __version__
from ..checkpoints.files import CARD_FILE, MANIFEST_FILE
from ..checkpoints.sources import ModelRef
from ..formats.safetensors import FLOAT_DTYPES
from ..models.decoder import split_name
from ..models.layer_map import LayerMap
from .manifest import render_manifest
from .origins import Convert, Copy, Fill, Zeros
from .plan import Plan
from .shards import Document

_MOST_CARD_NBYTES = 1 << 20

_MOST_FIELD_CHARACTERS = 1 << 13

KEPT_FIELDS = ("license", "license_name", "license_link", "language")


def add_card(
    plan: Plan,
    source: ModelRef,
    command: str,
    others: Mapping[str, ModelRef] | None = None,
) -> Plan:
    """Return the plan with the model card and the manifest among its documents.

    `others` has the further models of a recipe by the names that it gives them.
    """
    return draft_card(plan, source, others)(command)


def draft_card(
    plan: Plan, source: ModelRef, others: Mapping[str, ModelRef] | None = None
) -> Callable[[str], Plan]:
    """Render all but the command, once for many outputs of one plan; then as `add_card`."""
    # Paths that are no UTF-8 could be written into neither.
    source = replace(source, model=_as_unicode(source.model))
    others = {
        name: replace(other, model=_as_unicode(other.model))
        for name, other in (others or {}).items()
    }
    before, after = _render_card(plan, source, others)

    def finish(command: str) -> Plan:
        command = _as_unicode(command)
        manifest = render_manifest(plan, source, command, others)
        documents = (
            Document(name=CARD_FILE, data=f"{before}{command}{after}".encode()),
            Document(name=MANIFEST_FILE, data=manifest),
        )
        return replace(plan, documents=plan.documents + documents)

    return finish


def _as_unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _render_card(plan: Plan, source: ModelRef, others: Mapping[str, ModelRef]) -> tuple[str, str]:
    """Return what stands before and after the command."""
    # Not ModelCard too: it would load the whole client of the Hub to put two strings together.
    from huggingface_hub import ModelCardData

    known = read_front_matter(plan.source_card)
    kept = {key: known[key] for key in KEPT_FIELDS if key in known}
    base_model: Any = source.repo or known.get("base_model")
    repos = [other.repo for other in others.values() if other.repo is not None]
    if repos and isinstance(base_model, str):
        base_model = [base_model, *repos]
    data = ModelCardData(
        **kept,
        base_model=base_model,
        library_name="transformers",
        pipeline_tag=known.get("pipeline_tag", "text-generation"),
        tags=["block-expansion", "llama-pro", "blockexpand"]
        if plan.keeps_function
        else ["merge", "blockexpand"],
    )
    # The Hub counts the model among the fine-tunes of its base where nothing else is said.
    if base_model is not None:
        data["base_model_relation"] = "finetune" if plan.keeps_function else "merge"
    head, body = _render_body(plan, source, others)
    return f"---\n{data.to_yaml()}\n---\n\n{head}", body


def _render_body(plan: Plan, source: ModelRef, others: Mapping[str, ModelRef]) -> tuple[str, str]:
    head = _introduce(plan, source) if plan.keeps_function else _warn(plan, source, others)
    head.append(f"Made with blockexpand {__version__}:\n\n```\n")
    sections = ["\n```"]
    sections.append(f"## Layers\n\n{_render_layer_map(plan, source, others)}")
    if plan.new_layers:
        sections.append(
            f"Layers count from 0. In every new layer:\n\n{_render_neutral(plan.neutral)}"
        )
    sections.append(_render_dtype(plan))
    sections.append(f"## mergekit\n\n{_render_recipe(plan, source)}")
    if plan.new_layers:
        sections.append(_render_training(plan.new_layers))
    if plan.notes:
        sections.append("## Notes\n\n" + "\n".join(f"- {note}" for note in plan.notes))
    if plan.keeps_function:
        sections.append(_CITATION)
    return "\n\n".join(head), "\n\n".join(sections) + "\n"


def _introduce(plan: Plan, source: ModelRef) -> list[str]:
    count = len(plan.new_layers)
    blocks = "block" if count == 1 else "blocks"
    return [
        f"# {source.model.rstrip('/').rpartition('/')[2]}, expanded by {count} {blocks}",
        f"This is {_render_source(source)} with {count} new {blocks}: {plan.original_layers} "
        f"layers became {len(plan.layer_map)}. It computes exactly what its source computes"
        f"{f' in {plan.dtype}' if _is_converted(plan) else ''}. Each new block is a clone of an "
        "existing layer whose residual branches add nothing, so it passes its input through until "
        "it is trained.",
    ]


def _warn(plan: Plan, source: ModelRef, others: Mapping[str, ModelRef]) -> list[str]:
    """Introduce a model that computes something else than what it was made of."""
    made_of = " and ".join(_render_source(name) for name in (source, *others.values()))
    return [
        f"# {source.model.rstrip('/').rpartition('/')[2]}, merged to {len(plan.layer_map)} layers",
        f"This model was made of {made_of} by a mergekit passthrough recipe: layers were taken, "
        "dropped, repeated or scaled. **It does not compute what its source computes**, and is "
        "meant to be trained further.",
    ]


def _render_recipe(plan: Plan, source: ModelRef) -> str:
    if plan.recipe_text is not None:
        text = plan.recipe_text.rstrip("\n")
        fence = "```"
        while fence in text:
            fence += "`"
        return f"The recipe that it was made from:\n\n{fence}yaml\n{text}\n{fence}"
    model = source.repo or source.model
    if source.repo and source.revision not in (None, "main"):
        model = f"{source.repo}@{source.revision}"
    recipe = make_recipe(plan, model)
    if recipe is None:
        return "mergekit only scales tensors, so no mergekit recipe describes this model."
    return (
        "The same model as a mergekit recipe (its zeros may be negative):\n\n"
        f"```yaml\n{render_recipe(recipe)}```"
    )


def _render_source(source: ModelRef) -> str:
    if source.repo is None:
        return f"`{source.model}`"
    known = {"revision": source.revision, "commit": source.commit}
    where = ", ".join(f"{what} `{value}`" for what, value in known.items() if value is not None)
    link = f"[{source.model}](https://huggingface.co/{source.repo})"
    return f"{link} ({where})" if where else link


def _is_converted(plan: Plan) -> bool:
    return any(isinstance(tensor.origin, Convert) for file in plan.files for tensor in file.tensors)


def _render_layer_map(plan: Plan, source: ModelRef, others: Mapping[str, ModelRef]) -> str:
    rows = ["| layers | taken from |", "|---|---|"]
    for first, last, origin, is_new in layer_runs(plan.layer_map):
        other = others.get(plan.name_model(plan.layer_map[first].model) or "")
        model = f" of `{(other or source).model}`" if others else ""
        count = last - first
        layers = f"{first}" if not count else f"{first}–{last}"
        if is_new:
            rows.append(f"| **{layers}** | new: clone of layer {origin} |")
        else:
            taken = f"{origin}" if not count else f"{origin}–{origin + count}"
            rows.append(f"| {layers} | {taken}{model} |")
    return "\n".join(rows)


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


def _render_neutral(neutral: Mapping[str, float]) -> str:
    lines = []
    for suffix, constant in describe_neutral(neutral):
        lines.append(f"- `{suffix}` is {'zeroed' if constant == 0 else f'set to {constant:g}'}")
    return "\n".join(lines)


def _render_dtype(plan: Plan) -> str:
    if plan.options.dtype == "source":
        return "Every tensor keeps the dtype that it has in the source."
    if plan.recipe_text is not None:
        return (
            f"Weights are {plan.dtype}; integers, and what the model computes with in float32, are "
            "as they were."
        )
    return (
        f"Weights are {plan.dtype}; tensors that the source keeps wider on purpose, and integers, "
        "are as they were."
    )


def _render_training(new: tuple[int, ...]) -> str:
    numbers = ", ".join(map(str, new))
    return (
        "## Training\n\n"
        f"Freeze everything but the new blocks (layers {numbers}). "
        "`blockexpand.freeze_original_layers(model, folder)` does that, and "
        "`blockexpand train-config` prints the settings for the usual trainers.\n\n"
        "In LLaMA Pro (table 5) blocks between the layers trained better than blocks at either "
        "end: they suit what is new to the model. Blocks at the end may deepen what it does well "
        "already, as layers grow more abstract with depth; that was not measured there."
    )


def read_front_matter(card: bytes | None) -> dict[str, Any]:
    """Return the plain fields of a card's YAML block; of what is broken, nothing.

    Each field is parsed by itself, so that neither a broken nor a huge one hides another.
    """
    text = (card or b"")[:_MOST_CARD_NBYTES].decode("utf-8-sig", "replace").replace("\r\n", "\n")
    match = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", text, re.DOTALL)
    # A field begins in the first column; its value, also a list, does not.
    blocks = re.split(r"\n(?=[^\s#-])", match.group(1)) if match else ()
    named = {block.partition(":")[0].strip().strip("\"'"): block for block in blocks}
    wanted = (*KEPT_FIELDS, "base_model", "pipeline_tag")
    values = {name: _parse_field(named[name], name) for name in wanted if name in named}
    return {name: value for name, value in values.items() if value is not None}


def _parse_field(block: str, name: str) -> str | list[str] | None:
    """Parse one field; None for what is no string and no list of strings."""
    import yaml

    if len(block) > _MOST_FIELD_CHARACTERS:
        return None
    fields: Any = None
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        # Every scalar stays text: to a safe loader Norwegian (`no`) is a boolean, and its merges
        # (`<<`) can be nested until the memory is full.
        fields = yaml.load(block, Loader=yaml.BaseLoader)
    value = fields.get(name) if isinstance(fields, dict) else None
    items = value if isinstance(value, list) else [value]
    if not items or any(not isinstance(item, str) or item in _NO_TEXT for item in items):
        return None
    return value


_NO_TEXT = ("", "~", "null")

_CITATION = """## Citation

Block expansion is described in LLaMA Pro ([arXiv 2401.02415](https://arxiv.org/abs/2401.02415)):

```bibtex
@article{wu2024llamapro,
  title={LLaMA Pro: Progressive LLaMA with Block Expansion},
  author={Wu, Chengyue and Gan, Yukang and Ge, Yixiao and Lu, Zeyu and Wang, Jiahao and Feng, Ye \
and Shan, Ying and Luo, Ping},
  journal={arXiv preprint arXiv:2401.02415},
  year={2024}
}
```"""


def make_recipe(plan: Plan, model: str) -> dict[str, Any] | None:
    """Return the mergekit recipe that makes the plan's tensors of `model`, as plain data.

    None where mergekit has no words for it: it scales tensors, so it can make a weight 0, but not
    -1.
    """
    dtype = {"dtype": plan.options.dtype} if _names_dtype(plan) else {}
    tensors = [tensor for file in plan.files for tensor in file.tensors]
    if any(isinstance(tensor.origin, Fill) for tensor in tensors):
        return None
    zeroed: dict[int, dict[str, bool]] = {}
    outside: list[str] = []
    for tensor in tensors:
        split = split_name(tensor.name, plan.layer_prefix)
        if split is None:
            outside.append(tensor.name)
        else:
            layer, suffix = split
            zeroed.setdefault(layer, {})[suffix] = isinstance(tensor.origin, Zeros)
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
    tensors = [tensor for file in plan.files for tensor in file.tensors]
    if any(isinstance(tensor.origin, Convert) for tensor in tensors):
        return True
    copied = {t.spec.dtype for t in tensors if isinstance(t.origin, Copy)}
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
