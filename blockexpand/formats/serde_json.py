"""Stricter JSON than Python's: what Rust's serde refuses, and values spelled for messages.

Knows nothing of tensors or configs. It never recurses on what a stranger nested, and never raises
anything but `JsonError` for bad text.

Source: serde_json (https://github.com/serde-rs/json, src/de.rs), which `safetensors` reads with.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Any, NoReturn

from ..messages import show_text

MAX_NESTING = 127  # serde_json refuses the 128th open bracket

MAX_USIZE = 2**64 - 1

_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(_STEPS))

_NUMBER = re.compile(r"-?([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?)([0-9]+))?")

_PAIRED_SURROGATES = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\\\")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """Text that is no JSON; the message says what and where, and names no file."""


class OtherNumber(str):
    """A JSON number that is no unsigned 64-bit integer, as it was spelled."""

    __slots__ = ()


def decode_as_serde(text: str) -> Any:
    """Decode JSON with serde's verdict: objects to tuples of pairs, so that no duplicate is lost,
    arrays to lists, numbers to `int` where they are unsigned 64-bit integers, else `OtherNumber`.

    Raises:
        JsonError: serde would refuse the text.
    """
    refuse_nesting_and_half_surrogates(text)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} at line {error.lineno} column {error.colno}") from None


def refuse_nesting_and_half_surrogates(text: str) -> None:
    """Raise `JsonError` for valid JSON that nests too deep or holds half a surrogate pair.

    To be asked before decoding: `json` recurses, so where the interpreter's recursion limit was
    raised, a deep text would overflow the C stack. Of invalid JSON some passes.
    """
    if _nests_too_deep(text):
        raise JsonError(f"brackets nest deeper than {MAX_NESTING}")
    if "\\u" in text and _SURROGATE.search(_PAIRED_SURROGATES.sub("", text)):
        raise JsonError("half a surrogate pair in a string")


def _nests_too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_NESTING:
        return False
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    brackets = outside.encode("utf-8", "replace").translate(None, _ALL_BUT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_NESTING


def _decode_integer(text: str) -> int | OtherNumber:
    # serde reads -0 as a float, so it is no unsigned integer.
    if len(text) <= 20 and text[0] != "-" and int(text) <= MAX_USIZE:
        return int(text)
    return _decode_float(text)


def _decode_float(text: str) -> OtherNumber:
    """Refuse what serde calls out of range: it keeps the first digits that fit 64 bits, and
    multiplies by a power of ten once. `float(text)` is infinite for slightly other numbers."""
    match = _NUMBER.fullmatch(text)
    assert match is not None
    whole, fraction, sign, digits = match.groups(default="")
    significand, used = _accumulate(0, whole)
    exponent = len(whole) - used
    significand, used = _accumulate(significand, fraction)
    exponent -= used
    digits = digits.lstrip("0")
    power = int(digits or "0") if len(digits) <= 10 else 10**10
    exponent += -power if sign == "-" else power
    if significand and exponent >= 0:
        scale = float(f"1e{exponent}") if exponent <= 308 else math.inf
        if math.isinf(significand * scale):
            raise JsonError(f"a number is out of range; found {show_text(text)}")
    return OtherNumber(text)


def _accumulate(significand: int, digits: str) -> tuple[int, int]:
    """Append digits until the next one overflows 64 bits; return how many were used."""
    used = 0 if significand else len(digits) - len(digits.lstrip("0"))
    for digit in digits[used : used + 20]:
        longer = significand * 10 + int(digit)
        if longer > MAX_USIZE:
            break
        significand, used = longer, used + 1
    return significand, used


def _refuse_constant(text: str) -> NoReturn:
    raise JsonError(f"{text} is no JSON number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=tuple,
    parse_int=_decode_integer,
    parse_float=_decode_float,
    parse_constant=_refuse_constant,
)
