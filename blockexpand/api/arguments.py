"""The arguments that all callers give, checked in one place: Python, jobs files, command line.

A check returns the value as the rest expects it and raises RecipeError, which says what was
expected and what was found; who calls puts the argument's name before it, as it is spelt there.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, get_args

from ..errors import ArgumentError, RecipeError
from ..messages import show
from ..models.layer_map import POSITIONS, parse_layers
from ..planning.ranks import MARK
from ..planning.recipe import parse_position, parse_size
from ..progress import Progress

Dtype = Literal["bfloat16", "float16", "float32", "source"]
Reflink = Literal["auto", "always", "never"]
Proof = Literal["tensors", "logits"]
Phase = Literal["keep"]
Quantized = Literal["keep", "new-blocks-full", "dequantize"]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
REFLINKS: tuple[Reflink, ...] = get_args(Reflink)
PROOFS: tuple[Proof, ...] = get_args(Proof)
PHASES: tuple[Phase, ...] = get_args(Phase)
QUANTIZED: tuple[Quantized, ...] = get_args(Quantized)

_MOST_LISTED = 100_000


def check_arguments(values: Mapping[str, object], *, optional: Collection[str] = ()) -> None:
    """Check arguments by their names in Python; those in `optional` may be None.

    Called with `locals()` before anything else has a name. Raises: ArgumentError for the first
    wrong one.
    """
    for name, value in values.items():
        # A checkpoint that is only unpacked has no new layer.
        is_none = name == "new_layers" and value == 0 and values.get("quantized") == "dequantize"
        if is_none or (value is None and name in optional):
            continue
        try:
            _CHECKS[name](value)
        except RecipeError as error:
            raise ArgumentError(name, str(error)) from None
    check_companions(values)


def check_companions(values: Mapping[str, object]) -> None:
    """Refuse what has no effect without another argument. Raises: ArgumentError."""
    for name, needed in _COMPANIONS.items():
        if values.get(name) and needed in values and values[needed] is None:
            raise ArgumentError(name, f"has no effect without {needed}; give both, or none")


def check_count(value: object) -> int:
    """Return a whole number from 1."""
    # A bool is a number to Python, but whoever gives one means something else.
    if not isinstance(value, bool):
        try:
            count = operator.index(value)  # type: ignore[arg-type]  # numpy's integers too
        except TypeError:
            pass
        else:
            if count >= 1:
                return count
    raise _unexpected("a whole number from 1", value)


def check_position(value: object) -> str | tuple[int, ...]:
    """Return the name of a position, or the layers of a list or of a text with commas."""
    expected = f"{', '.join(POSITIONS)}, @FILE, or layers such as 7,15,23,31"
    if isinstance(value, str):
        position = parse_position(value)
        is_file = position[:1] == MARK and len(position) > 1
        if is_file or isinstance(position, tuple) or position in POSITIONS:
            return position
    elif isinstance(value, Sequence) and 0 < len(value) < _MOST_LISTED:
        try:
            layers = tuple(operator.index(layer) for layer in value)
        except TypeError:
            raise _unexpected(expected, value) from None
        if not any(isinstance(layer, bool) for layer in value) and min(layers) >= 0:
            return layers
    raise _unexpected(expected, value)


def check_layer_list(value: object) -> str:
    """Return a text such as `0-31,31*4`, which lists every layer of an output."""
    if not isinstance(value, str):
        raise _unexpected("a text such as 0-31,31*4", value)
    parse_layers(value)
    return value


def check_choice(value: object, choices: Sequence[str]) -> str:
    """Return one of some words."""
    if isinstance(value, str) and value in choices:
        return value
    raise _unexpected(f"{', '.join(choices[:-1])} or {choices[-1]}", value)


def check_size(value: object) -> int:
    """Return bytes: of `5GB`, or of a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _unexpected("a size such as 5GB", value)
    nbytes = parse_size(value)
    assert nbytes is not None
    return nbytes


def check_repository(value: object) -> str:
    """Return the name of a repository of the Hub."""
    if isinstance(value, str) and re.fullmatch(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", value):
        return value
    raise _unexpected("a repository of the Hub, org/name", value)


def check_flag(value: object) -> bool:
    """Return true or false; a text such as "no" is neither."""
    if isinstance(value, bool):
        return value
    raise _unexpected("True or False", value)


def check_scale(value: object) -> float:
    """Return a finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise _unexpected("a finite number", value)


def _paths(value: object) -> tuple[str, ...]:
    if isinstance(value, tuple) and value:
        return tuple(map(_path, value))
    raise _unexpected("one or several", value)


def _text(value: object) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise _unexpected("a text that is not empty", value)


def _path(value: object) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(path, str) and path and "\0" not in path:
        return path
    raise _unexpected("a path or a name, as text or as a Path", value)


def _executor(value: object) -> object:
    if callable(getattr(value, "submit", None)):
        return value
    raise _unexpected("a concurrent.futures.Executor", value)


def _progress(value: object) -> object:
    if isinstance(value, Progress):
        return value
    raise _unexpected("a blockexpand.Progress", value)


def _optional(check: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None else check(value)


def _one_of(choices: Sequence[str]) -> Callable[[object], object]:
    return lambda value: check_choice(value, choices)


def _unexpected(expected: str, value: object) -> RecipeError:
    if isinstance(value, str | int | float | bool | list | None):
        return RecipeError(f"expected {expected}, found {_spell(value)}")
    return RecipeError(f"expected {expected}, found {type(value).__name__}")


def _spell(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, bool) else show(value)


_FLAGS = (
    "hardlink",
    "stream",
    "overwrite",
    "check",
    "private",
    "create_pr",
    "logits",
    "untrained",
    "paranoid",
    "fail_fast",
    "stats",
    "no_proof",
    "trust_remote_code",
    "trust_base",
    "force_base",
    "with_changed",
    "dry_run",
)

_COMPANIONS: Mapping[str, str] = {
    **dict.fromkeys(("private", "create_pr", "commit_message"), "push_to_hub"),
    "no_proof": "family",
}

_CHECKS: Mapping[str, Callable[[object], object]] = {
    **dict.fromkeys(
        ("src", "out", "base", "other", "trained", "recipe", "jobs_file", "text"), _path
    ),
    **dict.fromkeys(_FLAGS, check_flag),
    **dict.fromkeys(
        ("revision", "token", "push_to_hub", "command", "commit_message"), _optional(_text)
    ),
    "base_model": _optional(check_repository),
    "cache_dir": _optional(_path),
    "work": _optional(_path),
    "repo": _text,
    "adapters": _paths,
    "scale": check_scale,
    "overwrite_anything": _optional(_path),
    "new_layers": _optional(check_count),
    "position": check_position,
    "layers": _optional(check_layer_list),
    "dtype": _optional(_one_of(DTYPES)),
    "quantized": _one_of(QUANTIZED),
    "max_shard_size": _optional(check_size),
    "reflink": _one_of(REFLINKS),
    "family": _optional(_text),
    "phase": _optional(_one_of(PHASES)),
    "verify_after": _optional(_one_of(PROOFS)),
    "parallel": check_count,
    "tokens": check_count,
    "executor": _optional(_executor),
    "progress": _progress,
}
