"""The options of a job in a jobs file: what each is in words, and how its value is read.

The file's nodes are walked, never constructed, so that nothing but strings, numbers and booleans
can come of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from ..errors import RecipeError
from ..models.layer_map import POSITIONS
from .arguments import (
    DTYPES,
    PHASES,
    PROOFS,
    QUANTIZED,
    REFLINKS,
    Phase,
    check_count,
    check_layer_list,
    check_position,
    check_repository,
    check_size,
)

_TEMPLATE_FIELDS = ("model", "layers", "new-layers", "position", "dtype")

_TAG = "tag:yaml.org,2002:"

_PLAIN_TAGS = frozenset(f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "timestamp"))


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Put values in the place of `{model}`, `{layers}`, `{new-layers}`, `{position}`, `{dtype}`.

    `{{` and `}}` stand for braces.
    """
    return "".join(
        text if field_name is None else values[field_name]
        for text, field_name in _split_template(template)
    )


def _split_template(template: str) -> Iterator[tuple[str, str | None]]:
    """Yield text with None, or a field as it stands with its name. Raises: ValueError."""
    for match in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+", template):
        text, name = match[0], match[1]
        if name is not None:
            yield text, name.strip().replace("_", "-")
        elif text in ("{", "}"):
            raise ValueError("a single brace")
        else:
            yield text[0] if text in ("{{", "}}") else text, None


def is_list(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode)


def _text(node: yaml.Node) -> str:
    """Return a scalar as it was typed. Raises: ValueError for anything else."""
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS or not node.value:
        raise ValueError
    text = str(node.value)
    if "\0" in text:  # which no path can have
        raise ValueError
    return text


def _flag(node: yaml.Node) -> bool:
    if node.tag != f"{_TAG}bool":
        raise ValueError
    return _text(node).lower() in ("true", "yes", "on")


def _count(node: yaml.Node) -> int:
    text = _text(node)
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError
    return check_count(int(text))


def _size(node: yaml.Node) -> str:
    text = _text(node)
    check_size(text)
    return text


def _position(node: yaml.Node) -> str | tuple[int, ...]:
    if not is_list(node):
        return check_position(_text(node))
    layers = [_text(item) for item in node.value]
    if not all(re.fullmatch(r"[0-9]{1,9}", layer) for layer in layers):
        raise ValueError
    return check_position([int(layer) for layer in layers])


def _repository(node: yaml.Node) -> str:
    return check_repository(_text(node))


def _layers(node: yaml.Node) -> str:
    return check_layer_list(_text(node))


def _template(node: yaml.Node) -> str:
    text = _text(node)
    for _, name in _split_template(text):
        if name is not None and name not in _TEMPLATE_FIELDS:
            raise RecipeError(
                f"unknown {{{name}}} in {text!r}; expected one of "
                f"{', '.join(f'{{{known}}}' for known in _TEMPLATE_FIELDS)}"
            )
    return text


def _choice(*choices: str) -> tuple[str, Callable[[yaml.Node], str]]:
    def read(node: yaml.Node) -> str:
        text = _text(node)
        if text not in choices:
            raise ValueError
        return text

    return f"{', '.join(choices[:-1])} or {choices[-1]}", read


def _phase(node: yaml.Node) -> Phase:
    if _text(node) != PHASES[0]:
        raise ValueError
    return PHASES[0]


_TEMPLATE = "a text, in which braces stand for {model} and the like (a brace itself is {{)"

# What an option is, in words, and what reads it.
OPTIONS: dict[str, tuple[str, Callable[[yaml.Node], Any]]] = {
    "src": ("a folder or a Hub repository", _text),
    "out": (_TEMPLATE, _template),
    "new-layers": ("a whole number from 1", _count),
    "position": (f"{', '.join(POSITIONS)}, or layers such as 7,15,23,31", _position),
    "layers": ("layers such as 0-31,31*4", _layers),
    "phase": ("keep", _phase),
    "family": ("a .yaml file with a row, or a family of the table", _text),
    "no-proof": ("true or false", _flag),
    "trust-remote-code": ("true or false", _flag),
    "dtype": _choice(*DTYPES),
    "quantized": _choice(*QUANTIZED),
    "max-shard-size": ("a size such as 5GB", _size),
    "reflink": _choice(*REFLINKS),
    "hardlink": ("true or false", _flag),
    "revision": ("a branch, tag or commit", _text),
    "check": ("true or false", _flag),
    "verify": _choice(*PROOFS),
    "overwrite": ("true or false", _flag),
    "push-to-hub": (_TEMPLATE, _template),
    "private": ("true or false", _flag),
    "base-model": ("a repository of the Hub, org/name", _repository),
}
