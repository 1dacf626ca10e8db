"""Compare our verdict on mutated safetensors files with that of the `safetensors` library.

    python scripts/fuzz_headers.py --files 100000
    python scripts/fuzz_headers.py --seconds 3600 --seed 7
    python scripts/fuzz_headers.py --structured --files 200000

Each file is a valid one that was changed: members replaced, doubled and dropped, numbers, strings
and white space spelled oddly, bytes flipped, lengths falsified. With `--structured` each is made
from a grammar instead (header_grammar.py): proper JSON, whose meaning is right or wrong in one of
the ways that are counted. Both must accept it with the same
tensors, or both refuse it; ours with one line, within a second and 200 MB. A file on which they
differ is saved, and the exit status is 1. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where it is not installed

import safetensors
from header_grammar import make_structured

from blockexpand.errors import HeaderError
from blockexpand.formats.safetensors import parse_header, parse_header_nbytes
from blockexpand.formats.tensor_spec import DTYPE_BITS

MAX_SECONDS = 1.0
MAX_MEMORY_NBYTES = 200_000_000
HEAVY_EVERY = 1000  # one file in so many has a header of about a megabyte

SPACES = ["", "", " ", "\n", "\t", "\r\n", "  "]
NAMES = ["w", "model.layers.0.mlp.down_proj.weight", "", "a\0b", "two\nlines", "ü", "😀", "\x7f"]
NAMES += [
    "\u2028",
    '"\\/',
    "x" * 300,
    "__metadata__",
    "dtype",
    "[{",
    "}]",
    "\ufeff",
    "\ud7ff\ue000",
]
TOKENS = ["true", "false", "null", "NaN", "Infinity", "-Infinity", "[]", "{}", '""', "", "{", "]"]
TOKENS += ["0", "-0", "0.0", "01", "1.", ".5", "+1", "1e", "1e+", "-", "--1", "0x10", "1_0", "1E2"]
TOKENS += ["\u0661", "'a'", "/**/1", "0e400", "1e400", "-1e400", "1e-400", "1e2147483648"]
TOKENS += ["0e99999999999", "1e-99999999999", "1" + "0" * 308, "1" + "0" * 309, "9" * 5000]
ESCAPES = ["\\ud800", "\\udc00", "\\udc00\\ud800", "\\ud83d\\ude00", "\\uD83D\\uDE00", "\\ud83dx"]
ESCAPES += ["\\\\ud800", "\\\\\\ud800", "\\u00", "\\u00g0", "\\x41", "\\'", "\\/", "\\u0000", "\\"]
ESCAPES += [
    "\n",
    "\0",
    "\x1f",
    "\x7f",
    "\\ud800\\u0041",
    "\\ud800\\\\udc00",
    "\\ud800\\ud800\\udc00",
]
BYTES = [
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xf4\x90\x80\x80",
    b"\0",
    b"\x80",
]
BYTES += [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"0",
    b"-",
    b"1",
    b" ",
    b"\n",
    b"\x0b",
    b"\\u",
]


class Token(str):
    """Text that goes into the JSON as it is."""


class Object(list[tuple[str, Any]]):
    """A JSON object, which may hold a key more than once."""


@dataclass(kw_only=True)
class Summary:
    """What was seen."""

    files: int = 0
    valid: int = 0
    slowest_seconds: float = 0.0
    memory_growth_nbytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


def make_file(rng: random.Random) -> bytes:
    """Make a file of the format, most often a damaged one."""
    if rng.randrange(HEAVY_EVERY) == 0:
        text, data_nbytes = make_heavy_header(rng)
        text = text.encode()
    else:
        document, data_nbytes = make_document(rng)
        for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 4])):
            document = change_document(rng, document)
        oddity, gap = rng.choice([0.0, 0.0, 0.02, 0.3]), rng.choice(["", " "])
        text = spell(rng, document, oddity, gap).encode("utf-8", "surrogatepass")
        text += rng.choice([b"", b"", b"", b" " * 7, b" " * 7, b"\n\t\r ", b" \0"])
        for _ in range(rng.choice([0, 0, 0, 0, 1, 3])):
            text = change_bytes(rng, text)
    data = rng.randbytes(data_nbytes)
    nbytes = len(text)
    if rng.random() < 0.03:
        data = rng.choice([data[:-1], data + b"\0", data[: len(data) // 2], b""])
    if rng.random() < 0.03:
        nbytes += rng.choice([-1, 1, -8, 8, len(data), len(data) + 1, -nbytes])
    if rng.random() < 0.02:
        nbytes = rng.choice([0, 99_999_999, 100_000_000, 100_000_001, 2**32, 2**63, 2**64 - 8])
    content = min(max(nbytes, 0), 2**64 - 1).to_bytes(8, "little") + text + data
    if rng.random() < 0.02:
        content = content[: rng.randrange(len(content) + 1)]
    return content


def make_document(rng: random.Random) -> tuple[Object, int]:
    """Make a valid header and the number of bytes it describes."""
    document, offset = Object(), 0
    for i in range(rng.choice([0, 1, 1, 2, 3, 5, rng.randrange(40)])):
        dtype = rng.choice(list(DTYPE_BITS))
        shape = [rng.choice([0, 1, 1, 2, 3, 4, 8]) for _ in range(rng.randrange(4))]
        nbits = DTYPE_BITS[dtype]
        for dim in shape:
            nbits *= dim
        if nbits % 8 and rng.random() < 0.98:
            shape, nbits = [*shape, 4], nbits * 4
        end = offset + nbits // 8
        info = Object(
            [("dtype", dtype), ("shape", numbers(shape)), ("data_offsets", numbers([offset, end]))]
        )
        name = f"{make_name(rng)}{i}" if rng.random() < 0.9 else make_name(rng)
        document.append((name, info))
        offset = end
    if rng.random() < 0.3:
        rng.shuffle(document)
    if rng.random() < 0.5:
        metadata = Object((make_name(rng), make_name(rng)) for _ in range(rng.randrange(3)))
        place = rng.choice([0, 0, len(document)])
        document.insert(place, ("__metadata__", metadata))
    return document, offset


def make_name(rng: random.Random) -> str:
    if rng.random() < 0.8:
        return rng.choice(NAMES)
    return "".join(
        chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in "abc"
    )


def numbers(values: list[int]) -> list[Any]:
    return [Token(value) for value in values]


def make_number(rng: random.Random) -> Token:
    """Make a number, often one near a limit of 64 bits or of a double."""
    kind = rng.randrange(5)
    if kind == 0:
        return Token(rng.randrange(20))
    if kind == 1:
        return Token(2 ** rng.choice([31, 32, 53, 61, 63, 64]) + rng.randrange(-2, 3))
    if kind == 2:
        return Token(rng.choice(TOKENS))
    digits = "".join(rng.choices("0123456789", k=rng.choice([1, 5, 17, 19, 20, 21, 25, 310])))
    if kind == 3:
        digits = (
            rng.choice(["1797693134862315", "17976931348623157", "18446744073709551615"]) + digits
        )
    whole, fraction = digits[: (cut := rng.randrange(len(digits) + 1))] or "0", digits[cut:]
    number = rng.choice(["", "", "-"]) + (whole.lstrip("0") or "0")
    if fraction and rng.random() < 0.7:
        number += f".{fraction}"
    if rng.random() < 0.7:
        exponent = rng.choice([0, 1, 308 - len(whole), 309 - len(whole), rng.randrange(280, 320)])
        number += rng.choice(["e", "E", "e+", "e-", "e000"]) + str(abs(exponent))
    return Token(number)


def make_value(rng: random.Random) -> Any:
    """Make a value that does not belong where it is put."""
    kind = rng.randrange(8)
    if kind == 0:
        brackets = [
            rng.choice(["[]", "{}"]) for _ in range(rng.choice([1, 3, 124, 125, 126, 127, 2000]))
        ]
        opened = "".join("[" if pair == "[]" else '{"":' for pair in brackets)
        return Token(opened + "1" + "".join(pair[1] for pair in reversed(brackets)))
    if kind == 1:
        return make_name(rng)
    if kind == 2:
        return rng.choice(list(DTYPE_BITS))
    if kind == 3:
        return Token(rng.choice(TOKENS))
    if kind == 4:
        return [make_value(rng) for _ in range(rng.randrange(4))]
    if kind == 5:
        return Object((make_name(rng), make_value(rng)) for _ in range(rng.randrange(3)))
    return make_number(rng)


def change_document(rng: random.Random, document: Object) -> Object:
    """Change one place of the tree, favouring what the validation looks at."""
    tensors = [value for _, value in document if isinstance(value, Object)]
    if tensors and rng.random() < 0.4:
        rng.choice(tensors).append(("x", make_value(rng)))  # an unknown field may hold anything
        return document
    places: list[tuple[Any, int]] = []
    pending: list[Any] = [document]
    while pending:
        container = pending.pop()
        for i, item in enumerate(container):
            places.append((container, i))
            value = item[1] if isinstance(container, Object) else item
            if isinstance(value, list):
                pending.append(value)
    if not places:
        return Object([(make_name(rng), make_value(rng))])
    container, i = rng.choice(places)
    key, value = container[i] if isinstance(container, Object) else ("", container[i])
    kind = rng.randrange(10)
    if kind == 0:
        del container[i]
    elif kind == 1:
        container.insert(rng.randrange(len(container) + 1), container[i])
    elif kind == 2:
        other = rng.randrange(len(container))
        container[i], container[other] = container[other], container[i]
    elif kind == 3:
        added = make_value(rng)
        if isinstance(container, Object):
            added = (rng.choice([*NAMES, "dtype", "shape", "data_offsets", "x"]), added)
        container.insert(rng.randrange(len(container) + 1), added)
    else:
        if kind == 4 and isinstance(container, Object):
            others = [other for other, _ in container]
            key = rng.choice([*NAMES, *others, "dtype", "shape", "data_offsets"])
        elif kind == 5 and isinstance(value, Object):
            value = [member for _, member in value]  # serde reads structs from lists, too
        elif kind == 5 and isinstance(value, str):
            value = Object([(value, Token(rng.choice(["null", "null", "{}", "[]", "0"])))])
        elif kind in (6, 7) and isinstance(value, Token) and value.isdecimal() and len(value) < 20:
            step = rng.choice([-1, 1, 8, 2**63, 2**64 - int(value)])
            value = Token(max(0, int(value) + step))
            if rng.random() < 0.3:
                value = Token(rng.choice(["-", "0"]) + value + rng.choice(["", ".0", "e0"]))
        elif kind == 8 and isinstance(value, list) and not isinstance(value, Object):
            value = numbers(
                rng.choice([[2**63, 2, 0], [0, 2**63, 2], [2**64 - 1, 1], [2**61], [0] * 9])
            )
        else:
            value = make_value(rng)
        container[i] = (key, value) if isinstance(container, Object) else value
    return document


def spell(rng: random.Random, value: Any, oddity: float, gap: str) -> str:
    """Spell a tree as JSON; `oddity` is how often white space and escapes are odd.

    `gap` follows every comma and colon: a space, as Python's json module has it, or nothing.
    """

    def space() -> str:
        return rng.choice(SPACES) if oddity and rng.random() < max(oddity, 0.2) else ""

    if isinstance(value, Token):
        return value
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=oddity > 0 and rng.random() < oddity)
        if rng.random() < oddity / 4:
            place = rng.randrange(1, len(text))
            text = text[:place] + rng.choice(ESCAPES) + text[place:]
        return text
    if isinstance(value, Object):
        parts = [
            f"{spell(rng, k, oddity, gap)}{space()}:{gap}{space()}{spell(rng, v, oddity, gap)}"
            for k, v in value
        ]
        opening, closing = "{", "}"
    else:
        parts = [spell(rng, item, oddity, gap) for item in value]
        opening, closing = "[", "]"
    inside = f"{space()},{gap}{space()}".join(parts)
    return f"{opening}{space()}{inside}{space()}{closing}"


def change_bytes(rng: random.Random, text: bytes) -> bytes:
    start = rng.randrange(len(text) + 1)
    end = min(len(text), start + rng.choice([0, 1, 1, 2, 8]))
    kind = rng.randrange(4)
    if kind == 0 and start < len(text):
        return text[:start] + bytes([text[start] ^ (1 << rng.randrange(8))]) + text[start + 1 :]
    if kind == 1:
        return text[:start] + text[end:]
    if kind == 2:
        return text[:end] + text[start:]
    return text[:start] + rng.choice(BYTES) + text[end:]


def make_heavy_header(rng: random.Random) -> tuple[str, int]:
    """Make a header of about a megabyte that is hard on a careless parser."""
    size = rng.choice([10_000, 100_000, 1_000_000])
    info = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    unknown = '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":%s}}'
    makers: list[Callable[[], str]] = [
        lambda: "[" * size,
        lambda: '{"a":' * size,
        lambda: unknown % ("[" * size + "]" * size),
        lambda: unknown % ("9" * size),
        lambda: unknown % ("0." + "0" * size + "1"),
        lambda: unknown % ("1e" + "0" * size + "1"),
        lambda: unknown % ("1e" + "9" * size),
        lambda: unknown % f"[{','.join(['[]'] * (size // 3))}]",
        lambda: unknown % ('"' + "\\\\" * (size // 2) + '"'),
        lambda: unknown % ('"' + "\\ud83d\\ude00" * (size // 12) + '"'),
        lambda: unknown % ('"' + '\\"[' * (size // 3) + '"'),
        lambda: '{"' + "n" * size + '":' + info + "}",
        lambda: '{"' + "\\u0000" * (size // 6) + '":3}',
        lambda: "{" + ",".join(f'"{i}":{info}' for i in range(size // 50)) + "}",
        lambda: "{" + ",".join([f'"a":{info}'] * (size // 50)) + "}",
        lambda: "{" + ",".join(f'"{i}": {info}' for i in range(size // 50)) + "}",
        lambda: f'{{"a":{{"dtype":"U8","shape":[{"1," * (size // 2)}0],"data_offsets":[0,0]}}}}',
        lambda: "{}" + " " * size,
        lambda: '"' * size,
        lambda: '{"__metadata__":{' + ",".join(f'"{i}":""' for i in range(size // 10)) + "}}",
    ]
    return rng.choice(makers)(), 0


def read_with_library(content: bytes, path: Path) -> Any:
    """Return the tensors with their bytes, their order and the metadata; None where refused."""
    try:
        tensors = {
            name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
            for name, tensor in safetensors.deserialize(content)
        }
    except safetensors.SafetensorError:
        tensors = None
    path.write_bytes(content)
    try:
        with safetensors.safe_open(path, "pt") as file:
            order = [name for name in file.offset_keys() if tensors is None or tensors[name][2]]
            metadata = file.metadata()
    except (safetensors.SafetensorError, OSError):
        if tensors is not None:
            raise AssertionError("the library contradicts itself") from None
        return None
    return tensors, order, metadata


def read_with_ours(content: bytes) -> Any:
    """As `read_with_library`; a refusal is its message."""
    try:
        nbytes = parse_header_nbytes(content[:8], len(content))
        header = parse_header(content[8 : 8 + nbytes], len(content))
    except HeaderError as error:
        return str(error)
    tensors = {}
    for entry in header.entries:
        start = header.data_start + entry.data_offset
        data = content[start : start + entry.spec.nbytes]
        tensors[entry.name] = (entry.spec.dtype, entry.spec.shape, data)
    order = [entry.name for entry in header.entries if entry.spec.nbytes]
    return tensors, order, header.metadata


def compare(content: bytes, path: Path, summary: Summary) -> str | None:
    """Return in which way the two differ, None where they agree."""
    expected = read_with_library(content, path)
    started = time.process_time()  # a busy machine is not our slowness
    try:
        found = read_with_ours(content)
    except Exception as error:
        return f"ours raised {error!r}"
    seconds = time.process_time() - started
    summary.files += 1
    summary.valid += expected is not None
    summary.slowest_seconds = max(summary.slowest_seconds, seconds)
    if seconds > MAX_SECONDS:
        return f"ours took {seconds:.1f} s"
    if isinstance(found, str):
        if expected is not None:
            return f"ours refuses what the library accepts: {found}"
        if not found.isprintable() or len(found) > 2000:
            return f"the message is no single short line: {found!r}"
    elif expected is None:
        return "ours accepts what the library refuses"
    elif found != expected:
        return "both accept it and read different tensors"
    return None


def fuzz(
    *,
    files: int | None,
    seconds: float | None,
    seed: int,
    folder: Path,
    most_differences: int = 10,
    structured: bool = False,
) -> Summary:
    """Compare until so many files or seconds; save differing files in `folder`."""
    summary = Summary()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "file.safetensors"
        read_with_library((2).to_bytes(8, "little") + b"{}", path)  # imports torch
        gc.collect()
        gc.freeze()  # nor are torch's objects, which each collection would walk
        started, memory = time.monotonic(), peak_memory_nbytes()
        number = 0
        while (files is None or number < files) and len(summary.differences) < most_differences:
            if seconds is not None and time.monotonic() - started > seconds:
                break
            rng = random.Random(f"{seed}:{number}")
            content, kinds = make_structured(rng) if structured else (make_file(rng), [])
            before = summary.valid
            difference = compare(content, path, summary)
            verdict = "valid" if summary.valid > before else "refused"
            summary.kinds.update(f"{kind}, {verdict}" for kind in kinds)
            if difference:
                saved = folder / f"fuzz-{seed}-{number}.safetensors"
                saved.write_bytes(content)
                summary.differences.append(f"{saved}: {difference}")
            number += 1
        summary.memory_growth_nbytes = peak_memory_nbytes() - memory
    return summary


def peak_memory_nbytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, help="stop after so many files")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--structured", action="store_true", help="make files from a grammar")
    parser.add_argument("--save", type=Path, default=Path(), help="folder for differing files")
    options = parser.parse_args()
    if options.files is None and options.seconds is None:
        parser.error("say how long: --files or --seconds")
    summary = fuzz(
        files=options.files,
        seconds=options.seconds,
        seed=options.seed,
        folder=options.save,
        structured=options.structured,
    )
    for difference in summary.differences:
        print(difference)
    for kind, count in sorted(summary.kinds.items()):
        print(f"{kind}: {count}")
    too_much = summary.memory_growth_nbytes > MAX_MEMORY_NBYTES
    print(
        f"{summary.files} files compared ({summary.valid} valid, "
        f"{summary.files - summary.valid} refused), seed {options.seed}: "
        f"{len(summary.differences)} differences, slowest {summary.slowest_seconds:.3f} s, "
        f"memory grew by {summary.memory_growth_nbytes / 1e6:.0f} MB"
        f"{', which is too much' if too_much else ''}"
    )
    return 1 if summary.differences or too_much else 0


if __name__ == "__main__":
    sys.exit(main())
