"""Rounding between floating-point dtypes against exact rational arithmetic.

Source: IEEE 754-2019, section 4.3.1 (roundTiesToEven).
"""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockexpand.errors import RecipeError
from blockexpand.formats.elements import convert_slice

NBYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Bits of the fraction, least and greatest exponent.
FORMATS = {"F32": (23, -126, 127), "F16": (10, -14, 15), "BF16": (7, -126, 127)}
CODES = {"F64": "<d", "F32": "<f", "F16": "<e"}
# Half way between the largest number and what would be the next: the first to be infinite.
TIES = {"F32": (2 - 2.0**-24) * 2.0**127, "BF16": (2 - 2.0**-8) * 2.0**127}


def encode(dtype: str, value: float) -> bytes:
    if dtype == "BF16":
        return struct.pack("<f", value)[2:]
    return struct.pack(CODES[dtype], value)


def decode(dtype: str, data: bytes) -> float:
    if dtype == "BF16":
        return struct.unpack("<f", b"\0\0" + data)[0]
    return struct.unpack(CODES[dtype], data)[0]


def convert(values: list[float], from_dtype: str, to_dtype: str) -> list[bytes]:
    source = bytearray(b"".join(encode(from_dtype, value) for value in values))
    width = NBYTES[to_dtype]
    target = bytearray(width * len(values))
    convert_slice(memoryview(source), from_dtype, memoryview(target), to_dtype, "t")
    return [bytes(target[i * width : (i + 1) * width]) for i in range(len(values))]


def round_exactly(value: float, dtype: str) -> Fraction | None:
    """Return the nearest value, the even one of two; None where it is infinite."""
    fraction_bits, least, greatest = FORMATS[dtype]
    exact = Fraction(value)
    if not exact:
        return exact
    magnitude = abs(exact)
    exponent = math.frexp(value)[1] - 1
    unit = Fraction(2) ** (max(exponent, least) - fraction_bits)
    count, rest = divmod(magnitude, unit)
    if rest > unit / 2 or (rest == unit / 2 and count % 2):
        count += 1
    rounded = count * unit
    if rounded >= Fraction(2) ** (greatest + 1):
        return None
    return rounded if exact > 0 else -rounded


def check(values: list[float], from_dtype: str, to_dtype: str) -> None:
    for value, data in zip(values, convert(values, from_dtype, to_dtype), strict=True):
        found = decode(to_dtype, data)
        assert Fraction(found) == round_exactly(value, to_dtype), (value.hex(), found.hex())
        assert math.copysign(1, found) == math.copysign(1, value)


def hard_values(dtype: str, to_dtype: str) -> list[float]:
    """Ties, what lies a little beside them, and everything around the ends of the range."""
    fraction_bits, least, greatest = FORMATS[to_dtype]
    source_bits, source_least = {"F64": (52, -1022), "F32": (23, -126), "F16": (10, -14)}[dtype]
    values = [0.0, -0.0]
    generator = random.Random(0)
    exponents = {*range(least - fraction_bits - 3, least + 3), -1, 0, 1, 5, greatest - 1, greatest}
    for exponent in sorted(exponents):
        if not source_least - source_bits <= exponent <= (15 if dtype == "F16" else 1023):
            continue
        unit = max(exponent, least) - fraction_bits
        for count in (0, 1, 2, 3, 2**fraction_bits - 1, generator.randrange(2**fraction_bits)):
            tie = (Fraction(2) ** max(exponent, least) if exponent >= least else 0) + (
                Fraction(2 * count + 1, 2) * Fraction(2) ** unit
            )
            for beside in (0, 1, -1, 2**12, -(2**12)):
                value = float(tie + beside * Fraction(2) ** max(exponent - source_bits, -1074))
                values += [value, -value]
    kept = []
    for value in values:
        # In the source's own precision, and within the range of the target.
        value = decode(dtype, encode(dtype, value)) if abs(value) < 3e38 else value
        if round_exactly(value, to_dtype) is not None:
            kept.append(value)
    return kept


PAIRS = [(one, other) for one in ("F64", "F32", "F16") for other in ("BF16", "F16", "F32")]


@pytest.mark.parametrize(("from_dtype", "to_dtype"), [p for p in PAIRS if p[0] != p[1]])
def test_ties_subnormals_and_the_ends_of_the_range(from_dtype: str, to_dtype: str) -> None:
    values = hard_values(from_dtype, to_dtype)
    assert len(values) > 200
    check(values, from_dtype, to_dtype)


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_any_float64_becomes_the_nearest_bfloat16(values: list[float]) -> None:
    check([v for v in values if round_exactly(v, "BF16") is not None] or [0.0], "F64", "BF16")


@settings(deadline=None)
@given(st.lists(st.floats(-65519, 65519), min_size=1, max_size=30))
def test_any_float64_becomes_the_nearest_float16(values: list[float]) -> None:
    check(values, "F64", "F16")


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_any_float32_becomes_the_nearest_bfloat16(values: list[float]) -> None:
    check([v for v in values if round_exactly(v, "BF16") is not None] or [0.0], "F32", "BF16")


def test_rounding_twice_would_be_wrong() -> None:
    # A hair above the tie between 1 and the next bfloat16; float32 would lose the hair.
    value = 1 + 2**-8 + 2**-40
    assert convert([value], "F64", "BF16") == [encode("BF16", 1 + 2**-7)]
    through_float32 = struct.unpack("<f", struct.pack("<f", value))[0]
    assert round_exactly(through_float32, "BF16") == 1
    value = 1 + 2**-11 + 2**-40
    assert convert([value], "F64", "F16") == [encode("F16", 1 + 2**-10)]


@pytest.mark.parametrize("from_dtype", ["BF16", "F16"])
def test_widening_is_exact_for_every_number(from_dtype: str) -> None:
    values = []
    for bits in range(1 << 16):
        value = decode(from_dtype, bits.to_bytes(2, "little"))
        if math.isfinite(value):
            values.append(value)
    assert convert(values, from_dtype, "F32") == [struct.pack("<f", value) for value in values]


@pytest.mark.parametrize("to_dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("from_dtype", ["F64", "F32", "F16", "BF16"])
def test_infinities_stay_and_every_nan_becomes_the_same_quiet_one(
    from_dtype: str, to_dtype: str
) -> None:
    if from_dtype == to_dtype:
        return
    values = [math.inf, -math.inf, 1.0, -0.0]
    assert convert(values, from_dtype, to_dtype) == [encode(to_dtype, v) for v in values]
    width = NBYTES[from_dtype]
    exponent = int.from_bytes(encode(from_dtype, math.inf), "little")
    nans = [exponent + 1, exponent + 5, exponent | 1 << (width * 8 - 1) | 3]
    source = bytearray(b"".join(bits.to_bytes(width, "little") for bits in nans))
    target = bytearray(3 * NBYTES[to_dtype])
    convert_slice(memoryview(source), from_dtype, memoryview(target), to_dtype, "t")
    quiet = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}[to_dtype]
    assert bytes(target) == 3 * quiet.to_bytes(NBYTES[to_dtype], "little")


@pytest.mark.parametrize(
    ("from_dtype", "to_dtype", "fits", "overflows"),
    [
        ("F32", "F16", 65519.996, 65520.0),
        ("BF16", "F16", 65280.0, 65536.0),
        ("F64", "F16", 65519.99999999999, 65520.0),
        ("F32", "BF16", TIES["BF16"] - 2.0**104, TIES["BF16"]),
        ("F64", "BF16", math.nextafter(TIES["BF16"], 0), TIES["BF16"]),
        ("F64", "BF16", 1.0, 1e300),
        ("F64", "F32", math.nextafter(TIES["F32"], 0), TIES["F32"]),
    ],
)
def test_what_is_too_large_is_refused_by_name_from_the_first_such_value_on(
    from_dtype: str, to_dtype: str, fits: float, overflows: float
) -> None:
    found = decode(to_dtype, convert([fits, 0], from_dtype, to_dtype)[0])
    assert Fraction(found) == round_exactly(fits, to_dtype)
    assert round_exactly(overflows, to_dtype) is None
    for values in ([0, overflows, 1], [-overflows], [math.nan, overflows], [math.inf, overflows]):
        with pytest.raises(RecipeError, match=rf"tensor 't': .* is too large for {to_dtype}"):
            convert(values, from_dtype, to_dtype)


def test_large_sums_of_small_numbers_are_no_overflow() -> None:
    # The one pass over the sum meets an infinity here, although no value is one.
    value = decode("BF16", encode("BF16", 3e38))
    assert convert([value] * 100, "F32", "BF16") == [encode("BF16", value)] * 100
    values = [value, -value] * 50
    assert convert(values, "F32", "BF16") == [encode("BF16", v) for v in values]


def test_a_slice_may_begin_anywhere_in_memory() -> None:
    source = bytearray(b"x" + b"".join(struct.pack("<f", float(i)) for i in range(9)))
    target = bytearray(19)
    convert_slice(memoryview(source)[1:], "F32", memoryview(target)[1:], "BF16", "t")
    assert target[1:] == b"".join(encode("BF16", float(i)) for i in range(9))
