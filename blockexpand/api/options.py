"""Arguments as a caller gives them, resolved once into values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoints.sources import HubOptions, ModelRef
from ..errors import ArgumentError, CheckpointError, OutputError, RecipeError
from ..formats.json_object import MOST_JSON_NBYTES
from ..fs.paths import existing_folder, expand_home
from ..fs.sharing import file_system_block
from ..models.layer_map import parse_layers
from ..planning.ranks import MARK, Ranks, parse_ranks
from ..planning.recipe import Recipe, parse_position, parse_size
from ..progress import SILENT, Progress
from ..writing.target import WriteOptions, resolve_target
from .arguments import Phase


def make_recipe(
    out: Path,
    new_layers: int | None,
    position: str | Sequence[int],
    dtype: str | None,
    max_shard_size: str | int | None,
    phase: Phase | None = None,
    layers: str | None = None,
    quantized: str = "keep",
) -> Recipe:
    """Resolve the arguments of an expansion that do not depend on the source.

    Raises: ArgumentError where `layers` is given and something else says which layers there are.
    """
    if layers is not None and (new_layers is not None or position != "end" or phase is not None):
        raise ArgumentError(
            "layers",
            "says every layer of the output; leave the number, the position and the phase out",
        )
    ranks = None
    if isinstance(position, str) and position.startswith(MARK):
        ranks = _read_ranks(position.removeprefix(MARK))
        new_layers, position = None, ranks.choose(new_layers)
    return Recipe(
        new_layers=new_layers,
        position=parse_position(position),
        ranks=ranks,
        dtype=dtype,
        max_shard_nbytes=parse_size(max_shard_size),
        block_nbytes=file_system_block(existing_folder(out)),
        keeps_phase=phase == "keep",
        layers=None if layers is None else parse_layers(layers),
        quantized=quantized,
    )


def _read_ranks(file: str) -> Ranks:
    """Read what `rank --json` wrote. Raises: RecipeError."""
    try:
        with expand_home(file).open("rb") as stream:
            data = stream.read(MOST_JSON_NBYTES)
        return parse_ranks(data, file)
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read: {error.strerror}") from error
    except CheckpointError as error:
        raise RecipeError(str(error)) from error


def name_base(name: ModelRef, base_model: str | None) -> ModelRef:
    """Return the source's name with the repository that the card shall name as its base.

    Raises: ArgumentError for a source that comes from the Hub, which is its own base.
    """
    if base_model is None or name.repo == base_model:
        return name
    if name.repo is not None:
        raise ArgumentError(
            "base_model", f"the source is {name.repo} of the Hub already; leave this out"
        )
    return replace(name, base_model=base_model)


def note_base(name: ModelRef) -> tuple[str, ...]:
    """Say what is missing in the card of a local folder."""
    if name.repo is not None or name.base_model is not None:
        return ()
    return ("the card names no base model: --base-model says where a local source is on the Hub",)


def check_revision(src: str | Path, revision: str | None) -> None:
    """Refuse a revision of what is no repository of the Hub. Raises: ArgumentError."""
    if revision is not None and expand_home(src).exists():
        raise ArgumentError(
            "revision",
            f"{revision} is for a repository of the Hub, and {src} is a folder here; leave it out",
        )


def refuse_folder(argument: str, src: str | Path) -> None:
    """Refuse a folder where a repository of the Hub is needed. Raises: ArgumentError."""
    if expand_home(src).exists():
        raise ArgumentError(
            argument,
            f"{src} is a folder here; what is made on the Hub comes from a repository there",
        )


def refuse_source(src: str | Path, target: Path) -> None:
    """Refuse the source as its own output, which no option replaces. Raises: OutputError."""
    source = expand_home(src)
    if source.exists() and resolve_target(source) == target:
        raise OutputError(f"{target}: is the source itself; choose another output folder")


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


def make_write_options(
    reflink: str,
    hardlink: bool,
    overwrite: bool,
    overwrite_anything: str | Path | None,
    kept: tuple[Path, ...] = (),
) -> WriteOptions:
    """Resolve how an output is written; `kept` are files that this run reads."""
    named = overwrite_anything
    return WriteOptions(
        reflink=reflink,
        hardlink=hardlink,
        overwrite=overwrite,
        overwrite_anything=None if named is None else resolve_target(expand_home(named)),
        kept=kept,
    )
