"""block_expansion.json: written from a plan, and read back with every field checked.

It opens no weights, and knows neither trainers nor models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from .._version import __version__
from ..checkpoints.files import MANIFEST_FILE
from ..checkpoints.sources import ModelRef
from ..errors import CheckpointError
from ..formats.json_object import JsonObject, parse_json_object
from ..fs.paths import expand_home
from ..messages import show
from ..models.layer_map import LayerEntry, LayerMap
from .plan import Plan
from .recipe import Recipe

_MOST_LAYERS = 100_000
_BLOCKS = tuple(1 << power for power in range(12, 17))


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


def read_manifest(out: Path) -> JsonObject:
    """Return an output's block_expansion.json. Raises: CheckpointError."""
    path = out / MANIFEST_FILE
    if not path.is_file():
        what = "no such folder" if not out.is_dir() else f"no {MANIFEST_FILE} in it"
        raise CheckpointError(f"{out}: {what}; expected a folder that blockexpand made")
    return parse_json_object(path.read_bytes(), str(path))


def stated_models(manifest: JsonObject) -> dict[str, ModelRef]:
    """Return the further models of an output's recipe by the names that it gives them.

    Raises: CheckpointError where the manifest is damaged.
    """
    try:
        return {
            str(name): _stated_source(fields) for name, fields in manifest.get("models", {}).items()
        }
    except _DAMAGES as error:
        raise _damaged(error) from None


_DAMAGES = (KeyError, TypeError, ValueError, AttributeError)


def _damaged(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{MANIFEST_FILE}: the recipe is incomplete or damaged ({type(error).__name__} {error}); "
        "make the output again"
    )


def _stated_source(fields: Mapping[str, Any]) -> ModelRef:
    return ModelRef(
        model=str(fields["model"]),
        repo=_text(fields.get("repo")),
        revision=_text(fields.get("revision")),
        commit=_text(fields.get("commit")),
    )


def stated_recipe(manifest: JsonObject) -> tuple[Recipe, ModelRef, str]:
    try:
        position = manifest["position"]
        numbers = position.split(",")
        is_list = all(number.isdecimal() for number in numbers)
        recipe = Recipe(
            new_layers=len(manifest["new_layers"]),
            position=tuple(map(int, numbers)) if is_list else position,
            dtype=str(manifest["dtype"]),
            max_shard_nbytes=_whole_number(manifest["max_shard_nbytes"]),
            block_nbytes=_block_nbytes(manifest["block_nbytes"]),
        )
        return recipe, _stated_source(manifest["source"]), str(manifest["command"])
    except _DAMAGES as error:
        raise _damaged(error) from None


def _whole_number(value: object) -> int | None:
    if value is None or (type(value) is int and 0 < value < 1 << 62):
        return value
    raise ValueError(f"{show(value)} is no size")


def _block_nbytes(value: object) -> int:
    # The block is padding of headers: a stranger's number may not fill the memory.
    if type(value) is int and value in _BLOCKS:
        return value
    raise ValueError(f"{show(value)} is no size of a block")


def _text(value: object) -> str | None:
    if value is None or type(value) is str:
        return value
    raise ValueError(f"{show(value)} is no text")


def render_manifest(
    plan: Plan, source: ModelRef, command: str, others: Mapping[str, ModelRef]
) -> bytes:
    recipe = plan.recipe
    manifest = {
        "blockexpand": __version__,
        "source": _name_fields(source, model_type=plan.model_type),
        "original_layers": plan.original_layers,
        "layers": len(plan.layer_map),
        "position": recipe.position
        if isinstance(recipe.position, str)
        else ",".join(map(str, recipe.position)),
        "layer_map": [entry.source for entry in plan.layer_map],
        "new_layers": list(plan.new_layers),
        "layer_prefix": plan.layer_prefix,
        "zeroed": [suffix for suffix, constant in plan.neutral.items() if constant == 0],
        "set": {suffix: constant for suffix, constant in plan.neutral.items() if constant},
        "dtype": recipe.dtype,
        "max_shard_nbytes": recipe.max_shard_nbytes,
        "block_nbytes": recipe.block_nbytes,
        "command": command,
        "fingerprint": plan.fingerprint,
    }
    if plan.recipe_text is not None:
        manifest["keeps_function"] = plan.keeps_function
        manifest["recipe"] = plan.recipe_text
        manifest["models"] = {name: _name_fields(other) for name, other in others.items()}
        if others:
            manifest["layer_models"] = [entry.model for entry in plan.layer_map]
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _name_fields(source: ModelRef, **more: str) -> dict[str, str]:
    known = {"repo": source.repo, "revision": source.revision, "commit": source.commit}
    return {"model": source.model} | more | {k: v for k, v in known.items() if v is not None}
