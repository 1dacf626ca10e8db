"""Re-read an output and compare it with what its source and its stated recipe say it must be.

It believes nothing that the output says of itself but the recipe: what must be there is planned
again from the source. It imports nothing that writes. Both sides are read once, in flat memory.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint, SourceFile
from .conversion import convert_slice
from .errors import CheckpointError, HeaderError
from .file_selection import CONFIG_FILE, INDEX_FILE, MANIFEST_FILE
from .json_document import JsonObject, parse_json_object
from .layout import Convert, Copy, Fill, Zeros
from .model_card import SourceName, add_card
from .plan import Plan, PlannedTensor, Recipe, make_plan
from .progress import Report
from .reading import Reader, make_buffer
from .safetensors_header import DTYPE_BITS, Header, parse_header, parse_header_nbytes
from .segments import Segment, merge_tensors

_SLICE_NBYTES = 4 << 20
_THREADS = 3 if os.name == "posix" else 1
_MOST_FINDINGS_PER_FILE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference. `offset` is the first differing byte, from the start of the tensor."""

    file: str
    message: str
    tensor: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}: " + (f"tensor {self.tensor!r}: " if self.tensor else "")
        return where + self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was compared, and every difference that was found; none means proven."""

    tensors: int
    nbytes: int
    dtype: str
    new_layers: tuple[int, ...]
    findings: tuple[Finding, ...]


def verify_output(checkpoint: Checkpoint, out: Path, report: Report) -> Verification:
    """Compare an output folder with its source, every byte of it.

    `report` is told of compared bytes, from any thread. Raises: CheckpointError where the output
    does not state its recipe; UnsupportedModelError, RecipeError for a recipe that is impossible.
    """
    manifest = read_manifest(out)
    recipe, name, command = _stated_recipe(manifest)
    plan = add_card(make_plan(checkpoint, recipe), name, command)
    findings = [*_compare_names(plan, out), *_compare_documents(plan, out)]
    headers, broken = _read_headers(plan, out)
    findings += broken
    planned = {tensor.name: tensor for file in plan.files for tensor in file.tensors}
    findings += _compare_headers(plan, headers)
    comparer = _Comparer(checkpoint, out, headers, report)
    for file, (header, _) in headers.items():
        placed = [
            PlannedTensor(
                name=entry.name,
                spec=entry.spec,
                offset=header.data_start + entry.data_offset,
                origin=planned[entry.name].origin,
            )
            for entry in header.entries
            if entry.name in planned and entry.spec == planned[entry.name].spec
        ]
        findings += comparer.compare(file, placed)
    findings += _compare_side_files(checkpoint, plan, out, report)
    return Verification(
        tensors=len(planned),
        nbytes=plan.nbytes,
        dtype=plan.dtype,
        new_layers=plan.new_layers,
        findings=tuple(findings),
    )


def read_manifest(out: Path) -> JsonObject:
    """Return an output's block_expansion.json. Raises: CheckpointError."""
    path = out / MANIFEST_FILE
    if not path.is_file():
        what = "no such folder" if not out.is_dir() else f"no {MANIFEST_FILE} in it"
        raise CheckpointError(f"{out}: {what}; expected a folder that blockexpand made")
    return parse_json_object(path.read_bytes(), str(path))


def _stated_recipe(manifest: JsonObject) -> tuple[Recipe, SourceName, str]:
    try:
        position = manifest["position"]
        numbers = position.split(",")
        is_list = all(number.isdecimal() for number in numbers)
        source = manifest["source"]
        recipe = Recipe(
            new_layers=len(manifest["new_layers"]),
            position=tuple(map(int, numbers)) if is_list else position,
            dtype=str(manifest["dtype"]),
            max_shard_nbytes=_whole_number(manifest["max_shard_nbytes"]),
            block_nbytes=_whole_number(manifest["block_nbytes"]) or 4096,
        )
        name = SourceName(
            model=str(source["model"]),
            repo=source.get("repo"),
            revision=source.get("revision"),
            commit=source.get("commit"),
        )
        return recipe, name, str(manifest["command"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{MANIFEST_FILE}: the recipe is incomplete or damaged ({type(error).__name__} "
            f"{error}); make the output again"
        ) from None


def _whole_number(value: object) -> int | None:
    if value is None or (type(value) is int and 0 < value < 1 << 62):
        return value
    raise ValueError(f"{value!r} is no size")


def _compare_names(plan: Plan, out: Path) -> Iterator[Finding]:
    """Find files that are missing or too many. What a version control keeps is not looked at."""
    expected = {file.name for file in plan.files}
    expected |= {document.name for document in plan.documents}
    expected |= {file.name for file in plan.side_files}
    found = set()
    for path in out.rglob("*"):
        relative = path.relative_to(out)
        if path.is_file() and relative.parts[0] not in (".git", ".cache", ".gitattributes"):
            found.add(relative.as_posix())
    for name in sorted(expected - found):
        yield Finding(file=name, message="is missing")
    for name in sorted(found - expected):
        yield Finding(file=name, message="is not part of the expansion")


def _compare_documents(plan: Plan, out: Path) -> Iterator[Finding]:
    for document in plan.documents:
        path = out / document.name
        if not path.is_file():
            continue
        data = path.read_bytes()
        if data == document.data:
            continue
        differences: list[str] = []
        if document.name in (CONFIG_FILE, INDEX_FILE, MANIFEST_FILE):
            try:
                found = parse_json_object(data, document.name)
                differences = _json_differences(json.loads(document.data), found)
            except CheckpointError as error:
                differences = [str(error).removeprefix(f"{document.name}: ")]
        if not differences:
            differences = [_first_difference(document.data, data)]
        for difference in differences[:_MOST_FINDINGS_PER_FILE]:
            yield Finding(file=document.name, message=difference)


def _first_difference(expected: bytes, found: bytes) -> str:
    if expected.startswith(found) or found.startswith(expected):
        return f"expected {len(expected)} bytes, found {len(found)}"
    return f"differs from byte {_differing_byte(expected, found)} on"


def _differing_byte(one: bytes, other: bytes) -> int:
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def _json_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name the fields that differ; of nested objects, their fields."""
    differences = []
    for key in [*expected, *(key for key in found if key not in expected)]:
        if key not in found:
            differences.append(f"field {key!r} is missing")
        elif key not in expected:
            differences.append(f"field {key!r} should not be there")
        elif isinstance(expected[key], dict) and isinstance(found[key], dict):
            inner = _json_differences(expected[key], found[key])
            differences += [f"in {key!r}: {difference}" for difference in inner]
        elif json.dumps(expected[key]) != json.dumps(found[key]):
            differences.append(
                f"field {key!r}: expected {_short(expected[key])}, found {_short(found[key])}"
            )
    return differences


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_headers(
    plan: Plan, out: Path
) -> tuple[dict[str, tuple[Header, SourceFile]], list[Finding]]:
    headers: dict[str, tuple[Header, SourceFile]] = {}
    findings = []
    for file in plan.files:
        path = out / file.name
        if not path.is_file():
            continue
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            prefix = stream.read(8)
            try:
                text = stream.read(parse_header_nbytes(prefix, status.st_size))
                header = parse_header(text, status.st_size)
            except HeaderError as error:
                size = (
                    f" (expected {file.nbytes} bytes, found {status.st_size})"
                    if status.st_size != file.nbytes
                    else ""
                )
                findings.append(Finding(file=file.name, message=f"{error}{size}"))
                continue
        headers[file.name] = (
            header,
            SourceFile(name=file.name, nbytes=status.st_size, mtime_ns=status.st_mtime_ns),
        )
        if prefix + text != file.header:
            metadata = parse_header(file.header[8:], file.nbytes).metadata
            if header.metadata != metadata:
                message = f"header metadata: expected {metadata}, found {header.metadata}"
                findings.append(Finding(file=file.name, message=message))
    return headers, findings


def _compare_headers(
    plan: Plan, headers: Mapping[str, tuple[Header, SourceFile]]
) -> Iterator[Finding]:
    """Find tensors that are missing, too many, in another file, or of another dtype or shape."""
    found = {
        entry.name: (file, entry.spec)
        for file, (header, _) in headers.items()
        for entry in header.entries
    }
    expected = set()
    for file in plan.files:
        for tensor in file.tensors:
            expected.add(tensor.name)
            if tensor.name not in found:
                if file.name in headers:
                    yield Finding(file=file.name, tensor=tensor.name, message="is missing")
                continue
            where, spec = found[tensor.name]
            if where != file.name:
                message = f"is in {where}, expected in {file.name}"
                yield Finding(file=where, tensor=tensor.name, message=message)
            if spec != tensor.spec:
                message = (
                    f"expected {tensor.spec.dtype} {list(tensor.spec.shape)}, "
                    f"found {spec.dtype} {list(spec.shape)}"
                )
                yield Finding(file=where, tensor=tensor.name, message=message)
    for name, (where, _) in found.items():
        if name not in expected:
            yield Finding(file=where, tensor=name, message="is not part of the expansion")


class _Comparer:
    """Compares tensors of the output's files with their origins, slice by slice, on threads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        out: Path,
        headers: Mapping[str, tuple[Header, SourceFile]],
        report: Report,
    ) -> None:
        self._source = (checkpoint.root, {s.file.name: s.file for s in checkpoint.shards})
        self._output = (out, {name: file for name, (_, file) in headers.items()})
        self._report = report
        self._lock = threading.Lock()

    def compare(self, file: str, tensors: list[PlannedTensor]) -> list[Finding]:
        """Return a finding for each tensor that differs, with its first differing byte."""
        tensors = sorted(tensors, key=lambda tensor: tensor.offset)
        slices = _cut(merge_tensors(tensors))
        worst: dict[str, Finding] = {}
        failures: list[BaseException] = []

        def work() -> None:
            mine, theirs = make_buffer(_SLICE_NBYTES), make_buffer(_SLICE_NBYTES)
            converted = bytearray(_SLICE_NBYTES)
            try:
                while not failures:
                    with self._lock:
                        slice_ = next(slices, None)
                    if slice_ is None:
                        return
                    segment, start, nbytes = slice_
                    found = output.read(file, start, nbytes, mine)
                    expected = _expect(segment, start, nbytes, source, theirs, converted)
                    if bytes(found) != bytes(expected):
                        with self._lock:
                            _locate(file, tensors, start, expected, found, worst)
                    self._report(nbytes)
            except BaseException as error:
                failures.append(error)

        with Reader(*self._source) as source, Reader(*self._output) as output:
            threads = [threading.Thread(target=work, daemon=True) for _ in range(_THREADS)]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException as error:
                failures.append(error)
                for thread in threads:
                    thread.join()
            source.check_unchanged()
        if failures:
            raise failures[0]
        return list(worst.values())


def _cut(segments: Iterable[Segment]) -> Iterator[tuple[Segment, int, int]]:
    """Cut segments into slices (segment, offset in the file, nbytes) of whole elements."""
    for segment in segments:
        step = _SLICE_NBYTES
        if isinstance(segment.origin, Convert):
            # Source and result have to fit their buffers.
            widening = DTYPE_BITS[segment.origin.from_dtype] / DTYPE_BITS[segment.origin.to_dtype]
            step = int(_SLICE_NBYTES / max(widening, 1)) // 8 * 8
        for start in range(segment.offset, segment.end, step):
            yield segment, start, min(step, segment.end - start)


def _expect(
    segment: Segment,
    start: int,
    nbytes: int,
    source: Reader,
    buffer: memoryview,
    converted: bytearray,
) -> memoryview:
    """Return the bytes that must stand at `start` of the output."""
    skipped = start - segment.offset
    match segment.origin:
        case Copy(extent=extent):
            return source.read(extent.file, extent.offset + skipped, nbytes, buffer)
        case Zeros():
            return memoryview(bytes(nbytes))
        case Fill(element=element):
            phase = skipped % len(element)
            return memoryview((element * (nbytes // len(element) + 2))[phase : phase + nbytes])
        case Convert(extent=extent, from_dtype=from_dtype, to_dtype=to_dtype):
            from_nbytes, to_nbytes = DTYPE_BITS[from_dtype] // 8, DTYPE_BITS[to_dtype] // 8
            values = source.read(
                extent.file,
                extent.offset + skipped // to_nbytes * from_nbytes,
                nbytes // to_nbytes * from_nbytes,
                buffer,
            )
            result = memoryview(converted)[:nbytes]
            convert_slice(values, from_dtype, result, to_dtype, segment.tensor or "")
            return result
        case _:
            raise AssertionError(f"{segment.origin} is no tensor's origin")


def _locate(
    file: str,
    tensors: list[PlannedTensor],
    start: int,
    expected: memoryview,
    found: memoryview,
    worst: dict[str, Finding],
) -> None:
    """Add a finding for each tensor that differs within a slice, unless an earlier byte did."""
    for tensor in tensors:
        first = max(tensor.offset, start)
        last = min(tensor.offset + tensor.spec.nbytes, start + len(found))
        if first >= last:
            continue
        one = bytes(expected[first - start : last - start])
        other = bytes(found[first - start : last - start])
        if one == other:
            continue
        at = _differing_byte(one, other)
        offset = first + at - tensor.offset
        known = worst.get(tensor.name)
        if known is None or known.offset is None or offset < known.offset:
            worst[tensor.name] = Finding(
                file=file,
                tensor=tensor.name,
                offset=offset,
                message=(
                    f"differs at byte {offset} of the tensor (byte {first + at} of the file): "
                    f"expected 0x{one[at]:02x}, found 0x{other[at]:02x}"
                ),
            )


def _compare_side_files(
    checkpoint: Checkpoint, plan: Plan, out: Path, report: Report
) -> Iterator[Finding]:
    for file in plan.side_files:
        path = out / file.name
        if not path.is_file():
            continue
        offset = 0
        with (checkpoint.root / file.name).open("rb") as one, path.open("rb") as other:
            while True:
                expected, found = one.read(1 << 20), other.read(1 << 20)
                if expected != found:
                    message = _first_difference(expected, found)
                    yield Finding(
                        file=file.name,
                        message=f"{message} (counted from byte {offset})" if offset else message,
                    )
                    break
                if not expected:
                    break
                offset += len(expected)
        report(file.nbytes)
