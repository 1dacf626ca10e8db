"""A batch's YAML file → the expansions that it asks for; every fault with its line, all together.

It opens no checkpoint and builds no object but strings, numbers and booleans: the file's nodes are
walked, never constructed.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import BlockExpandError, InputError, RecipeError
from ..formats.yaml_nodes import MOST_YAML_NBYTES, NodeReader, compose, has_key, line_of, show
from ..fs.paths import expand_home
from ..models.layer_map import POSITIONS
from .arguments import (
    DTYPES,
    PHASES,
    PROOFS,
    QUANTIZED,
    REFLINKS,
    Dtype,
    Phase,
    Proof,
    Quantized,
    Reflink,
    check_count,
    check_layer_list,
    check_position,
    check_repository,
    check_size,
)

_MOST_JOBS = 10_000

_TEMPLATE_FIELDS = ("model", "layers", "new-layers", "position", "dtype")

_TAG = "tag:yaml.org,2002:"

_PLAIN_TAGS = frozenset(f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "timestamp"))

# What a matrix may have several of.
_AXES = ("src", "new-layers", "position", "layers")

_REFUSED = {
    option: f"an option of the command, not of a job: give it as --{option}"
    for option in ("token", "cache-dir", "dry-run", "executor", "jobs", "json", "fail-fast")
} | {
    "recipe": "no job of a batch; run it by itself, as --recipe",
    "stream": "a batch keeps its sources for all its jobs; run this one by itself, as --stream",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One expansion, its options named as on the command line.

    `where` is the file and the line; `out` and `push_to_hub` are templates (see `fill_template`).
    """

    where: str
    src: str
    out: str
    new_layers: int | None = None
    position: str | tuple[int, ...] = "end"
    layers: str | None = None
    phase: Phase | None = None
    family: str | None = None
    no_proof: bool = False
    trust_remote_code: bool = False
    dtype: Dtype | None = None
    quantized: Quantized = "keep"
    max_shard_size: str | None = None
    reflink: Reflink = "auto"
    hardlink: bool = False
    revision: str | None = None
    check: bool = False
    verify: Proof | None = None
    overwrite: bool = False
    push_to_hub: str | None = None
    private: bool = False
    base_model: str | None = None


def open_jobs(path: Path) -> tuple[Job, ...]:
    """Read a jobs file.

    Raises: InputError where it cannot be read; RecipeError with every fault, on one line.
    """
    try:
        with expand_home(path).open("rb") as stream:
            data = stream.read(MOST_YAML_NBYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}; give a jobs file") from error
    return parse_jobs(data, str(path))


def parse_jobs(data: bytes, file: str) -> tuple[Job, ...]:
    """Return the jobs in order: those of `jobs`, then those of `matrix`.

    Raises: RecipeError with every fault, on one line.
    """
    root, _ = compose(data, file)
    if root is None:
        raise RecipeError(f"{file}:1: empty; expected a list 'jobs', or a 'matrix'")
    if has_key(root, "merge_method") and not has_key(root, "jobs", "matrix"):
        raise RecipeError(
            f"{file}: is a mergekit recipe, not a jobs file: `blockexpand merge {file} --out OUT`"
        )
    reader = NodeReader(file, _REFUSED)
    sections = reader.members(root, "the jobs file", ("defaults", "jobs", "matrix"))
    if not sections.keys() & {"jobs", "matrix"}:
        reader.fault(root, "no jobs; expected a list 'jobs', or a 'matrix'")
    defaults: dict[str, Any] = {}
    if "defaults" in sections:
        defaults = _read_options(reader, sections["defaults"], "defaults")
    jobs: list[Job] = []
    if "jobs" in sections:
        for node in reader.items(sections["jobs"], "jobs", "a list of jobs"):
            options = defaults | _read_options(reader, node, "jobs")
            jobs += _make_jobs(reader, file, node, [options])
    if "matrix" in sections:
        node = sections["matrix"]
        several = reader.items(node, "matrix", "a matrix or several") if _is_list(node) else [node]
        for matrix in several:
            options = defaults | _read_options(reader, matrix, "matrix", axes=_AXES)
            jobs += _make_jobs(reader, file, matrix, _cross(reader, matrix, options))
    reader.check()
    return tuple(jobs)


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


def _read_options(
    reader: NodeReader, node: yaml.Node, section: str, axes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options of an entry as values, a faulty one as None; of `axes` lists of values."""
    if isinstance(node, yaml.MappingNode):
        for name, _ in node.value:
            if isinstance(name.value, str):
                name.value = name.value.replace("_", "-")
    values: dict[str, Any] = {}
    for key, value in reader.members(node, section, tuple(_OPTIONS)).items():
        if key not in axes:
            values[key] = _read_value(reader, key, value)
        elif _is_list(value):
            items = reader.items(value, key, "at least one value")
            values[key] = _Several(_read_value(reader, key, item) for item in items)
        else:
            values[key] = _read_value(reader, key, value)
    return values


class _Several(list[Any]):
    """The values of an axis of a matrix."""


def _read_value(reader: NodeReader, key: str, node: yaml.Node) -> Any:
    expected, read = _OPTIONS[key]
    try:
        return read(node)
    except BlockExpandError as error:
        reader.fault(node, f"{key}: {error}")
    except ValueError:
        reader.fault(node, f"{key}: expected {expected}, found {show(node)}")
    return None


def _cross(
    reader: NodeReader, node: yaml.Node, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the combinations of a matrix's options, the last axis varying fastest."""
    varied = [axis for axis in _AXES if isinstance(options.get(axis), _Several)]
    count = math.prod(len(options[axis]) for axis in varied)
    if count > _MOST_JOBS:
        reader.fault(node, f"matrix: makes {count} jobs; expected at most {_MOST_JOBS}")
        return
    for chosen in itertools.product(*(options[axis] for axis in varied)):
        yield dict(options) | dict(zip(varied, chosen, strict=True))


def _make_jobs(
    reader: NodeReader, file: str, node: yaml.Node, requests: Iterable[Mapping[str, Any]]
) -> list[Job]:
    """Return the jobs of one entry, or note what is missing in it."""
    jobs: list[Job] = []
    missing: dict[str, None] = {}
    for options in requests:
        lacking = [f"{key} is missing" for key in ("src", "out") if key not in options]
        position = options.get("position", "end")
        if "layers" in options:
            lacking += [
                f"layers says every layer; leave {key} out"
                for key in ("new-layers", "position", "phase")
                if key in options
            ]
        elif isinstance(position, str) and "new-layers" not in options:
            lacking.append(f"position {position} needs new-layers")
        if options.get("no-proof") and (
            "family" not in options or options.get("trust-remote-code")
        ):
            lacking.append("no-proof needs family, and does not go with trust-remote-code")
        if options.get("private") and "push-to-hub" not in options:
            lacking.append("private needs push-to-hub")
        missing |= dict.fromkeys(lacking)
        if not lacking:
            arguments = {key.replace("-", "_"): value for key, value in options.items()}
            jobs.append(Job(where=f"{file}:{line_of(node)}", **arguments))
    for text in missing:
        reader.fault(node, text)
    return jobs


def _is_list(node: yaml.Node) -> bool:
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
    if not _is_list(node):
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
_OPTIONS: dict[str, tuple[str, Callable[[yaml.Node], Any]]] = {
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
