"""block_adapter.json: which blocks an adapter holds, and the base that they were trained in.

Values and their JSON, every field checked; it opens no file. An adapter is a stranger's: a name in
it may not leave its folder, and every number is bounded.
Source: docs/block-adapter.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, TypeGuard

from .._version import __version__
from ..checkpoints.sources import ModelRef
from ..errors import CheckpointError, HeaderError
from ..formats.json_object import JsonObject, parse_json_object
from ..formats.tensor_spec import TensorSpec, make_tensor_spec
from ..messages import show
from ..models.layer_map import MAX_LAYERS, LayerEntry, LayerMap

ADAPTER_FILE = "block_adapter.json"
FORMAT_VERSION = 1
MAX_ADAPTER_NBYTES = 64_000_000

# Of one file, or of several with an index of their own: PEFT looks for adapter_model.safetensors,
# transformers for model.safetensors, and neither may take an adapter for what it can load.
BLOCKS_FILE = "blocks.safetensors"
BLOCKS_INDEX_FILE = "blocks.safetensors.index.json"
_BLOCKS_NAME = re.compile(r"blocks(-[0-9]{5}-of-[0-9]{5})?\.safetensors")
_SHARD_NAME = re.compile(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,200}\.safetensors")
# What decides which code loads a model is the base's alone.
_UNTOUCHED = frozenset(
    {"architectures", "auto_map", "custom_pipelines", "model_type", "quantization_config"}
)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class DigestedTensor(NamedTuple):
    """A tensor without its bytes; `sha256` is that of its bytes, as hexadecimal digits."""

    spec: TensorSpec
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShard:
    """A shard of the base: `header_sha256` covers its header with the length bytes."""

    name: str
    nbytes: int
    header_sha256: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The model that an adapter belongs to, well enough described to be known again.

    `tensors` are all of its tensors by name, so that it is known in another sharding too.
    """

    name: ModelRef
    config: JsonObject
    shards: tuple[BaseShard, ...]
    tensors: Mapping[str, DigestedTensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAdapter:
    """What block_adapter.json says.

    `layer_map` is that of the whole model, base and blocks; `tensors` are those of the new layers,
    `changed` those of the base that were trained too, both under their names in that model.
    `neutral` maps the suffixes that were set to a constant before training to that constant;
    `config_changes` are fields of config.json that were changed too, each with its path.
    """

    base: Base
    layer_prefix: str
    layer_map: LayerMap
    neutral: Mapping[str, float]
    files: tuple[str, ...]
    tensors: Mapping[str, DigestedTensor]
    changed: Mapping[str, DigestedTensor] = field(default_factory=dict)
    config_changes: tuple[tuple[tuple[str, ...], Any], ...] = ()

    @property
    def new_layers(self) -> tuple[int, ...]:
        """The numbers of the new layers in the whole model, in order."""
        return tuple(index for index, entry in enumerate(self.layer_map) if entry.is_new)

    @property
    def original_layers(self) -> int:
        """The number of the base's layers."""
        return len(self.layer_map) - len(self.new_layers)


def render_adapter(adapter: BlockAdapter) -> bytes:
    """Return block_adapter.json."""
    base = adapter.base
    name = {"repo": base.name.repo, "revision": base.name.revision, "commit": base.name.commit}
    content = {
        "format_version": FORMAT_VERSION,
        "blockexpand": __version__,
        "base": {
            "model": base.name.public,
            **{key: value for key, value in name.items() if value is not None},
            "config": base.config,
            "shards": [
                {
                    "name": shard.name,
                    "nbytes": shard.nbytes,
                    "header_sha256": shard.header_sha256,
                    "sha256": shard.sha256,
                }
                for shard in base.shards
            ],
            "tensors": _render_tensors(base.tensors),
        },
        "original_layers": adapter.original_layers,
        "layers": len(adapter.layer_map),
        "layer_map": [entry.source for entry in adapter.layer_map],
        "new_layers": list(adapter.new_layers),
        "layer_prefix": adapter.layer_prefix,
        "neutral": dict(adapter.neutral),
        "files": list(adapter.files),
        "tensors": _render_tensors(adapter.tensors),
        "changed": _render_tensors(adapter.changed),
        "config_changes": [
            {"path": list(path), "value": value} for path, value in adapter.config_changes
        ],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def parse_adapter(data: bytes, file: str) -> BlockAdapter:
    """Read block_adapter.json. Raises: CheckpointError naming the first bad field."""
    if len(data) > MAX_ADAPTER_NBYTES:
        raise CheckpointError(
            f"{file}: has {len(data)} bytes; expected at most {MAX_ADAPTER_NBYTES}"
        )
    content = parse_json_object(data, file)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format_version: expected {FORMAT_VERSION}, found {show(version)}; "
            + (
                "it was made by a newer blockexpand: upgrade to read it"
                if type(version) is int and version > FORMAT_VERSION
                else f"is this the {ADAPTER_FILE} of a block adapter?"
            )
        )
    layer_map = _parse_layer_map(content, file)
    prefix = content.get("layer_prefix")
    if not isinstance(prefix, str) or not prefix.endswith("."):
        _refuse(file, "layer_prefix", "what stands before a layer's number", prefix)
    neutral = content.get("neutral")
    if not isinstance(neutral, Mapping) or any(
        type(value) not in (int, float) for value in neutral.values()
    ):
        _refuse(file, "neutral", "an object of tensor suffix to number", neutral)
    files = content.get("files")
    if (
        not isinstance(files, list)
        or not files
        or len(files) > MAX_LAYERS
        or any(type(name) is not str or not _BLOCKS_NAME.fullmatch(name) for name in files)
        or len(set(files)) < len(files)
    ):
        _refuse(file, "files", f"names such as {BLOCKS_FILE}, in the adapter's folder", files)
    tensors = _parse_tensors(content.get("tensors"), file, "tensors")
    new = {index for index, entry in enumerate(layer_map) if entry.is_new}
    for name in tensors:
        number, dot, _ = name.removeprefix(prefix).partition(".")
        is_placed = name.startswith(prefix) and dot and number.isdecimal() and number.isascii()
        if not is_placed or int(number[:9]) not in new:
            _refuse(file, "tensors", f"tensors of the new layers {sorted(new)}", name)
    return BlockAdapter(
        base=_parse_base(content.get("base"), file),
        layer_prefix=prefix,
        layer_map=layer_map,
        neutral={suffix: float(value) for suffix, value in neutral.items()},
        files=tuple(files),
        tensors=tensors,
        changed=_parse_tensors(content.get("changed", {}), file, "changed"),
        config_changes=_parse_changes(content.get("config_changes", []), file),
    )


def digest_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a config says of the model, without what every program writes anew.

    Two configs of one model differ in the version that saved them, in where they were loaded
    from, and in the dtype that weights are loaded in by default.
    """
    volatile = {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"}
    return {
        key: digest_config(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in volatile
    }


def _render_tensors(tensors: Mapping[str, DigestedTensor]) -> dict[str, list[Any]]:
    return {
        name: [tensor.spec.dtype, list(tensor.spec.shape), tensor.sha256]
        for name, tensor in tensors.items()
    }


def _parse_layer_map(content: JsonObject, file: str) -> LayerMap:
    sources, new = content.get("layer_map"), content.get("new_layers")
    original = content.get("original_layers")
    if type(original) is not int or not 0 < original <= MAX_LAYERS:
        _refuse(file, "original_layers", "the number of layers of the base", original)
    if not _is_list_below(sources, original) or not 0 < len(sources) <= MAX_LAYERS:
        _refuse(file, "layer_map", f"a list of layers from 0 to {original - 1}", sources)
    if not _is_list_below(new, len(sources)) or not new or len(set(new)) < len(new):
        _refuse(file, "new_layers", f"a list of layers from 0 to {len(sources) - 1}", new)
    marked = set(new)
    entries = tuple(
        LayerEntry(source=source, is_new=index in marked) for index, source in enumerate(sources)
    )
    if [entry.source for entry in entries if not entry.is_new] != list(range(original)):
        _refuse(file, "layer_map", "every layer of the base once, in order", sources)
    return entries


def _parse_base(value: object, file: str) -> Base:
    if not isinstance(value, Mapping):
        _refuse(file, "base", "an object that describes the base", value)
    model, config, shards = value.get("model"), value.get("config"), value.get("shards")
    if not isinstance(model, str) or not model:
        _refuse(file, "base.model", "a name", model)
    if not isinstance(config, dict):
        _refuse(file, "base.config", "the base's config.json", config)
    if not isinstance(shards, list) or not shards or not all(map(_is_shard, shards)):
        _refuse(file, "base.shards", "name, nbytes, header_sha256 and sha256 of each shard", shards)
    texts = {key: value.get(key) for key in ("repo", "revision", "commit")}
    for key, text in texts.items():
        if text is not None and not isinstance(text, str):
            _refuse(file, f"base.{key}", "a text", text)
    return Base(
        name=ModelRef(model=model, **texts),
        config=config,
        shards=tuple(
            BaseShard(
                name=shard["name"],
                nbytes=shard["nbytes"],
                header_sha256=shard["header_sha256"],
                sha256=shard["sha256"],
            )
            for shard in shards
        ),
        tensors=_parse_tensors(value.get("tensors"), file, "base.tensors"),
    )


def _is_shard(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and _matches(_SHARD_NAME, value.get("name"))
        and type(value.get("nbytes")) is int
        and 0 < value["nbytes"] < 1 << 62
        and _matches(_DIGEST, value.get("header_sha256"))
        and _matches(_DIGEST, value.get("sha256"))
    )


def _parse_tensors(value: object, file: str, field: str) -> dict[str, DigestedTensor]:
    if not isinstance(value, Mapping):
        _refuse(file, field, "an object of tensor name to [dtype, shape, sha256]", value)
    tensors = {}
    for name, item in value.items():
        if not (isinstance(item, list) and len(item) == 3 and _matches(_DIGEST, item[2])):
            _refuse(file, f"{field}[{name!r}]", "[dtype, shape, sha256]", item)
        dtype, shape, digest = item
        if not isinstance(shape, list) or any(type(dim) is not int for dim in shape):
            _refuse(file, f"{field}[{name!r}]", "a shape as a list of numbers", shape)
        try:
            spec = make_tensor_spec(dtype, tuple(shape))
        except (HeaderError, TypeError) as error:
            raise CheckpointError(f"{file}: {field}[{name!r}]: {error}") from None
        tensors[name] = DigestedTensor(spec, digest)
    return tensors


def _parse_changes(value: object, file: str) -> tuple[tuple[tuple[str, ...], Any], ...]:
    if not isinstance(value, list):
        _refuse(file, "config_changes", "a list of path and value", value)
    changes = []
    for item in value:
        path = item.get("path") if isinstance(item, Mapping) else None
        if not isinstance(path, list) or not path or any(type(key) is not str for key in path):
            _refuse(file, "config_changes", "a list of path and value", item)
        if not _UNTOUCHED.isdisjoint(path):
            _refuse(file, "config_changes", "fields of the model's shape", ".".join(path))
        changes.append((tuple(path), item.get("value")))
    return tuple(changes)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_list_below(value: Any, end: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < end for item in value)


def _refuse(file: str, field: str, expected: str, found: object) -> NoReturn:
    raise CheckpointError(
        f"{file}: {field}: expected {expected}, found {show(found)}; fetch the adapter again, or "
        "extract it again"
    )


def name_blocks(count: int) -> Sequence[str]:
    """Return the names of an adapter's safetensors files."""
    if count == 1:
        return [BLOCKS_FILE]
    return [f"blocks-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
