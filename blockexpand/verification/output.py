"""Re-read an output and compare it with what its source and its stated recipe say it must be.

It believes nothing that the output says of itself: what must be there is planned again from the
source, and what cannot be checked is handed on as a claim. It imports nothing that writes. Both
sides are read once, in flat memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.files import CONFIG_FILE, MANIFEST_FILE, read_manifest
from ..checkpoints.sources import ModelRef
from ..errors import CheckpointError
from ..formats.elements import load_beside
from ..formats.json_object import parse_json_object
from ..fs.reading import Place
from ..messages import and_more
from ..models.decoder import split_name
from ..planning.card import add_card
from ..planning.claims import Claims, parse_claims
from ..planning.manifest import Manifest, compare_with_plan, parse_manifest
from ..planning.origins import Extent, Fill, Zeros
from ..planning.plan import Plan
from ..planning.shards import PlannedTensor
from ..progress import Progress
from .claims import (
    check_models,
    compare_claims,
    find_other_weights,
    find_wrong_source,
    note_claims,
    plan_again,
)
from .comparison import compare_tensors, is_zero
from .expectation import Expectation, expect_plan
from .findings import Finding, Verification
from .folder import (
    NOT_PART,
    compare_documents,
    compare_headers,
    compare_names,
    compare_side_files,
    read_headers,
)
from .saved import SavedComparison, compare_saved, describe_mismatch, fits
from .saved_config import compare_configs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """A manifest, read and checked for what can be known without its source."""

    manifest: Manifest
    claims: Claims


@dataclass(slots=True, kw_only=True)
class _Result:
    """What has been found so far."""

    findings: list[Finding] = field(default_factory=list)
    trained: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    active: tuple[int, ...] = ()
    originals: int = 0
    identical: int = 0
    different: int = 0
    shared: int = 0


def read_stated(out: Path) -> Stated:
    """Read what an output says of itself. Raises: CheckpointError."""
    manifest = parse_manifest(*read_manifest(out))
    claims = parse_claims(manifest)
    check_models(manifest, claims)
    return Stated(manifest=manifest, claims=claims)


def verify_output(
    checkpoint: Checkpoint,
    source: ModelRef,
    out: Path,
    progress: Progress,
    others: Mapping[str, Checkpoint] | None = None,
    *,
    untrained: bool = True,
    paranoid: bool = False,
) -> Verification:
    """Compare an output folder with its source, every byte of it.

    `others` holds the further models of a recipe, those that its manifest names. Unless it must be
    `untrained`, tensors of new blocks may differ, and it may have been saved by another program.
    Only if `paranoid`, what both have on the same blocks of a disk is read as well.
    Raises: CheckpointError where the output does not state its recipe; UnsupportedModelError,
    RecipeError for a recipe that is impossible.
    """
    stated = read_stated(out)
    manifest, claims = stated.manifest, stated.claims
    if refused := _refuse_source(stated, checkpoint, source):
        return refused
    bare = plan_again(manifest, claims, checkpoint, others or {})
    plan = add_card(bare, claims.source, claims.command, claims.models)
    faults, unknown = compare_with_plan(manifest, plan)
    claim_faults, unconfirmed = compare_claims(claims, source)
    result = _Result(notes=note_claims(plan, claims, unknown, out))
    result.findings += [Finding(file=MANIFEST_FILE, message=f) for f in faults + claim_faults]
    saved = None if untrained else _open_saved(plan, checkpoint, out)
    if saved is None:
        _compare_exactly(plan, out, progress, result, untrained=untrained, paranoid=paranoid)
    else:
        _compare_saved(*saved, plan, out, progress, result, paranoid=paranoid)
    return Verification(
        source=source,
        has_manifest=True,
        original_layers=plan.original_layers,
        layer_map=plan.layer_map,
        tensors=sum(len(file.tensors) for file in plan.files),
        nbytes=plan.nbytes,
        dtype=plan.dtype,
        keeps_function=None
        if result.findings or plan.options.row is not None
        else plan.keeps_function and not result.active,
        is_unpacked=plan.options.quantized == "dequantize",
        findings=tuple(result.findings),
        trained=tuple(result.trained),
        notes=tuple(result.notes),
        originals=result.originals,
        identical=result.identical,
        active=result.active,
        recipe=claims.recipe_text,
        stated=tuple(unconfirmed),
        shared=result.shared,
        wrong_source=find_other_weights(result.different, result.originals, source, claims),
    )


def check_stated(
    stated: Stated, checkpoint: Checkpoint, source: ModelRef, others: Mapping[str, Checkpoint]
) -> Verification | None:
    """Plan again with headers alone, before weights are fetched; None where that can be done.

    Raises: as `verify_output`.
    """
    refused = _refuse_source(stated, checkpoint, source)
    if refused is None:
        plan_again(stated.manifest, stated.claims, checkpoint, others)
    return refused


def _refuse_source(stated: Stated, checkpoint: Checkpoint, source: ModelRef) -> Verification | None:
    manifest = stated.manifest
    wrong = find_wrong_source(manifest, stated.claims, checkpoint, source)
    if wrong is None:
        return None
    return Verification(
        source=source,
        has_manifest=True,
        original_layers=manifest.original_layers,
        layer_map=manifest.layer_map,
        tensors=0,
        nbytes=0,
        dtype=(stated.claims.recipe.dtype if stated.claims.recipe else None) or "source",
        keeps_function=None,
        findings=(Finding(file=MANIFEST_FILE, message=wrong),),
        wrong_source=wrong,
    )


def _open_saved(
    plan: Plan, checkpoint: Checkpoint, out: Path
) -> tuple[Expectation, Checkpoint] | None:
    """Open an output that another program saved: its files are not as planned, its tensors are."""
    headers, strange = read_headers(plan, out)
    if len(headers) == len(plan.files) and not strange:
        return None
    try:
        saved = open_checkpoint(out)
    except CheckpointError:
        return None
    expectation = expect_plan(plan, checkpoint)
    return (expectation, saved) if fits(expectation, saved) else None


def _compare_exactly(
    plan: Plan,
    out: Path,
    progress: Progress,
    result: _Result,
    *,
    untrained: bool,
    paranoid: bool,
) -> None:
    """Compare an output as blockexpand wrote it, byte for byte."""
    if plan.computes:
        load_beside()
    nbytes = sum(tensor.spec.nbytes for file in plan.files for tensor in file.tensors)
    progress.begin("comparing", nbytes + sum(file.nbytes for file in plan.side_files))
    result.findings += [*compare_names(plan, out), *compare_documents(plan, out)]
    headers, strange = read_headers(plan, out)
    planned = {tensor.name: tensor for file in plan.files for tensor in file.tensors}
    result.findings += compare_headers(plan, headers)
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
    found = Place(out, {name: file for name, (_, file) in headers.items()})
    mismatches, result.shared = compare_tensors(
        plan.sources, found, placed, progress, paranoid=paranoid
    )
    new = {name for name in planned if is_new(plan, name)}
    active = set()
    for file, tensors in placed.items():
        for tensor in tensors:
            mismatch = mismatches.get(tensor.name)
            if mismatch is None:
                continue
            finding = describe_mismatch(mismatch)
            if tensor.name not in new:
                result.findings.append(finding)
                continue
            (result.findings if untrained else result.trained).append(finding)
            extent = Extent(file, tensor.offset, tensor.spec.nbytes)
            if isinstance(tensor.origin, Fill) or (
                isinstance(tensor.origin, Zeros)
                and not is_zero(out / file, extent, tensor.spec.dtype)
            ):
                active.add((split_name(tensor.name, plan.layer_prefix) or (0, ""))[0])
    equal = {t.name for tensors in placed.values() for t in tensors} - mismatches.keys()
    result.active = tuple(sorted(active))
    result.originals, result.identical = len(planned.keys() - new), len(equal - new)
    result.different = len(mismatches.keys() - new)
    # Where a tensor is named, that the header's bytes differ says nothing more.
    named = {finding.file for finding in result.findings}
    result.findings += [finding for finding in strange if finding.file not in named]
    result.findings += compare_side_files(plan, out, progress.advance)


def is_new(plan: Plan, name: str) -> bool:
    """Tell whether a tensor is one of a new block."""
    parts = split_name(name, plan.layer_prefix)
    return parts is not None and parts[0] < len(plan.layer_map) and plan.layer_map[parts[0]].is_new


def _compare_saved(
    expectation: Expectation,
    saved: Checkpoint,
    plan: Plan,
    out: Path,
    progress: Progress,
    result: _Result,
    *,
    paranoid: bool,
) -> None:
    """Compare an output that another program saved by what it means."""
    progress.begin("comparing", sum(spec.nbytes for spec in saved.specs.values()))
    compared = compare_saved(expectation, saved, progress, paranoid=paranoid)
    take_saved(compared, result)
    findings, notes = compare_configs(expectation.config, _read_config(out))
    result.findings += findings
    result.notes += [
        "its files are not those of an expansion by this release of blockexpand (apply, another "
        "release or another program made them), so tensors and config were compared by what they "
        "mean",
        *notes,
    ]
    apart = [f.file for f in compare_side_files(plan, out, lambda nbytes: None)]
    apart += [file.name for file in plan.side_files if not (out / file.name).is_file()]
    extra = []
    for finding in compare_names(plan, out):
        if "symbolic link" in finding.message:
            result.findings.append(finding)
        elif finding.message == NOT_PART and not finding.file.endswith(".safetensors"):
            extra.append(finding.file)
    if extra:
        result.notes.append(f"files that the source does not have: {and_more(extra, 5)}")
    if apart:
        result.notes.append(f"side files that differ or are missing: {and_more(sorted(apart), 5)}")


def take_saved(compared: SavedComparison, result: _Result) -> None:
    result.findings += compared.findings
    result.trained += compared.trained
    result.notes += compared.notes
    result.active = compared.active
    result.originals, result.identical = compared.originals, compared.identical
    result.different = compared.different
    result.shared = compared.shared


def _read_config(out: Path) -> Mapping[str, object]:
    return parse_json_object((out / CONFIG_FILE).read_bytes(), CONFIG_FILE)
