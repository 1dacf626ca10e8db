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

from ..errors import CheckpointError, HeaderError
from ..formats.json_object import JsonObject, parse_json_object
from ..formats.safetensors import Header, TensorSpec, parse_header, parse_header_nbytes
from ..fs.reading import FileStat
from ..messages import and_more, show
from .files import (
    CARD_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    MOST_MANIFEST_NBYTES,
    WEIGHTS_FILE,
    list_files,
    split_side_files,
)

_MOST_FAULTS_SHOWN = 5

# An index of a million tensors has 100 MB. Of a card only the front matter is of use.
_MOST_JSON_NBYTES = 1 << 28

_MOST_CARD_NBYTES = 1 << 20

# Of these the beginning is read: what is too long is refused where it is needed, if it is.
_READ_AT_MOST = {CARD_FILE: _MOST_CARD_NBYTES, MANIFEST_FILE: MOST_MANIFEST_NBYTES + 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A safetensors file: `header_bytes` are its first `header.data_start` bytes."""

    file: FileStat
    header: Header
    header_bytes: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A catalogue of a checkpoint folder; `specs` maps every tensor's name to what it is.

    `manifest` is its block_expansion.json as it stands there, if it is an expansion itself.
    """

    root: Path
    config: JsonObject
    config_bytes: bytes
    shards: tuple[Shard, ...]
    specs: Mapping[str, TensorSpec]
    side_files: tuple[FileStat, ...]
    left_behind: tuple[str, ...]
    card: bytes | None = None
    manifest: bytes | None = None


def open_checkpoint(root: Path) -> Checkpoint:
    """Read the headers, the config and the list of files of a local checkpoint folder.

    Raises: CheckpointError with every fault that the folder shows, on one line.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "no such folder"
        raise CheckpointError(f"{root}: {what}; give a folder with config.json and safetensors")
    if not (root / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{root}: no {CONFIG_FILE}; is this the folder of a transformers model?"
        )
    names = list_files(root)
    documents = {
        name: _read_document(root / name)
        for name in (CONFIG_FILE, CARD_FILE, INDEX_FILE, MANIFEST_FILE)
        if name in names
    }
    weight_map = None
    # Where both exist model.safetensors goes before the index, as in transformers.
    if WEIGHTS_FILE in names:
        documents.pop(INDEX_FILE, None)
        shard_names: tuple[str, ...] = (WEIGHTS_FILE,)
    elif INDEX_FILE in names:
        weight_map = parse_weight_map(documents[INDEX_FILE])
        shard_names = tuple(sorted(set(weight_map.values())))
    else:
        raise CheckpointError(f"{root}: {explain_missing_weights(names)}")
    shards, faults = _open_shards(root, shard_names, names)
    side_names, left_behind = split_side_files(names, shard_names)
    return assemble_checkpoint(
        root,
        documents,
        shards,
        weight_map=weight_map,
        side_files=tuple(_stat_source(root, name) for name in side_names),
        left_behind=left_behind,
        faults=faults,
    )


def assemble_checkpoint(
    root: Path,
    documents: Mapping[str, bytes],
    shards: Sequence[tuple[FileStat, bytes]],
    *,
    weight_map: Mapping[str, str] | None = None,
    side_files: tuple[FileStat, ...] = (),
    left_behind: tuple[str, ...] = (),
    faults: Sequence[str] = (),
) -> Checkpoint:
    """Make the catalogue from what was read of a folder or a repository.

    `documents` are config, card and index as bytes; each shard comes with the bytes of its header.
    `weight_map` is the index's, if it was parsed; `faults` are those found before.
    Raises: CheckpointError with all faults on one line.
    """
    config = parse_json_object(documents[CONFIG_FILE], CONFIG_FILE)
    faults = list(faults)
    parsed: list[Shard] = []
    for file, header_bytes in shards:
        try:
            # A header that cannot be all there may be left out but for its length.
            parse_header_nbytes(header_bytes, file.nbytes)
            header = parse_header(header_bytes[8:], file.nbytes)
        except HeaderError as error:
            faults.append(f"{file.name}: {error}")
            continue
        parsed.append(Shard(file=file, header=header, header_bytes=header_bytes))
    specs = _collect_specs(parsed, faults)
    if weight_map is None and INDEX_FILE in documents:
        weight_map = parse_weight_map(documents[INDEX_FILE])
    if weight_map is not None:
        faults += _compare_with_index(parsed, weight_map)
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
        manifest=documents.get(MANIFEST_FILE),
    )


def parse_weight_map(data: bytes, file: str = INDEX_FILE) -> dict[str, str]:
    """Return the index's map of tensor name → shard name, each a plain file name.

    Raises: CheckpointError for a map that is none, or a value that leaves the folder.
    """
    weight_map = parse_json_object(data, file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(
            f"{file}: weight_map: expected an object of tensor name to shard, found "
            f"{show(weight_map)}"
        )
    if not weight_map:
        raise CheckpointError(f"{file}: weight_map is empty: the checkpoint has no tensor")
    values = list(weight_map.values())
    # The names first of all, since other values cannot be in a set.
    for shard in [v for v in values if type(v) is not str] or set(values):
        if type(shard) is not str or not _is_plain_shard_name(shard):
            raise CheckpointError(
                f"{file}: weight_map names the shard {show(shard)}; expected the plain name of a "
                ".safetensors file in the same folder"
            )
    return weight_map


def _is_plain_shard_name(name: str) -> bool:
    return (
        name.endswith(".safetensors")
        and not name.startswith(".")
        and not any(character in name for character in "/\\\0")
    )


def summarize_faults(faults: Sequence[str]) -> str:
    """Join faults to one line, the first few in full."""
    return and_more(faults, _MOST_FAULTS_SHOWN, "; ")


def _read_document(path: Path) -> bytes:
    with path.open("rb") as stream:
        if path.name in _READ_AT_MOST:
            return stream.read(_READ_AT_MOST[path.name])
        nbytes = os.fstat(stream.fileno()).st_size
        if nbytes > _MOST_JSON_NBYTES:
            raise CheckpointError(
                f"{path.name}: expected at most {_MOST_JSON_NBYTES} bytes, found {nbytes}"
            )
        # Never `read(limit)`: that sets the limit aside before it reads.
        return stream.read(nbytes)


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
            f"neither {WEIGHTS_FILE} nor {INDEX_FILE}, only {and_more(loose)}: the index is "
            f"missing; fetch {INDEX_FILE} too"
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in top):
        return (
            "no safetensors weights, only PyTorch pickles, which are never loaded: convert them "
            "with transformers, AutoModelForCausalLM.from_pretrained(SRC, dtype='auto')"
            ".save_pretrained(NEW), and copy the tokenizer files"
        )
    return f"no safetensors weights: expected {WEIGHTS_FILE} or {INDEX_FILE} with its shards"


def _open_shards(
    root: Path, shard_names: Sequence[str], names: frozenset[str]
) -> tuple[list[tuple[FileStat, bytes]], list[str]]:
    shards: list[tuple[FileStat, bytes]] = []
    faults: list[str] = []
    for name in shard_names:
        if name not in names:
            faults.append(f"{INDEX_FILE} names {show(name)}, which is missing: fetch it")
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


def _stat_source(root: Path, name: str) -> FileStat:
    return _describe(name, (root / name).stat())


def _describe(name: str, status: os.stat_result) -> FileStat:
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{name}: expected a regular file")
    return FileStat(name=name, nbytes=status.st_size, mtime_ns=status.st_mtime_ns)


def _collect_specs(shards: Sequence[Shard], faults: list[str]) -> dict[str, TensorSpec]:
    specs: dict[str, TensorSpec] = {}
    for shard in shards:
        for entry in shard.header.entries:
            if entry.name in specs:
                faults.append(
                    f"{shard.file.name}: tensor {show(entry.name)} is in another shard too"
                )
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
                f"{INDEX_FILE}: tensor {show(name)} should be in {shard_name}, "
                + (f"but is in {where}" if where else "but no shard has it")
            )
    for name, shard_name in found.items():
        if name not in weight_map:
            faults.append(f"{shard_name}: tensor {show(name)} is missing in {INDEX_FILE}")
    return faults
