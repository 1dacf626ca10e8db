"""A local folder → `Checkpoint`: what it holds, from headers and JSON alone.

It reads no tensor data, writes nothing and keeps no handle open, so a `Checkpoint` can also be
built by hand, for a model that is not on the disk.
Source: the safetensors format; the index as `huggingface_hub` and `transformers` write it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckpointError, HeaderError, SourceChangedError
from .file_selection import CARD_FILE, CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, split_side_files
from .json_document import JsonObject, parse_json_object
from .safetensors_header import Header, TensorSpec, parse_header, parse_header_nbytes

_MOST_FAULTS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A byte range: `offset` is absolute in `file`, a name relative to the checkpoint's root."""

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file as it was found, so that a later change of it can be told."""

    name: str
    nbytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A safetensors file: `header_bytes` are its first `header.data_start` bytes."""

    file: SourceFile
    header: Header
    header_bytes: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A catalogue of a checkpoint folder; `specs` maps every tensor's name to what it is."""

    root: Path
    config: JsonObject
    config_bytes: bytes
    shards: tuple[Shard, ...]
    specs: Mapping[str, TensorSpec]
    side_files: tuple[SourceFile, ...]
    left_behind: tuple[str, ...]
    card: bytes | None = None


def open_checkpoint(root: Path) -> Checkpoint:
    """Read the headers, the config and the list of files of a local checkpoint folder.

    Raises: CheckpointError with every fault that the folder shows, on one line.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "no such folder"
        raise CheckpointError(f"{root}: {what}; give a folder with config.json and safetensors")
    names = _list_files(root)
    if CONFIG_FILE not in names:
        raise CheckpointError(
            f"{root}: no {CONFIG_FILE}; is this the folder of a transformers model?"
        )
    documents = {
        name: (root / name).read_bytes()
        for name in (CONFIG_FILE, CARD_FILE, INDEX_FILE)
        if name in names
    }
    # Where both exist model.safetensors goes before the index, as in transformers.
    if WEIGHTS_FILE in names:
        documents.pop(INDEX_FILE, None)
        shard_names: tuple[str, ...] = (WEIGHTS_FILE,)
    elif INDEX_FILE in names:
        shard_names = tuple(sorted(set(parse_weight_map(documents[INDEX_FILE]).values())))
    else:
        raise CheckpointError(f"{root}: {explain_missing_weights(names)}")
    shards, faults = _open_shards(root, shard_names)
    side_names, left_behind = split_side_files(names, shard_names)
    return assemble_checkpoint(
        root,
        documents,
        shards,
        side_files=tuple(_stat_source(root, name) for name in side_names),
        left_behind=left_behind,
        faults=faults,
    )


def assemble_checkpoint(
    root: Path,
    documents: Mapping[str, bytes],
    shards: Sequence[tuple[SourceFile, bytes]],
    *,
    side_files: tuple[SourceFile, ...] = (),
    left_behind: tuple[str, ...] = (),
    faults: Sequence[str] = (),
) -> Checkpoint:
    """Make the catalogue from what was read of a folder or a repository.

    `documents` are config, card and index as bytes; each shard comes with the bytes of its header.
    `faults` are those found before. Raises: CheckpointError with all faults on one line.
    """
    config = parse_json_object(documents[CONFIG_FILE], CONFIG_FILE)
    faults = list(faults)
    parsed: list[Shard] = []
    for file, header_bytes in shards:
        try:
            header = parse_header(header_bytes[8:], file.nbytes)
        except HeaderError as error:
            faults.append(f"{file.name}: {error}")
            continue
        parsed.append(Shard(file=file, header=header, header_bytes=header_bytes))
    specs = _collect_specs(parsed, faults)
    if INDEX_FILE in documents:
        faults += _compare_with_index(parsed, parse_weight_map(documents[INDEX_FILE]))
    if faults:
        raise CheckpointError(f"{root}: " + summarize_faults(faults))
    return Checkpoint(
        root=root,
        config=config,
        config_bytes=documents[CONFIG_FILE],
        shards=tuple(parsed),
        specs=specs,
        side_files=side_files,
        left_behind=left_behind,
        card=documents.get(CARD_FILE),
    )


def parse_weight_map(data: bytes, file: str = INDEX_FILE) -> dict[str, str]:
    """Return the index's map of tensor name → shard name, each a plain file name.

    Raises: CheckpointError for a map that is none, or a value that leaves the folder.
    """
    weight_map = parse_json_object(data, file).get("weight_map")
    if not isinstance(weight_map, dict):
        found = "nothing" if weight_map is None else type(weight_map).__name__
        raise CheckpointError(
            f"{file}: weight_map: expected an object of tensor name to shard, found {found}"
        )
    if not weight_map:
        raise CheckpointError(f"{file}: weight_map is empty: the checkpoint has no tensor")
    for shard in dict.fromkeys(v if isinstance(v, str) else repr(v) for v in weight_map.values()):
        if "/" in shard or "\\" in shard or "\0" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{file}: weight_map names the shard {shard!r}; expected the plain name of a "
                ".safetensors file in the same folder"
            )
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{file}: weight_map: expected only names of shards as values")
    return weight_map


def check_same(path: Path, file: SourceFile, status: os.stat_result) -> None:
    """Raises: SourceChangedError where a file is no longer what was planned with."""
    if (status.st_size, status.st_mtime_ns) != (file.nbytes, file.mtime_ns):
        what = (
            f"expected {file.nbytes} bytes, found {status.st_size}"
            if status.st_size != file.nbytes
            else "its time of change is another"
        )
        raise SourceChangedError(
            f"{path}: the file changed after it was planned with: {what}; run again when nothing "
            "writes to it"
        )


def summarize_faults(faults: Sequence[str]) -> str:
    """Join faults to one line, the first few in full."""
    shown = "; ".join(faults[:_MOST_FAULTS_SHOWN])
    more = len(faults) - _MOST_FAULTS_SHOWN
    return shown if more <= 0 else f"{shown}; and {more} more"


def _list_files(root: Path) -> frozenset[str]:
    """Return every regular file below the root, `/`-separated; links may not leave the folder."""
    real_root = root.resolve()
    # The Hub cache keeps a snapshot's files as links into the repository's own blobs folder, or,
    # since 2.4, through it into the blobs that all repositories of the cache share.
    in_cache = real_root.parent.name == "snapshots" and len(real_root.parts) > 3
    blobs = [real_root.parents[n] / "blobs" for n in (1, 2)] if in_cache else []
    names = set()
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in [*files, *(s for s in subfolders if (Path(folder) / s).is_symlink())]:
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            if path.is_symlink() and not name.startswith("."):
                target = path.resolve()
                if not any(target.is_relative_to(place) for place in (real_root, *blobs)):
                    raise CheckpointError(
                        f"{root}: {relative} is a symbolic link that leaves the folder (to "
                        f"{target}); give the folder that the files really lie in, or copy them"
                    )
            if path.is_file():
                names.add(relative)
    return frozenset(names)


def explain_missing_weights(names: frozenset[str]) -> str:
    """Say what a folder or repository without safetensors weights has instead, and what to do."""
    top = sorted(name for name in names if "/" not in name)
    if "adapter_model.safetensors" in top:
        return (
            "this is a PEFT adapter, not a whole model: merge it into its base model first "
            "(merge_and_unload) and save that"
        )
    loose = [name for name in top if name.endswith(".safetensors")]
    if loose:
        return (
            f"neither {WEIGHTS_FILE} nor {INDEX_FILE}, only {loose[0]}"
            + (f" and {len(loose) - 1} more" if len(loose) > 1 else "")
            + f": the index is missing; fetch {INDEX_FILE} too"
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in top):
        return (
            "no safetensors weights, only PyTorch pickles, which are never loaded: convert them "
            "with transformers, AutoModelForCausalLM.from_pretrained(SRC, dtype='auto')"
            ".save_pretrained(NEW), and copy the tokenizer files"
        )
    return f"no safetensors weights: expected {WEIGHTS_FILE} or {INDEX_FILE} with its shards"


def _open_shards(
    root: Path, shard_names: Sequence[str]
) -> tuple[list[tuple[SourceFile, bytes]], list[str]]:
    shards: list[tuple[SourceFile, bytes]] = []
    faults: list[str] = []
    for name in shard_names:
        if not (root / name).is_file():
            faults.append(f"{INDEX_FILE} names {name}, which is missing: fetch it")
            continue
        with (root / name).open("rb") as stream:
            file = _describe(name, os.fstat(stream.fileno()))
            prefix = stream.read(8)
            try:
                shards.append(
                    (file, prefix + stream.read(parse_header_nbytes(prefix, file.nbytes)))
                )
            except HeaderError as error:
                faults.append(f"{name}: {error}")
    return shards, faults


def _stat_source(root: Path, name: str) -> SourceFile:
    return _describe(name, (root / name).stat())


def _describe(name: str, status: os.stat_result) -> SourceFile:
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{name}: expected a regular file")
    return SourceFile(name=name, nbytes=status.st_size, mtime_ns=status.st_mtime_ns)


def _collect_specs(shards: Sequence[Shard], faults: list[str]) -> dict[str, TensorSpec]:
    specs: dict[str, TensorSpec] = {}
    for shard in shards:
        for entry in shard.header.entries:
            if entry.name in specs:
                faults.append(f"{shard.file.name}: tensor {entry.name!r} is in another shard too")
            specs[entry.name] = entry.spec
    return specs


def _compare_with_index(shards: Sequence[Shard], weight_map: Mapping[str, str]) -> list[str]:
    faults: list[str] = []
    opened = {shard.file.name for shard in shards}
    found: dict[str, str] = {}
    for shard in shards:
        for entry in shard.header.entries:
            found[entry.name] = shard.file.name
    if found == weight_map:
        return faults
    for name, shard_name in weight_map.items():
        if shard_name in opened and found.get(name) != shard_name:
            where = found.get(name)
            faults.append(
                f"{INDEX_FILE}: tensor {name!r} should be in {shard_name}, "
                + (f"but is in {where}" if where else "but no shard has it")
            )
    for name, shard_name in found.items():
        if name not in weight_map:
            faults.append(f"{shard_name}: tensor {name!r} is missing in {INDEX_FILE}")
    return faults
