"""Header bytes ⇄ values, strictly validated. Opens no files.

A header is valid here exactly when the `safetensors` library (0.8) accepts it. This module never
allocates by announced sizes and never raises anything but `HeaderError` for bad bytes.

Source: the safetensors format (https://github.com/huggingface/safetensors, README "Format").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from json.encoder import encode_basestring as quote
from operator import sub
from typing import Any, BinaryIO, NamedTuple

from ..errors import HeaderError
from ..messages import show
from .serde_json import JsonError, decode_as_serde
from .tensor_spec import DTYPE_BITS, TensorSpec, make_tensor_spec


# What there is one of for every tensor, here and in the plan, is a named tuple: 100,000 of them are
# made several times as fast as of a frozen dataclass.
class HeaderEntry(NamedTuple):
    """A tensor's place: `data_offset` counts from the start of the data section."""

    name: str
    spec: TensorSpec
    data_offset: int


MAX_HEADER_NBYTES = 100_000_000

LENGTH_NBYTES = 8

# "version https://git-lfs.github.com/spec/v1": what a clone without Git LFS has in a file's place.
_LFS_POINTER = b"version "

# One tensor as writers of the format spell it, or Python's json module on its own. Text that is
# spelled otherwise takes the slower way through `json`, so nothing depends on this pattern but
# speed.
_CANONICAL_TENSOR = re.compile(
    r'"([^"\\\x00-\x1f]*)": ?\{"dtype": ?"(\w+", ?"shape": ?\[[0-9, ]*)\], ?'
    r'"data_offsets": ?\[(0|[1-9][0-9]{0,18}), ?(0|[1-9][0-9]{0,18})\]\}'
)

_KIND = re.compile(r'(\w+)", ?"shape": ?\[(|\d{1,19}(?:, ?\d{1,19})*)', re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A parsed header; `entries` in the order of their data, `data_start` absolute in the file."""

    entries: tuple[HeaderEntry, ...]
    metadata: Mapping[str, str] | None
    data_start: int


def read_header(stream: BinaryIO, file_nbytes: int) -> bytes:
    """Read the length and the text of the header that an opened file begins with.

    Raises: HeaderError for a length that no header of such a file can have.
    """
    prefix = stream.read(LENGTH_NBYTES)
    return prefix + stream.read(parse_header_nbytes(prefix, file_nbytes))


def parse_header_nbytes(prefix: bytes, file_nbytes: int) -> int:
    """Return the length of the JSON header that the file's first 8 bytes announce.

    Raises:
        HeaderError: the file is shorter than the header, or the header longer than 100 MB.
    """
    if len(prefix) < LENGTH_NBYTES or file_nbytes < LENGTH_NBYTES:
        raise HeaderError(
            "the file is too short to be a safetensors file; expected at least 8 bytes, found "
            f"{min(len(prefix), file_nbytes)}"
        )
    if prefix.startswith(_LFS_POINTER):
        raise HeaderError(
            "this is a pointer of Git LFS, which stands for the file; fetch the file itself with "
            "'git lfs pull'"
        )
    nbytes = int.from_bytes(prefix[:LENGTH_NBYTES], "little")
    if nbytes > MAX_HEADER_NBYTES:
        raise HeaderError(
            f"the header is too long, or this is no safetensors file; expected at most "
            f"{MAX_HEADER_NBYTES} bytes, found {nbytes}"
        )
    if nbytes > file_nbytes - LENGTH_NBYTES:
        raise HeaderError(
            f"the header ends beyond the file; expected at least {LENGTH_NBYTES + nbytes} bytes, "
            f"found {file_nbytes}; download the file again"
        )
    return nbytes


def parse_header(text: bytes, file_nbytes: int) -> Header:
    """Parse and validate the JSON part of a header (without the 8 length bytes).

    Of a duplicate tensor name the last one counts, as in the library.

    Raises:
        HeaderError: the library would not open a file of this header and size.
    """
    parse_header_nbytes(len(text).to_bytes(LENGTH_NBYTES, "little"), file_nbytes)
    try:
        document = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HeaderError(
            f"the header is no UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    data_start = LENGTH_NBYTES + len(text)
    return _parse_canonical(document, data_start, file_nbytes) or _parse_general(
        document, data_start, file_nbytes
    )


def render_header(
    tensors: Iterable[tuple[str, TensorSpec]],
    metadata: Mapping[str, str] | None,
    *,
    data_start_modulo: tuple[int, int] = (0, 8),
) -> bytes:
    """Return the header with its 8 length bytes, padded with spaces so that the data section
    starts at an offset congruent to `data_start_modulo[0]` modulo `data_start_modulo[1]`.

    The tensors' data follow each other in the given order, without gaps.

    Raises:
        HeaderError: a name occurs twice, is reserved or is no Unicode text, or the header would be
            longer than 100 MB.
    """
    members = []
    if metadata is not None:
        pairs = ",".join([f"{quote(key)}:{quote(value)}" for key, value in metadata.items()])
        members.append(f'"__metadata__":{{{pairs}}}')
    names = set()
    kinds: dict[tuple[str, tuple[int, ...]], str] = {}
    end = 0
    for name, spec in tensors:
        if name in names or name == "__metadata__":
            fact = "the name is reserved" if name == "__metadata__" else "the name occurs twice"
            raise HeaderError(f"tensor {show(name)}: {fact}")
        names.add(name)
        key = spec.dtype, spec.shape
        kind = kinds.get(key)
        if kind is None:
            dims = ",".join(map(str, spec.shape))
            kind = kinds[key] = f'{{"dtype":"{spec.dtype}","shape":[{dims}],"data_offsets":['
        begin, end = end, end + spec.nbytes
        members.append(f"{quote(name)}:{kind}{begin},{end}]}}")
    try:
        text = f"{{{','.join(members)}}}".encode()
    except UnicodeEncodeError as error:
        context = error.object[max(error.start - 80, 0) : error.end + 20]
        raise HeaderError(f"a name is no Unicode text; found {show(context)}") from None
    residue, modulus = data_start_modulo
    text += b" " * ((residue - LENGTH_NBYTES - len(text)) % modulus)
    if len(text) > MAX_HEADER_NBYTES:
        raise HeaderError(
            f"the header would be too long; expected at most {MAX_HEADER_NBYTES} bytes, found "
            f"{len(text)}; use more, smaller shards"
        )
    return len(text).to_bytes(LENGTH_NBYTES, "little") + text


def _parse_canonical(text: str, data_start: int, file_nbytes: int) -> Header | None:
    """Parse a faultless header in the usual spelling and order by columns; None for any other."""
    head, *columns = _CANONICAL_TENSOR.split(text)
    names = columns[0::5]
    if not names or len(set(names)) != len(names) or "__metadata__" in names:
        return None
    if not {*columns[4:-1:5]} <= {",", ", "} or columns[-1].rstrip(" ") != "}":
        return None
    begins, ends = list(map(int, columns[2::5])), list(map(int, columns[3::5]))
    if begins[0] != 0 or begins[1:] != ends[:-1] or ends[-1] != file_nbytes - data_start:
        return None
    kinds = columns[1::5]  # dtype and shape as one text, since most tensors share it with others
    known: dict[str, TensorSpec] = {}
    try:
        metadata = None if head == "{" else _parse_canonical_metadata(head)
        for kind in set(kinds):
            parts = _KIND.fullmatch(kind)
            dims = parts[2].replace(" ", "").split(",") if parts and parts[2] else []
            if parts is None or any(dim[0] == "0" and dim != "0" for dim in dims):
                return None
            known[kind] = make_tensor_spec(parts[1], tuple(map(int, dims)))
    except HeaderError:
        return None  # the general way finds out which tensor it is
    specs = list(map(known.__getitem__, kinds))
    if [spec.nbytes for spec in specs] != list(map(sub, ends, begins)):
        return None
    # As the class itself makes one, but for 100,000 of them without a call in Python.
    entries = map(partial(tuple.__new__, HeaderEntry), zip(names, specs, begins, strict=True))
    return Header(entries=tuple(entries), metadata=metadata, data_start=data_start)


def _parse_canonical_metadata(head: str) -> dict[str, str] | None:
    """Parse the text before the first tensor: an object with its last brace still to come."""
    head = head.removesuffix(" ")
    members = _decode_object(head.removesuffix(",") + "}")
    if not head.endswith(",") or [name for name, _ in members] != ["__metadata__"]:
        raise HeaderError("something else than __metadata__ precedes the first tensor")
    return _parse_metadata(members[0][1])


def _parse_general(text: str, data_start: int, file_nbytes: int) -> Header:
    metadata, has_metadata = None, False
    placed: dict[str, tuple[int, int, str, tuple[int, ...]]] = {}
    for name, value in _decode_object(text):
        if name != "__metadata__":
            # Also a tensor that a later one of the same name replaces must be well-formed.
            placed[name] = _parse_tensor(name, value)
        elif has_metadata:
            raise HeaderError("__metadata__ occurs twice")
        else:
            metadata, has_metadata = _parse_metadata(value), True
    entries: list[HeaderEntry] = []
    specs: dict[tuple[str, tuple[int, ...]], TensorSpec] = {}
    start = 0
    for name, (begin, end, dtype, shape) in sorted(placed.items(), key=lambda item: item[1][:2]):
        spec = specs.get((dtype, shape))
        if spec is None:
            try:
                spec = specs[dtype, shape] = make_tensor_spec(dtype, shape)
            except HeaderError as error:
                raise HeaderError(f"tensor {show(name)}: {error}") from None
        if end - begin != spec.nbytes:
            raise HeaderError(
                f"tensor {show(name)}: the data offsets {begin} to {end} do not fit {dtype} "
                f"{show(list(shape))}; expected {spec.nbytes} bytes, found {end - begin}"
            )
        if begin != start:
            previous = f"the data of tensor {show(entries[-1].name)}" if entries else "the header"
            fact = "overlaps" if begin < start else "leaves a gap after"
            raise HeaderError(
                f"tensor {show(name)}: its data {fact} {previous}; expected data offset {start}, "
                f"found {begin}"
            )
        entries.append(HeaderEntry(name=name, spec=spec, data_offset=begin))
        start = end
    if data_start + start != file_nbytes:
        raise HeaderError(
            f"the tensors do not fill the file; expected {data_start + start} bytes, found "
            f"{file_nbytes}; download the file again"
        )
    return Header(entries=tuple(entries), metadata=metadata, data_start=data_start)


def _parse_metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if type(value) is not tuple:
        raise HeaderError(f"__metadata__: expected an object, found {show(value)}")
    for key, text in value:
        if type(text) is not str:
            raise HeaderError(f"__metadata__: {show(key)}: expected a string, found {show(text)}")
    return dict(value)


def _parse_tensor(name: str, value: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """Check one tensor's types and return its begin, end, dtype and shape."""
    if type(value) is list and len(value) == 3:
        value = tuple(zip(("dtype", "shape", "data_offsets"), value, strict=True))
    if type(value) is not tuple:
        raise HeaderError(f"tensor {show(name)}: expected an object, found {show(value)}")
    fields = dict(value)
    for field in ("dtype", "shape", "data_offsets"):
        if field not in fields:
            raise HeaderError(f"tensor {show(name)}: {field} is missing")
        if len(fields) != len(value) and [key for key, _ in value].count(field) > 1:
            raise HeaderError(f"tensor {show(name)}: {field} occurs twice")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if type(dtype) is tuple and len(dtype) == 1 and dtype[0][1] is None:
        dtype = dtype[0][0]  # serde also reads an enum's variant from {"F32": null}
    if type(dtype) is not str or dtype not in DTYPE_BITS:
        raise HeaderError(
            f"tensor {show(name)}: unknown dtype; expected one of {', '.join(DTYPE_BITS)}, "
            f"found {show(dtype)}"
        )
    if type(shape) is not list or not {*map(type, shape)} <= {int}:
        raise HeaderError(
            f"tensor {show(name)}: bad shape; expected a list of unsigned 64-bit integers, "
            f"found {show(shape)}"
        )
    if type(offsets) is not list or len(offsets) != 2 or {*map(type, offsets)} != {int}:
        raise HeaderError(
            f"tensor {show(name)}: bad data_offsets; expected two unsigned 64-bit integers, "
            f"found {show(offsets)}"
        )
    return offsets[0], offsets[1], dtype, tuple(shape)


def _decode_object(text: str) -> tuple[tuple[str, Any], ...]:
    try:
        document = decode_as_serde(text)
    except JsonError as error:
        raise HeaderError(f"the header is no JSON ({error})") from None
    if type(document) is not tuple:
        raise HeaderError(f"the header is no JSON object; found {show(document)}")
    return document
