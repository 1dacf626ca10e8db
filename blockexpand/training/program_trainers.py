"""The trainers that a program of the user's own calls: what is printed is the program."""

from __future__ import annotations

from typing import Any

from ..fs.paths import expand_home
from ..planning.manifest import Manifest
from .quantized import describe_loading
from .snippets import find_model_class, join_imports, loading_lines, running_lines
from .trainer_settings import TrainerSettings, make_trainer_settings, note_place, plan_schedule

_FLOAT32_NOTES = (
    "the new blocks are held in float32: in bare bfloat16 norms do not move at all, and small "
    "steps of the others are rounded away. bf16=True computes in bfloat16 all the same",
    "warmup_steps below 1 is a part of all steps (before transformers 5: warmup_ratio)",
)


def for_peft(manifest: Manifest, out: str) -> TrainerSettings:
    """Return a program that puts LoRA adapters on the new blocks."""
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
    notes += note_place(manifest)
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
    return make_trainer_settings("peft", manifest, settings, notes, text)


def for_transformers(manifest: Manifest, out: str) -> TrainerSettings:
    """Return a program around transformers' Trainer."""
    return _for_trainer(manifest, out, "transformers", "Trainer", "TrainingArguments")


def for_trl(manifest: Manifest, out: str) -> TrainerSettings:
    """Return a program around TRL's SFTTrainer."""
    return _for_trainer(manifest, out, "trl", "SFTTrainer", "SFTConfig")


def _for_trainer(
    manifest: Manifest, out: str, library: str, trainer: str, arguments: str
) -> TrainerSettings:
    """Return a program around `trainer` with `arguments`, two classes of `library`."""
    settings = {**plan_schedule(manifest, warmup="warmup_steps"), "bf16": True}
    values = "".join(f"    {key}={value!r},\n" for key, value in settings.items())
    quantized = describe_loading(manifest, is_adapter=False)
    notes = [*_FLOAT32_NOTES, *quantized.notes, *note_place(manifest)]
    model_class = find_model_class(manifest)
    classes = [model_class, quantized.imported]
    own = f"from {library} import {arguments}, {trainer}\n"
    if library == "transformers":
        classes, own = [*classes, trainer, arguments], ""
    text = (
        "".join(f"# {note}\n" for note in notes)
        + "import shutil\n\nimport blockexpand\nimport torch\n"
        + f"from transformers import {join_imports(*classes)}\n"
        + f"{quantized.imported_from}{own}\n"
        + loading_lines(model_class, out, quantized)
        + f'arguments = {arguments}(\n    output_dir="trained",\n{values})\n'
        + f"trainer = {trainer}(model=model, args=arguments, train_dataset=...)\n"
        + running_lines(out)
    )
    return make_trainer_settings(library, manifest, settings, notes, text)
