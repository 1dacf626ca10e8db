"""What `--overwrite` may replace: what blockexpand made, or what is plainly a checkpoint.

Everything else in a folder is somebody's work, and its name is said. It only looks.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..checkpoints.files import CONFIG_FILE, MANIFEST_FILE
from ..errors import OutputError
from ..fs.mounts import find_mounts_in
from ..fs.paths import expand_home
from ..messages import show
from .target import MARKS, WriteOptions

try:
    import pwd
except ImportError:  # Windows
    pwd = None  # type: ignore[assignment]

# Names in lower case. What is weights of this model in any form, its tokenizer, its texts, its
# code; not what training leaves (trainer_state.json, optimizer.pt), nor anybody's notes.
_CHECKPOINT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "config.json",
    "*_config.json",
    "block_expansion.json",
    "block_adapter.json",
    "tokenizer*.json",
    "tokenizer*.model",
    "tokenizer.model.v*",
    "*.tiktoken",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template.*",
    "mergekit_config.yml",
    "readme.md",
    "license*",
    "notice*",
    "use_policy.md",
    "modeling_*.py",
    "configuration_*.py",
    "tokenization_*.py",
    "processing_*.py",
    "image_processing_*.py",
    ".gitattributes",
    ".gitignore",
    ".ds_store",
)

# What `hf download --local-dir` keeps beside a model.
_DOWNLOAD_RECORDS = (".cache", "huggingface")

_MOST_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """What goes when the new output takes its place: how much, and the names at its top."""

    folder: Path
    files: int
    nbytes: int
    names: tuple[str, ...]


def find_replaced(out: Path, names: Collection[str], options: WriteOptions) -> Replaced | None:
    """Return what an output that is there would lose; None where there is nothing.

    `names` are those of the new output's files, `/`-separated. Raises: OutputError where what is
    there is not to be replaced.
    """
    if not out.is_dir():
        return None
    held = _look_through(out)
    if not held.names:
        return None
    _refuse_always(out, held)
    reason = _find_reason(out, held, names, options.kept)
    if reason and options.overwrite_anything is None:
        raise OutputError(
            f"{out}: {reason}; --overwrite replaces only what blockexpand made or what is plainly "
            f"a checkpoint: choose another folder, or add --overwrite-anything "
            f"{shlex.quote(str(out))}"
        )
    return Replaced(
        folder=out,
        files=len(held.files),
        nbytes=held.nbytes,
        names=tuple(sorted({name.partition("/")[0] for name in held.names})),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What a folder holds: its files and all its entries, `/`-separated, and who owns them."""

    files: tuple[str, ...]
    names: tuple[str, ...]
    nbytes: int
    owners: frozenset[int]


def _look_through(out: Path) -> _Held:
    def refuse(error: OSError) -> None:
        raise OutputError(
            f"{error.filename}: cannot be listed: {error.strerror}; what is not seen is not "
            "replaced: check the permissions, or choose another folder"
        ) from error

    files: list[str] = []
    names: list[str] = []
    owners = {out.stat().st_uid}
    nbytes = 0
    for folder, subfolders, entries in os.walk(out, onerror=refuse):
        inside = Path(folder).relative_to(out)
        for name in (*subfolders, *entries):
            relative = (inside / name).as_posix()
            names.append(relative)
            status = (Path(folder) / name).lstat()
            owners.add(status.st_uid)
            if name in entries:
                files.append(relative)
                nbytes += status.st_size
    return _Held(files=tuple(files), names=tuple(names), nbytes=nbytes, owners=frozenset(owners))


def _refuse_always(out: Path, held: _Held) -> None:
    """Refuse what no option replaces: a home or what is above one, the current folder, mounts."""
    current = Path.cwd()
    for home in _find_homes(held.owners):
        if _is_in(home, out):
            raise OutputError(
                f"{out}: is {'a home' if home == out else f'above the home {home}'}, which "
                "--overwrite never replaces; choose another folder"
            )
    if _is_in(current, out):
        raise OutputError(
            f"{out}: is the current folder or one above it, which --overwrite never replaces; "
            "change to another folder first"
        )
    mounts = find_mounts_in(out)
    if mounts:
        raise OutputError(
            f"{out}: another file system is mounted in it, at {mounts[0]}; --overwrite never "
            "replaces that: unmount it, or choose another folder"
        )


def _find_homes(owners: Iterable[int]) -> set[Path]:
    """Return the homes of this user, of who became root, and of all whose files are there."""
    homes = {expand_home("~")}
    if pwd is not None:
        for user in {os.geteuid(), os.getuid(), *owners}:
            try:
                homes.add(Path(pwd.getpwuid(user).pw_dir))
            except (KeyError, OverflowError):
                continue
        if "SUDO_USER" in os.environ:
            homes.add(expand_home(f"~{os.environ['SUDO_USER']}"))
    return {Path(os.path.realpath(home)) for home in homes if home.is_absolute()}


def _is_in(place: Path, out: Path) -> bool:
    """Tell whether a place is a folder or below it, by whatever path that folder is known."""
    if place.is_relative_to(out):
        return True
    own = out.stat()
    for folder in (place, *place.parents):
        try:
            status = folder.stat()
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (own.st_dev, own.st_ino) and status.st_ino:
            return True
    return False


def _find_reason(
    out: Path, held: _Held, names: Collection[str], kept: Iterable[Path]
) -> str | None:
    """Say what in a folder is not a checkpoint's, or why the folder is none."""
    for path in kept:
        if _is_in(Path(os.path.realpath(path)), out):
            return f"holds {path}, which this run reads"
    if any(name.rpartition("/")[2] == ".git" for name in held.names):
        return "is a clone of a repository (it has .git)"
    if cache := _find_cache(out):
        return f"is, holds or lies in a cache of the Hub ({cache})"
    tops = {name for name in held.files if "/" not in name}
    if not tops & MARKS:
        return f"has neither {CONFIG_FILE} nor {MANIFEST_FILE}"
    known = frozenset(names)
    for name in held.files:
        folder, _, file = name.rpartition("/")
        if folder and file == CONFIG_FILE and name not in known:
            return f"holds another model, in {show(folder)}"
    foreign = sorted(name for name in held.files if name not in known and not _is_known(name))
    if foreign:
        shown = ", ".join(show(name) for name in foreign[:_MOST_NAMES_SHOWN])
        more = len(foreign) - _MOST_NAMES_SHOWN
        return (
            f"holds {shown}"
            + (f" and {more} more" if more > 0 else "")
            + (", which a checkpoint does not have")
        )
    return None


def _is_known(name: str) -> bool:
    path = PurePosixPath(name.lower())
    if path.parts[:2] == _DOWNLOAD_RECORDS:
        return True
    if len(path.parts) > 1:
        # Subfolders hold what the source had in them: those names are the plan's.
        return False
    return any(fnmatchcase(path.name, pattern) for pattern in _CHECKPOINT_FILES)


def _find_cache(out: Path) -> Path | None:
    """Return the cache that a folder lies in, is, or holds."""
    for folder in (out, *out.parents):
        if folder.name.startswith(("models--", "datasets--", "spaces--")):
            return folder.parent
    home = Path(os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache"))
    caches = [home / "huggingface"]
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        if os.environ.get(name):
            caches.append(expand_home(os.environ[name]))
    for cache in caches:
        if _is_in(Path(os.path.realpath(cache)), out):
            return cache
    return None
