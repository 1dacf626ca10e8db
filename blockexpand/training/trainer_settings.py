"""What the settings of every trainer share: the schedule, the notes, the paths of the decoder.

Source: LLaMA Pro, arXiv 2401.02415, section 4.1 (learning rate, schedule, weight decay).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..messages import join
from ..models.layer_map import has_equal_groups
from ..models.runtime import runtime_prefixes
from ..planning.manifest import Manifest

LEARNING_RATE = 2e-4

WARMUP_RATIO = 0.06

WEIGHT_DECAY = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """`text` is ready for a file or a shell; `settings` are its values; `notes` are in it too."""

    framework: str
    new_layers: tuple[int, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    text: str


def make_trainer_settings(
    framework: str, manifest: Manifest, settings: Mapping[str, Any], notes: list[str], text: str
) -> TrainerSettings:
    """Put the settings of one trainer together."""
    return TrainerSettings(
        framework=framework,
        new_layers=manifest.new_layers,
        settings=settings,
        notes=tuple(notes),
        text=text,
    )


def trainer_prefixes(manifest: Manifest) -> tuple[str, ...]:
    """Return the decoder's paths in the model that a trainer loads, whatever its transformers.

    Paths that a model does not have match nothing; the bare model is never trained.
    """
    prefixes = runtime_prefixes(manifest.model_type, manifest.layer_prefix)
    if manifest.layer_prefix == prefixes[0] == "model.layers.":
        return ("model.layers.",)
    return tuple(prefix for prefix in prefixes if prefix.count(".") > 1)


def plan_schedule(
    manifest: Manifest, *, scheduler: str = "lr_scheduler_type", warmup: str = "warmup_ratio"
) -> dict[str, Any]:
    """The paper's schedule; without weight decay where it would act on a closing norm of −1."""
    return {
        "learning_rate": LEARNING_RATE,
        scheduler: "cosine",
        warmup: WARMUP_RATIO,
        "weight_decay": 0.0 if find_pulled_norms(manifest) else WEIGHT_DECAY,
        "max_grad_norm": 1.0,
    }


def note_place(manifest: Manifest) -> tuple[str, ...]:
    """Say where the new layers stand, and why weight decay is 0 if it is."""
    layers, new = len(manifest.layer_map), manifest.new_layers
    if new[0] == layers - len(new):
        place = "at the end; in LLaMA Pro (table 5) interleaved blocks trained better"
    elif has_equal_groups(manifest.layer_map):
        place = "interleaved in equal groups, which trained best in LLaMA Pro (table 5)"
    else:
        place = "between or before the original layers"
    notes = [f"new layers {join(new)} of {layers}, counted from 0: {place}"]
    if pulled := find_pulled_norms(manifest):
        notes.append(_DECAY_NOTE.format(join(pulled)))
    return tuple(notes)


_DECAY_NOTE = (
    "weight_decay 0: the new blocks' {} start at −1, which lets nothing through; "
    "weight decay would pull them towards 0, which lets all through. With a decay of your own, "
    "keep it off these norms"
)


def find_pulled_norms(manifest: Manifest) -> tuple[str, ...]:
    """Return the closing norms that start at −1, which weight decay would open."""
    return tuple(suffix for suffix, value in manifest.neutral.items() if value < 0)
