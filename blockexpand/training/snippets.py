"""The pieces of the programs and files that `train-config` prints. Text alone; they run nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.files import MANIFEST_FILE
from ..models.families import MULTIMODAL
from ..planning.manifest import Manifest
from .quantized import QuantizedLoading


def find_model_class(manifest: Manifest) -> str:
    """Return the name of transformers' class that loads the model with its head."""
    wrapper = MULTIMODAL.get(manifest.model_type or "")
    return wrapper.auto_class if wrapper else "AutoModelForCausalLM"


def loading_lines(model_class: str, out: str, quantized: QuantizedLoading) -> str:
    """Return the lines that load the model and freeze all but its new blocks, in float32."""
    argument = quantized.argument
    return (
        f'model = {model_class}.from_pretrained({out!r}, dtype="auto"{argument})\n'
        f"blockexpand.freeze_original_layers(model, {out!r}, dtype=torch.float32)\n"
        f"{quantized.after}"
    )


def join_imports(*names: str) -> str:
    """Return what a line imports; empty names are none."""
    return ", ".join(sorted(filter(None, names)))


def running_lines(out: str) -> str:
    """Return the lines that train and save; `diff`, `verify` and `extract` read the manifest."""
    return (
        'trainer.train()\ntrainer.save_model("trained")\n'
        f'shutil.copy({str(Path(out) / MANIFEST_FILE)!r}, "trained")'
    )


def render_yaml(settings: Mapping[str, Any], notes: list[str]) -> str:
    """Return a file of settings, with the notes above them as remarks."""
    import yaml

    remarks = "".join(f"# {note}\n" for note in notes)
    return remarks + yaml.safe_dump(dict(settings), sort_keys=False, width=1000).rstrip("\n")
