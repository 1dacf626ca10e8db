"""The settings with which the usual trainers train the new blocks of an expansion and nothing else.

It reads block_expansion.json, for PEFT also the model's structure on the meta device (no weights),
and returns text. What a trainer cannot express is an error, never an approximation.
Source: LLaMA Pro, arXiv 2401.02415, section 4.1 (learning rate, schedule, weight decay); the
trainers' own code for what each setting matches.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import open_checkpoint
from ..errors import TrainingError
from ..fs.paths import expand_home
from ..messages import join
from ..models.decoder import split_name
from ..models.families import MULTIMODAL
from ..models.layer_map import has_equal_groups, suggest_counts
from ..models.runtime import runtime_prefixes
from ..planning.manifest import Manifest
from .freezing import open_manifest
from .quantized import describe_loading
from .snippets import find_model_class, join_imports, loading_lines, render_yaml, running_lines

LEARNING_RATE = 2e-4

WARMUP_RATIO = 0.06

WEIGHT_DECAY = 0.1

PLACES = """\
Where the blocks stand matters: in the paper that introduced them, blocks between the layers
(--position interleaved) trained better than the same number of blocks all at the start or all at
the end (LLaMA Pro, arXiv 2401.02415, table 5). In a measurement of our own (docs/training.md, a
model of 135M) six blocks at the end learnt less than half as much of a new text as six interleaved
ones, and the loss on other text rose four times as far. What speaks for the end is that the
original layers keep their numbers, that unchanged shards can be linked, and that every trainer that
can train the last N layers fits it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """`text` is ready for a file or a shell; `settings` are its values; `notes` are in it too."""

    framework: str
    new_layers: tuple[int, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    text: str


def make_settings(out: str | Path, framework: str) -> TrainerSettings:
    """Return the settings of one trainer (a name in `FRAMEWORKS`) for an expansion's folder.

    Raises: CheckpointError where `out` is no expansion; TrainingError where the trainer cannot
    train exactly its new blocks.
    """
    if framework not in FRAMEWORKS:
        raise TrainingError(
            f"framework {framework!r} is unknown; expected one of {', '.join(FRAMEWORKS)}"
        )
    manifest = open_manifest(out)
    if not manifest.new_layers:
        raise TrainingError(f"{manifest.file}: the model has no new layer to train")
    settings = FRAMEWORKS[framework](manifest, str(out))
    if framework in _BY_CONFIG:
        notes = describe_loading(manifest, is_adapter=False).notes
        remarks = "".join(f"# {note}\n" for note in notes)
        settings = replace(settings, notes=notes + settings.notes, text=remarks + settings.text)
    return settings


def describe_settings(settings: TrainerSettings, *, verbose: bool) -> str:
    """Return the settings as they go into a file or a shell."""
    return settings.text


def settings_as_json(settings: TrainerSettings) -> dict[str, Any]:
    """Return the settings for scripts."""
    return {
        "framework": settings.framework,
        "new_layers": list(settings.new_layers),
        "settings": dict(settings.settings),
        "notes": list(settings.notes),
        "text": settings.text,
    }


def _llamafactory(manifest: Manifest, out: str) -> TrainerSettings:
    new, layers = manifest.new_layers, len(manifest.layer_map)
    count = len(new)
    # use_llama_pro trains layers k-1, 2k-1, …, so it is right for equal groups alone.
    if new == tuple(range(layers - count, layers)):
        choice: dict[str, Any] = {"freeze_trainable_layers": count, "use_llama_pro": False}
    elif new == tuple(range(count)):
        choice = {"freeze_trainable_layers": -count, "use_llama_pro": False}
    elif has_equal_groups(manifest.layer_map):
        choice = {"freeze_trainable_layers": count, "use_llama_pro": True}
    else:
        raise TrainingError(
            f"LLaMA-Factory cannot express the new layers {join(new)} of {layers}: it trains the "
            "first or last N layers, or the last layer of each of N equal groups, and these groups "
            "are uneven; use axolotl, ms-swift, peft or transformers, or expand again: "
            + suggest_counts(manifest.layer_map)
        )
    notes = [*_notes(manifest)]
    if confused := sorted(_inner_numbers(out, manifest) & set(new)):
        notes.append(
            "LLaMA-Factory looks for '.N.' anywhere in a name, so that modules numbered "
            f"{join(confused)} within the original layers (experts, where transformers keeps them "
            "apart) would be trained too: compare the number of trainable parameters that it logs"
        )
    settings = {
        "model_name_or_path": out,
        "finetuning_type": "freeze",
        **choice,
        "freeze_trainable_modules": "all",
        **(
            {"freeze_vision_tower": True, "freeze_multi_modal_projector": True}
            if manifest.model_type in MULTIMODAL
            else {}
        ),
        **_schedule(manifest),
        "bf16": True,
    }
    return _settings("llamafactory", manifest, settings, notes, render_yaml(settings, notes))


def _axolotl(manifest: Manifest, out: str) -> TrainerSettings:
    # axolotl puts a backslash before every dot itself, so that an escaped one would match nothing,
    # and takes digits in brackets at the end for a range of rows.
    group = f"({'|'.join(map(str, manifest.new_layers))})"
    patterns = [f"^{prefix}{group}." for prefix in _trainer_prefixes(manifest)]
    settings = {
        "base_model": out,
        "unfrozen_parameters": patterns,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        **_schedule(manifest, scheduler="lr_scheduler"),
        "bf16": False,
        "fp16": False,
        "float32": True,
        "tf32": "auto",
    }
    notes = [
        "no adapter: the new blocks are trained as they are",
        _ONE_DTYPE_NOTE.format("axolotl", "bf16: true"),
        "the dots of unfrozen_parameters stay unescaped and the last one is needed: without it "
        "layer 3 would match 30 to 39 too",
        *_notes(manifest),
    ]
    return _settings("axolotl", manifest, settings, notes, render_yaml(settings, notes))


def _ms_swift(manifest: Manifest, out: str) -> TrainerSettings:
    new = manifest.new_layers
    settings = {
        "model": out,
        "tuner_type": "full",
        "freeze_parameters_ratio": 1,
        "trainable_parameters": [
            f"{prefix}{layer}." for prefix in _trainer_prefixes(manifest) for layer in new
        ],
        **_schedule(manifest),
        "torch_dtype": "float32",
        "bf16": True,
        "fp16": False,
    }
    notes = [
        "before ms-swift 4, tuner_type was called train_type",
        "where ms-swift cannot tell model_type and template of a folder, give those of the source",
        _ONE_DTYPE_NOTE.format("ms-swift", "--torch_dtype bfloat16"),
        "not tuner_type llamapro: it would add further blocks to this model",
    ]
    if not has_equal_groups(manifest.layer_map):
        notes.append(
            f"llamapro cannot express the new layers {join(new)} (no equal groups); the names "
            "under trainable_parameters can"
        )
    notes += _notes(manifest)
    lines = ["swift sft"]
    for key, value in settings.items():
        values = value if isinstance(value, list) else [value]
        lines.append(f"    --{key} {shlex.join(map(str, values))}")
    text = "".join(f"# {note}\n" for note in notes) + " \\\n".join(lines)
    return _settings("ms-swift", manifest, settings, notes, text)


def _peft(manifest: Manifest, out: str) -> TrainerSettings:
    from .lora_targets import find_targets

    targets = find_targets(expand_home(out), manifest)
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": 16,
        "lora_alpha": 32,
        "target_modules": list(targets.modules),
        "layers_to_transform": list(manifest.new_layers),
        "layers_pattern": targets.layers_pattern,
    }
    quantized = describe_loading(manifest, is_adapter=True)
    notes = ["LoRA on new blocks learns less than training them fully; prefer full training"]
    notes += quantized.notes
    if targets.parameters:
        settings["target_parameters"] = list(targets.parameters)
        notes.append(
            "target_parameters: experts are no linear modules, and PEFT would take the names of "
            "other linear modules beside them for experts of every layer"
        )
    if targets.saved_modules:
        settings["modules_to_save"] = list(targets.saved_modules)
        notes.append(
            "modules_to_save: these closing norms let nothing of their branch through as they are, "
            "so without them no adapter would ever get a gradient. They are held in float32, as in "
            "bfloat16 they would not move: train with bf16=True, which computes in bfloat16"
        )
    notes += _notes(manifest)
    arguments = "".join(f"    {key}={value!r},\n" for key, value in settings.items())
    text = (
        "".join(f"# {note}\n" for note in notes)
        + "import blockexpand\n"
        + ("import torch\n" if targets.saved_modules else "")
        + "from peft import LoraConfig, get_peft_model\n"
        + f"from transformers import {join_imports(targets.model_class, quantized.imported)}\n\n"
        + f'model = {targets.model_class}.from_pretrained({out!r}, dtype="auto"'
        + f"{quantized.argument})\n"
        + f"config = LoraConfig(\n{arguments})\n"
        + "model = get_peft_model(model, config)\n"
        + f"blockexpand.freeze_original_layers(model, {out!r}"
        + (", dtype=torch.float32)\n" if targets.saved_modules else ")\n")
        + "model.print_trainable_parameters()"
    )
    return _settings("peft", manifest, settings, notes, text)


def _transformers(manifest: Manifest, out: str) -> TrainerSettings:
    settings = {**_schedule(manifest, warmup="warmup_steps"), "bf16": True}
    arguments = "".join(f"    {key}={value!r},\n" for key, value in settings.items())
    quantized = describe_loading(manifest, is_adapter=False)
    notes = [*_FLOAT32_NOTES, *quantized.notes, *_notes(manifest)]
    model_class = find_model_class(manifest)
    text = (
        "".join(f"# {note}\n" for note in notes)
        + "import shutil\n\nimport blockexpand\nimport torch\n"
        + "from transformers import "
        + join_imports(model_class, quantized.imported, "Trainer", "TrainingArguments")
        + "\n"
        + quantized.imported_from
        + "\n"
        + loading_lines(model_class, out, quantized)
        + f'arguments = TrainingArguments(\n    output_dir="trained",\n{arguments})\n'
        + "trainer = Trainer(model=model, args=arguments, train_dataset=...)\n"
        + running_lines(out)
    )
    return _settings("transformers", manifest, settings, notes, text)


def _trl(manifest: Manifest, out: str) -> TrainerSettings:
    settings = {**_schedule(manifest, warmup="warmup_steps"), "bf16": True}
    arguments = "".join(f"    {key}={value!r},\n" for key, value in settings.items())
    quantized = describe_loading(manifest, is_adapter=False)
    notes = [*_FLOAT32_NOTES, *quantized.notes, *_notes(manifest)]
    model_class = find_model_class(manifest)
    text = (
        "".join(f"# {note}\n" for note in notes)
        + "import shutil\n\nimport blockexpand\nimport torch\n"
        + f"from transformers import {join_imports(model_class, quantized.imported)}\n"
        + quantized.imported_from
        + "from trl import SFTConfig, SFTTrainer\n\n"
        + loading_lines(model_class, out, quantized)
        + f'arguments = SFTConfig(\n    output_dir="trained",\n{arguments})\n'
        + "trainer = SFTTrainer(model=model, args=arguments, train_dataset=...)\n"
        + running_lines(out)
    )
    return _settings("trl", manifest, settings, notes, text)


_ONE_DTYPE_NOTE = (
    "float32 (4 bytes for each parameter): {} holds all weights in one dtype, and in bfloat16 ({}) "
    "small steps of the new blocks are rounded away. It saves them so; blockexpand extract and "
    "apply make a model whose original layers are as they were"
)

_FLOAT32_NOTES = (
    "the new blocks are held in float32: in bare bfloat16 norms do not move at all, and small "
    "steps of the others are rounded away. bf16=True computes in bfloat16 all the same",
    "warmup_steps below 1 is a part of all steps (before transformers 5: warmup_ratio)",
)


# Those that load the model themselves, from a file of settings.
_BY_CONFIG = frozenset({"llamafactory", "axolotl", "ms-swift"})

FRAMEWORKS: Mapping[str, Callable[[Manifest, str], TrainerSettings]] = {
    "llamafactory": _llamafactory,
    "axolotl": _axolotl,
    "ms-swift": _ms_swift,
    "peft": _peft,
    "transformers": _transformers,
    "trl": _trl,
}


def _settings(
    framework: str, manifest: Manifest, settings: Mapping[str, Any], notes: list[str], text: str
) -> TrainerSettings:
    return TrainerSettings(
        framework=framework,
        new_layers=manifest.new_layers,
        settings=settings,
        notes=tuple(notes),
        text=text,
    )


def _trainer_prefixes(manifest: Manifest) -> tuple[str, ...]:
    """Return the decoder's paths in the model that a trainer loads, whatever its transformers.

    Paths that a model does not have match nothing; the bare model is never trained.
    """
    prefixes = runtime_prefixes(manifest.model_type, manifest.layer_prefix)
    if manifest.layer_prefix == prefixes[0] == "model.layers.":
        return ("model.layers.",)
    return tuple(prefix for prefix in prefixes if prefix.count(".") > 1)


def _schedule(
    manifest: Manifest, *, scheduler: str = "lr_scheduler_type", warmup: str = "warmup_ratio"
) -> dict[str, Any]:
    """The paper's schedule; without weight decay where it would act on a closing norm of −1."""
    return {
        "learning_rate": LEARNING_RATE,
        scheduler: "cosine",
        warmup: WARMUP_RATIO,
        "weight_decay": 0.0 if _pulled_norms(manifest) else WEIGHT_DECAY,
        "max_grad_norm": 1.0,
    }


def _notes(manifest: Manifest) -> tuple[str, ...]:
    layers, new = len(manifest.layer_map), manifest.new_layers
    if new[0] == layers - len(new):
        place = "at the end; in LLaMA Pro (table 5) interleaved blocks trained better"
    elif has_equal_groups(manifest.layer_map):
        place = "interleaved in equal groups, which trained best in LLaMA Pro (table 5)"
    else:
        place = "between or before the original layers"
    notes = [f"new layers {join(new)} of {layers}, counted from 0: {place}"]
    if pulled := _pulled_norms(manifest):
        notes.append(_DECAY_NOTE.format(join(pulled)))
    return tuple(notes)


_DECAY_NOTE = (
    "weight_decay 0: the new blocks' {} start at −1, which lets nothing through; "
    "weight decay would pull them towards 0, which lets all through. With a decay of your own, "
    "keep it off these norms"
)


def _pulled_norms(manifest: Manifest) -> tuple[str, ...]:
    return tuple(suffix for suffix, value in manifest.neutral.items() if value < 0)


def _inner_numbers(out: str, manifest: Manifest) -> set[int]:
    """Return the numbers that stand in tensor names behind the layer's own."""
    numbers: set[int] = set()
    for name in open_checkpoint(expand_home(out)).specs:
        split = split_name(name, manifest.layer_prefix)
        if split is not None:
            numbers.update(int(part) for part in split[1].split(".") if part.isdecimal())
    return numbers
