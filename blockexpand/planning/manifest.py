"""block_expansion.json ⇄ values: the one place that writes it and, beside claims.py, that reads it.

It opens no file. A manifest may be a stranger's, so every field is checked before it is used, and
all faults read alike: file, field, what was expected, what was found, what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeGuard

from .._version import __version__
from ..checkpoints.files import MANIFEST_FILE, MOST_MANIFEST_NBYTES
from ..checkpoints.sources import ModelRef
from ..errors import CheckpointError
from ..formats.json_object import parse_json_object
from ..messages import show
from ..models.families.form import render_form
from ..models.layer_map import MAX_LAYERS, LayerEntry, LayerMap
from .plan import Plan

SCHEMA_VERSION = 2
"""What this release writes. It reads older ones too: 1 has no `schema_version`."""

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
        refuse_field(file, "schema_version", "a whole number from 1 on", version)
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{file}: schema_version {show(version)}: this release knows {SCHEMA_VERSION} and "
            "older; install a newer blockexpand"
        )
    original = content.get("original_layers")
    if type(original) is not int or not 0 < original <= MAX_LAYERS:
        refuse_field(file, "original_layers", "the number of layers of the source", original)
    sources = content.get("layer_map")
    # Of several source models any may be deeper than the first, whose depth is stated.
    models = content.get("layer_models")
    most = MAX_LAYERS if models else original
    if not _is_list_below(sources, most) or not 0 < len(sources) <= MAX_LAYERS:
        refuse_field(file, "layer_map", f"a list of layers from 0 to {most - 1}", sources)
    if models is None:
        models = [0] * len(sources)
    if not _is_list_below(models, MAX_LAYERS) or len(models) != len(sources):
        refuse_field(file, "layer_models", f"a list of {len(sources)} numbers of models", models)
    if content.get("layers") != len(sources):
        refuse_field(
            file, "layers", f"{len(sources)}, the length of 'layer_map'", content.get("layers")
        )
    new = content.get("new_layers")
    if not _is_list_below(new, len(sources)):
        refuse_field(file, "new_layers", f"a list of layers from 0 to {len(sources) - 1}", new)
    prefix = content.get("layer_prefix")
    if not isinstance(prefix, str) or not prefix.endswith("."):
        refuse_field(
            file, "layer_prefix", "what stands before a layer's number, as model.layers.", prefix
        )
    zeroed, constants = content.get("zeroed", []), content.get("set", {})
    if not isinstance(zeroed, list) or not all(isinstance(suffix, str) for suffix in zeroed):
        refuse_field(file, "zeroed", "a list of tensor suffixes", zeroed)
    if not isinstance(constants, Mapping) or not all(
        type(value) in (int, float) for value in constants.values()
    ):
        refuse_field(file, "set", "an object of tensor suffix to number", constants)
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


def _is_list_below(value: Any, end: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < end for item in value)


def refuse_field(file: str, field: str, expected: str, found: object) -> NoReturn:
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
        # Whoever makes the plan: an output may be published.
        "source": _name_fields(replace(source, model=source.public), model_type=plan.model_type),
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
    if options.ranks is not None:
        manifest["ranking"] = options.ranks.as_json()
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
