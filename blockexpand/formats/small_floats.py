"""Bytes of eight-bit floats and of scales as float32, exactly; matrices in tiles.

torch is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    Tensor: TypeAlias = torch.Tensor

# What is between the bytes and the values then stays in the processor's cache.
_TILE_ELEMENTS = 1 << 19


def tiles(rows: int, cols: int) -> Iterator[slice]:
    step = max(1, _TILE_ELEMENTS // max(cols, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def scale_values(scale: Tensor, dtype: str) -> Tensor:
    """Return scales in float32, each exactly."""
    import torch

    if dtype == "F8_E4M3":
        return e4m3_values(scale) * 256
    if dtype not in ("F8_E8M0", "U8"):
        return scale.to(torch.float32)
    # A power of two is its own exponent; that of byte 0 is below the normal numbers.
    bits = scale.to(torch.int32) << 23
    bits[scale == 0] = 0x00400000
    bits[scale == 255] = 0x7FC00000
    return bits.view(torch.float32)


def e4m3_values(q: Tensor) -> Tensor:
    """Return float8 values (e4m3fn), divided by 256, in float32.

    Moved into the place of a float16 they are divided by the difference of the exponents' biases,
    and processors convert float16 quickly.
    """
    import torch

    # The sign is in the upper bits already, as int8 is widened to int16.
    moved = (q.view(torch.int8).to(torch.int16) << 7).bitwise_and_(-0x4080)
    values = moved.view(torch.float16).to(torch.float32)
    magnitude = moved.bitwise_and_(0x3F80)
    if int(magnitude.max()) == 0x3F80:
        values.masked_fill_(magnitude == 0x3F80, float("nan"))
    return values


def element_values(q: Tensor, dtype: str) -> tuple[Tensor, float]:
    """Return values in float32 and the factor that they still need."""
    import torch

    match dtype:
        case "F8_E4M3":
            return e4m3_values(q), 256.0
        case "F8_E5M2":
            return (q.to(torch.int16) << 8).view(torch.float16).to(torch.float32), 1.0
        case _:
            return q.to(torch.float32), 1.0
