"""New blocks lie in as few files as there can be, and where a file system can share them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockexpand.formats.tensor_spec import TensorSpec
from blockexpand.planning.new_shards import NEW_SHARD_NBYTES, arrange_blocks
from blockexpand.planning.origins import Copy, Part, Zeros

BLOCK = 4096

# Released models, as hidden and intermediate size, width of keys and values, and whether the
# projections have biases.
SHAPES = {
    "Qwen2.5-7B": (3584, 18944, 512, True),
    "Qwen2.5-0.5B": (896, 4864, 128, True),
    "Llama-3.1-8B": (4096, 14336, 1024, False),
    "SmolLM2-135M": (576, 1536, 192, False),
    "gemma-2-2b": (2304, 9216, 1024, False),
}


def list_layer(hidden: int, intermediate: int, kv: int, biased: bool) -> dict[str, int]:
    """Return the bytes of a layer's tensors as safetensors orders them, by name."""
    elements = {
        "input_layernorm.weight": hidden,
        "mlp.down_proj.weight": hidden * intermediate,
        "mlp.gate_proj.weight": hidden * intermediate,
        "mlp.up_proj.weight": hidden * intermediate,
        "post_attention_layernorm.weight": hidden,
        "self_attn.k_proj.weight": hidden * kv,
        "self_attn.o_proj.weight": hidden * hidden,
        "self_attn.q_proj.weight": hidden * hidden,
        "self_attn.v_proj.weight": hidden * kv,
    }
    if biased:
        elements |= {"self_attn.k_proj.bias": kv, "self_attn.v_proj.bias": kv}
        elements["self_attn.q_proj.bias"] = hidden
    return {name: 2 * count for name, count in sorted(elements.items())}


def clone(layer: dict[str, int], sources: Sequence[int], start: int = 1232) -> list[list[Part]]:
    """Return new blocks, clones of layers that lie one behind the other in one file."""
    blocks = []
    for number, source in enumerate(sources):
        offset = start + source * sum(layer.values())
        block = []
        for name, nbytes in layer.items():
            zeroed = "o_proj" in name or "down_proj" in name
            origin = Zeros(nbytes) if zeroed else Copy("model.safetensors", offset, nbytes)
            spec = TensorSpec(dtype="BF16", shape=(nbytes // 2,), nbytes=nbytes)
            block.append(Part(f"{number}.{name}", spec, origin))
            offset += nbytes
        blocks.append(block)
    return blocks


def count_shareable(file: Sequence[Part]) -> int:
    """Count the bytes that lie at their source's offset modulo the block, for the best start."""
    best = 0
    for start in range(0, BLOCK, 8):
        offset, shared = start, 0
        for part in file:
            origin, nbytes = part.origin, part.spec.nbytes
            if isinstance(origin, Copy) and (origin.extent.offset - offset) % BLOCK == 0:
                shared += nbytes
            offset += nbytes
        best = max(best, shared)
    return best


def count_copied(file: Sequence[Part]) -> int:
    return sum(part.spec.nbytes for part in file if isinstance(part.origin, Copy))


@pytest.mark.parametrize("sources", [[23] * 4, [23] * 6, [5, 11, 17, 23], [2, 3, 22, 22, 23]])
@pytest.mark.parametrize("name", SHAPES)
def test_released_models_need_one_more_shard_and_share_all(name: str, sources: list[int]) -> None:
    layer = list_layer(*SHAPES[name])
    files = arrange_blocks(clone(layer, sources), BLOCK)
    total = sum(layer.values()) * len(sources)
    assert len(files) == -(-total // NEW_SHARD_NBYTES)
    copied = sum(map(count_copied, files))
    # What is copied in a moment may lie where it does.
    assert sum(map(count_shareable, files)) > min(0.999 * copied, copied - (64 << 20))


def test_small_blocks_are_no_files_of_their_own() -> None:
    layer = list_layer(636, 1023, 318, False)
    assert len(arrange_blocks(clone(layer, [5] * 6), BLOCK)) == 1


def test_an_order_that_keeps_the_place_is_kept() -> None:
    blocks = clone(list_layer(*SHAPES["Llama-3.1-8B"]), [7, 7, 31])
    assert arrange_blocks(blocks, BLOCK) == [[part for block in blocks for part in block]]


def test_large_blocks_that_no_order_helps_are_shared_from_files_of_their_own() -> None:
    # The zeroed tensors and norms of three clones do not add up to what is missing.
    blocks = clone(list_layer(3996, 11001, 318, False), [5, 5, 5])
    files = arrange_blocks(blocks, BLOCK)
    assert files == blocks
    assert all(count_shareable(file) == count_copied(file) for file in files)


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 30),
    st.sampled_from([4096, 16384, 65536]),
    st.booleans(),
)
def test_nothing_is_lost_and_every_element_aligned(
    seed: int, count: int, block_nbytes: int, biased: bool
) -> None:
    chosen = random.Random(seed)
    sizes = chosen.choices([4, 12, 100, 636, 1023, 3996], k=3)
    layer = list_layer(sizes[0], sizes[1], sizes[2], biased)
    blocks = clone(layer, chosen.choices(range(24), k=count), chosen.randrange(0, 10**6, 8))
    # A float32 tensor among those of two bytes.
    for block in blocks:
        name, spec, origin = block[0]
        if spec.nbytes % 4 == 0 and all(part.spec.nbytes % 4 == 0 for part in block):
            shape = (spec.nbytes // 4,)
            block[0] = Part(name, TensorSpec(dtype="F32", shape=shape, nbytes=spec.nbytes), origin)
    files = arrange_blocks(blocks, block_nbytes)
    placed = [part for file in files for part in file]
    assert sorted(placed) == sorted(part for block in blocks for part in block)
    for file in files:
        offset = 0
        for part in file:
            assert offset % (4 if part.spec.dtype == "F32" else 2) == 0
            offset += part.spec.nbytes
        assert offset <= NEW_SHARD_NBYTES
    assert files == arrange_blocks(blocks, block_nbytes)


def test_thousands_of_blocks_are_arranged_in_a_moment() -> None:
    import time

    chosen = random.Random(1)
    blocks = clone(list_layer(636, 2047, 318, True), chosen.choices(range(24), k=3000))
    started = time.process_time()
    arrange_blocks(blocks, 65536)
    assert time.process_time() - started < 3
