"""Unpack integers and floats of less than a byte. torch is imported inside the functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Which column of eight each nibble of a word holds, the lowest first. Source: AutoAWQ, gemm.
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def e2m1_as_f16(packed: torch.Tensor) -> torch.Tensor:
    """Return the two floats of each byte, low nibble first, in float16 and divided by 2 ** 14.

    Bits of an e2m1 float, moved into the place of a float16, differ by the exponents' biases alone,
    below the normal numbers too. The last dimension becomes twice as long.
    """
    import torch

    x = packed.to(torch.int32)
    pair = (x & 0x07) << 9
    pair |= (x & 0x08) << 12
    pair |= (x & 0x70) << 21
    pair |= (x & 0x80) << 24
    return pair.view(torch.float16)


def unpack_rows(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the unsigned integers of 32-bit words [rows, words] in order, lowest bits first."""
    import torch

    octets = words.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    per_octet = 8 // bits
    values = [octets >> bits * place & (1 << bits) - 1 for place in range(per_octet)]
    return torch.stack(values, dim=-1).view(octets.shape[0], -1)


def unpack_columns(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the unsigned integers of words [words, columns] that are packed down the columns."""
    import torch

    count = 32 // bits
    values = [words >> bits * place & (1 << bits) - 1 for place in range(count)]
    return torch.stack(values, dim=1).view(words.shape[0] * count, -1)


def unpack_awq(words: torch.Tensor) -> torch.Tensor:
    """Return the four-bit integers of words [rows, words], in AWQ's order."""
    import torch

    values = torch.empty((*words.shape, 8), dtype=torch.uint8)
    for place, column in enumerate(_AWQ_COLUMNS):
        values[..., column] = (words >> 4 * place & 15).to(torch.uint8)
    return values.view(words.shape[0], -1)
