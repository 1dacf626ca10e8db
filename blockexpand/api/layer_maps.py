"""Which layers of a trained model are new: as its manifest says."""

from __future__ import annotations

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import MANIFEST_FILE
from ..errors import CheckpointError
from ..models.layer_map import LayerMap
from ..planning.manifest import parse_manifest
from ..progress import Progress


def find_layer_map(
    base: Checkpoint, trained: Checkpoint, where: str, progress: Progress
) -> LayerMap:
    """Return the layer map of a trained expansion. Raises: CheckpointError."""
    if trained.manifest is not None:
        return parse_manifest(trained.manifest).layer_map
    raise CheckpointError(
        f"{where}: no {MANIFEST_FILE} says which layers are new; copy it from the expansion"
    )
