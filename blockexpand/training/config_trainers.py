"""The trainers that load the model themselves, from a file of settings or options of a command."""

from __future__ import annotations

import shlex
from typing import Any

from ..checkpoints.checkpoint import open_checkpoint
from ..errors import TrainingError
from ..fs.paths import expand_home
from ..messages import join
from ..models.decoder import split_name
from ..models.families import MULTIMODAL
from ..models.layer_map import has_equal_groups, suggest_counts
from ..planning.manifest import Manifest
from .snippets import render_yaml
from .trainer_settings import (
    TrainerSettings,
    make_trainer_settings,
    note_place,
    plan_schedule,
    trainer_prefixes,
)

_ONE_DTYPE_NOTE = (
    "float32 (4 bytes for each parameter): {} holds all weights in one dtype, and in bfloat16 ({}) "
    "small steps of the new blocks are rounded away. It saves them so; blockexpand extract and "
    "apply make a model whose original layers are as they were"
)


def for_llamafactory(manifest: Manifest, out: str) -> TrainerSettings:
    """Return LLaMA-Factory's settings. Raises: TrainingError where it would train other layers."""
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
    notes = [*note_place(manifest)]
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
        **plan_schedule(manifest),
        "bf16": True,
    }
    return make_trainer_settings(
        "llamafactory", manifest, settings, notes, render_yaml(settings, notes)
    )


def for_axolotl(manifest: Manifest, out: str) -> TrainerSettings:
    """Return axolotl's settings."""
    # axolotl puts a backslash before every dot itself, so that an escaped one would match nothing,
    # and takes digits in brackets at the end for a range of rows.
    group = f"({'|'.join(map(str, manifest.new_layers))})"
    patterns = [f"^{prefix}{group}." for prefix in trainer_prefixes(manifest)]
    settings = {
        "base_model": out,
        "unfrozen_parameters": patterns,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        **plan_schedule(manifest, scheduler="lr_scheduler"),
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
        *note_place(manifest),
    ]
    return make_trainer_settings("axolotl", manifest, settings, notes, render_yaml(settings, notes))


def for_ms_swift(manifest: Manifest, out: str) -> TrainerSettings:
    """Return the options of ms-swift's command."""
    new = manifest.new_layers
    settings = {
        "model": out,
        "tuner_type": "full",
        "freeze_parameters_ratio": 1,
        "trainable_parameters": [
            f"{prefix}{layer}." for prefix in trainer_prefixes(manifest) for layer in new
        ],
        **plan_schedule(manifest),
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
    notes += note_place(manifest)
    lines = ["swift sft"]
    for key, value in settings.items():
        values = value if isinstance(value, list) else [value]
        lines.append(f"    --{key} {shlex.join(map(str, values))}")
    text = "".join(f"# {note}\n" for note in notes) + " \\\n".join(lines)
    return make_trainer_settings("ms-swift", manifest, settings, notes, text)


def _inner_numbers(out: str, manifest: Manifest) -> set[int]:
    """Return the numbers that stand in tensor names behind the layer's own."""
    numbers: set[int] = set()
    for name in open_checkpoint(expand_home(out)).specs:
        split = split_name(name, manifest.layer_prefix)
        if split is not None:
            numbers.update(int(part) for part in split[1].split(".") if part.isdecimal())
    return numbers
