"""Slices of a gathered table, against the whole table put together by torch."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockexpand.planning.gathering import gather_slice
from blockexpand.planning.origins import Convert, Copy, Extent, Gather, Scale

OFFSET = 37
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_slice_is_that_of_the_whole(data: st.DataObject) -> None:
    rows, of, size = (data.draw(st.integers(1, most)) for most in (5, 6, 7))
    parts = tuple(data.draw(st.lists(st.integers(0, of - 1), min_size=1, max_size=9)))
    kind = data.draw(st.sampled_from(["copy", "convert", "scale"]))
    generator = torch.Generator().manual_seed(rows * of + size)
    table = torch.randn(rows, of * size, generator=generator).to(torch.bfloat16)
    stored = bytes(OFFSET) + table.view(torch.uint8).numpy().tobytes()
    extent = Extent("f", OFFSET, table.nbytes)
    gathered = table.view(rows, of, size)[:, list(parts)].reshape(rows, -1)
    values: Copy | Convert | Scale = Copy(*extent)
    if kind == "convert":
        values = Convert(extent=extent, from_dtype="BF16", to_dtype="F32")
        gathered = gathered.float()
    elif kind == "scale":
        values = Scale(
            extent=extent, from_dtype="BF16", math_dtype="F32", to_dtype="F16", factor=0.3
        )
        gathered = (gathered.float() * 0.3).half()
    whole = gathered.contiguous().view(torch.uint8).numpy().tobytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    target = memoryview(bytearray(data.draw(st.integers(1, len(whole) - start))))
    room = data.draw(st.integers(2, 200))

    def read(part: Extent) -> memoryview:
        assert part.file == "f" and 0 < part.nbytes <= room
        assert extent.offset <= part.offset <= part.offset + part.nbytes <= len(stored)
        return memoryview(stored)[part.offset : part.offset + part.nbytes]

    origin = Gather(values=values, rows=rows, of=of, parts=parts)
    gather_slice(origin, start, target, read, room, "t")
    assert bytes(target) == whole[start : start + len(target)]
