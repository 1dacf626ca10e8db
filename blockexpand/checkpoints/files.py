"""Which files of a checkpoint folder or repository are weights, and which come along. Names only.

The one place that tells them apart, so that a local folder and a Hub repository select the same.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import CheckpointError
from ..formats.names import explain_bad_name
from ..messages import show

WEIGHTS_FILE = "model.safetensors"

INDEX_FILE = "model.safetensors.index.json"

CONFIG_FILE = "config.json"

CARD_FILE = "README.md"

MANIFEST_FILE = "block_expansion.json"

# One of 10,000 layers and a recipe of a MiB has half of it; JSON takes 50 times its size, parsed.
MOST_MANIFEST_NBYTES = 3_000_000

# Of a card only the front matter is of use.
_MOST_CARD_NBYTES = 1 << 20

# Of these the beginning is read: what is too long is refused where it is needed, if it is.
READ_AT_MOST = {CARD_FILE: _MOST_CARD_NBYTES, MANIFEST_FILE: MOST_MANIFEST_NBYTES + 1}

# They repeat what config.json says of quantisation, for loaders that look there.
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")

# Written anew for the output, never copied.
REWRITTEN_FILES = frozenset({WEIGHTS_FILE, INDEX_FILE, CONFIG_FILE, CARD_FILE, MANIFEST_FILE})

# Weights (or training state) in a form that is not this checkpoint's. They would describe the
# model before the expansion, so they stay behind and the run says so.
_FOREIGN_ENDINGS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".gguf",
    ".ggml",
    ".onnx",
    ".onnx_data",
    ".h5",
    ".msgpack",
    ".ot",
    ".tflite",
    ".mlmodel",
    ".mlpackage",
    ".npz",
    ".nemo",
    ".engine",
    ".distcp",
    ".index.json",
)

_FOREIGN_BEGINNING = "consolidated"


# The voices of Qwen2.5-Omni's talker, without which transformers does not load the model.
_NO_WEIGHTS = frozenset({"spk_dict.pt"})

# What peft calls its own; `transformers` applies such an adapter to the model beside it.
_ADAPTER_CONFIG = "adapter_config.json"

_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_FOREIGN_FOLDERS = frozenset({"original", "onnx", "coreml", "gguf", "openvino", "metal"})


def is_foreign_weights(name: str) -> bool:
    """Tell whether a file (`/`-separated, relative) holds weights in another form or is part of
    them. The checkpoint's own shards match too: take those out first."""
    *folders, last = name.lower().split("/")
    if any(part in _FOREIGN_FOLDERS or part.startswith("global_step") for part in folders):
        return True
    if last in _NO_WEIGHTS:
        return False
    if last == _ADAPTER_CONFIG:
        # Its weights stay behind, and no loader bears it without them.
        return True
    return last.endswith(_FOREIGN_ENDINGS) or last.startswith(_FOREIGN_BEGINNING)


def explain_adapter(names: Collection[str]) -> str | None:
    """Return why a folder whose model has a PEFT adapter beside it is refused; None without one."""
    weights = [name for name in _ADAPTER_WEIGHTS if name in names]
    if not weights or _ADAPTER_CONFIG not in names:
        return None
    return (
        f"{_ADAPTER_CONFIG} and {weights[0]} are a PEFT adapter, which transformers applies to the "
        "model: merge it first (merge_and_unload) and save that, or move both files away to expand "
        "the model without it"
    )


def describe_choice(names: Collection[str]) -> tuple[str, ...]:
    """Return what a run notes of the files that it reads and of those that it does not."""
    notes = []
    if WEIGHTS_FILE in names and INDEX_FILE in names:
        notes.append(
            f"{WEIGHTS_FILE} and {INDEX_FILE} are both there: {WEIGHTS_FILE} is read, as in "
            f"transformers, and the index's shards are not; take {WEIGHTS_FILE} away if they are "
            "meant"
        )
    if _ADAPTER_CONFIG in names:
        notes.append(
            f"{_ADAPTER_CONFIG} is left behind, since the adapter's weights are not there; if the "
            "adapter is to be part of the model, merge it first (merge_and_unload)"
        )
    return tuple(notes)


def is_hidden(name: str) -> bool:
    """Tell whether a file belongs to version control or a cache (`.git/`, `.cache/`, …)."""
    return name.startswith(".") or "/." in name


def split_side_files(
    names: Iterable[str], shards: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the side files that come along and the weights that are left behind, each sorted."""
    own = REWRITTEN_FILES.union(shards)
    side: list[str] = []
    left: list[str] = []
    for name in names:
        if name in own or is_hidden(name):
            continue
        (left if is_foreign_weights(name) else side).append(name)
    return tuple(sorted(side)), tuple(sorted(left))


def read_manifest(folder_or_file: Path) -> tuple[bytes, str]:
    """Return an expansion's block_expansion.json, and what messages call it; the file itself too.

    Raises: CheckpointError where there is none.
    """
    path = folder_or_file
    file = path / MANIFEST_FILE if path.is_dir() else path
    if not file.is_file():
        what = f"no {MANIFEST_FILE} in it" if path.is_dir() else "no such file or folder"
        raise CheckpointError(
            f"{path}: {what}; expected a folder that blockexpand made. Trainers do not copy "
            f"{MANIFEST_FILE} to what they save: copy it, or give the expansion's own folder"
        )
    with file.open("rb") as stream:
        # One byte more tells that it is too large, which its parser says.
        return stream.read(MOST_MANIFEST_NBYTES + 1), str(file)


def link_targets(root: Path) -> tuple[Path, ...]:
    """Return the folders that links in a checkpoint's folder may lead into.

    That is itself, and for a snapshot in the Hub's cache the blobs: its files are links into the
    repository's own or, since 2.4, through it into those that all repositories share.
    """
    real_root = root.resolve()
    in_cache = real_root.parent.name == "snapshots" and len(real_root.parts) > 3
    blobs = [real_root.parents[n] / "blobs" for n in (1, 2)] if in_cache else []
    return (real_root, *blobs)


def explain_link(path: Path, places: Iterable[Path]) -> str | None:
    """Say what is wrong with a symbolic link, None if nothing is or the path is no link."""
    if not path.is_symlink():
        return None
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(place) for place in places):
        return f"is a symbolic link that leaves the folder (to {target})"
    if not target.is_file():
        what = "a folder" if target.is_dir() else f"no file (to {target})"
        return f"is a symbolic link to {what}"
    return None


def list_files(root: Path) -> frozenset[str]:
    """Return every regular file below the root, `/`-separated, but for hidden ones.

    Raises: CheckpointError for a link that leaves the folder or leads to no file, and for a folder
    that cannot be read: what is not seen would silently be left out.
    """
    places = link_targets(root)
    names = []
    folders = [""]
    while folders:
        folder = folders.pop()
        for entry in _scan(root / folder):
            if entry.name.startswith("."):
                continue
            name = f"{folder}{entry.name}"
            reason = explain_bad_name(name, on_disk=True)
            if reason is not None:
                raise CheckpointError(
                    f"{root}: the name of {show(name)} {reason}; rename the file, or remove it"
                )
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{name}/")
                continue
            # Of tens of thousands of files most are told by the folder alone.
            if not entry.is_file(follow_symlinks=False):
                _check_kind(root, name, places)
            names.append(name)
    return frozenset(names)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be listed: {error.strerror}; check the disk and the permissions"
        ) from error


def _check_kind(root: Path, name: str, places: Iterable[Path]) -> None:
    """Refuse what cannot be copied: pipes and devices, and links that lead to no file inside."""
    path = root / name
    if fault := explain_link(path, places):
        raise CheckpointError(
            f"{root}: {name} {fault}; give the folder that the files really lie in, or copy them"
        )
    if not path.is_file():
        raise CheckpointError(
            f"{root}: {name} is {_name_kind(path)}, which cannot be copied; remove it"
        )


def _name_kind(path: Path) -> str:
    """Name what is no file, folder or link."""
    mode = path.lstat().st_mode
    kinds = {
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "no regular file")
