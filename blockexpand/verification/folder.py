"""An output's folder against its plan: names of files, documents, headers, side files.

All but the tensors' bytes, which comparison.py looks at. It only reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.files import (
    CARD_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    explain_link,
    link_targets,
)
from ..errors import CheckpointError, HeaderError
from ..formats.json_object import MOST_JSON_NBYTES, parse_json_object
from ..formats.safetensors import LENGTH_NBYTES, Header, parse_header, read_header
from ..formats.tensor_spec import TensorSpec
from ..fs.reading import FileStat, check_same, describe_file
from ..planning.plan import Plan
from ..progress import Report
from .comparison import differing_byte
from .findings import Finding

NOT_PART = "is not part of the expansion"

Headers = Mapping[str, tuple[Header, FileStat]]


def compare_names(plan: Plan, out: Path) -> Iterator[Finding]:
    """Find files that are missing, too many, or reached by links that a source may not have.

    What version control and the Hub's client keep beside a model is no part of it: `.git`,
    `.cache/huggingface`, and the file `.gitattributes`.
    """
    expected = {file.name for file in plan.files} | {file.name for file in plan.side_files}
    # Without a card a model is what it is; the manifest was read.
    expected |= {document.name for document in plan.documents} - {CARD_FILE}
    places = link_targets(out)
    found = set()
    for folder, subfolders, files in os.walk(out):
        for name in [*files, *(s for s in subfolders if (Path(folder) / s).is_symlink())]:
            path = Path(folder) / name
            relative = path.relative_to(out).as_posix()
            if _is_kept_beside(relative, path):
                continue
            found.add(relative)
            if relative in expected | {CARD_FILE} and (fault := explain_link(path, places)):
                yield Finding(file=relative, message=fault)
        subfolders[:] = [
            name
            for name in subfolders
            if not _is_kept_beside(
                (Path(folder) / name).relative_to(out).as_posix(), Path(folder) / name
            )
        ]
    # By name alone a link to nothing, or a pipe, would pass, and nothing of it would be compared.
    for name in sorted(name for name in expected if not (out / name).is_file()):
        if not (out / name).is_symlink():
            message = "is not a file" if name in found else "is missing"
            yield Finding(file=name, message=message)
    for name in sorted(found - expected - {CARD_FILE}):
        yield Finding(file=name, message=NOT_PART)


def _is_kept_beside(relative: str, path: Path) -> bool:
    if relative == ".gitattributes":
        return path.is_file()
    is_folder = path.is_dir() and not path.is_symlink()
    # In a work tree `.git` is a file.
    return relative == ".git" or (relative == ".cache/huggingface" and is_folder)


def compare_documents(plan: Plan, out: Path) -> Iterator[Finding]:
    """Find what differs in config and index; card and manifest are compared elsewhere."""
    for document in plan.documents:
        path = out / document.name
        if document.name in (CARD_FILE, MANIFEST_FILE) or not path.is_file():
            continue
        with path.open("rb") as stream:
            data = stream.read(MOST_JSON_NBYTES)
        if data == document.data:
            continue
        differences: list[str] = []
        if document.name in (CONFIG_FILE, INDEX_FILE):
            try:
                found = parse_json_object(data, document.name)
                differences = json_differences(json.loads(document.data), found)
            except CheckpointError as error:
                differences = [str(error).removeprefix(f"{document.name}: ")]
        for difference in differences or [first_difference(document.data, data)]:
            yield Finding(file=document.name, message=difference)


def first_difference(expected: bytes, found: bytes) -> str:
    """Say where two texts part, or that one is shorter."""
    if expected.startswith(found) or found.startswith(expected):
        return f"expected {len(expected)} bytes, found {len(found)}"
    return f"differs from byte {differing_byte(expected, found)} on"


def json_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name the fields that differ; of nested objects, their fields."""
    differences = []
    for key in [*expected, *(key for key in found if key not in expected)]:
        if key not in found:
            differences.append(f"field {key!r} is missing")
        elif key not in expected:
            differences.append(f"field {key!r} should not be there")
        elif isinstance(expected[key], dict) and isinstance(found[key], dict):
            inner = json_differences(expected[key], found[key])
            differences += [f"in {key!r}: {difference}" for difference in inner]
        elif json.dumps(expected[key]) != json.dumps(found[key]):
            differences.append(
                f"field {key!r}: expected {_short(expected[key])}, found {_short(found[key])}"
            )
    return differences


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_headers(plan: Plan, out: Path) -> tuple[Headers, list[Finding]]:
    """Read the header of every planned file that is there; find those that are not as planned."""
    headers: dict[str, tuple[Header, FileStat]] = {}
    findings = []
    for file in plan.files:
        path = out / file.name
        if not path.is_file():
            continue
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            try:
                found = read_header(stream, status.st_size)
                header = parse_header(found[LENGTH_NBYTES:], status.st_size)
            except HeaderError as error:
                size = (
                    f" (expected {file.nbytes} bytes, found {status.st_size})"
                    if status.st_size != file.nbytes
                    else ""
                )
                findings.append(Finding(file=file.name, message=f"{error}{size}"))
                continue
        headers[file.name] = (header, describe_file(file.name, status))
        if found != file.header:
            metadata = parse_header(file.header[8:], file.nbytes).metadata
            if header.metadata != metadata:
                message = f"header metadata: expected {metadata}, found {header.metadata}"
            else:
                message = f"header: {first_difference(file.header, found)}"
            findings.append(Finding(file=file.name, message=message))
    return headers, findings


def compare_headers(plan: Plan, headers: Headers) -> Iterator[Finding]:
    """Find tensors that are missing, too many, in another file, or of another dtype or shape."""
    places: dict[str, list[tuple[str, TensorSpec]]] = {}
    for file, (header, _) in headers.items():
        for entry in header.entries:
            places.setdefault(entry.name, []).append((file, entry.spec))
    for planned in plan.files:
        for tensor in planned.tensors:
            found = places.pop(tensor.name, [])
            if not found and planned.name in headers:
                yield Finding(file=planned.name, tensor=tensor.name, message="is missing")
            for where, spec in found:
                if where != planned.name:
                    message = f"is in {where}, expected in {planned.name}"
                    yield Finding(file=where, tensor=tensor.name, message=message)
                if spec != tensor.spec:
                    message = f"expected {show_spec(tensor.spec)}, found {show_spec(spec)}"
                    yield Finding(file=where, tensor=tensor.name, message=message)
    for name, found in places.items():
        for where, _ in found:
            yield Finding(file=where, tensor=name, message="is not part of the expansion")


def show_spec(spec: TensorSpec) -> str:
    """Spell a tensor's dtype and shape."""
    return f"{spec.dtype} {list(spec.shape)}"


def compare_side_files(plan: Plan, out: Path, report: Report) -> Iterator[Finding]:
    """Find side files that differ from the source's."""
    for file in plan.side_files:
        path = out / file.name
        if not path.is_file():
            continue
        nbytes = path.stat().st_size
        if nbytes != file.nbytes:
            message = f"expected {file.nbytes} bytes, found {nbytes}"
            yield Finding(file=file.name, message=message)
            continue
        offset = 0
        source = plan.path(file.name)
        with source.open("rb") as one, path.open("rb") as other:
            check_same(source, file, os.fstat(one.fileno()))
            while expected := one.read(1 << 20):
                found = other.read(1 << 20)
                if expected != found:
                    at = offset + differing_byte(expected, found)
                    yield Finding(file=file.name, message=f"differs from byte {at} on")
                    break
                offset += len(expected)
            check_same(source, file, os.fstat(one.fileno()))
        report(file.nbytes)
