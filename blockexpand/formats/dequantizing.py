"""Compute rows of a quantised module's weight from its parts, as the format defines the values.

torch is imported inside the functions. Rows are computed tile by tile, so that what is between
stays in the processor's cache. Every result depends on its own row alone, so that any slicing
gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import assert_never

from .codecs import (
    Awq,
    Blocks,
    Codec,
    Gptq,
    PackedE2M1,
    PackedIntegers,
    RowMaximum,
    Shape,
    Specs,
    TableCoded,
    TransposedE2M1,
)
from .dequantizing_columns import fill_awq, fill_gptq
from .elements import check_result, torch_dtypes
from .nibbles import e2m1_as_f16, unpack_columns, unpack_rows
from .small_floats import element_values, scale_values, tiles

if TYPE_CHECKING:
    import torch

    Tensor: TypeAlias = torch.Tensor

Parts = Mapping[str, memoryview]

# What a magnitude of 127 in bitsandbytes' int8 is divided by, in float32.
_ONE_OF_127 = 7.874015718698502e-3

# Scales below this can take a factor of 2 ** 14 without becoming infinite.
_LARGE = 2.0**112


def dequantize_rows(
    codec: Codec,
    specs: Specs,
    parts: Parts,
    shape: Shape,
    rows: tuple[int, int],
    target: memoryview,
    to_dtype: str,
    tensor: str,
) -> None:
    """Fill `target` with rows `rows[0]` to `rows[1]` (not included) of a weight of `shape`.

    `parts` holds of each part the bytes that `find_ranges` names.
    Raises: RecipeError where a finite value is too large for the dtype.
    """
    import torch

    flat = torch.frombuffer(target, dtype=torch.uint8).view(torch_dtypes()[to_dtype])
    out = flat.view(rows[1] - rows[0], shape[-1])
    tensors = {role: _view(parts[role], specs[role].dtype) for role in specs}
    match codec:
        case Blocks():
            _fill_blocks(codec, specs, tensors, shape, rows, out)
        case PackedIntegers():
            _fill_packed_integers(codec, specs, tensors, rows, out)
        case PackedE2M1():
            _fill_packed_e2m1(codec, specs, tensors, rows, out)
        case TransposedE2M1():
            _fill_transposed_e2m1(tensors, shape, rows, out)
        case TableCoded():
            _fill_table_coded(tensors, rows, out)
        case RowMaximum():
            _fill_row_maximum(tensors, rows, out)
        case Gptq():
            fill_gptq(codec, specs, tensors, shape, rows, out)
        case Awq():
            fill_awq(codec, tensors, shape, rows, out)
        case _:
            assert_never(codec)
    check_result(None, flat, f"{to_dtype}; use --dtype bfloat16 or float32", tensor)


def _view(data: memoryview, dtype: str) -> Tensor:
    """Return a part as a flat tensor; what torch has no arithmetic for stays bytes."""
    import torch

    known = torch_dtypes() | {"I8": torch.int8, "I32": torch.int32, "I64": torch.int64}
    return torch.frombuffer(data, dtype=torch.uint8).view(known.get(dtype, torch.uint8))


def _store(values: Tensor, via: Any, out: Tensor) -> None:
    """Round to nearest into `out`, first to the dtype `via` if there is one."""
    out.copy_(values if via is None or via == out.dtype else values.to(via))


def _fill_blocks(
    codec: Blocks,
    specs: Specs,
    parts: Mapping[str, Tensor],
    shape: Shape,
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    import torch

    count, cols = out.shape
    spec = specs["scale"]
    scales = scale_values(parts["scale"], spec.dtype)
    height, width = codec.block[0] or shape[-2], codec.block[1] or cols
    grid_cols = -(-cols // width)
    scales = scales.view(-1, grid_cols)
    numbers = torch.arange(rows[0], rows[1])
    per_matrix = -(-shape[-2] // height)
    index = numbers // shape[-2] * per_matrix + numbers % shape[-2] // height
    if spec.nbytes and scales.shape[0] == count and height == 1:
        index = torch.arange(count)  # the part's own rows were read
    is_large = not bool((scales.abs() < _LARGE).all())
    zero = parts.get("zero")
    via = torch_dtypes().get(spec.dtype) if codec.rounds_to_scale else None
    q = parts["q"].view(count, cols)
    for tile in tiles(count, cols):
        values, factor = element_values(q[tile], specs["q"].dtype)
        own = scales[index[tile]]
        if is_large:
            values.mul_(factor)
        else:
            own = own * factor
        if zero is not None:
            points = zero.to(torch.float32).view(-1, grid_cols)[index[tile]]
            values.sub_(_spread(points, width, cols))
        if cols % width == 0:
            values.view(-1, grid_cols, width).mul_(own[:, :, None])
        else:
            values.mul_(_spread(own, width, cols))
        _store(values, via, out[tile])


def _spread(values: Tensor, width: int, cols: int) -> Tensor:
    """Repeat each column `width` times, cut at the edge of the matrix."""
    return values.repeat_interleave(width, dim=1)[:, :cols]


def _spread_groups(values: Tensor, group: int, order: Tensor | None, cols: int) -> Tensor:
    """Return what each of `cols` columns has of its group, [rows, cols]."""
    if order is not None:
        return values[:, order.long()]
    return _spread(values, group or cols, cols)


def _fill_packed_integers(
    codec: PackedIntegers,
    specs: Specs,
    parts: Mapping[str, Tensor],
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    import torch

    count, cols = out.shape
    words = parts["q"].view(count, -1)
    spec = specs["scale"]
    scales = scale_values(parts["scale"], spec.dtype)
    scales = scales.view(-1, spec.shape[-1])
    if scales.shape[0] != count:
        scales = scales[rows[0] : rows[1]]
    zero: Tensor | None = None
    if "zero" in parts:
        packed = parts["zero"].view(-1, spec.shape[-1])
        zero = unpack_columns(packed, codec.bits)[rows[0] : rows[1]].to(torch.float32)
    order = parts.get("order")
    for tile in tiles(count, cols):
        values = unpack_rows(words[tile], codec.bits)[:, :cols].to(torch.float32)
        if zero is None:
            values.sub_(1 << codec.bits - 1)
        else:
            values.sub_(_spread_groups(zero[tile], codec.group, order, cols))
        values.mul_(_spread_groups(scales[tile], codec.group, order, cols))
        _store(values, torch_dtypes().get(spec.dtype), out[tile])


def _fill_packed_e2m1(
    codec: PackedE2M1,
    specs: Specs,
    parts: Mapping[str, Tensor],
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    import torch

    count, cols = out.shape
    spec = specs["scale"]
    scales = scale_values(parts["scale"], spec.dtype).view(-1, spec.shape[-1])
    if scales.shape[0] != count:
        scales = scales[rows[0] : rows[1]]
    if "global" in parts:
        scales = scales / parts["global"].to(torch.float32)
    q = parts["q"].view(count, cols // 2)
    for tile in tiles(count, cols):
        values = e2m1_as_f16(q[tile]).to(torch.float32).mul_(2.0**14)
        values.view(-1, cols // codec.group, codec.group).mul_(scales[tile][:, :, None])
        _store(values, torch.bfloat16, out[tile])


def _fill_transposed_e2m1(
    parts: Mapping[str, Tensor],
    shape: Shape,
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    import torch

    _, height, width = shape  # of the weight: [experts, in, out]
    first_expert = rows[0] // height
    blocks = parts["q"].view(-1, width, height // 32, 16)
    scales = parts["scale"].view(-1, width, height // 32)
    for expert in range(first_expert, -(-rows[1] // height)):
        begin = max(rows[0] - expert * height, 0)
        end = min(rows[1] - expert * height, height)
        groups = slice(begin // 32, -(-end // 32))
        at = expert * height + begin - rows[0]
        target = out[at : at + end - begin]
        cut = slice(begin - groups.start * 32, end - groups.start * 32)
        count = groups.stop - groups.start
        for tile in tiles(width, count * 32):
            own = scale_values(scales[expert - first_expert, tile, groups], "U8")
            halves = e2m1_as_f16(blocks[expert - first_expert, tile, groups].contiguous())
            values = halves.to(torch.float32)
            if bool((own < _LARGE).all()):
                own = own * 2.0**14
            else:
                values.mul_(2.0**14)
            narrow = values.mul_(own[:, :, None]).to(out.dtype)
            target[:, tile].copy_(narrow.view(-1, count * 32)[:, cut].t())


def _fill_table_coded(
    parts: Mapping[str, Tensor],
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    import torch

    count, cols = out.shape
    state = json.loads(bytes(next(parts[r] for r in parts if r.startswith("state")).tolist()))
    maxima = parts["absmax"].to(torch.float32)
    if "nested_absmax" in parts:
        coded = parts["nested_map"][parts["absmax"].long()]
        nested = parts["nested_absmax"].repeat_interleave(state["nested_blocksize"])
        maxima = coded * nested[: len(coded)] + state["nested_offset"]
    first, last = rows[0] * cols, rows[1] * cols
    # Two elements in a byte, the first one high; the range may begin in the middle of a byte.
    table = parts["map"].to(torch.float32)
    codes = torch.stack((parts["q"] >> 4, parts["q"] & 15), dim=1).view(-1)
    codes = codes[first % 2 : first % 2 + last - first].view(count, cols)
    via = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(state["dtype"])
    for tile in tiles(count, cols):
        elements = torch.arange(first + tile.start * cols, first + tile.stop * cols)
        scales = maxima[elements // state["blocksize"]].view(-1, cols)
        _store(table[codes[tile].long()].mul_(scales), via, out[tile])


def _fill_row_maximum(
    parts: Mapping[str, Tensor],
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    import torch

    maxima = parts["scale"].to(torch.float32).view(-1)[rows[0] : rows[1]]
    q = parts["q"].view(out.shape)
    for tile in tiles(*out.shape):
        values = q[tile].to(torch.float32).mul_(maxima[tile, None]).mul_(_ONE_OF_127)
        _store(values, None, out[tile])
