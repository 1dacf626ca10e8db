"""A local folder → `Checkpoint`: what it holds, from headers and JSON alone.

It reads no tensor data, writes nothing and keeps no handle open, so a `Checkpoint` can also be
built by hand, for a model that is not on the disk.
Source: the safetensors format; the index as `huggingface_hub` and `transformers` write it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import CheckpointError, HeaderError
from ..formats.json_object import MOST_JSON_NBYTES, JsonObject, parse_json_object
from ..formats.safetensors import Header, parse_header, parse_header_nbytes, read_header
from ..formats.tensor_spec import TensorSpec
from ..fs.io import attempt
from ..fs.reading import FileStat, describe_file
from ..messages import and_more, show
from .contents import read_contents
from .files import (
    CARD_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    READ_AT_MOST,
    WEIGHTS_FILE,
    describe_choice,
    explain_adapter,
    list_files,
    split_side_files,
)
from .index import compare_with_index, parse_weight_map

_MOST_FAULTS_SHOWN = 5

PICKLES = (".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A safetensors file: `header_bytes` are its first `header.data_start` bytes."""

    file: FileStat
    header: Header
    header_bytes: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A catalogue of a checkpoint folder; `specs` maps every tensor's name to what it is.

    `manifest` is its block_expansion.json as it stands there, if it is an expansion itself; `notes`
    is what a run says of the choice that was made among its files. `contents` holds what else of a
    quantised model a plan needs to see (see contents.py).
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
    notes: tuple[str, ...] = ()
    contents: Mapping[str, bytes] = field(default_factory=dict)


def open_checkpoint(root: Path) -> Checkpoint:
    """Read the headers, the config and the list of files of a local checkpoint folder.

    Raises: CheckpointError with every fault that the folder shows, on one line.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "no such folder"
        if root.is_symlink() and not root.exists():
            what = f"is a link to {root.readlink()}, which is not there"
        if root.suffix.lower() == ".gguf":
            raise CheckpointError(f"{root}: {_GGUF}")
        raise CheckpointError(f"{root}: {what}; give a folder with config.json and safetensors")
    if not (root / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{root}: no {CONFIG_FILE}; is this the folder of a transformers model?"
        )
    names = list_files(root)
    adapter = explain_adapter(names)
    if adapter is not None:
        raise CheckpointError(f"{root}: {adapter}")
    documents = {
        name: _read_document(root, name)
        for name in (CONFIG_FILE, CARD_FILE, INDEX_FILE, MANIFEST_FILE)
        if name in names
    }
    weight_map = None
    # Where both exist model.safetensors goes before the index, as in transformers.
    if WEIGHTS_FILE in names:
        documents.pop(INDEX_FILE, None)
        shard_names: tuple[str, ...] = (WEIGHTS_FILE,)
    elif INDEX_FILE in names:
        with _within(root):
            weight_map = parse_weight_map(documents.pop(INDEX_FILE))
        shard_names = tuple(sorted(set(weight_map.values())))
        if not names.intersection(shard_names):
            raise CheckpointError(f"{root}: {explain_missing_shards(shard_names, names)}")
    else:
        raise CheckpointError(f"{root}: {explain_missing_weights(names)}")
    shards, faults = _open_shards(root, shard_names, names)
    side_names, left_behind = split_side_files(names, shard_names)
    checkpoint = assemble_checkpoint(
        root,
        documents,
        shards,
        weight_map=weight_map,
        side_files=tuple(_stat_source(root, name) for name in side_names),
        left_behind=left_behind,
        faults=faults,
        notes=describe_choice(names),
    )
    contents = read_contents(
        root, checkpoint.config, checkpoint.shards, [file.name for file in checkpoint.side_files]
    )
    return replace(checkpoint, contents=contents)


def assemble_checkpoint(
    root: Path,
    documents: Mapping[str, bytes],
    shards: Sequence[tuple[FileStat, bytes]],
    *,
    weight_map: Mapping[str, str] | None = None,
    side_files: tuple[FileStat, ...] = (),
    left_behind: tuple[str, ...] = (),
    faults: Sequence[str] = (),
    notes: tuple[str, ...] = (),
) -> Checkpoint:
    """Make the catalogue from what was read of a folder or a repository.

    `documents` are config, card and index as bytes; each shard comes with the bytes of its header.
    `weight_map` is the index's, if it was parsed; `faults` are those found before.
    Raises: CheckpointError with all faults on one line.
    """
    with _within(root):
        config = parse_json_object(documents[CONFIG_FILE], CONFIG_FILE)
        if weight_map is None and INDEX_FILE in documents:
            weight_map = parse_weight_map(documents[INDEX_FILE])
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
    if weight_map is not None:
        tensors = {
            shard.file.name: [entry.name for entry in shard.header.entries] for shard in parsed
        }
        more_faults, index_notes = compare_with_index(tensors, weight_map, config)
        faults += more_faults
        notes += tuple(index_notes)
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
        notes=notes,
        manifest=documents.get(MANIFEST_FILE),
    )


def summarize_faults(faults: Sequence[str]) -> str:
    """Join faults to one line, the first few in full."""
    return and_more(faults, _MOST_FAULTS_SHOWN, "; ")


@contextlib.contextmanager
def _within(root: Path) -> Iterator[None]:
    """Say of a document that is no good which folder it lies in."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{root}: {error}") from None


def _read_document(root: Path, name: str) -> bytes:
    with (root / name).open("rb") as stream:
        if name in READ_AT_MOST:
            return stream.read(READ_AT_MOST[name])
        nbytes = os.fstat(stream.fileno()).st_size
        if nbytes > MOST_JSON_NBYTES:
            raise CheckpointError(
                f"{root}: {name}: expected at most {MOST_JSON_NBYTES} bytes, found {nbytes}"
            )
        # Never `read(limit)`: that sets the limit aside before it reads.
        return stream.read(nbytes)


_GGUF = (
    "GGUF files, which cannot be expanded: expand the original repository, and convert the result "
    "with llama.cpp's convert_hf_to_gguf.py"
)


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
    if any(name.lower().endswith(".gguf") for name in top):
        return f"no safetensors weights, only {_GGUF}"
    if any(name.endswith(PICKLES) for name in top):
        return (
            "no safetensors weights, only PyTorch pickles, which are never loaded: convert them "
            "with transformers, AutoModelForCausalLM.from_pretrained(SRC, dtype='auto')"
            ".save_pretrained(NEW), and copy the tokenizer files"
        )
    return f"no safetensors weights: expected {WEIGHTS_FILE} or {INDEX_FILE} with its shards"


def explain_missing_shards(shards: Sequence[str], names: frozenset[str]) -> str:
    """Say what there is instead of all the shards that an index names, and what to do."""
    named = and_more([show(name) for name in shards])
    missing = f"{INDEX_FILE} names {named}, of which none is there"
    others = sorted(name for name in names if "/" not in name)
    loose = [show(name) for name in others if name.endswith(".safetensors")]
    if loose:
        return f"{missing}, only {and_more(loose)}: fetch the index that belongs to these"
    if any(name.endswith(PICKLES) for name in others):
        return f"{missing}: {explain_missing_weights(names - {INDEX_FILE})}"
    return f"{missing}: fetch them"


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
            try:
                shards.append((file, read_header(stream, file.nbytes)))
            except HeaderError as error:
                faults.append(f"{name}: {error}")
    return shards, faults


def _stat_source(root: Path, name: str) -> FileStat:
    # Not a path for each: there may be tens of thousands of side files.
    path = f"{root}/{name}"
    return _describe(name, attempt("read", path, os.stat, path))


def _describe(name: str, status: os.stat_result) -> FileStat:
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{name}: expected a regular file")
    return describe_file(name, status)


def _collect_specs(shards: Sequence[Shard], faults: list[str]) -> dict[str, TensorSpec]:
    specs: dict[str, TensorSpec] = {}
    for shard in shards:
        specs.update((name, spec) for name, spec, _ in shard.header.entries)
    if len(specs) == sum(len(shard.header.entries) for shard in shards):
        return specs
    where: dict[str, str] = {}
    for shard in shards:
        for entry in shard.header.entries:
            if entry.name in where:
                faults.append(
                    f"{shard.file.name}: tensor {show(entry.name)} is in {where[entry.name]} too: "
                    "take one of them away, or fetch the files again"
                )
            where[entry.name] = shard.file.name
    return specs
