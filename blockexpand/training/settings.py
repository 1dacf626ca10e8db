"""The settings with which the usual trainers train the new blocks of an expansion and nothing else.

It reads block_expansion.json, for PEFT also the model's structure on the meta device (no weights),
and returns text. What a trainer cannot express is an error, never an approximation.
Source: LLaMA Pro, arXiv 2401.02415, section 4.1 (learning rate, schedule, weight decay); the
trainers' own code for what each setting matches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from ..planning.manifest import Manifest
from .config_trainers import for_axolotl, for_llamafactory, for_ms_swift
from .freezing import open_manifest
from .program_trainers import for_peft, for_transformers, for_trl
from .quantized import describe_loading
from .trainer_settings import TrainerSettings

PLACES = """\
Where the blocks stand matters: in the paper that introduced them, blocks between the layers
(--position interleaved) trained better than the same number of blocks all at the start or all at
the end (LLaMA Pro, arXiv 2401.02415, table 5). In a measurement of our own (docs/training.md, a
model of 135M) six blocks at the end learnt less than half as much of a new text as six interleaved
ones, and the loss on other text rose four times as far. What speaks for the end is that the
original layers keep their numbers, that unchanged shards can be linked, and that every trainer that
can train the last N layers fits it.
"""


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


# Those that load the model themselves, from a file of settings.
_BY_CONFIG = frozenset({"llamafactory", "axolotl", "ms-swift"})

FRAMEWORKS: Mapping[str, Callable[[Manifest, str], TrainerSettings]] = {
    "llamafactory": for_llamafactory,
    "axolotl": for_axolotl,
    "ms-swift": for_ms_swift,
    "peft": for_peft,
    "transformers": for_transformers,
    "trl": for_trl,
}
