"""A user's row: YAML → a form, every fault with its line, all together.

It builds no objects but strings and numbers, and opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ...errors import RecipeError
from ...formats.tensor_spec import TensorSpec
from ...formats.yaml_nodes import NodeReader, compose, number, show
from .family import Form
from .form import FIELD_LISTS, KEYS, FamilyForm
from .layer_fields import get_field
from .tensor_roles import matches

_BRANCH_KEYS = ("outputs", "norms", "norm_value")


def parse_row(data: bytes, file: str) -> FamilyForm:
    """Return the row that a file holds. Raises: RecipeError with every fault and its line."""
    return _Row(data, file).form


def check_row_file(
    data: bytes, file: str, config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]
) -> None:
    """Compare a row with the checkpoint that it is for: what it names has to be there.

    Config fields may be absent, as in the table. Raises: RecipeError with every fault and its line.
    """
    row = _Row(data, file)
    form = row.form
    if form.config and not isinstance(get_field(config, ".".join(form.config)), Mapping):
        row.fault("config", f"config.json has no object {'.'.join(form.config)!r}")
        row.check()
    if get_field(config, ".".join((*form.config, form.count))) is None:
        row.fault("count", f"config.json has no field {form.count!r} there")
    # A checkpoint of the bare decoder lacks the first part of its names.
    prefixes = {form.prefix, form.prefix.partition(".")[2]} - {""}
    layer = re.compile(f"(?:{'|'.join(map(re.escape, prefixes))})[0-9]+\\.(.+)")
    suffixes = {match[1] for name in tensors if (match := layer.fullmatch(name))}
    if not suffixes:
        example = next(iter(tensors), "none at all")
        row.fault("prefix", f"no tensor is called {form.prefix}0.…; there is e.g. {example!r}")
        row.check()
    for node, name in row.names:
        if not any(matches(suffix, (name,)) for suffix in suffixes):
            row.reader.fault(node, f"no tensor of a layer is called {name!r}")
    row.check()


class _Row:
    """A row's form, with the nodes that it was read from."""

    def __init__(self, data: bytes, file: str) -> None:
        root, _ = compose(data, file)
        if root is None:
            raise RecipeError(f"{file}:1: empty; expected a row (`blockexpand families --infer`)")
        self.reader = NodeReader(file, {})
        self.names: list[tuple[yaml.Node, str]] = []
        self._root = root
        self._parts = self.reader.members(root, "the row", KEYS)
        if not isinstance(root, yaml.MappingNode):
            self.check()
        fields = {name: self._texts(name) for name in FIELD_LISTS}
        copied = self._tensors("copied", self._parts.get("copied"))
        path = self._text("config", "the path of an object of config.json", needed=False)
        form = FamilyForm(
            model_type=self._text("model_type", "a name"),
            prefix=self._text("prefix", "what stands before a layer's number, as model.layers."),
            count=self._text("count", "the config field with the number of layers"),
            config=tuple(path.split(".")) if path else (),
            branches=tuple(self._branches()),
            constants=tuple(self._constants()),
            copied=copied,
            derived=tuple(self._derived()),
            **fields,
        )
        if form.prefix and not form.prefix.endswith("."):
            self.fault(
                "prefix",
                "prefix: expected what stands before a layer's number, as model.layers., found "
                f"{form.prefix!r}",
            )
        self.check()
        self.form = form

    def fault(self, key: str, text: str) -> None:
        self.reader.fault(self._parts.get(key, self._root), text)

    def check(self) -> None:
        self.reader.check()

    def _text(self, key: str, wanted: str, *, needed: bool = True) -> str:
        node = self._parts.get(key)
        if node is None:
            if needed:
                self.fault(key, f"{key}: missing; expected {wanted}")
            return ""
        text = self.reader.text(node, key, wanted) or ""
        if text and not re.fullmatch(r"[\w.{}-]+", text):
            self.fault(key, f"{key}: expected {wanted}, found {show(node)}")
        return text

    def _texts(self, key: str) -> tuple[str, ...]:
        return tuple(text for _, text in self._list(key, self._parts.get(key), "config fields"))

    def _tensors(self, key: str, node: yaml.Node | None) -> tuple[str, ...]:
        found = list(self._list(key, node, "tensors of a layer, as mlp.down_proj"))
        self.names += found
        return tuple(text for _, text in found)

    def _list(
        self, key: str, node: yaml.Node | None, wanted: str
    ) -> Iterator[tuple[yaml.Node, str]]:
        if node is None or (isinstance(node, yaml.SequenceNode) and not node.value):
            return
        for item in self.reader.items(node, key, f"a list of {wanted}"):
            text = self.reader.text(item, key, f"one of {wanted}")
            if text is not None:
                yield item, text

    def _branches(self) -> Iterator[tuple[Form, ...]]:
        node = self._parts.get("branches")
        if node is None:
            self.fault("branches", "branches: missing; expected a list of residual branches")
            return
        for branch in self.reader.items(node, "branches", "a list of residual branches"):
            forms = (
                self.reader.items(branch, "branches", "the forms that a branch takes")
                if isinstance(branch, yaml.SequenceNode)
                else [branch]
            )
            yield tuple(map(self._branch_form, forms))

    def _branch_form(self, node: yaml.Node) -> Form:
        parts = self.reader.members(node, "a branch", _BRANCH_KEYS)
        outputs = self._tensors("outputs", parts.get("outputs"))
        if not outputs and isinstance(node, yaml.MappingNode):
            self.reader.fault(node, "outputs: expected a list of tensors that end the branch")
        value: float | None = 0.0
        if "norm_value" in parts:
            value = number(parts["norm_value"])
            if value is None:
                found = show(parts["norm_value"])
                self.reader.fault(
                    parts["norm_value"], f"norm_value: expected a number, found {found}"
                )
        return Form(
            outputs=outputs,
            norms=self._tensors("norms", parts.get("norms")),
            norm_value=value or 0.0,
        )

    def _constants(self) -> Iterator[tuple[str, float]]:
        node = self._parts.get("constants")
        for name, part in () if node is None else self.reader.names(node, "constants").items():
            value = number(part)
            if value is None:
                self.reader.fault(part, f"constants: {name}: expected a number, found {show(part)}")
            else:
                self.names.append((part, name))
                yield name, value

    def _derived(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        node = self._parts.get("derived")
        for name, part in () if node is None else self.reader.names(node, "derived").items():
            items = self.reader.items(part, f"derived: {name}", "one value per layer")
            if not all(isinstance(item, yaml.ScalarNode) for item in items):
                self.reader.fault(part, f"derived: {name}: expected plain values")
            else:
                yield name, tuple(yaml.SafeLoader("").construct_object(item) for item in items)
