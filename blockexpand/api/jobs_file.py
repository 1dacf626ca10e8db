"""A batch's YAML file → the expansions that it asks for; every fault with its line, all together.

It opens no checkpoint and builds no object but strings, numbers and booleans: the file's nodes are
walked, never constructed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import BlockExpandError, InputError, RecipeError
from ..formats.yaml_nodes import MOST_YAML_NBYTES, NodeReader, compose, has_key, line_of, show
from ..fs.paths import expand_home
from ..planning.ranks import MARK
from .arguments import Dtype, Phase, Proof, Quantized, Reflink
from .job_options import OPTIONS, is_list

_MOST_JOBS = 10_000

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
        several = reader.items(node, "matrix", "a matrix or several") if is_list(node) else [node]
        for matrix in several:
            options = defaults | _read_options(reader, matrix, "matrix", axes=_AXES)
            jobs += _make_jobs(reader, file, matrix, _cross(reader, matrix, options))
    reader.check()
    return tuple(jobs)


def _read_options(
    reader: NodeReader, node: yaml.Node, section: str, axes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options of an entry as values, a faulty one as None; of `axes` lists of values."""
    if isinstance(node, yaml.MappingNode):
        for name, _ in node.value:
            if isinstance(name.value, str):
                name.value = name.value.replace("_", "-")
    values: dict[str, Any] = {}
    for key, value in reader.members(node, section, tuple(OPTIONS)).items():
        if key not in axes:
            values[key] = _read_value(reader, key, value)
        elif is_list(value):
            items = reader.items(value, key, "at least one value")
            values[key] = _Several(_read_value(reader, key, item) for item in items)
        else:
            values[key] = _read_value(reader, key, value)
    return values


class _Several(list[Any]):
    """The values of an axis of a matrix."""


def _read_value(reader: NodeReader, key: str, node: yaml.Node) -> Any:
    expected, read = OPTIONS[key]
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
        elif (
            isinstance(position, str)
            and not position.startswith(MARK)
            and "new-layers" not in options
        ):
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
