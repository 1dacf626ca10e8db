"""Re-read an output and compare it with what its source and its stated recipe say it must be.

It believes nothing that the output says of itself but the recipe: what must be there is planned
again from the source. It imports nothing that writes. Both sides are read once, in flat memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CARD_FILE, CONFIG_FILE, INDEX_FILE, MANIFEST_FILE, read_manifest
from ..errors import CheckpointError, HeaderError
from ..formats.json_object import MOST_JSON_NBYTES, parse_json_object
from ..formats.safetensors import (
    LENGTH_NBYTES,
    Header,
    TensorSpec,
    parse_header,
    read_header,
)
from ..fs.reading import FileStat, check_same, describe_file
from ..planning.card import add_card, without_proof
from ..planning.manifest import Manifest, parse_claims, parse_manifest
from ..planning.mergekit.parsing import parse_recipe
from ..planning.mergekit.plan import make_merge_plan
from ..planning.mergekit.vocabulary import read_vocabularies
from ..planning.plan import Plan, make_plan
from ..planning.shards import PlannedTensor
from ..progress import Progress, Report
from .comparison import Mismatch, Place, compare_tensors, differing_byte
from .findings import Finding, Verification

_MOST_FINDINGS_PER_FILE = 20


def verify_output(
    checkpoint: Checkpoint,
    out: Path,
    progress: Progress,
    others: Mapping[str, Checkpoint] | None = None,
) -> Verification:
    """Compare an output folder with its source, every byte of it.

    `others` holds the further models of a recipe, those that `stated_models` names.
    Raises: CheckpointError where the output does not state its recipe; UnsupportedModelError,
    RecipeError for a recipe that is impossible.
    """
    plan = _plan_again(parse_manifest(*read_manifest(out)), checkpoint, others or {})
    nbytes = sum(tensor.spec.nbytes for file in plan.files for tensor in file.tensors)
    progress.begin("comparing", nbytes + sum(file.nbytes for file in plan.side_files))
    findings = [*_compare_names(plan, out), *_compare_documents(plan, out)]
    headers, strange = _read_headers(plan, out)
    planned = {tensor.name: tensor for file in plan.files for tensor in file.tensors}
    findings += _compare_headers(plan, headers)
    placed = {
        file: [
            PlannedTensor(
                name=entry.name,
                spec=entry.spec,
                offset=header.data_start + entry.data_offset,
                origin=planned[entry.name].origin,
            )
            for entry in header.entries
            if entry.name in planned and entry.spec == planned[entry.name].spec
        ]
        for file, (header, _) in headers.items()
    }
    sources = Place(plan.root, {file.name: file for file in plan.source_files}, plan.paths)
    found = Place(out, {name: file for name, (_, file) in headers.items()})
    mismatches = compare_tensors(sources, found, placed, progress)
    findings += map(_find_mismatch, mismatches.values())
    # Where a tensor is named, that the header's bytes differ says nothing more.
    named = {finding.file for finding in findings}
    findings += [finding for finding in strange if finding.file not in named]
    findings += _compare_side_files(plan, out, progress.advance)
    return Verification(
        tensors=len(planned),
        nbytes=plan.nbytes,
        dtype=plan.dtype,
        new_layers=plan.new_layers,
        keeps_function=plan.keeps_function,
        is_unpacked=plan.options.quantized == "dequantize",
        findings=tuple(findings),
    )


def _plan_again(
    manifest: Manifest, checkpoint: Checkpoint, others: Mapping[str, Checkpoint]
) -> Plan:
    """Make the plan again from the recipe that the manifest states."""
    claims = parse_claims(manifest)
    if claims.recipe is not None:
        return add_card(make_plan(checkpoint, claims.recipe), claims.source, claims.command)
    assert claims.recipe_text is not None
    merge = parse_recipe(claims.recipe_text.encode(), MANIFEST_FILE)
    checkpoints = {model: others.get(model, checkpoint) for model in merge.models}
    plan = make_merge_plan(
        merge,
        checkpoints,
        vocabularies=read_vocabularies(merge, checkpoints),
        max_shard_nbytes=claims.max_shard_nbytes,
        block_nbytes=claims.block_nbytes,
    )
    return add_card(plan, claims.source, claims.command, claims.models)


def _find_mismatch(mismatch: Mismatch) -> Finding:
    return Finding(
        file=mismatch.file,
        tensor=mismatch.tensor,
        offset=mismatch.offset,
        message=(
            f"differs at byte {mismatch.offset} of the tensor (byte {mismatch.position} of the "
            f"file): expected 0x{mismatch.expected:02x}, found 0x{mismatch.found:02x}"
        ),
    )


def _compare_names(plan: Plan, out: Path) -> Iterator[Finding]:
    """Find files that are missing or too many. What a version control keeps is not looked at."""
    expected = {file.name for file in plan.files}
    expected |= {document.name for document in plan.documents}
    expected |= {file.name for file in plan.side_files}
    found = set()
    for path in out.rglob("*"):
        relative = path.relative_to(out)
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and relative.parts[0] not in (".git", ".cache", ".gitattributes"):
            found.add(relative.as_posix())
    # By name alone a link to nothing, or a pipe, would pass, and nothing of it would be compared.
    for name in sorted(name for name in expected if not (out / name).is_file()):
        message = "is not a file, or a link to none" if name in found else "is missing"
        yield Finding(file=name, message=message)
    for name in sorted(found - expected):
        yield Finding(file=name, message="is not part of the expansion")


def _compare_documents(plan: Plan, out: Path) -> Iterator[Finding]:
    for document in plan.documents:
        path = out / document.name
        if not path.is_file():
            continue
        with path.open("rb") as stream:
            data = stream.read(MOST_JSON_NBYTES)
        if document.name == CARD_FILE:
            data = without_proof(data)
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
    return f"differs from byte {differing_byte(expected, found)} on"


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
) -> tuple[dict[str, tuple[Header, FileStat]], list[Finding]]:
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
        headers[file.name] = (
            header,
            describe_file(file.name, status),
        )
        if found != file.header:
            metadata = parse_header(file.header[8:], file.nbytes).metadata
            if header.metadata != metadata:
                message = f"header metadata: expected {metadata}, found {header.metadata}"
            else:
                message = f"header: {_first_difference(file.header, found)}"
            findings.append(Finding(file=file.name, message=message))
    return headers, findings


def _compare_headers(
    plan: Plan, headers: Mapping[str, tuple[Header, FileStat]]
) -> Iterator[Finding]:
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
                    message = (
                        f"expected {tensor.spec.dtype} {list(tensor.spec.shape)}, "
                        f"found {spec.dtype} {list(spec.shape)}"
                    )
                    yield Finding(file=where, tensor=tensor.name, message=message)
    for name, found in places.items():
        for where, _ in found:
            yield Finding(file=where, tensor=name, message="is not part of the expansion")


def _compare_side_files(plan: Plan, out: Path, report: Report) -> Iterator[Finding]:
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
