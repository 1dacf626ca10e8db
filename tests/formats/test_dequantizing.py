"""Each codec: the same values for every slicing, exact zeros, and an independent restatement.

The restatements go element by element, from the formats' definitions; bytes are random.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch

from blockexpand.errors import RecipeError
from blockexpand.formats.codecs import (
    Awq,
    Blocks,
    Codec,
    Gptq,
    PackedE2M1,
    PackedIntegers,
    RowMaximum,
    TableCoded,
    TransposedE2M1,
)
from blockexpand.formats.tensor_spec import make_tensor_spec
from blockexpand.planning.origins import Dequantize, Extent, QuantizedPart, dequantize_slice

Parts = Mapping[str, tuple[str, torch.Tensor]]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A module; `value(i, j)` is an element of its weight (rows count through), `zero` its zero."""

    codec: Codec
    parts: Parts
    shape: tuple[int, ...]
    value: Callable[[int, int], float]
    zero: Mapping[str, int]
    via: torch.dtype | None = None


def random_bytes(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)


def words(*shape: int) -> torch.Tensor:
    return random_bytes(*shape[:-1], shape[-1] * 4).view(torch.int32)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7 + sum(shape))
    return (torch.rand(shape, generator=generator) + 0.1).to(dtype)


def e2m1(code: int) -> float:
    return -E2M1[code & 7] if code & 8 else E2M1[code]


def nibble(word: int, place: int) -> int:
    return word >> 4 * place & 15


def fp8_case(rows: int, cols: int, block: int, dtype: str) -> Case:
    q = random_bytes(rows, cols)
    q[(q & 0x7F) == 0x7F] = 0x11
    grid = -(-rows // block), -(-cols // block)
    scale = floats(*grid) if dtype == "F32" else random_bytes(*grid, low=100, high=140)
    values = q.view(torch.float8_e4m3fn).float()

    def value(i: int, j: int) -> float:
        s = scale[i // block, j // block]
        factor = float(s) if dtype == "F32" else 2.0 ** (int(s) - 127)
        return float(torch.tensor(float(values[i, j])) * torch.tensor(factor))

    return Case(
        codec=Blocks(block=(block, block)),
        parts={"q": ("F8_E4M3", q), "scale": (dtype, scale)},
        shape=(rows, cols),
        value=value,
        zero={"q": 0},
    )


def tensor_case() -> Case:
    """One scale for all, as FP8 without a block size has it."""
    q, scale = random_bytes(6, 10), torch.tensor(0.0371)
    q[(q & 0x7F) == 0x7F] = 0x11
    values = q.view(torch.float8_e4m3fn).float()
    return Case(
        codec=Blocks(block=(0, 0)),
        parts={"q": ("F8_E4M3", q), "scale": ("F32", scale)},
        shape=(6, 10),
        value=lambda i, j: float(values[i, j] * scale),
        zero={"q": 0},
    )


def int8_case() -> Case:
    q, scale = random_bytes(6, 10), floats(6, 1, dtype=torch.bfloat16)
    return Case(
        codec=Blocks(block=(1, 0), rounds_to_scale=True),
        parts={"q": ("I8", q), "scale": ("BF16", scale)},
        shape=(6, 10),
        value=lambda i, j: int(q.view(torch.int8)[i, j]) * float(scale[i, 0]),
        zero={"q": 0},
        via=torch.bfloat16,
    )


def packed_case(bits: int, *, symmetric: bool, ordered: bool = False) -> Case:
    rows, cols, group = 8, 64, 16
    q, scale = words(rows, cols * bits // 32), floats(rows, 4, dtype=torch.bfloat16)
    parts: dict[str, tuple[str, torch.Tensor]] = {"q": ("I32", q), "scale": ("BF16", scale)}
    zero, order = words(rows * bits // 32, 4), torch.arange(cols, dtype=torch.int32) // group
    if not symmetric:
        parts["zero"] = "I32", zero
    if ordered:
        order = order.flip(0).contiguous()
        parts["order"] = "I32", order

    def value(i: int, j: int) -> float:
        g, per = int(order[j]), 32 // bits
        stored = int(q[i, j // per]) >> bits * (j % per) & (1 << bits) - 1
        point = 1 << bits - 1
        if not symmetric:
            point = int(zero[i // per, g]) >> bits * (i % per) & (1 << bits) - 1
        return (stored - point) * float(scale[i, g])

    return Case(
        codec=PackedIntegers(bits=bits, group=group),
        parts=parts,
        shape=(rows, cols),
        value=value,
        zero={"q": 0x88 if bits == 4 else 0x80} if symmetric else {"scale": 0},
        via=torch.bfloat16,
    )


def nvfp4_case() -> Case:
    q, scale = random_bytes(4, 16), random_bytes(4, 2, low=40, high=100)
    factor = torch.tensor([2.5])

    def value(i: int, j: int) -> float:
        own = scale.view(torch.float8_e4m3fn).float()[i, j // 16] / factor[0]
        return float(torch.tensor(e2m1(nibble(int(q[i, j // 2]), j % 2))) * own)

    return Case(
        codec=PackedE2M1(group=16),
        parts={"q": ("U8", q), "scale": ("F8_E4M3", scale), "global": ("F32", factor)},
        shape=(4, 32),
        value=value,
        zero={"q": 0},
    )


def mxfp4_case() -> Case:
    experts, out, groups = 2, 6, 3
    q, scale = random_bytes(experts, out, groups, 16), random_bytes(experts, out, groups)
    scale.clamp_(0, 250)

    def value(i: int, j: int) -> float:
        expert, column = divmod(i, groups * 32)
        code = int(q[expert, j, column // 32, column % 32 // 2])
        return e2m1(nibble(code, column % 2)) * 2.0 ** (int(scale[expert, j, column // 32]) - 127)

    return Case(
        codec=TransposedE2M1(),
        parts={"q": ("U8", q), "scale": ("U8", scale)},
        shape=(experts, groups * 32, out),
        value=value,
        zero={"q": 0},
    )


def table_case(*, nested: bool) -> Case:
    rows, cols, block = 5, 77, 64
    count = rows * cols
    q, table = random_bytes(-(-count // 2), 1), floats(16)
    table[7] = 0.0
    state = {"blocksize": block, "dtype": "bfloat16", "shape": [rows, cols]}
    absmax = floats(-(-count // block))
    parts: dict[str, tuple[str, torch.Tensor]] = {"q": ("U8", q), "map": ("F32", table)}
    if nested:
        coded, nested_map, outer = random_bytes(len(absmax)), floats(256), floats(1)
        state |= {"nested_offset": 0.25, "nested_blocksize": 256}
        absmax = nested_map[coded.long()] * outer[0] + 0.25
        parts |= {"absmax": ("U8", coded), "nested_map": ("F32", nested_map)}
        parts["nested_absmax"] = "F32", outer
    else:
        parts["absmax"] = "F32", absmax
    text = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    parts["state_nf4"] = "U8", text

    def value(i: int, j: int) -> float:
        element = i * cols + j
        code = nibble(int(q[element // 2]), 1 - element % 2)
        return float(table[code] * absmax[element // block])

    return Case(codec=TableCoded(), parts=parts, shape=(rows, cols), value=value, zero={"q": 0x77})


def row_case() -> Case:
    q, scale = random_bytes(6, 10), floats(6)
    factor = torch.tensor(7.874015718698502e-3)
    return Case(
        codec=RowMaximum(),
        parts={"q": ("I8", q), "scale": ("F32", scale)},
        shape=(6, 10),
        value=lambda i, j: float(q.view(torch.int8)[i, j].float() * scale[i] * factor),
        zero={"q": 0},
    )


def inputs_case(kind: str) -> Case:
    width, height, group, bits = 32, 16, 8, 4
    scale = floats(4, height, dtype=torch.float16)
    zero = words(4, height // 8)
    q = words(width, height // 8) if kind == "awq" else words(width // 8, height)
    places = (0, 4, 1, 5, 2, 6, 3, 7) if kind == "awq" else tuple(range(8))

    def value(i: int, j: int) -> float:
        if kind == "awq":
            stored = nibble(int(q[j, i // 8]), places[i % 8])
        else:
            stored = nibble(int(q[j // 8, i]), j % 8)
        point = nibble(int(zero[j // group, i // 8]), places[i % 8])
        return (stored - point - (kind == "gptq")) * float(scale[j // group, i])

    codec: Codec = Awq(group=group)
    if kind != "awq":
        codec = Gptq(bits=bits, group=group, zero_offset=int(kind == "gptq"))
    return Case(
        codec=codec,
        parts={"q": ("I32", q), "scale": ("F16", scale), "zero": ("I32", zero)},
        shape=(height, width),
        value=value,
        zero={"scale": 0},
        via=torch.float16,
    )


CASES: Mapping[str, Callable[[], Case]] = {
    "fp8": lambda: fp8_case(8, 12, 4, "F32"),
    "fp8-cut-blocks": lambda: fp8_case(7, 10, 4, "F32"),
    "fp8-e8m0": lambda: fp8_case(7, 10, 4, "F8_E8M0"),
    "fp8-u8-scales": lambda: fp8_case(8, 8, 4, "U8"),
    "fp8-tensor": tensor_case,
    "int8": int8_case,
    "int4": lambda: packed_case(4, symmetric=True),
    "int4-asymmetric": lambda: packed_case(4, symmetric=False),
    "int4-act-order": lambda: packed_case(4, symmetric=True, ordered=True),
    "int8-packed": lambda: packed_case(8, symmetric=True),
    "nvfp4": nvfp4_case,
    "mxfp4-experts": mxfp4_case,
    "nf4": lambda: table_case(nested=False),
    "nf4-nested": lambda: table_case(nested=True),
    "bnb-int8": row_case,
    "gptq": lambda: inputs_case("gptq"),
    "gptq-v2": lambda: inputs_case("gptq_v2"),
    "awq": lambda: inputs_case("awq"),
}


def as_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def dequantize(case: Case, cuts: tuple[int, ...] = (), parts: Parts | None = None) -> torch.Tensor:
    """Return the weight in bfloat16, computed in slices cut at these bytes."""
    stored = {role: as_bytes(tensor) for role, (_, tensor) in (parts or case.parts).items()}
    origin = Dequantize(
        codec=case.codec,
        parts=tuple(
            QuantizedPart(
                role, make_tensor_spec(dtype, tuple(t.shape)), Extent(role, 0, len(stored[role]))
            )
            for role, (dtype, t) in case.parts.items()
        ),
        shape=case.shape,
        to_dtype="BF16",
    )
    nbytes = 2
    for dim in case.shape:
        nbytes *= dim
    result = bytearray(nbytes)

    def fetch(extent: Extent, is_shared: bool) -> memoryview:
        data = stored[extent.file][extent.offset : extent.offset + extent.nbytes]
        return memoryview(bytearray(data))

    for begin, end in zip((0, *cuts), (*cuts, nbytes), strict=True):
        dequantize_slice(origin, begin, memoryview(result)[begin:end], fetch, "w")
    return torch.frombuffer(result, dtype=torch.bfloat16).view(-1, case.shape[-1])


@pytest.mark.parametrize("name", CASES)
def test_every_element_is_as_defined(name: str) -> None:
    case = CASES[name]()
    found = dequantize(case)
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            expected = torch.tensor(case.value(i, j))
            if case.via is not None:
                expected = expected.to(case.via)
            assert found[i, j] == expected.to(torch.bfloat16), (i, j)


@pytest.mark.parametrize("name", CASES)
def test_every_slicing_gives_the_same(name: str) -> None:
    case = CASES[name]()
    whole = dequantize(case)
    nbytes = whole.numel() * 2
    for cuts in ((1,), (nbytes - 1,), (7, 8, 9), tuple(range(13, nbytes, 37))):
        assert as_bytes(dequantize(case, cuts)) == as_bytes(whole), cuts


@pytest.mark.parametrize("name", CASES)
def test_its_zero_is_exactly_zero(name: str) -> None:
    case = CASES[name]()
    parts = {
        role: (
            dtype,
            torch.full_like(t.reshape(-1).view(torch.uint8), case.zero[role])
            if role in case.zero
            else t,
        )
        for role, (dtype, t) in case.parts.items()
    }
    assert dequantize(case).abs().sum() > 0
    assert (dequantize(case, parts=parts) == 0).all()


def test_a_scale_without_a_zero_must_not_be_zeroed() -> None:
    case = CASES["fp8-e8m0"]()
    parts = dict(case.parts)
    dtype, scale = parts["scale"]
    parts["scale"] = dtype, torch.zeros_like(scale)
    assert dequantize(case, parts=parts).abs().sum() > 0


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_nan_stays_nan(byte: int) -> None:
    case = CASES["fp8"]()
    parts = dict(case.parts)
    q = parts["q"][1].clone()
    q[2, 3] = byte
    found = dequantize(case, parts=parts | {"q": ("F8_E4M3", q)})
    assert found[2, 3].isnan() and found.isnan().sum() == 1


def test_a_value_that_is_too_large_is_refused() -> None:
    case = CASES["mxfp4-experts"]()
    dtype, scale = case.parts["scale"]
    parts = dict(case.parts) | {"scale": (dtype, torch.full_like(scale, 254))}
    with pytest.raises(RecipeError, match="too large"):
        dequantize(case, parts=parts)
