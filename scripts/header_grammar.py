"""Make safetensors files from a grammar: always proper JSON, with named faults of its meaning.

For `fuzz_headers.py --structured`. A file is tensors one behind the other, to which up to three
kinds of change are done; most kinds have forms that are allowed and forms that are not.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blockexpand.formats.tensor_spec import DTYPE_BITS

_LIMITS = [2**power + step for power in (31, 32, 53, 62, 63, 64) for step in (-1, 0, 1)]

_NAMES = ["w", "model.layers.0.mlp.up_proj.weight", "a b", 'q"', "b\\s", "ü", "😀", "", "\x01", "/"]

_OTHERS: list[Any] = [None, True, -1, 1.5, "8", [], {}, [1], {"a": "b"}]


@dataclass(kw_only=True)
class Draft:
    """A file as it grows: tensors as name and fields, `metadata` as its pairs, bytes of data."""

    tensors: list[tuple[str, list[tuple[str, Any]]]]
    metadata: list[tuple[str, Any]] | None = None
    metadata_last: bool = False
    data_nbytes: int = 0
    padding: int = 0
    escaped: float = 0.0
    kinds: list[str] = field(default_factory=list)


def make_structured(rng: random.Random) -> tuple[bytes, list[str]]:
    """Return a file and the kinds of what was done to it."""
    draft = _make_valid(rng)
    for kind in rng.sample(list(KINDS), rng.choice([0, 1, 1, 1, 2, 3])):
        KINDS[kind](rng, draft)
        draft.kinds.append(kind)
    text = _render(rng, draft) + b" " * draft.padding
    return len(text).to_bytes(8, "little") + text + rng.randbytes(draft.data_nbytes), draft.kinds


def _make_valid(rng: random.Random) -> Draft:
    draft = Draft(tensors=[])
    for number in range(rng.choice([0, 1, 2, 3, 4, 8])):
        dtype = rng.choice(list(DTYPE_BITS))
        shape = [rng.randrange(1, 5) for _ in range(rng.randrange(4))]
        if DTYPE_BITS[dtype] % 8:
            shape.append(8)
        _append(draft, f"{rng.choice(_NAMES)}{number}", dtype, shape)
    if rng.random() < 0.5:
        draft.metadata = [("format", "pt")]
    draft.padding = rng.randrange(9)
    return draft


def _append(draft: Draft, name: str, dtype: str, shape: list[int]) -> None:
    nbits = DTYPE_BITS[dtype]
    for dim in shape:
        nbits *= dim
    start, draft.data_nbytes = draft.data_nbytes, draft.data_nbytes + nbits // 8
    draft.tensors.append(
        (
            name,
            [("dtype", dtype), ("shape", shape), ("data_offsets", [start, draft.data_nbytes])],
        )
    )


def _pick(rng: random.Random, draft: Draft) -> list[tuple[str, Any]]:
    """Return the fields of a tensor; of a file without one, of a tensor that it then has."""
    if not draft.tensors:
        _append(draft, "only", "F32", [2])
    return rng.choice(draft.tensors)[1]


def _set(fields: list[tuple[str, Any]], key: str, value: Any) -> None:
    fields[:] = [(name, value if name == key else old) for name, old in fields]


def _shift(rng: random.Random, draft: Draft, steps: list[tuple[int, int]]) -> None:
    """Move the beginning and the end of a tensor's data, not below 0."""
    fields = _pick(rng, draft)
    old = dict(fields).get("data_offsets")
    if isinstance(old, list) and len(old) == 2 and all(type(one) is int for one in old):
        moved = zip(old, rng.choice(steps), strict=True)
        _set(fields, "data_offsets", [max(0, one + step) for one, step in moved])


def _gap(rng: random.Random, draft: Draft) -> None:
    """Leave bytes between two tensors, before the first or behind the last."""
    _shift(rng, draft, [(1, 1), (8, 8), (1, 0), (0, -1)])
    draft.data_nbytes += rng.choice([0, 1, 8])


def _overlap(rng: random.Random, draft: Draft) -> None:
    _shift(rng, draft, [(-1, -1), (-1, 0), (0, 1), (-8, -8), (0, 8), (10**6, 0)])


def _share(rng: random.Random, draft: Draft) -> None:
    """Give two tensors the very same bytes, or one those of another's part."""
    fields = dict(_pick(rng, draft))
    draft.tensors.append((f"shared{len(draft.tensors)}", list(fields.items())))


def _mismatch(rng: random.Random, draft: Draft) -> None:
    """Say another dtype or shape than the bytes are of; now and then of as many bytes."""
    fields = _pick(rng, draft)
    if rng.random() < 0.5:
        dtypes = [*DTYPE_BITS, "f32", "F32 ", "Q4", "", "BOOL8", 4, None, {"F32": None}]
        _set(fields, "dtype", rng.choice(dtypes))
    else:
        shape = dict(fields).get("shape")
        longer = [*shape, rng.choice([0, 1, 2])] if isinstance(shape, list) else [1]
        wrong = rng.choice(_OTHERS)
        _set(fields, "shape", rng.choice([longer, longer[::-1], longer[1:], [longer], wrong]))


def _duplicate(rng: random.Random, draft: Draft) -> None:
    """Have a name or a field twice, also where only one of them is spelled with escapes."""
    fields = _pick(rng, draft)
    kind = rng.randrange(3)
    if kind == 0:
        fields.insert(rng.randrange(len(fields) + 1), rng.choice(fields))
    elif kind == 1:
        name, old = rng.choice(draft.tensors)
        draft.tensors.append((name, list(old)))
    else:
        names = [name for name, _ in draft.tensors]
        draft.tensors = [(rng.choice(names), old) for _, old in draft.tensors]
    draft.escaped = rng.choice([0.0, 0.5])


def _members(rng: random.Random, draft: Draft) -> None:
    """Leave a field out, add an unknown one, give one a value of another kind, or reorder them."""
    fields = _pick(rng, draft)
    kind = rng.randrange(4)
    if kind == 0:
        del fields[rng.randrange(len(fields))]
    elif kind == 1:
        name = rng.choice(["x", "Dtype", "shape ", "data_offset"])
        fields.insert(rng.randrange(len(fields) + 1), (name, rng.choice(_OTHERS)))
    elif kind == 2:
        _set(fields, rng.choice(["dtype", "shape", "data_offsets"]), rng.choice(_OTHERS))
    else:
        rng.shuffle(fields)


def _metadata(rng: random.Random, draft: Draft) -> None:
    pairs: list[tuple[str, Any]] = [
        (rng.choice([*_NAMES, "format"]), rng.choice(["pt", "", "ü\n", "x" * 999, *_OTHERS[:4]]))
        for _ in range(rng.randrange(4))
    ]
    draft.metadata = rng.choice([pairs, [], [("a", "b"), ("a", "c")], [("format", "pt")]])
    draft.metadata_last = rng.random() < 0.5
    if rng.random() < 0.2:
        draft.tensors.append(("__metadata__", [("a", "b")]))


def _huge(rng: random.Random, draft: Draft) -> None:
    """Use sizes near the limits of 64 bits: dimensions, their product, offsets."""
    fields = _pick(rng, draft)
    limit = rng.choice(_LIMITS)
    kind = rng.randrange(4)
    if kind == 0:
        _set(fields, "shape", rng.choice([[limit], [limit, 0], [0, limit], [limit, limit, 0]]))
    elif kind == 1:
        _set(
            fields, "shape", [2 ** rng.choice([16, 21, 31, 32]) for _ in range(rng.choice([2, 3]))]
        )
    elif kind == 2:
        _set(fields, "data_offsets", rng.choice([[0, limit], [limit, limit], [limit, 0]]))
    else:
        _set(fields, "shape", [limit])
        _set(fields, "data_offsets", [0, limit])


def _empty(rng: random.Random, draft: Draft) -> None:
    """Have tensors without a byte: among others, first, last, or said to lie elsewhere."""
    for _ in range(rng.choice([1, 2])):
        shape = rng.choice([[0], [0, 3], [2, 0], [0, 0, 0]])
        place = rng.choice([0, draft.data_nbytes, draft.data_nbytes + 1, 1])
        offsets = [place, place]
        entry = [("dtype", rng.choice(list(DTYPE_BITS))), ("shape", shape)]
        tensor = (f"empty{len(draft.tensors)}", [*entry, ("data_offsets", offsets)])
        draft.tensors.insert(rng.randrange(len(draft.tensors) + 1), tensor)


def _order(rng: random.Random, draft: Draft) -> None:
    """List the tensors in another order than their data has."""
    rng.shuffle(draft.tensors)


def _alignment(rng: random.Random, draft: Draft) -> None:
    """Begin the data at any place, or the first tensor at an odd one."""
    draft.padding = rng.choice([0, 1, 3, 7, 4095, 4096])
    if rng.random() < 0.5:
        earlier, draft.tensors, draft.data_nbytes = draft.tensors, [], 0
        _append(draft, "odd", "U8", [rng.choice([1, 3, 7])])
        for name, fields in earlier:
            known = dict(fields)
            dtype, shape = known.get("dtype"), known.get("shape")
            if isinstance(dtype, str) and dtype in DTYPE_BITS and _is_shape(shape):
                _append(draft, name, dtype, shape)


def _is_shape(shape: Any) -> bool:
    """Tell a shape of few enough elements to be made."""
    return isinstance(shape, list) and all(type(one) is int and 0 <= one < 99 for one in shape)


def _escapes(rng: random.Random, draft: Draft) -> None:
    draft.escaped = rng.choice([0.1, 1.0])


def _length(rng: random.Random, draft: Draft) -> None:
    """Have fewer or more bytes of data than the header tells of."""
    draft.data_nbytes = max(0, draft.data_nbytes + rng.choice([-8, -1, 1, 8, 4096]))


def _bits(rng: random.Random, draft: Draft) -> None:
    """Have elements that are no whole bytes, which fill the last one or do not."""
    dtype = rng.choice([name for name, bits in DTYPE_BITS.items() if bits % 8] or ["U8"])
    _append(draft, f"bits{len(draft.tensors)}", dtype, [rng.randrange(1, 10)])


KINDS: dict[str, Callable[[random.Random, Draft], None]] = {
    "gap": _gap,
    "overlap": _overlap,
    "shared bytes": _share,
    "dtype or shape": _mismatch,
    "duplicate": _duplicate,
    "fields": _members,
    "metadata": _metadata,
    "64 bits": _huge,
    "empty": _empty,
    "order": _order,
    "alignment": _alignment,
    "escapes": _escapes,
    "length": _length,
    "part of a byte": _bits,
}


def _render(rng: random.Random, draft: Draft) -> bytes:
    members = [
        (_quote(rng, name, draft), _object(rng, fields, draft)) for name, fields in draft.tensors
    ]
    if draft.metadata is not None:
        entry = (_quote(rng, "__metadata__", draft), _object(rng, draft.metadata, draft))
        members.insert(len(members) if draft.metadata_last else 0, entry)
    return ("{" + ",".join(f"{name}:{value}" for name, value in members) + "}").encode()


def _object(rng: random.Random, fields: list[tuple[str, Any]], draft: Draft) -> str:
    parts = (
        f"{_quote(rng, name, draft)}:"
        + (_quote(rng, value, draft) if isinstance(value, str) else json.dumps(value))
        for name, value in fields
    )
    return "{" + ",".join(parts) + "}"


def _quote(rng: random.Random, text: str, draft: Draft) -> str:
    """Spell a string, some of its characters as escapes that mean the same."""
    if rng.random() >= draft.escaped:
        return json.dumps(text, ensure_ascii=False)
    units = text.encode("utf-16-be")
    pairs = (units[start : start + 2].hex() for start in range(0, len(units), 2))
    return '"' + "".join(f"\\u{rng.choice([pair, pair.upper()])}" for pair in pairs) + '"'
