"""Plan → README.md of the output, the model's card on the Hub. Pure.

Whatever a name, a recipe or a note says is shown as text: it can make no link and end no block.
No path of the machine is in it. Source: the Hub's documentation of model cards.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from .._version import __version__
from ..checkpoints.files import CARD_FILE, MANIFEST_FILE
from ..checkpoints.sources import ModelRef
from ..models.families import MULTIMODAL
from ..models.layer_map import draw_layers
from .front_matter import KEPT_FIELDS, read_front_matter, render_front_matter
from .layer_text import render_layers
from .manifest import render_manifest
from .markdown import block, code, escape, fold
from .mergekit.rendering import make_recipe, render_recipe
from .origins import Convert
from .parameters import count_parameters, describe_parameters
from .plan import Plan
from .shards import Document

# All models that say they were made with it. It is the link of every card.
HOMEPAGE = "https://huggingface.co/models?other=blockexpand"

_PROOF = re.compile(rb"(?<=\n## Proof\n\n)\*\*Verified [^\n]*\n\n")


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
    # The manifest keeps the other models' paths: `verify` finds the models by them.
    shown = replace(source, model=source.public)
    before, after = _render_card(plan, shown, others)

    def finish(command: str) -> Plan:
        command = _hide_paths(_as_unicode(command), source)
        card = "\n\n".join([*before, block(command), *after]) + "\n"
        documents = (
            Document(name=CARD_FILE, data=card.encode()),
            Document(name=MANIFEST_FILE, data=render_manifest(plan, shown, command, others)),
        )
        return replace(plan, documents=plan.documents + documents)

    return finish


def add_proof(
    card: bytes, *, tensors: int, nbytes: int, tokens: int | None = None, dtype: str | None = None
) -> bytes:
    """Return a card that also says what a verification has compared."""
    said = f"{tensors} tensors, {nbytes:,} bytes, every byte as its source and recipe say"
    if tokens is not None:
        said += f"; logits of {tokens} tokens bit-identical to those of the source in {dtype}"
    proof = f"**Verified with blockexpand {__version__}:** {said}.\n\n".encode()
    head, title, rest = without_proof(card).partition(b"\n## Proof\n\n")
    return head + title + proof + rest if title else card


def without_proof(card: bytes) -> bytes:
    """Return a card as it was before `add_proof`."""
    return _PROOF.sub(b"", card, count=1)


def _as_unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _hide_paths(command: str, source: ModelRef) -> str:
    """Return a command with the names of folders and files in the place of their paths."""
    local = {"--out", "--overwrite-anything", "--cache-dir", "--recipe", "merge"}
    local |= {"--src"} if source.repo is None else set()
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    for index, word in enumerate(words):
        option, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
        is_local = (option if equals else words[index - 1] if index else "") in local
        if value.startswith("dask://"):
            words[index] = f"{option}{equals}dask://HOST:PORT"
        elif is_local or value.startswith(("/", "~", "./", "../")):
            words[index] = f"{option}{equals}{PurePath(value).name or value}"
    return shlex.join(words)


def _render_card(
    plan: Plan, source: ModelRef, others: Mapping[str, ModelRef]
) -> tuple[list[str], list[str]]:
    """Return what stands before and after the command."""
    known = read_front_matter(plan.source_card)
    # Never what the source's own card names as its base: that is this model's grandparent.
    repos = [source.repo or source.base_model, *(other.repo for other in others.values())]
    bases = [repo for repo in repos if repo is not None] if repos[0] is not None else []
    base_model: Any = bases if len(bases) > 1 else next(iter(bases), None)
    relation = "finetune" if plan.keeps_function else "merge"
    tags = ["block-expansion", "llama-pro"] if plan.keeps_function else ["merge"]
    fields = {
        **{key: known[key] for key in KEPT_FIELDS if key in known},
        "library_name": "transformers",
        "pipeline_tag": known.get("pipeline_tag", "text-generation"),
        "tags": [*tags, "blockexpand"],
        "base_model": base_model,
        # The Hub counts the model among the fine-tunes of its base where nothing else is said.
        "base_model_relation": None if base_model is None else relation,
    }
    before = [
        render_front_matter(fields).rstrip(),
        *(_introduce(plan, source) if plan.keeps_function else _warn(plan, source, others)),
        block("\n".join(draw_layers(plan.layer_map))),
        _render_numbers(plan),
        f"## Use\n\n{block(_snippet(plan), 'python')}",
        *([_render_training(plan)] if plan.new_layers else []),
        f"## Proof\n\n{_render_proof(plan, source)}",
        f"## Layers\n\n{render_layers(plan, source, others)}",
        _render_dtype(plan) + _render_quantization(plan),
        f"## How it was made\n\nWith [blockexpand]({HOMEPAGE}) {__version__}:",
    ]
    after = [_render_recipe(plan, source, others)]
    if plan.notes:
        after.append("## Notes\n\n" + "\n".join(f"- {escape(note)}" for note in plan.notes))
    if plan.keeps_function:
        after.append(_CITATION)
    return before, after


def _introduce(plan: Plan, source: ModelRef) -> list[str]:
    count = len(plan.new_layers)
    blocks = "block" if count == 1 else "blocks"
    verb = "is" if count == 1 else "are"
    where = f" in {plan.dtype}" if _is_converted(plan) else ""
    if not count:
        return [
            f"# {escape(_short(source))}, dequantized",
            f"This is {_link(source)} with every quantized weight in {plan.dtype}, each value as "
            "its format defines it.",
        ]
    computes = f"Until it is trained, it computes exactly what its source computes{where}"
    if plan.is_unproven:
        computes = "It is meant to compute what its source computes, which is NOT PROVEN"
    return [
        f"# {escape(_short(source))}, expanded by {count} {blocks}",
        f"**The new {blocks} {verb} untrained.** This is {_link(source)} with {count} new "
        f"{blocks}: {plan.original_layers} layers became {len(plan.layer_map)}. {computes}: "
        f"{'the' if count == 1 else 'each'} new block is a clone of an existing layer whose "
        "residual branches add nothing, so it passes its input through.",
    ]


def _warn(plan: Plan, source: ModelRef, others: Mapping[str, ModelRef]) -> list[str]:
    """Introduce a model that computes something else than what it was made of."""
    made_of = " and ".join(_link(replace(m, model=m.public)) for m in (source, *others.values()))
    by = " by a mergekit passthrough recipe" if plan.recipe_text is not None else ""
    return [
        f"# {escape(_short(source))}, merged to {len(plan.layer_map)} layers",
        f"**It does not compute what its source computes**, and was not trained after it was made. "
        f"This model was made of {made_of}{by}: layers were taken, "
        "dropped, repeated or scaled. It is meant to be trained further.",
    ]


def _short(source: ModelRef) -> str:
    return (source.base_model or source.model).rstrip("/").rpartition("/")[2]


def _link(source: ModelRef) -> str:
    repo = source.repo or source.base_model
    if repo is None:
        return code(source.model)
    known = {"revision": source.revision, "commit": source.commit}
    where = ", ".join(f"{what} {code(value)}" for what, value in known.items() if value is not None)
    link = f"[{escape(repo)}](https://huggingface.co/{repo})"
    return f"{link} ({where})" if where else link


def _is_converted(plan: Plan) -> bool:
    return any(isinstance(tensor.origin, Convert) for tensor in plan.changed_tensors)


def _render_numbers(plan: Plan) -> str:
    drawn = "Each bar is a layer, the tall ones are new. " if plan.new_layers else ""
    return f"{drawn}{describe_parameters(count_parameters(plan))}."


def _snippet(plan: Plan) -> str:
    wrapper = MULTIMODAL.get(plan.model_type)
    model_class = wrapper.auto_class if wrapper else "AutoModelForCausalLM"
    return (
        f"from transformers import {model_class}, AutoTokenizer\n\n"
        'path = "."  # this folder, or the name of this model on the Hub\n'
        "tokenizer = AutoTokenizer.from_pretrained(path)\n"
        f'model = {model_class}.from_pretrained(path, dtype="auto")\n'
        "# before transformers 4.56 dtype was called torch_dtype"
    )


def _render_proof(plan: Plan, source: ModelRef) -> str:
    origin = source.repo or source.base_model or source.model
    words = ["blockexpand", "verify", origin, "."] + (["--logits"] if plan.keeps_function else [])
    compared = ", and the logits of both models bit for bit" if plan.keeps_function else ""
    return (
        f"Whoever has the source can prove it, in the folder of this model:\n\n"
        f"{block(shlex.join(words))}\n\n"
        f"That compares every byte with what the source and the recipe say{compared}."
    )


def _render_dtype(plan: Plan) -> str:
    if plan.options.dtype == "source":
        return "Every tensor keeps the dtype that it has in the source."
    return (
        f"Weights are {plan.dtype}; integer tensors, and those that are float32 on purpose, "
        "such as routers, are unchanged."
    )


_QUANTIZED = {
    "keep": " The weights are quantized ({}) as in the source, those of the new blocks too.",
    "new-blocks-full": " The original layers are quantized ({}) as in the source; the new blocks "
    "are not: they are stored in {}, and named in the config's list of unquantized modules.",
    "dequantize": " The source is quantized ({}); here every weight is stored in {}.",
}


def _render_quantization(plan: Plan) -> str:
    if plan.quantization is None:
        return ""
    return _QUANTIZED[plan.options.quantized].format(plan.quantization, plan.dtype)


# LLaMA Pro, table 5; our own measurement is in docs/training.md.
_AT_THE_END = (
    " Blocks at the end train worse than as many between the layers: they learn less of a new text "
    "and forget more of the rest (LLaMA Pro, table 5, and blockexpand's own measurement)."
)


def _render_training(plan: Plan) -> str:
    several = len(plan.new_layers) > 1
    numbers = ("layers " if several else "layer ") + ", ".join(map(str, plan.new_layers))
    blocks = "blocks" if several else "block"
    if plan.quantization is not None and plan.options.quantized == "keep":
        return (
            "## Training\n\n"
            f"The new {blocks} ({numbers}) {'are' if several else 'is'} quantized: train LoRA "
            f"adapters in {'them' if several else 'it'}. "
            "`blockexpand train-config --framework peft` prints the settings."
        )
    return (
        "## Training\n\n"
        f"Train the new {blocks} ({numbers}) and freeze everything else: "
        "`blockexpand.freeze_original_layers(model, folder)` does that, and "
        "`blockexpand train-config` prints the settings for the usual trainers. The source then "
        "stays in the model bit for bit, and can be taken out again."
        + (_AT_THE_END if _stands_at_the_end(plan) else "")
    )


def _stands_at_the_end(plan: Plan) -> bool:
    first = len(plan.layer_map) - len(plan.new_layers)
    return plan.new_layers == tuple(range(first, len(plan.layer_map)))


def _render_recipe(plan: Plan, source: ModelRef, others: Mapping[str, ModelRef]) -> str:
    if plan.recipe_text is not None:
        text = plan.recipe_text
        for name in plan.models:
            if others.get(name, source).repo is None and "/" in name:
                text = text.replace(name, PurePath(name).name or name)
        return fold("The mergekit recipe that it was made from", block(text, "yaml"))
    model = source.repo or source.base_model or source.model
    if source.repo and source.revision not in (None, "main"):
        model = f"{source.repo}@{source.revision}"
    recipe = make_recipe(plan, model)
    if recipe is None:
        return "mergekit only scales tensors, so no mergekit recipe describes this model."
    remark = "mergekit writes −0.0 where this model has 0.0; both compute the same."
    return fold(
        "The same model as a mergekit recipe", f"{block(render_recipe(recipe), 'yaml')}\n\n{remark}"
    )


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
