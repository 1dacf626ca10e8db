"""The files of a checkpoint folder, by name. What could silently be left out is refused.

It opens no file and follows no link out of the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import CheckpointError


def list_files(root: Path) -> frozenset[str]:
    """Return every regular file below the root, `/`-separated, but for hidden ones.

    Raises: CheckpointError for a link that leaves the folder or leads to no file, and for a folder
    that cannot be read: what is not seen would silently be left out.
    """
    real_root = root.resolve()
    # The Hub cache keeps a snapshot's files as links into the repository's own blobs folder, or,
    # since 2.4, through it into the blobs that all repositories of the cache share.
    in_cache = real_root.parent.name == "snapshots" and len(real_root.parts) > 3
    blobs = [real_root.parents[n] / "blobs" for n in (1, 2)] if in_cache else []

    def refuse(error: OSError) -> None:
        raise CheckpointError(
            f"{error.filename}: cannot be listed: {error.strerror}; check the disk and the "
            "permissions"
        ) from error

    names = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in [*files, *(s for s in subfolders if (Path(folder) / s).is_symlink())]:
            path = Path(folder) / name
            if name.startswith("."):
                continue
            relative = path.relative_to(root).as_posix()
            if path.is_symlink():
                target = Path(os.path.realpath(path))
                if not any(target.is_relative_to(place) for place in (real_root, *blobs)):
                    raise CheckpointError(
                        f"{root}: {relative} is a symbolic link that leaves the folder (to "
                        f"{target}); give the folder that the files really lie in, or copy them"
                    )
                if not target.is_file():
                    what = "a folder" if target.is_dir() else f"no file (to {target})"
                    raise CheckpointError(
                        f"{root}: {relative} is a symbolic link to {what}; expected files; copy "
                        "or fetch what is meant, or remove the link"
                    )
            if path.is_file():
                names.add(relative)
    return frozenset(names)
