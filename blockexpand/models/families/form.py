"""A row of the table as plain data, for model types that the table does not have.

The same as a `Family` in words that a file can hold: it is inferred, or written by a user, kept in
the manifest, and made into a row. It reads no file and no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ...errors import RecipeError
from ...messages import show
from .family import Branch, Family, Form
from .layer_fields import Config, Derive, FieldRule, indexed, leading, listed, numbered
from .special_fields import root_of_depth, sparse_step


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyForm:
    """A row for one model type. Tensors are named as in `Family`, config fields by dotted paths.

    `config` leads to the object that holds the fields, `count` is the one with the number of
    layers. Of the fields `lists` hold one value per layer, `leading` a number of first layers,
    `indices` numbers of layers, `numbered` entries by a layer's number, `depth_roots` factors of
    every branch that are divided by the root of the number of layers; `derived` are lists that the
    file leaves out, with what transformers makes of it at the source's depth. `copied` are tensors
    of a layer beyond those that known families have.
    """

    model_type: str
    prefix: str
    count: str
    branches: tuple[Branch, ...]
    config: tuple[str, ...] = ()
    constants: tuple[tuple[str, float], ...] = ()
    copied: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    leading: tuple[str, ...] = ()
    indices: tuple[str, ...] = ()
    numbered: tuple[str, ...] = ()
    depth_roots: tuple[str, ...] = ()
    derived: tuple[tuple[str, tuple[Any, ...]], ...] = field(default=())


Row = FamilyForm | str
"""A row that is not looked up: a form, or the family that a model is named and built like."""


def make_family(form: FamilyForm) -> Family:
    """Return the row that a form describes."""
    return Family(
        model_types=(form.model_type,),
        prefixes=(form.prefix,),
        count=(form.count,),
        branches=form.branches,
        constants=form.constants,
        copied=form.copied,
        fields=tuple(_rules(form)),
    )


def _rules(form: FamilyForm) -> list[FieldRule]:
    rules = [listed(name) for name in form.lists]
    rules += [listed(name, derive=_fixed_at_depth(kinds)) for name, kinds in form.derived]
    # Where a list says the same of each layer, it is what counts.
    is_listed = "mlp_layer_types" in {*form.lists, *(name for name, _ in form.derived)}
    rules += [
        leading(name, advisory=is_listed or name == "max_window_layers") for name in form.leading
    ]
    rules += [
        # Experts in every n-th layer but these: two fields that make one rule.
        sparse_step() if name == "mlp_only_layers" else indexed(name)
        for name in form.indices
    ]
    rules += [numbered(name) for name in form.numbered]
    return rules + [root_of_depth(name, 0) for name in form.depth_roots]


def _fixed_at_depth(kinds: tuple[Any, ...]) -> Derive:
    """Return kinds that are known at one depth only, so that any other is written out."""

    def derive(config: Config, layers: int) -> tuple[Any, ...]:
        return kinds if layers == len(kinds) else ("",) * layers

    return derive


def render_form(form: FamilyForm) -> dict[str, Any]:
    """Return a form as plain data, empty parts left out."""
    data: dict[str, Any] = {
        "model_type": form.model_type,
        "prefix": form.prefix,
        "count": form.count,
        "config": ".".join(form.config),
        "branches": [[_render_branch_form(one) for one in branch] for branch in form.branches],
        "constants": dict(form.constants),
        "copied": list(form.copied),
    }
    data |= {name: list(getattr(form, name)) for name in FIELD_LISTS}
    data["derived"] = {name: list(kinds) for name, kinds in form.derived}
    return {key: value for key, value in data.items() if value}


def _render_branch_form(form: Form) -> dict[str, Any]:
    data: dict[str, Any] = {"outputs": list(form.outputs)}
    if form.norms:
        data |= {"norms": list(form.norms), "norm_value": form.norm_value}
    return data


def parse_form(data: object, file: str) -> FamilyForm:
    """Read a form from plain data. Raises: RecipeError naming `file` and the first bad part."""
    if not isinstance(data, Mapping):
        _refuse(file, "the row", "an object", data)
    for key in data:
        if key not in KEYS:
            raise RecipeError(f"{file}: {show(key)}: unknown; expected one of {', '.join(KEYS)}")
    prefix = _text(file, data, "prefix")
    if not prefix.endswith("."):
        _refuse(file, "prefix", "what stands before a layer's number, as model.layers.", prefix)
    branches = data.get("branches")
    if not isinstance(branches, list) or not branches:
        _refuse(file, "branches", "a list of residual branches", branches)
    constants, derived = data.get("constants", {}), data.get("derived", {})
    if not isinstance(constants, Mapping) or not all(
        type(value) in (int, float) for value in constants.values()
    ):
        _refuse(file, "constants", "an object of tensor to number", constants)
    if not isinstance(derived, Mapping) or not all(isinstance(v, list) for v in derived.values()):
        _refuse(file, "derived", "an object of field to list", derived)
    config = data.get("config", "")
    if not isinstance(config, str):
        _refuse(file, "config", "the path of an object of config.json", config)
    return FamilyForm(
        model_type=_text(file, data, "model_type"),
        prefix=prefix,
        count=_text(file, data, "count"),
        config=tuple(config.split(".")) if config else (),
        branches=tuple(_parse_branch(file, branch) for branch in branches),
        constants=tuple((str(name), float(value)) for name, value in constants.items()),
        copied=_texts(file, data, "copied"),
        derived=tuple((str(name), tuple(kinds)) for name, kinds in derived.items()),
        **{name: _texts(file, data, name) for name in FIELD_LISTS},
    )


FIELD_LISTS = ("lists", "leading", "indices", "numbered", "depth_roots")

KEYS = (
    *("model_type", "prefix", "count", "config", "branches", "constants", "copied"),
    *(*FIELD_LISTS, "derived"),
)


def _parse_branch(file: str, data: object) -> Branch:
    forms = data if isinstance(data, list) else [data]
    branch = []
    for form in forms:
        if not isinstance(form, Mapping) or not set(form) <= {"outputs", "norms", "norm_value"}:
            _refuse(file, "branches", "objects with outputs, norms and norm_value", form)
        value = form.get("norm_value", 0.0)
        if type(value) not in (int, float):
            _refuse(file, "norm_value", "a number", value)
        outputs = _texts(file, form, "outputs")
        if not outputs:
            _refuse(file, "outputs", "a list of tensors that end the branch", form.get("outputs"))
        branch.append(
            Form(outputs=outputs, norms=_texts(file, form, "norms"), norm_value=float(value))
        )
    return tuple(branch)


def _text(file: str, data: Mapping[Any, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not re.fullmatch(r"[\w.{}-]+", value):
        _refuse(file, key, "a name", value)
    return value


def _texts(file: str, data: Mapping[Any, Any], key: str) -> tuple[str, ...]:
    values = data.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        _refuse(file, key, "a list of names", values)
    return tuple(values)


def _refuse(file: str, key: str, expected: str, found: object) -> NoReturn:
    raise RecipeError(f"{file}: {key}: expected {expected}, found {show(found)}")
