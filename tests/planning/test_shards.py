"""How tensors are arranged in files: kept together, kept in place within a block, aligned."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.formats.tensor_spec import TensorSpec
from blockexpand.planning.new_shards import NEW_SHARD_NBYTES, WORTH_A_FILE_NBYTES
from blockexpand.planning.origins import Convert, Copy, Extent, Part, Zeros
from blockexpand.planning.shards import Arrangement, mirror_shards, pack_shards

WIDTH = {"U8": 1, "BF16": 2, "F32": 4, "I64": 8}
BLOCK = 4096


def spec(nbytes: int, dtype: str = "U8") -> TensorSpec:
    return TensorSpec(dtype=dtype, shape=(nbytes // WIDTH[dtype],), nbytes=nbytes)


def copied(name: str, offset: int, nbytes: int, *, file: str = "a", dtype: str = "U8") -> Part:
    extent = Extent(file=file, offset=offset, nbytes=nbytes)
    return Part(name=name, spec=spec(nbytes, dtype), origin=Copy(*extent))


def zeros(name: str, nbytes: int) -> Part:
    return Part(name=name, spec=spec(nbytes), origin=Zeros(nbytes=nbytes))


def converted(name: str, offset: int, nbytes: int, dtype: str = "F32") -> Part:
    extent = Extent(file="a", offset=offset, nbytes=nbytes // 2)
    origin = Convert(extent=extent, from_dtype="BF16", to_dtype=dtype)
    return Part(name=name, spec=spec(nbytes, dtype), origin=origin)


def names(arrangements: Sequence[Arrangement]) -> list[str]:
    return [" ".join(part.name for part in arrangement.parts) for arrangement in arrangements]


def sizes(arrangements: Sequence[Arrangement]) -> list[int]:
    return [sum(part.spec.nbytes for part in a.parts) for a in arrangements]


def test_a_mirrored_shard_keeps_its_order_and_its_place_within_a_block() -> None:
    shard = [copied("y", 1232, 10), copied("x", 1242, 5)]
    (made,) = mirror_shards([("a", shard)], [], BLOCK)
    assert made == Arrangement(parts=tuple(shard), residue=1232, mirrors="a")


def test_a_shard_without_any_tensor_is_no_file() -> None:
    made = mirror_shards([("a", []), ("b", [copied("x", 8, 4, file="b")])], [], BLOCK)
    assert [arrangement.mirrors for arrangement in made] == ["b"]


def test_new_blocks_stand_behind_the_mirrored_shards() -> None:
    made = mirror_shards(
        [("a", [copied("x", 8, 4)])],
        [[copied("n0", 8, 4), zeros("z0", 4)], [copied("n1", 8, 4), zeros("z1", 4)]],
        BLOCK,
    )
    assert names(made) == ["x", "n0 z0 n1 z1"]


def test_large_blocks_that_would_lose_their_place_get_files_of_their_own() -> None:
    """Only what lies at the source's offset modulo the block can share blocks with it."""
    large = WORTH_A_FILE_NBYTES + 16
    blocks = [[copied("n0", 1232, large)], [copied("n1", 1232, large)]]
    made = mirror_shards([], blocks, BLOCK)
    assert names(made) == ["n0", "n1"]
    assert [arrangement.residue for arrangement in made] == [1232, 1232]
    # A multiple of the block behind each other keeps the place, so one file holds both.
    blocks = [[copied("n0", 1232, 1 << 20)], [copied("n1", 1232, 1 << 20)]]
    assert names(mirror_shards([], blocks, BLOCK)) == ["n0 n1"]
    # What is copied in no time is worth no file.
    blocks = [[copied("n0", 1232, 20_000_016)], [copied("n1", 1232, 20_000_016)]]
    assert names(mirror_shards([], blocks, BLOCK)) == ["n0 n1"]


def test_new_files_hold_at_most_five_gigabytes() -> None:
    assert NEW_SHARD_NBYTES == 5 * 10**9
    block = [[copied(f"n{i}", 0, 2 << 30)] for i in range(5)]
    made = mirror_shards([], block, BLOCK)
    assert max(sizes(made)) <= NEW_SHARD_NBYTES
    assert sum(sizes(made)) == 5 * (2 << 30)
    # One block of more than that is cut; a tensor never is.
    made = mirror_shards([], [[copied(f"t{i}", i * 3 * 10**9, 3 * 10**9) for i in range(3)]], BLOCK)
    assert sizes(made) == [3 * 10**9] * 3
    assert sizes(mirror_shards([], [[copied("t", 0, 7 * 10**9)]], BLOCK)) == [7 * 10**9]


def test_a_block_from_two_shards_is_cut_where_the_shard_changes() -> None:
    large = WORTH_A_FILE_NBYTES + 8
    block = [
        copied("t0", 8, large),
        zeros("z", 4096),
        copied("t1", 1000, large, file="b"),
    ]
    made = mirror_shards([], [block], BLOCK)
    assert names(made) == ["t0 z", "t1"]
    assert [arrangement.residue for arrangement in made] == [8, 1000]


def test_packing_fills_files_in_order() -> None:
    parts = [
        copied(name, 0, nbytes) for name, nbytes in zip("abcdef", (4, 4, 4, 9, 1, 7), strict=True)
    ]
    assert names(pack_shards(parts, 8, BLOCK)) == ["a b", "c", "d", "e f"]
    assert names(pack_shards(parts, 1, BLOCK)) == list("abcdef")
    assert names(pack_shards(parts, 100, BLOCK)) == ["a b c d e f"]


@given(
    st.lists(st.tuples(st.sampled_from(sorted(WIDTH)), st.integers(0, 9)), min_size=1, max_size=20),
    st.integers(1, 60),
)
def test_packed_files_lose_nothing_and_align_every_element(
    kinds: list[tuple[str, int]], most: int
) -> None:
    parts = [
        copied(str(i), 64 * i, count * WIDTH[dtype], dtype=dtype)
        for i, (dtype, count) in enumerate(kinds)
    ]
    made = pack_shards(parts, most, BLOCK)
    assert sorted(" ".join(names(made)).split(), key=int) == [part.name for part in parts]
    for arrangement in made:
        offset = 0
        for part in arrangement.parts:
            assert not part.spec.nbytes or offset % WIDTH[part.spec.dtype] == 0
            offset += part.spec.nbytes
        assert offset <= most or len([p for p in arrangement.parts if p.spec.nbytes]) == 1


def test_what_conversion_would_leave_unaligned_is_reordered() -> None:
    shard = [copied("odd", 8, 3), converted("wide", 11, 8), copied("z", 15, 1)]
    (made,) = mirror_shards([("a", shard)], [], BLOCK)
    assert names([made]) == ["wide odd z"]
    # A source that is unaligned itself and is not converted is mirrored as it is.
    shard = [copied("odd", 8, 3), copied("wide", 11, 8, dtype="F32")]
    (made,) = mirror_shards([("a", shard)], [], BLOCK)
    assert names([made]) == ["odd wide"]


@pytest.mark.parametrize("block", [4096, 65536])
def test_the_place_that_keeps_most_bytes_wins(block: int) -> None:
    parts = [copied("small", 0, 64), copied("large", 7 * block + 640, 4096)]
    (made,) = pack_shards(parts, 10**6, block)
    assert made.residue == 640 - 64
    (made,) = pack_shards([zeros("z", 64)], 10**6, block)
    assert made.residue == 0
