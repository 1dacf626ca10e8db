"""Planned files as segments: nothing left out, nothing twice, neighbours as one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockexpand.formats.tensor_spec import TensorSpec
from blockexpand.planning.origins import Convert, Copy, Extent, Fill, Origin, Zeros
from blockexpand.planning.segments import Literal, Segment, Tally, make_segments, tally_file
from blockexpand.planning.shards import PlannedFile, PlannedTensor


def copy(file: str, offset: int, nbytes: int) -> Copy:
    return Copy(file=file, offset=offset, nbytes=nbytes)


def convert(file: str, offset: int, nbytes: int) -> Convert:
    extent = Extent(file=file, offset=offset, nbytes=2 * nbytes)
    return Convert(extent=extent, from_dtype="F32", to_dtype="BF16")


def make_file(
    origins: list[tuple[Origin, int]], header: bytes = b"header", identical_to: str | None = None
) -> PlannedFile:
    """Make a planned file of one tensor `t0`, `t1`, … for each (origin, nbytes)."""
    tensors = []
    offset = len(header)
    for number, (origin, nbytes) in enumerate(origins):
        spec = TensorSpec(dtype="U8", shape=(nbytes,), nbytes=nbytes)
        tensors.append(PlannedTensor(name=f"t{number}", spec=spec, offset=offset, origin=origin))
        offset += nbytes
    return PlannedFile(
        name="f", header=header, tensors=tuple(tensors), nbytes=offset, identical_to=identical_to
    )


def test_neighbours_in_the_source_are_one_segment() -> None:
    file = make_file([(copy("a", 100, 10), 10), (copy("a", 110, 5), 5)])
    assert make_segments(file) == (
        Segment(offset=0, nbytes=6, origin=Literal(data=b"header")),
        Segment(offset=6, nbytes=15, origin=copy("a", 100, 15)),
    )


def test_others_stay_apart() -> None:
    file = make_file(
        [
            (copy("a", 100, 10), 10),
            (copy("a", 111, 5), 5),  # a gap
            (copy("b", 116, 5), 5),  # another file
            (copy("b", 100, 5), 5),  # backwards
            (Zeros(nbytes=4), 4),
            (Zeros(nbytes=6), 6),
            (convert("a", 0, 8), 8),
            (convert("a", 16, 8), 8),
            (Fill(element=b"\x80\x3f", nbytes=4), 4),
            (Fill(element=b"\x80\x3f", nbytes=4), 4),
        ]
    )
    _, *segments = make_segments(file)
    assert [(s.offset, s.nbytes, s.tensor) for s in segments] == [
        (6, 10, "t0"),
        (16, 5, "t1"),
        (21, 5, "t2"),
        (26, 5, "t3"),
        (31, 10, None),
        (41, 8, "t6"),
        (49, 8, "t7"),
        (57, 4, "t8"),
        (61, 4, "t9"),
    ]
    assert tally_file(file) == Tally(copied=25, zeroed=10, converted=16, filled=8, headers=6)


def test_empty_tensors_are_no_segments_and_part_no_neighbours() -> None:
    file = make_file([(copy("a", 0, 4), 4), (copy("b", 7, 0), 0), (copy("a", 4, 4), 4)])
    assert make_segments(file)[1:] == (Segment(offset=6, nbytes=8, origin=copy("a", 0, 8)),)


def test_a_repeated_file_is_one_copy_header_included() -> None:
    file = make_file([(copy("a", 6, 4), 4), (copy("a", 10, 2), 2)], identical_to="a")
    assert make_segments(file) == (Segment(offset=0, nbytes=12, origin=copy("a", 0, 12)),)


@given(
    st.lists(
        st.tuples(st.sampled_from(["copy", "zeros", "convert"]), st.integers(0, 9)), max_size=12
    )
)
def test_segments_cover_every_byte_once(kinds: list[tuple[str, int]]) -> None:
    origins: list[tuple[Origin, int]] = []
    for kind, nbytes in kinds:
        origin: Origin = Zeros(nbytes=nbytes)
        if kind == "copy":
            origin = copy("a", 3 * len(origins), nbytes)
        elif kind == "convert":
            origin = convert("a", 0, nbytes)
        origins.append((origin, nbytes))
    file = make_file(origins)
    end = 0
    for segment in make_segments(file):
        assert segment.offset == end
        assert segment.nbytes > 0
        end = segment.end
    assert end == file.nbytes
    tally = tally_file(file)
    assert tally.copied == sum(n for kind, n in kinds if kind == "copy")
    assert tally.zeroed == sum(n for kind, n in kinds if kind == "zeros")
    assert tally.converted == sum(n for kind, n in kinds if kind == "convert")
    assert tally + Tally(copied=1) == Tally(
        copied=tally.copied + 1,
        zeroed=tally.zeroed,
        converted=tally.converted,
        headers=tally.headers,
    )
