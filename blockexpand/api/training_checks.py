"""What speaks against a training before a model is loaded: numbers, folders, disk, what follows."""

from __future__ import annotations

import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sources import open_source
from ..errors import ArgumentError, CheckpointError, OutputError, UsageError
from ..fs.paths import existing_folder, expand_home
from ..messages import show
from ..models.decoder import find_decoder
from ..planning.claims import parse_claims
from ..planning.manifest import Manifest
from ..planning.plan import naming
from ..training.states import is_of_a_run
from ..training.stored import BLOCKS_FILE
from ..writing.staging import check_owner
from ..writing.target import WriteOptions, check_target, resolve_target
from .options import make_hub_options


def check_numbers(**numbers: float | None) -> None:
    """Check the settings that are numbers; None is left to `train`. Raises: ArgumentError."""
    for name, value in numbers.items():
        if value is None:
            continue
        least = 0 if name in ("seed", "weight_decay") else 2 if name == "length" else 1
        is_fraction = name in ("learning_rate", "weight_decay")
        if isinstance(value, bool) or not isinstance(value, (int, float) if is_fraction else int):
            raise ArgumentError(name, f"expected a number, found {value!r}")
        if (name == "learning_rate" and not 0 < value < 1) or (not is_fraction and value < least):
            expected = "above 0 and below 1" if is_fraction else f"{least} or more"
            raise ArgumentError(name, f"expected {expected}, found {value}")
        if name == "weight_decay" and not 0 <= value < 1:
            raise ArgumentError(name, f"expected 0 or more and below 1, found {value}")


def check_sharding() -> None:
    """Refuse to share a model out with a torch that cannot. Raises: ArgumentError."""
    found = version("torch")
    if [int(part) for part in re.findall(r"\d+", found)[:2]] < [2, 6]:
        raise ArgumentError("fsdp", f"needs torch 2.6 or newer, found {found}; leave it out")


def check_work_folder(folder: Path) -> None:
    """Refuse a folder of states that holds anything else, or is not this user's.

    What is in it is gone on with, and removed in the end. Raises: OutputError.
    """
    check_owner(folder)
    if not os.path.lexists(folder):
        return
    for path in sorted(folder.iterdir()):
        if not is_of_a_run(path.name) and path.name != BLOCKS_FILE:
            raise OutputError(
                f"{folder}: is where the states of the run would be kept, and holds "
                f"{show(path.name)}, which is none of them; move it away, or choose another --out"
            )


def check_what_follows(
    root: Path,
    checkpoint: Checkpoint,
    manifest: Manifest,
    extract_to: str | Path | None,
    base: str | Path | None,
    push_to_hub: str | None,
    token: str | None,
) -> tuple[str | None, str | None]:
    """Refuse what would fail after the training; return the base to extract from, its revision.

    Raises: UsageError, OutputError, HubError, CheckpointError.
    """
    if push_to_hub is not None:
        from ..publishing.target import check_push, refuse_secrets

        refuse_secrets((file.name for file in checkpoint.side_files), str(root))
        check_push(push_to_hub, token=token)
    if extract_to is None:
        if base is not None:
            raise UsageError("--base is for --extract DIR")
        return None, None
    check_target(resolve_target(expand_home(extract_to)), WriteOptions(), planned=False)
    revision = None
    if base is None:
        source = parse_claims(manifest).source
        if source.repo is None:
            raise UsageError(
                f"--extract needs --base BASE, the model that {root} was expanded from"
            )
        base, revision = source.repo, source.commit
    opened, _ = open_source(str(base), make_hub_options(revision, token, None), headers_only=True)
    with naming(opened):
        layers = find_decoder(opened.config, opened.specs).layers
    if layers != manifest.original_layers:
        raise CheckpointError(
            f"{base}: has {layers} layers; {root} was expanded from a model of "
            f"{manifest.original_layers}"
        )
    return str(base), revision


def check_disk(target: Path, states_nbytes: int) -> None:
    """Refuse a disk without room for the states of a run; the output is checked when it is known.

    Raises: OutputError.
    """
    free = shutil.disk_usage(existing_folder(target.parent)).free
    if free < states_nbytes:
        raise OutputError(
            f"{target.parent}: the states of the run take {states_nbytes / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; make room, or choose another --out"
        )
