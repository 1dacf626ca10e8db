"""Compute rows of weights that are stored as [in, out], in groups along the inputs: GPTQ and AWQ.

torch is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from .codecs import Awq, Gptq, Shape, Specs
from .nibbles import unpack_awq, unpack_columns, unpack_rows
from .small_floats import tiles

if TYPE_CHECKING:
    import torch

    Tensor: TypeAlias = torch.Tensor


def fill_gptq(
    codec: Gptq,
    specs: Specs,
    parts: Mapping[str, Tensor],
    shape: Shape,
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    import torch

    height, width = shape
    words = parts["q"].view(-1, height)
    points = unpack_rows(parts["zero"].view(-1, specs["zero"].shape[-1]), codec.bits)
    points = points[:, :height].to(torch.float32) + codec.zero_offset
    _fill_by_inputs(
        lambda own: unpack_columns(words[:, own].contiguous(), codec.bits),
        points,
        parts["scale"].view(-1, height),
        parts.get("order"),
        codec.group or width,
        rows,
        out,
    )


def fill_awq(
    codec: Awq,
    parts: Mapping[str, Tensor],
    shape: Shape,
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    height, width = shape
    words = parts["q"].view(width, -1)

    def unpack(own: slice) -> Tensor:
        eighths = slice(own.start // 8, -(-own.stop // 8))
        values = unpack_awq(words[:, eighths])
        return values[:, own.start - eighths.start * 8 : own.stop - eighths.start * 8]

    points = unpack_awq(parts["zero"].view(-1, height // 8)).float()
    group = codec.group or width
    scales = parts["scale"].view(-1, height)
    _fill_by_inputs(unpack, points, scales, None, group, rows, out)


def _fill_by_inputs(
    unpack: Callable[[slice], Tensor],
    points: Tensor,
    scales: Tensor,
    order: Tensor | None,
    group: int,
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    """Fill rows of [out, in] from a matrix [in, out] whose groups go along `in`."""
    import torch

    width = out.shape[1]
    index = torch.arange(width) // group if order is None else order.long()
    for tile in tiles(*out.shape):
        own = slice(rows[0] + tile.start, rows[0] + tile.stop)
        values = unpack(own).to(torch.float32)
        values = (values - points[index, own]) * scales[index, own].to(torch.float32)
        out[tile].copy_(values.to(scales.dtype).t())
