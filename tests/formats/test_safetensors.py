# ruff: noqa: UP031 (with str.format, the braces of JSON would all be doubled)
from __future__ import annotations

import json
import math
import re
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from older import is_older

from blockexpand.errors import HeaderError
from blockexpand.formats.safetensors import (
    MAX_HEADER_NBYTES,
    Header,
    HeaderEntry,
    parse_header,
    parse_header_nbytes,
    render_header,
)
from blockexpand.formats.tensor_spec import DTYPE_BITS, FLOAT_DTYPES, TensorSpec, make_tensor_spec

U8 = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[%d,%d]}'


# Older ones knew fewer dtypes.
with_current_library = pytest.mark.skipif(
    is_older("safetensors", (0, 8)), reason="the verdict is that of safetensors 0.8"
)


def parse(text: str | bytes, data_nbytes: int) -> Header:
    text = text.encode() if isinstance(text, str) else text
    return parse_header(text, 8 + len(text) + data_nbytes)


def read_with_library(
    text: str | bytes, data_nbytes: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    text = text.encode() if isinstance(text, str) else text
    content = len(text).to_bytes(8, "little") + text + bytes(data_nbytes)
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]))
        for name, tensor in safetensors.deserialize(content)
    }


def described(header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {entry.name: (entry.spec.dtype, entry.spec.shape) for entry in header.entries}


def member(dtype: Any = "U8", shape: Any = (1,), data_offsets: Any = (0, 1), **others: Any) -> str:
    return json.dumps(
        {"dtype": dtype, "shape": shape, "data_offsets": data_offsets} | others,
        separators=(",", ":"),
    )


@with_current_library
def test_dtypes_are_those_of_the_library() -> None:
    with pytest.raises(safetensors.SafetensorError) as caught:
        read_with_library(f'{{"a":{member("F5")}}}', 1)
    known = re.findall(r"`(\w+)`", str(caught.value).partition("expected one of")[2])
    assert len(known) > 20
    assert set(DTYPE_BITS) == set(known)


@with_current_library
@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_dtype_sizes_are_those_of_the_library(dtype: str) -> None:
    nbytes = DTYPE_BITS[dtype]  # 8 elements
    text = f'{{"a":{member(dtype, [2, 4], [0, nbytes])}}}'
    assert described(parse(text, nbytes)) == read_with_library(text, nbytes)
    text = f'{{"a":{member(dtype, [2, 4], [0, nbytes + 1])}}}'
    with pytest.raises(safetensors.SafetensorError):
        read_with_library(text, nbytes + 1)
    with pytest.raises(HeaderError, match=f"expected {nbytes} bytes, found {nbytes + 1}$"):
        parse(text, nbytes + 1)


def test_zero_bytes_are_zero_in_every_dtype_that_is_zeroed() -> None:
    torch = pytest.importorskip("torch")
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
    assert set(names) == FLOAT_DTYPES
    for name in names.values():
        value = torch.zeros(8, dtype=torch.uint8).view(getattr(torch, name))[0].item()
        assert value == 0 and math.copysign(1, value) == 1, name


def test_parse_hand_written_bytes() -> None:
    content = (
        b"\x91\0\0\0\0\0\0\0"
        b'{"__metadata__":{"format":"pt"},'
        b'"b":{"dtype":"F32","shape":[2,1],"data_offsets":[6,14]},'
        b'"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}   '
        b"\x80\x3f\0\0\0\x40" + b"\0\0\x80\x3f\0\0\0\0"
    )
    nbytes = parse_header_nbytes(content[:8], len(content))
    assert nbytes == 145
    header = parse_header(content[8 : 8 + nbytes], len(content))
    assert header == Header(
        entries=(
            HeaderEntry(
                name="a", spec=TensorSpec(dtype="BF16", shape=(3,), nbytes=6), data_offset=0
            ),
            HeaderEntry(
                name="b", spec=TensorSpec(dtype="F32", shape=(2, 1), nbytes=8), data_offset=6
            ),
        ),
        metadata={"format": "pt"},
        data_start=153,
    )


@pytest.mark.parametrize(
    ("prefix", "file_nbytes", "message"),
    [
        (b"", 0, "too short.* at least 8 bytes, found 0"),
        (b"\x02\0\0\0\0\0\0", 7, "too short.* at least 8 bytes, found 7"),
        (b"\x03\0\0\0\0\0\0\0", 10, "ends beyond the file; expected at least 11 bytes, found 10"),
        (b"\x01\xe1\xf5\x05\0\0\0\0", 2**40, "at most 100000000 bytes, found 100000001"),
        (b"\xff" * 8, 2**63, f"at most 100000000 bytes, found {2**64 - 1}"),
        (b"version ", 133, "git lfs pull"),
    ],
)
def test_refuse_announced_lengths(prefix: bytes, file_nbytes: int, message: str) -> None:
    with pytest.raises(HeaderError, match=message):
        parse_header_nbytes(prefix, file_nbytes)


def test_accept_announced_lengths() -> None:
    assert parse_header_nbytes(b"\0" * 8, 8) == 0  # refused by parse_header: no JSON
    assert parse_header_nbytes(b"\x02\0\0\0\0\0\0\0", 10) == 2
    assert parse_header_nbytes(b"\x00\xe1\xf5\x05\0\0\0\0", 2**40) == MAX_HEADER_NBYTES


LONG = "n" * 300
REFUSED = {
    "empty": ("", 0, "no JSON"),
    "no JSON": ("{'a': 1}", 0, "no JSON .*line 1 column 2"),
    "comment": ("{/**/}", 0, "no JSON"),
    "NUL padding": ("{}\0", 0, "no JSON .*Extra data"),
    "two documents": ("{}{}", 0, "no JSON"),
    "byte order mark": ("\ufeff{}", 0, "no JSON"),
    "no UTF-8": (b'{"\xff":1}', 0, "no UTF-8 .*byte 2"),
    "UTF-8 surrogate": (b'{"\xed\xa0\x80":1}', 0, "no UTF-8"),
    "control character": ('{"a\n":%s}' % member(), 1, "no JSON .*[Cc]ontrol character"),
    "half a surrogate pair": ('{"\\ud800":{%s}}' % U8, 1, "surrogate"),
    "half after a backslash": ('{"\\\\\\udc00":{%s}}' % U8, 1, "surrogate"),
    "array": ("[]", 0, r"no JSON object; found \[\]"),
    "null": ("null", 0, "no JSON object; found null"),
    "NaN": ('{"a":{%s,"x":NaN}}' % U8, 1, "NaN is no JSON number"),
    "Infinity": ('{"a":{%s,"x":-Infinity}}' % U8, 1, "Infinity is no JSON number"),
    "number out of range": ('{"a":{%s,"x":1e309}}' % U8, 1, "out of range; found 1e309"),
    "rounded out of range": ('{"a":{%s,"x":1.7976931348623159e308}}' % U8, 1, "out of range"),
    "integer out of range": ('{"a":{%s,"x":1%s}}' % (U8, "0" * 309), 1, "out of range"),
    "nests too deep": ('{"a":{%s,"x":%s}}' % (U8, "[" * 126 + "]" * 126), 1, "deeper than 127"),
    "metadata is an array": ('{"__metadata__":[]}', 0, "__metadata__: expected an object"),
    "metadata value": ('{"__metadata__":{"a":1}}', 0, "__metadata__: 'a': .*string, found 1"),
    "metadata twice": ('{"__metadata__":null,"__metadata__":{}}', 0, "occurs twice"),
    "metadata like a tensor": ('{"__metadata__":%s}' % member(), 1, "'shape': expected a str"),
    "tensor like metadata": ('{"x":{"y":"z"},"a":%s}' % member(), 1, "'x': dtype is missing"),
    "no comma after metadata": ('{"__metadata__":{}"a":%s}' % member(), 1, "no JSON .*delimiter"),
    "no comma after a tensor": (f'{{"a":{member()}"b":{EMPTY % (1, 1)}}}', 1, "no JSON .*delim"),
    "first of a name counts not": (f'{{"a":{member()},"a":{member("U8", [1], [1, 2])}}}', 2, "gap"),
    "tensor is a number": ('{"a":1}', 0, "tensor 'a': expected an object, found 1"),
    "list of 4": ('{"a":["U8",[1],[0,1],0]}', 1, "tensor 'a'"),
    "dtype twice": ('{"a":{%s,"dtype":"U8"}}' % U8, 1, "tensor 'a': dtype occurs twice"),
    "no dtype": ('{"a":{"shape":[1],"data_offsets":[0,1]}}', 1, "dtype is missing"),
    "no shape": ('{"a":{"dtype":"U8","data_offsets":[0,1]}}', 1, "shape is missing"),
    "no offsets": ('{"a":{"dtype":"U8","shape":[1]}}', 1, "data_offsets is missing"),
    "unknown dtype": ('{"a":%s}' % member("U9"), 1, "tensor 'a': unknown dtype.* found 'U9'"),
    "lower-case dtype": ('{"a":%s}' % member("u8"), 1, "unknown dtype"),
    "dtype is a number": ('{"a":%s}' % member(8), 1, "unknown dtype.* found 8"),
    "dtype with a value": ('{"a":%s}' % member({"U8": []}), 1, "unknown dtype"),
    "unknown dtype, replaced": (f'{{"a":{member("U9")},"a":{member()}}}', 1, "unknown dtype"),
    "shape is null": ('{"a":%s}' % member("U8", None), 1, "bad shape.* found null"),
    "dim is true": ('{"a":%s}' % member("U8", [True]), 1, r"bad shape.* found \[true\]"),
    "dim is negative": ('{"a":%s}' % member("U8", [-1]), 1, r"bad shape.* found \[-1\]"),
    "dim is a float": ('{"a":%s}' % member("U8", [1.0]), 1, r"bad shape.* found \[1.0\]"),
    "dim of 2**64": ('{"a":%s}' % member("U8", [0, 2**64], [0, 0]), 0, "bad shape"),
    "dim of 5000 digits": ('{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}' % ("9" * 5000),
                           1, "out of range"),
    "leading zero": ('{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}', 1, "no JSON"),
    "negative offset": ('{"a":%s}' % member("U8", [1], [-1, 0]), 0, r"data_offsets.* \[-1, 0\]"),
    "offset -0": ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}', 1, r"found \[-0, 1\]"),
    "three offsets": ('{"a":%s}' % member("U8", [1], [0, 1, 1]), 1, "bad data_offsets"),
    "offsets are an object": ('{"a":%s}' % member("U8", [1], {"0": 1}), 1, "bad data_offsets"),
    "reversed": ('{"a":%s}' % member("U8", [1], [1, 0]), 1, "expected 1 bytes, found -1"),
    "wrong size": ('{"a":%s}' % member("F32", [3], [0, 8]), 8, "expected 12 bytes, found 8"),
    "inside a byte": ('{"a":%s}' % member("F4", [3], [0, 2]), 2, "found 12 bits"),
    "shape overflows": ('{"a":%s}' % member("U8", [2**63, 2, 0], [0, 0]), 0, "overflows 64 bits"),
    "bits overflow": ('{"a":%s}' % member("U8", [2**61], [0, 2**61]), 0, "overflows 64 bits"),
    "first gap": ('{"a":%s}' % member("U8", [1], [1, 2]), 2, "gap after the header.* 0, found 1"),
    "gap": (f'{{"a":{member()},"b":{member("U8", [1], [2, 3])}}}', 3,
            "tensor 'b': its data leaves a gap after the data of tensor 'a'; .* offset 1, found 2"),
    "overlap": (f'{{"a":{member("U8", [2], [0, 2])},"b":{member("U8", [2], [1, 3])}}}', 3,
                "tensor 'b': its data overlaps the data of tensor 'a'; .* offset 2, found 1"),
    "shared data": (f'{{"a":{member()},"b":{member()}}}', 1, "overlaps"),
    "too short": ('{"a":{%s}}' % U8, 0, "expected 62 bytes, found 61; download"),
    "trailing bytes": ('{"a":{%s}}' % U8, 2, "expected 62 bytes, found 63"),
    "bytes without tensors": ("{}", 1, "expected 10 bytes, found 11"),
    "odd name": ('{"a\\n\\u0000":1}', 0, r"tensor 'a\\n\\x00'"),
    "long name": ('{"%s":1}' % LONG, 0, "tensor 'n{200}'…: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuse_what_the_library_refuses(case: str) -> None:
    text, data_nbytes, message = REFUSED[case]
    with pytest.raises(safetensors.SafetensorError):
        read_with_library(text, data_nbytes)
    with pytest.raises(HeaderError, match=message) as caught:
        parse(text, data_nbytes)
    assert str(caught.value).isprintable()  # one line


ACCEPTED = {
    "no tensors": ("{}", 0),
    "spaces around": (" \n\t\r{} \n", 0),
    "spaces within": (json.dumps({"a": json.loads(member())}, indent=2), 1),
    "metadata is null": ('{"__metadata__":null,"a":{%s}}' % U8, 1),
    "metadata is last": ('{"a":{%s},"__metadata__":{"a":"b"}}' % U8, 1),
    "metadata key twice": ('{"__metadata__":{"a":"b","a":"c"}}', 0),
    "metadata looks like a tensor": (
        '{"__metadata__":{"x":"{\\"a\\":%s,"},"a":{%s}}' % (member().replace('"', '\\"'), U8), 1),
    "tensor twice": (f'{{"a":{member("U8", [7], [8, 9])},"a":{member()}}}', 1),
    "empty tensor twice": (f'{{"a":{EMPTY % (0, 0)},"a":{member()}}}', 1),
    "brackets after a backslash": ('{"a":{%s,"x":"\\\\","y":"%s"}}' % (U8, "[" * 200), 1),
    "tensor as a list": ('{"a":["U8",[1],[0,1]]}', 1),
    "dtype as an object": ('{"a":%s}' % member({"U8": None}), 1),
    "fields in another order": ('{"a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}}', 1),
    "unknown fields": ('{"a":{%s,"x":{"y":[1.5,null,-3,true]},"x":-0}}' % U8, 1),
    "deepest nesting": ('{"a":{%s,"x":%s}}' % (U8, "[" * 125 + "]" * 125), 1),
    "brackets in strings": ('{"a":{%s,"x":"\\\\\\"%s"}}' % (U8, "[" * 200), 1),
    "largest number": ('{"a":{%s,"x":[1e308,-1e308,1%s,0e999,1e-999]}}' % (U8, "0" * 308), 1),
    "5000 digits behind the point": ('{"a":{%s,"x":1.%s}}' % (U8, "9" * 5000), 1),
    "surrogate pair": ('{"\\ud83d\\ude00":{%s,"x":"\\\\ud800"}}' % U8, 1),
    "odd names": ('{"":%s,"\\u0000\\n":%s,"ü😀\x7f\u2028":%s,"%s":%s}'
                  % (EMPTY % (0, 0), EMPTY % (0, 0), member(), LONG, EMPTY % (1, 1)), 1),
    "scalar": ('{"a":%s}' % member("U8", []), 1),
    "zero size, large dims": ('{"a":%s}' % member("U8", [0, 2**64 - 1, 9], [0, 0]), 0),
    "empty tensors share an offset": (
        f'{{"a":{EMPTY % (1, 1)},"b":{EMPTY % (0, 0)},"c":{member()},"d":{EMPTY % (1, 1)}}}', 1),
    "sub-byte dtypes": (
        f'{{"a":{member("F4", [2], [0, 1])},"b":{member("F6_E2M3", [4], [1, 4])}}}', 4),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_accept_what_the_library_accepts(case: str, tmp_path: Path) -> None:
    text, data_nbytes = ACCEPTED[case]
    header = parse(text, data_nbytes)
    if case == "sub-byte dtypes" and is_older("safetensors", (0, 8)):
        return
    assert described(header) == read_with_library(text, data_nbytes)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode() + bytes(data_nbytes))
    with safetensors.safe_open(path, "pt") as file:
        assert header.metadata == file.metadata()


def test_order_is_that_of_the_data() -> None:
    text = (
        f'{{"a":{EMPTY % (1, 1)},"b":{member("U8", [1], [1, 2])},"c":{member()},'
        f'"d":{EMPTY % (0, 0)},"e":{EMPTY % (2, 2)},"f":{EMPTY % (1, 1)}}}'
    )
    assert [entry.name for entry in parse(text, 2).entries] == ["d", "c", "a", "f", "b", "e"]


def test_deep_nesting_does_not_reach_the_c_stack() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**7)
    try:
        with pytest.raises(HeaderError, match="deeper than 127"):
            parse("[" * 10**6, 0)
        with pytest.raises(HeaderError, match="no JSON"):
            parse("]" * 10**6 + "[" * 10**6, 0)
    finally:
        sys.setrecursionlimit(limit)


def test_announced_sizes_allocate_nothing() -> None:
    text = f'{{"a":{member("U8", [2**60], [0, 2**60])}}}'
    tracemalloc.start()
    try:
        with pytest.raises(HeaderError, match=f"expected {2**60 + 8 + len(text)} bytes, found 10"):
            parse_header(text.encode(), 100)
        with pytest.raises(HeaderError):
            parse_header_nbytes(b"\x00\xe1\xf5\x05\0\0\0\0", 100)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_long_values_are_cut_in_messages() -> None:
    for text in (
        '{"a":%s}' % member("x" * 10**5),
        '{"a":%s}' % member("U8", [1.5] * 10**5),
        '{"a":%s}' % json.dumps([["x"] * 10**5] * 9),
        '{"a":{"dtype":"U8","shape":[-%s],"data_offsets":[0,1]}}' % ("9" * 300),
        '{"__metadata__":{"%s":1}}' % ("\\u0000" * 10**5),
    ):
        with pytest.raises(HeaderError) as caught:
            parse(text, 1)
        assert len(str(caught.value)) < 1200


def test_make_tensor_spec() -> None:
    assert make_tensor_spec("F32", (2, 3)) == TensorSpec(dtype="F32", shape=(2, 3), nbytes=24)
    assert make_tensor_spec("F6_E3M2", (4,)).nbytes == 3
    for dtype, shape in [("F5", (1,)), ("F4", (1,)), ("U8", (2**61,)), ("U8", (0, 2**64))]:
        with pytest.raises(HeaderError):
            make_tensor_spec(dtype, shape)


# The library orders by descending alignment, then by name.
WRITTEN = [
    ("😀 é\u2028\x7f", "int64", "I64", (2,)),
    ('"quoted\\"/', "float32", "F32", (2, 1)),
    ("tab\t line\n nul\0 \x1f\b\f\r", "float32", "F32", ()),
    ("", "uint8", "U8", (0, 5)),
    ("model.layers.0.mlp.up_proj.weight", "uint8", "U8", (3,)),
]


def test_render_the_bytes_that_the_library_writes() -> None:
    np = pytest.importorskip("numpy")
    from safetensors.numpy import save

    arrays = {name: np.zeros(shape, dtype) for name, dtype, _, shape in WRITTEN}
    written = save(arrays, {"format": "pt é\n"})
    header = parse_header(written[8 : 8 + int.from_bytes(written[:8], "little")], len(written))
    tensors = [(entry.name, entry.spec) for entry in header.entries]
    assert sorted(tensors) == sorted(
        (name, make_tensor_spec(dtype, shape)) for name, _, dtype, shape in WRITTEN
    )
    assert render_header(tensors, {"format": "pt é\n"}) == written[: header.data_start]
    written = save(arrays)
    assert render_header(tensors, None) == written[: len(render_header(tensors, None))]
    assert render_header([], {}) == b"\x18\0\0\0\0\0\0\0" + b'{"__metadata__":{}}     '


@pytest.mark.parametrize("modulo", [(0, 8), (0, 4096), (2313, 4096), (8, 4096), (7, 8), (0, 1)])
def test_data_starts_at_the_residue(modulo: tuple[int, int]) -> None:
    spec = make_tensor_spec("F32", (2,))
    for name in ("a", "ab", "ü" * 2000):
        header = render_header([(name, spec)], {"format": "pt"}, data_start_modulo=modulo)
        assert len(header) % modulo[1] == modulo[0] % modulo[1]
        assert len(header) < 8 + 90 + len(name.encode()) + modulo[1]
        [(found, tensor)] = safetensors.deserialize(header + b"\0\0\x80\x3f" * 2)
        assert (found, tensor["dtype"], tensor["shape"]) == (name, "F32", [2])
        assert bytes(tensor["data"]) == b"\0\0\x80\x3f" * 2


def test_render_refuses() -> None:
    spec = make_tensor_spec("U8", (1,))
    for names, message in [
        (["a", "b", "a"], "tensor 'a': the name occurs twice"),
        (["__metadata__"], "reserved"),
        (["a", "b\ud800"], r"no Unicode text; found .*b\\ud800"),
        (["n" * MAX_HEADER_NBYTES], "too long; expected at most 100000000 bytes, found 1000000"),
    ]:
        with pytest.raises(HeaderError, match=message):
            render_header([(name, spec) for name in names], None)


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
whole_bytes = ["BOOL", "U8", "F8_E8M0", "BF16", "F16", "I32", "F32", "C64", "U64"]
specs = st.builds(make_tensor_spec, st.sampled_from(whole_bytes), shapes)
names = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@with_current_library
@settings(deadline=None)
@given(
    tensors=st.dictionaries(names.filter(lambda name: name != "__metadata__"), specs, max_size=6),
    metadata=st.none() | st.dictionaries(names, names, max_size=3),
    modulo=st.tuples(st.integers(0, 4095), st.just(4096)),
)
def test_rendered_headers_are_read_by_the_library(
    tensors: dict[str, TensorSpec], metadata: dict[str, str] | None, modulo: tuple[int, int]
) -> None:
    rendered = render_header(tensors.items(), metadata, data_start_modulo=modulo)
    data_nbytes = sum(spec.nbytes for spec in tensors.values())
    assert len(rendered) % 4096 == modulo[0]
    assert read_with_library(rendered[8:], data_nbytes) == {
        name: (spec.dtype, spec.shape) for name, spec in tensors.items()
    }
    header = parse(rendered[8:], data_nbytes)
    assert header.metadata == metadata
    assert header.data_start == len(rendered)
    # Empty tensors may stand anywhere among those that share their offset.
    assert {entry.name: entry.spec for entry in header.entries} == tensors
    assert [e.name for e in header.entries if e.spec.nbytes] == [
        name for name, spec in tensors.items() if spec.nbytes
    ]


def test_100_000_tensors_are_read_and_written_quickly() -> None:
    spec = make_tensor_spec("BF16", (4096, 14336))
    tensors = [(f"model.layers.{i}.mlp.experts.7.down_proj.weight", spec) for i in range(100_000)]
    started = time.process_time()
    rendered = render_header(tensors, {"format": "pt"})
    rendered_at = time.process_time()
    header = parse(rendered[8:], spec.nbytes * 100_000)
    parsed_at = time.process_time()
    assert [(entry.name, entry.spec) for entry in header.entries] == tensors
    # About 0.15 and 0.3 s; a loaded machine may take some times as long.
    assert rendered_at - started < 1.5
    assert parsed_at - rendered_at < 2.5
