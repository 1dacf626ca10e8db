"""Read and write checkpoints by hand, so that no expectation comes from the code under test.

Source: the safetensors format: 8 bytes of length, JSON, data.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

NBYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
NBYTES |= {"I8": 1, "F8_E4M3": 1, "F8_E8M0": 1}
PARTS = (
    "input_layernorm",
    "mlp.down_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "post_attention_layernorm",
    "self_attn.k_proj",
    "self_attn.o_proj",
    "self_attn.q_proj",
    "self_attn.v_proj",
)


class Tensor(NamedTuple):
    """A tensor as it stands in a file; `offset` is absolute."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    offset: int = 0


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's header and where its data starts."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), 8 + length


def read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, in the order of its header."""
    header, start = read_header(path)
    header.pop("__metadata__", None)
    data = path.read_bytes()
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        tensors[name] = Tensor(entry["dtype"], tuple(entry["shape"]), data[first:last], first)
    return tensors


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder; no name may be in two files."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = read_file(path)
        assert not tensors.keys() & found.keys()
        tensors |= found
    return tensors


def render_file(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    metadata: Mapping[str, str] | None = None,
    *,
    align: int = 8,
) -> bytes:
    """Return a safetensors file, its data starting at a multiple of `align`."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name, (dtype, shape, data, *_) in tensors.items():
        assert len(data) == math.prod(shape) * NBYTES[dtype], name
        begin, end = end, end + len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % align)
    return struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values())


def write_checkpoint(
    folder: Path,
    shards: Iterable[Mapping[str, tuple[str, tuple[int, ...], bytes]]],
    config: Mapping[str, Any] | None = None,
    *,
    align: int = 8,
) -> Path:
    """Write shards, their index if there are several, and a config of a Mistral model."""
    folder.mkdir(parents=True, exist_ok=True)
    files = list(shards)
    weight_map = {}
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        weight_map |= dict.fromkeys(tensors, name)
        if len(files) == 1:
            name = "model.safetensors"
        (folder / name).write_bytes(render_file(tensors, align=align))
    if len(files) > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    layers = {name.split(".")[2] for file in files for name in file if ".layers." in name}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mistral", "num_hidden_layers": len(layers)} | dict(config or {}))
    )
    return folder


def mistral_tensors(
    layers: int = 2, dtype: str = "BF16", size: int = 4
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return a Mistral model's tensors, `size` elements each; no two have the same bytes."""
    names = ["model.embed_tokens.weight"]
    names += [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in PARTS]
    names += ["model.norm.weight", "lm_head.weight"]
    tensors = {}
    for name in names:
        seed = hashlib.sha256(name.encode()).digest()
        # 0x3f is the upper byte of numbers near 1: finite in every dtype.
        pattern = bytes(
            0x3F if i % NBYTES[dtype] == NBYTES[dtype] - 1 else b
            for i, b in enumerate((seed * 8)[: 8 * 16])
        )
        data = (pattern * (size * NBYTES[dtype] // len(pattern) + 1))[: size * NBYTES[dtype]]
        tensors[name] = (dtype, (size,), data)
    return tensors


def copy_tree(source: Path, target: Path) -> Path:
    """Copy a folder, and give its files the modes of new ones."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    return target


def snapshot(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Return everything below a folder: content, time of change and mode by name."""
    tree = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            content = f"link to {path.readlink()}"
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = "folder"
        # Of a folder the time changes when a sibling test reads it into the cache; content counts.
        mtime = status.st_mtime_ns if content != "folder" else 0
        tree[str(path.relative_to(folder))] = (content, mtime, status.st_mode)
    return tree


def edit_json(path: Path, **changes: Any) -> None:
    """Set members of a JSON object; the value `...` removes one."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}, indent=2))
