"""Arguments as a caller gives them, resolved once into values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.sources import HubOptions
from ..fs.paths import existing_folder
from ..fs.sharing import file_system_block
from ..planning.recipe import Recipe, parse_position, parse_size
from ..progress import SILENT, Progress
from .arguments import Phase


def make_recipe(
    out: Path,
    new_layers: int | None,
    position: str | Sequence[int],
    dtype: str,
    max_shard_size: str | int | None,
    phase: Phase | None = None,
) -> Recipe:
    """Resolve the arguments of an expansion that do not depend on the source."""
    return Recipe(
        new_layers=new_layers,
        position=parse_position(position),
        dtype=dtype,
        max_shard_nbytes=parse_size(max_shard_size),
        block_nbytes=file_system_block(existing_folder(out)),
        keeps_phase=phase == "keep",
    )


def make_hub_options(
    revision: str | None,
    token: str | None,
    cache_dir: str | Path | None,
    progress: Progress = SILENT,
) -> HubOptions:
    return HubOptions(
        revision=revision,
        token=token,
        cache_dir=Path(cache_dir) if cache_dir else None,
        tell=progress.tell,
    )
