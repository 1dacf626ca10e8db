"""What may become the output, told from its path alone: nothing of a plan is known here.

It only looks, but for a nameless probe. What `--overwrite` may replace is in replacing.py.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.files import CONFIG_FILE, MANIFEST_FILE
from ..errors import OutputError
from ..fs.io import explain
from ..fs.mounts import find_mounts_in
from ..fs.paths import existing_folder
from .leftovers import is_untidy

# One of these says what a folder is: a checkpoint, an expansion, a block adapter.
_OURS = frozenset({MANIFEST_FILE, "block_adapter.json"})

MARKS = _OURS | {CONFIG_FILE}


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How bytes may be moved, and whether an output that exists is replaced.

    `reflink` is `auto`, `always` or `never`, as `cp` has it; `hardlink` links shards that repeat
    the source's byte for byte. `overwrite` replaces what is plainly a checkpoint,
    `overwrite_anything` whatever lies at the output, whose path it has to be. `kept` are files of
    this run that must not go with what is replaced: its jobs file, its recipe. `compared` are
    models that are read and of which no byte goes into the output: it may not lie in them either.
    """

    reflink: str = "auto"
    hardlink: bool = False
    overwrite: bool = False
    overwrite_anything: Path | None = None
    kept: tuple[Path, ...] = ()
    compared: tuple[Path, ...] = ()

    @property
    def replaces(self) -> bool:
        return self.overwrite or self.overwrite_anything is not None


def resolve_target(out: Path) -> Path:
    """Return the absolute path of an output, links followed, whether it exists or not."""
    return Path(os.path.realpath(out))


def check_target(
    out: Path, options: WriteOptions, *, locked: bool = False, planned: bool = True
) -> None:
    """Refuse a path that no output can be put at, whatever the output is.

    Before the target is `locked`, an output passes that a killed run had published but not tidied
    up after; before there is a plan (`planned` is false) one that may be the finished output of
    it. Raises: OutputError, TransferError.
    """
    if out.is_symlink():
        raise OutputError(f"{out}: is a symbolic link that leads back to itself; remove it")
    _check_parent(out)
    named = options.overwrite_anything
    if named is not None and named != out:
        raise OutputError(
            f"--overwrite-anything {named}: expected the output folder once more, {out}"
        )
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, not a folder; choose another output folder")
    mounts = find_mounts_in(out)
    if out.is_mount() or out in mounts:
        raise OutputError(
            f"{out}: is a mount point, which no finished folder can be put in the place of; "
            f"choose a folder in it, such as {out / 'model'}"
        )
    if not any(out.iterdir()):
        return
    if options.replaces:
        if mounts:
            raise OutputError(
                f"{out}: another file system is mounted in it, at {mounts[0]}; --overwrite never "
                "replaces that: unmount it, or choose another folder"
            )
        return
    if not planned and any((out / name).is_file() for name in _OURS):
        return
    if locked or not is_untidy(out):
        # What is no model's folder --overwrite does not replace.
        is_model = any((out / name).is_file() for name in MARKS)
        raise OutputError(
            f"{out}: exists and is not empty; choose another folder"
            + (" or give --overwrite" if is_model else "")
        )


def _check_parent(out: Path) -> None:
    """Refuse a folder in which nothing can be made: the output is made beside its place."""
    folder = existing_folder(out.parent)
    for path in (out.parent, *out.parent.parents):
        if path == folder:
            break
        if os.path.lexists(path):
            raise OutputError(f"{path}: is no folder, so there can be no {out} in it")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise explain("write to", folder, error) from error
        raise OutputError(
            f"{folder}: cannot make a file in it: {error.strerror}; the output is made beside "
            f"{out} and then renamed, so the folder above it has to be writable: check the "
            "permissions, or choose another output folder"
        ) from error
