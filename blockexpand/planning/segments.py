"""A planned file as segments that leave no byte out: what a writer or a reader walks. Pure.

Neighbouring tensors whose bytes are neighbours in the source too are one segment, so a shard that
is mirrored is one copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .origins import Convert, Copy, Dequantize, Fill, Gather, Origin, Scale, Zeros
from .shards import PlannedFile, PlannedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Literal:
    """Bytes that the plan itself holds: a header."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """`nbytes` of an output file from `offset` on, all of one origin.

    `tensor` names what is computed, for messages.
    """

    offset: int
    nbytes: int
    origin: Origin | Literal
    tensor: str | None = None

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


def make_segments(file: PlannedFile) -> tuple[Segment, ...]:
    """Return the file's segments in order, without gap or overlap and none of them empty."""
    if file.identical_to is not None:
        origin = Copy(file=file.identical_to, offset=0, nbytes=file.nbytes)
        return (Segment(offset=0, nbytes=file.nbytes, origin=origin),)
    header = Segment(offset=0, nbytes=len(file.header), origin=Literal(data=file.header))
    return (header, *merge_tensors(file.tensors))


def merge_tensors(tensors: Iterable[PlannedTensor]) -> list[Segment]:
    """Return tensors, given in the order of their offsets, as the fewest segments."""
    segments: list[Segment] = []
    for tensor in tensors:
        if not tensor.spec.nbytes:
            continue
        last = segments[-1] if segments else None
        adjoins = last is not None and last.end == tensor.offset
        merged = _merge(last.origin, tensor.origin) if last is not None and adjoins else None
        if last is None or merged is None:
            segments.append(
                Segment(
                    offset=tensor.offset,
                    nbytes=tensor.spec.nbytes,
                    origin=tensor.origin,
                    tensor=tensor.name,
                )
            )
        else:
            segments[-1] = Segment(
                offset=last.offset, nbytes=last.nbytes + tensor.spec.nbytes, origin=merged
            )
    return segments


def _merge(first: Origin | Literal, second: Origin) -> Origin | None:
    """Return the origin of two neighbours as one, or None."""
    if isinstance(first, Zeros) and isinstance(second, Zeros):
        return Zeros(nbytes=first.nbytes + second.nbytes)
    if isinstance(first, Copy) and isinstance(second, Copy):
        one, other = first, second
        if one.file == other.file and one.offset + one.nbytes == other.offset:
            return Copy(file=one.file, offset=one.offset, nbytes=one.nbytes + other.nbytes)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Bytes of an output by what becomes of them; `documents` are written from memory."""

    copied: int = 0
    zeroed: int = 0
    converted: int = 0
    filled: int = 0
    scaled: int = 0
    headers: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            copied=self.copied + other.copied,
            zeroed=self.zeroed + other.zeroed,
            converted=self.converted + other.converted,
            filled=self.filled + other.filled,
            scaled=self.scaled + other.scaled,
            headers=self.headers + other.headers,
        )


def tally_file(file: PlannedFile) -> Tally:
    """Count a planned file's bytes."""
    copied = zeroed = converted = filled = scaled = headers = 0
    for segment in make_segments(file):
        origin = segment.origin
        match origin.values if isinstance(origin, Gather) else origin:
            case Copy():
                copied += segment.nbytes
            case Zeros():
                zeroed += segment.nbytes
            case Convert() | Dequantize():
                converted += segment.nbytes
            case Fill():
                filled += segment.nbytes
            case Scale():
                scaled += segment.nbytes
            case Literal():
                headers += segment.nbytes
    return Tally(
        copied=copied,
        zeroed=zeroed,
        converted=converted,
        filled=filled,
        scaled=scaled,
        headers=headers,
    )
