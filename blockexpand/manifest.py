"""block_expansion.json → `Manifest`: what an expansion says of its layers, every field checked.

It opens no weights, and knows neither trainers nor models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .errors import CheckpointError
from .file_selection import MANIFEST_FILE
from .json_document import parse_json_object
from .layer_map import LayerEntry, LayerMap

_MOST_LAYERS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The layers of an expansion: a tensor is named `layer_prefix`, its layer, a dot, a suffix.

    `neutral` maps the suffixes that were set to a constant in the new layers to that constant.
    """

    file: str
    model_type: str | None
    original_layers: int
    layer_map: LayerMap
    layer_prefix: str
    neutral: Mapping[str, float]

    @property
    def new_layers(self) -> tuple[int, ...]:
        """The numbers of the new layers, in order."""
        return tuple(index for index, entry in enumerate(self.layer_map) if entry.is_new)


def open_manifest(path_or_manifest: str | Path | Mapping[str, Any]) -> Manifest:
    """Read an expansion's folder, its block_expansion.json, or that file's parsed content.

    Raises: CheckpointError.
    """
    if isinstance(path_or_manifest, Mapping):
        return parse_manifest(path_or_manifest, MANIFEST_FILE)
    path = Path(path_or_manifest).expanduser()
    file = path / MANIFEST_FILE if path.is_dir() else path
    if not file.is_file():
        what = f"no {MANIFEST_FILE} in it" if path.is_dir() else "no such file or folder"
        raise CheckpointError(
            f"{path}: {what}; expected a folder that blockexpand made. Trainers do not copy "
            f"{MANIFEST_FILE} to what they save: copy it, or give the expansion's own folder"
        )
    return parse_manifest(parse_json_object(file.read_bytes(), str(file)), str(file))


def parse_manifest(content: Mapping[str, Any], file: str) -> Manifest:
    """Check the fields that speak of layers. Raises: CheckpointError naming the first bad one."""
    original = content.get("original_layers")
    if type(original) is not int or not 0 < original < _MOST_LAYERS:
        _refuse(file, "original_layers", "the number of layers of the source", original)
    sources = content.get("layer_map")
    if (
        not isinstance(sources, list)
        or not 0 < len(sources) < _MOST_LAYERS
        or not all(type(source) is int and 0 <= source < original for source in sources)
    ):
        _refuse(file, "layer_map", f"a list of layers from 0 to {original - 1}", sources)
    if content.get("layers") != len(sources):
        _refuse(file, "layers", f"{len(sources)}, the length of 'layer_map'", content.get("layers"))
    new = content.get("new_layers")
    if not isinstance(new, list) or not all(
        type(layer) is int and 0 <= layer < len(sources) for layer in new
    ):
        _refuse(file, "new_layers", f"a list of layers from 0 to {len(sources) - 1}", new)
    prefix = content.get("layer_prefix")
    if not isinstance(prefix, str) or not prefix.endswith("."):
        _refuse(
            file, "layer_prefix", "what stands before a layer's number, as model.layers.", prefix
        )
    zeroed, constants = content.get("zeroed", []), content.get("set", {})
    if not isinstance(zeroed, list) or not all(isinstance(suffix, str) for suffix in zeroed):
        _refuse(file, "zeroed", "a list of tensor suffixes", zeroed)
    if not isinstance(constants, Mapping) or not all(
        type(value) in (int, float) for value in constants.values()
    ):
        _refuse(file, "set", "an object of tensor suffix to number", constants)
    source = content.get("source")
    model_type = source.get("model_type") if isinstance(source, Mapping) else None
    marked = set(new)
    return Manifest(
        file=file,
        model_type=model_type if isinstance(model_type, str) else None,
        original_layers=original,
        layer_map=tuple(
            LayerEntry(source=layer, is_new=index in marked) for index, layer in enumerate(sources)
        ),
        layer_prefix=prefix,
        neutral={suffix: 0.0 for suffix in zeroed} | {k: float(v) for k, v in constants.items()},
    )


def _refuse(file: str, field: str, expected: str, found: object) -> NoReturn:
    shown = repr(found)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise CheckpointError(
        f"{file}: field {field!r}: expected {expected}, found {shown}; make the expansion "
        f"again, or fetch its {MANIFEST_FILE} again"
    )
