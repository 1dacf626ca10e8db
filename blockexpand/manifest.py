"""block_expansion.json → `Manifest`: what an expansion says of its layers, every field checked.

It opens no weights, and knows neither trainers nor models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from .errors import CheckpointError
from .file_selection import MANIFEST_FILE
from .json_document import parse_json_object
from .layer_map import LayerEntry, LayerMap
from .user_paths import expand_home

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
    path = expand_home(path_or_manifest)
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
    # Of several source models any may be deeper than the first, whose depth is stated.
    models = content.get("layer_models")
    most = _MOST_LAYERS if models else original
    if not _is_list_below(sources, most) or not 0 < len(sources) < _MOST_LAYERS:
        _refuse(file, "layer_map", f"a list of layers from 0 to {most - 1}", sources)
    if models is None:
        models = [0] * len(sources)
    if not _is_list_below(models, _MOST_LAYERS) or len(models) != len(sources):
        _refuse(file, "layer_models", f"a list of {len(sources)} numbers of models", models)
    if content.get("layers") != len(sources):
        _refuse(file, "layers", f"{len(sources)}, the length of 'layer_map'", content.get("layers"))
    new = content.get("new_layers")
    if not _is_list_below(new, len(sources)):
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
            LayerEntry(source=layer, is_new=index in marked, model=model)
            for index, (layer, model) in enumerate(zip(sources, models, strict=True))
        ),
        layer_prefix=prefix,
        neutral={suffix: 0.0 for suffix in zeroed} | {k: float(v) for k, v in constants.items()},
    )


def stated_commit(content: Mapping[str, Any], repo: str) -> str | None:
    """Return the commit of `repo` that an expansion was made of, where main was asked for.

    The branch may have moved since, if only by a word in its card.
    """
    source = content.get("source")
    if not isinstance(source, Mapping) or source.get("repo") != repo:
        return None
    commit = source.get("commit")
    if source.get("revision") != "main" or not isinstance(commit, str):
        return None
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def _is_list_below(value: Any, end: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < end for item in value)


def _refuse(file: str, field: str, expected: str, found: object) -> NoReturn:
    shown = repr(found)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise CheckpointError(
        f"{file}: field {field!r}: expected {expected}, found {shown}; make the expansion "
        f"again, or fetch its {MANIFEST_FILE} again"
    )
