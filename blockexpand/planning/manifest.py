"""block_expansion.json ⇄ values: the one place that writes it and the one that reads it.

It opens no file. A manifest may be a stranger's, so every field is checked before it is used, and
all faults read alike: file, field, what was expected, what was found, what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

from .._version import __version__
from ..checkpoints.files import MANIFEST_FILE, MOST_MANIFEST_NBYTES
from ..checkpoints.sources import ModelRef
from ..errors import CheckpointError, RecipeError
from ..formats.json_object import parse_json_object
from ..messages import show
from ..models.families.form import Row, parse_form, render_form
from ..models.layer_map import MAX_LAYERS, LayerEntry, LayerMap
from .plan import Plan
from .recipe import Recipe, parse_choice

SCHEMA_VERSION = 2
"""What this release writes. It reads older ones too: 1 has no `schema_version`."""

_BLOCKS = tuple(1 << power for power in range(12, 17))

_MOST_TEXT_CHARACTERS = 1 << 16

_COMMIT = re.compile(r"[0-9a-f]{40}")

# Fields that say how an output came about, and none that says what it is: another release, or
# another spelling of the command, makes the same model.
_HISTORY = frozenset(
    {"schema_version", "blockexpand", "source", "command", "fingerprint", "models", "training"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The layers of an expansion: a tensor is named `layer_prefix`, its layer, a dot, a suffix.

    `neutral` maps the suffixes that were set to a constant in the new layers to that constant.
    `content` is all that the file says, of which only the other fields have been checked.
    """

    file: str
    schema_version: int
    model_type: str | None
    original_layers: int
    layer_map: LayerMap
    layer_prefix: str
    neutral: Mapping[str, float]
    content: Mapping[str, Any]

    @property
    def new_layers(self) -> tuple[int, ...]:
        """The numbers of the new layers, in order."""
        return tuple(index for index, entry in enumerate(self.layer_map) if entry.is_new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a manifest says of how its output was made. Nothing of it is known to be true.

    `recipe` is that of an expansion; else `recipe_text` is a mergekit recipe, `models` the further
    models that it takes from, by the names that it gives them; one that is the source under another
    name is in `aliases`.
    """

    recipe: Recipe | None
    max_shard_nbytes: int | None
    block_nbytes: int
    source: ModelRef
    command: str
    version: str
    fingerprint: str
    recipe_text: str | None
    models: Mapping[str, ModelRef]
    aliases: frozenset[str]


def parse_manifest(data: bytes | Mapping[str, Any], file: str = MANIFEST_FILE) -> Manifest:
    """Read a manifest and check the fields that speak of layers.

    Raises: CheckpointError naming the first bad field, or a schema that this release does not know.
    """
    if isinstance(data, bytes):
        if len(data) > MOST_MANIFEST_NBYTES:
            raise CheckpointError(
                f"{file}: expected at most {MOST_MANIFEST_NBYTES} bytes, found more"
            )
        data = parse_json_object(data, file)
    content = data
    version = content.get("schema_version", 1)
    if type(version) is not int or version < 1:
        _refuse(file, "schema_version", "a whole number from 1 on", version)
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{file}: schema_version {show(version)}: this release knows {SCHEMA_VERSION} and "
            "older; install a newer blockexpand"
        )
    original = content.get("original_layers")
    if type(original) is not int or not 0 < original <= MAX_LAYERS:
        _refuse(file, "original_layers", "the number of layers of the source", original)
    sources = content.get("layer_map")
    # Of several source models any may be deeper than the first, whose depth is stated.
    models = content.get("layer_models")
    most = MAX_LAYERS if models else original
    if not _is_list_below(sources, most) or not 0 < len(sources) <= MAX_LAYERS:
        _refuse(file, "layer_map", f"a list of layers from 0 to {most - 1}", sources)
    if models is None:
        models = [0] * len(sources)
    if not _is_list_below(models, MAX_LAYERS) or len(models) != len(sources):
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
        schema_version=version,
        model_type=model_type if isinstance(model_type, str) else None,
        original_layers=original,
        layer_map=tuple(
            LayerEntry(source=layer, is_new=index in marked, model=model)
            for index, (layer, model) in enumerate(zip(sources, models, strict=True))
        ),
        layer_prefix=prefix,
        neutral={suffix: 0.0 for suffix in zeroed} | {k: float(v) for k, v in constants.items()},
        content=content,
    )


def parse_claims(manifest: Manifest) -> Claims:
    """Read what an output needs to be planned again, and where it says that it came from.

    Raises: CheckpointError naming the first bad field.
    """
    file, content = manifest.file, manifest.content
    stated = content.get("models", {})
    if not isinstance(stated, Mapping):
        _refuse(file, "models", "an object of model to where it came from", stated)
    aliases = {name for name, fields in stated.items() if fields == {"same_as_source": True}}
    text = content.get("recipe")
    if text is not None and not isinstance(text, str):
        _refuse(file, "recipe", "a mergekit recipe as text", text)
    nbytes, block = content.get("max_shard_nbytes"), content.get("block_nbytes")
    if nbytes is not None and (type(nbytes) is not int or not 0 < nbytes < 1 << 62):
        _refuse(file, "max_shard_nbytes", "a size in bytes, or null", nbytes)
    # The block is padding of headers: a stranger's number may not fill the memory.
    if type(block) is not int or block not in _BLOCKS:
        _refuse(file, "block_nbytes", f"one of {', '.join(map(str, _BLOCKS))}", block)
    return Claims(
        recipe=None if text is not None else _parse_recipe(manifest, nbytes, block),
        max_shard_nbytes=nbytes,
        block_nbytes=block,
        source=_parse_source(file, "source", content.get("source")),
        command=_parse_text(file, "command", content.get("command")),
        version=_parse_text(file, "blockexpand", content.get("blockexpand")),
        fingerprint=_parse_text(file, "fingerprint", content.get("fingerprint")),
        recipe_text=text,
        models={
            name: _parse_source(file, f"models.{show(name)}", fields)
            for name, fields in stated.items()
            if name not in aliases
        },
        aliases=frozenset(aliases),
    )


def _parse_recipe(manifest: Manifest, max_shard_nbytes: int | None, block_nbytes: int) -> Recipe:
    file, content = manifest.file, manifest.content
    position = content.get("position")
    if not isinstance(position, str) or len(position) > _MOST_TEXT_CHARACTERS:
        _refuse(file, "position", "a position's name, or layers such as 7,15", position)
    try:
        chosen, layers = parse_choice(position)
    except RecipeError:
        _refuse(file, "position", "a position's name, or layers such as 7,15", position)
    return Recipe(
        new_layers=len(manifest.new_layers),
        position=chosen,
        layers=layers,
        dtype=_parse_text(file, "dtype", content.get("dtype")),
        max_shard_nbytes=max_shard_nbytes,
        block_nbytes=block_nbytes,
        keeps_phase=content.get("phase") == "keep",
        quantized=parse_quantized(file, content)[1],
        row=_parse_row(file, content.get("family")),
        row_proof=_parse_text(file, "family_proof", content.get("family_proof", "")),
    )


def _parse_row(file: str, stated: object) -> Row | None:
    if stated is None:
        return None
    if isinstance(stated, str):
        return _parse_text(file, "family", stated)
    try:
        return parse_form(stated, f"{file}: family")
    except RecipeError as error:
        raise CheckpointError(str(error)) from None


def parse_quantized(file: str, content: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the method by which the source is quantised, None if by none, and the mode."""
    stated = content.get("quantized")
    if stated is None:
        return None, "keep"
    method = stated.get("method") if isinstance(stated, Mapping) else None
    mode = stated.get("mode") if isinstance(stated, Mapping) else None
    if not isinstance(method, str) or not isinstance(mode, str) or len(method + mode) > 99:
        _refuse(file, "quantized", "an object with a method and a mode", stated)
    return method, mode


def _parse_source(file: str, field: str, fields: object) -> ModelRef:
    if not isinstance(fields, Mapping):
        _refuse(file, field, "an object with the name of a model", fields)
    commit = fields.get("commit")
    if commit is not None and not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
        _refuse(file, f"{field}.commit", "a commit of 40 hexadecimal digits", commit)
    repo, revision = fields.get("repo"), fields.get("revision")
    base = fields.get("base_model")
    return ModelRef(
        model=_parse_text(file, f"{field}.model", fields.get("model")),
        repo=None if repo is None else _parse_text(file, f"{field}.repo", repo),
        revision=None if revision is None else _parse_text(file, f"{field}.revision", revision),
        commit=commit,
        base_model=None if base is None else _parse_text(file, f"{field}.base_model", base),
    )


def _parse_text(file: str, field: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MOST_TEXT_CHARACTERS:
        _refuse(file, field, f"a text of at most {_MOST_TEXT_CHARACTERS} characters", value)
    return value


def _is_list_below(value: Any, end: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < end for item in value)


def _refuse(file: str, field: str, expected: str, found: object) -> NoReturn:
    raise CheckpointError(
        f"{file}: field {field!r}: expected {expected}, found {show(found)}; fetch the file "
        "again from where the output came from"
    )


def render_manifest(
    plan: Plan, source: ModelRef, command: str, others: Mapping[str, ModelRef]
) -> bytes:
    """Return the manifest of a plan; `others` are the further models of its recipe."""
    options = plan.options
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "blockexpand": __version__,
        "source": _name_fields(source, model_type=plan.model_type),
        "original_layers": plan.original_layers,
        "layers": len(plan.layer_map),
        "position": options.position,
        "layer_map": [entry.source for entry in plan.layer_map],
        "new_layers": list(plan.new_layers),
        "layer_prefix": plan.layer_prefix,
        "zeroed": [suffix for suffix, constant in plan.neutral.items() if constant == 0],
        "set": {suffix: constant for suffix, constant in plan.neutral.items() if constant},
        "dtype": options.dtype,
        "max_shard_nbytes": options.max_shard_nbytes,
        "block_nbytes": options.block_nbytes,
        "command": command,
        "fingerprint": plan.fingerprint,
    }
    if options.row is not None:
        row = options.row
        manifest["family"] = row if isinstance(row, str) else render_form(row)
    if options.row is not None or options.row_proof:
        manifest["family_proof"] = options.row_proof
    if options.keeps_phase:
        manifest["phase"] = "keep"
    if plan.recipe_text is not None or not plan.keeps_function:
        manifest["keeps_function"] = plan.keeps_function
    if plan.recipe_text is not None:
        manifest["recipe"] = plan.recipe_text
        # The source is the first of a recipe's models; it may have further names.
        manifest["models"] = {
            name: _name_fields(others[name]) if name in others else {"same_as_source": True}
            for name in plan.models[1:]
        }
        if others:
            manifest["layer_models"] = [entry.model for entry in plan.layer_map]
    if plan.quantization is not None:
        manifest["quantized"] = {"method": plan.quantization, "mode": plan.options.quantized}
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _name_fields(source: ModelRef, **more: str) -> dict[str, str]:
    known = {
        "repo": source.repo,
        "revision": source.revision,
        "commit": source.commit,
        "base_model": source.base_model,
    }
    return {"model": source.model} | more | {k: v for k, v in known.items() if v is not None}


def compare_with_plan(manifest: Manifest, plan: Plan) -> tuple[list[str], list[str]]:
    """Return in what a manifest misstates a plan, and which of its fields nothing is known of.

    Fields that only say how an output came about (`claims`) are not compared.
    """
    planned = json.loads(render_manifest(plan, ModelRef(model=""), "", {}))
    stated = {k: v for k, v in manifest.content.items() if k not in _HISTORY}
    # Its order is that of the source's tensors, of which a constant's place is no part.
    planned["zeroed"], zeroed = sorted(planned["zeroed"]), stated.get("zeroed")
    if isinstance(zeroed, list):
        stated["zeroed"] = sorted(zeroed)
    if any(entry.model for entry in plan.layer_map):
        planned["layer_models"] = [entry.model for entry in plan.layer_map]
    elif stated.get("layer_models") == [0] * len(plan.layer_map):
        del stated["layer_models"]
    faults = [
        f"field {field!r}: expected {_show_json(value)}, found {_show_json(stated[field])}"
        if field in stated
        else f"field {field!r} is missing"
        for field, value in planned.items()
        if field not in _HISTORY and (field not in stated or stated[field] != value)
    ]
    return faults, [field for field in stated if field not in planned]


def _show_json(value: object) -> str:
    """Spell a value as JSON, of limited length."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
