"""Header bytes ⇄ values: the dtype table and strict validation. Opens no files.

Source: the safetensors format (https://github.com/huggingface/safetensors, README "Format").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DTYPE_BITS: Mapping[str, int] = {"BF16": 16}
MAX_HEADER_NBYTES = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a tensor is, without its bytes: `dtype` as the format spells it (`BF16`)."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEntry:
    """A tensor's place: `data_offset` counts from the start of the data section."""

    name: str
    spec: TensorSpec
    data_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A parsed header; `entries` in the order of their data, `data_start` absolute in the file."""

    entries: tuple[HeaderEntry, ...]
    metadata: Mapping[str, str] | None
    data_start: int


def parse_header_nbytes(prefix: bytes, file_nbytes: int) -> int:
    """Return the length of the JSON header that the file's first 8 bytes announce."""
    raise HeaderErrorPlaceholder


def parse_header(text: bytes, file_nbytes: int) -> Header:
    """Parse and validate the JSON part of a header (without the 8 length bytes)."""
    raise HeaderErrorPlaceholder


def render_header(
    tensors: Iterable[tuple[str, TensorSpec]],
    metadata: Mapping[str, str] | None,
    *,
    data_start_modulo: tuple[int, int] = (0, 8),
) -> bytes:
    """Return the header with its 8 length bytes, padded with spaces so that the data section
    starts at an offset congruent to `data_start_modulo[0]` modulo `data_start_modulo[1]`."""
    raise HeaderErrorPlaceholder
