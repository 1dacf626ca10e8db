"""Plans and results as text for a terminal and as JSON for scripts. It prints nothing itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..api.pipeline import Expansion
from ..api.readiness import Preview
from ..checkpoints.sources import ModelRef
from ..fs.paths import existing_folder, expand_home
from ..messages import and_more, join, join_lines
from ..planning.layer_text import describe_neutral, layer_runs
from ..planning.parameters import Parameters, count_parameters, describe_parameters
from ..planning.plan import Plan
from ..planning.segments import Tally, tally_file
from ..writing.shard import Moved
from .text_sizes import format_duration, format_size
from .text_verification import describe_proof, verification_as_json

# For an estimate, no promise: a disk of today, and one core that converts.
_COPIED_NBYTES_PER_SECOND = 1_000_000_000

_COMPUTED_NBYTES_PER_SECOND = 500_000_000


def describe_plan(plan: Plan, name: ModelRef, out: Path, *, verbose: bool) -> str:
    """Return the dry run's text: layer map, a line per output file, sizes, free disk."""
    lines = [*describe_layers(plan, name), ""]
    width = max(len(file.name) for file in plan.files)
    total = Tally()
    for file in plan.files:
        tally = tally_file(file)
        total += tally
        lines.append(f"  {file.name:{width}}  {format_size(file.nbytes):>8}  {_parts(tally)}")
    small = len(plan.documents) + len(plan.side_files)
    nbytes = plan.nbytes - sum(file.nbytes for file in plan.files)
    lines.append(f"  {f'{small} small files':{width}}  {format_size(nbytes):>8}")
    if verbose:
        lines += [f"    {document.name} (new)" for document in plan.documents]
        lines += [f"    {file.name}" for file in plan.side_files]
    lines.append("")
    lines.append(f"total {format_size(plan.nbytes)}: {_parts(total)}")
    lines.append(f"free  {format_size(_free(out))} at {existing_folder(expand_home(out))}")
    lines += _remarks(plan.notes, plan.left_behind)
    return join_lines(lines)


def plan_as_json(plan: Plan, name: ModelRef, out: Path) -> dict[str, Any]:
    """Return the dry run for scripts; sizes in bytes, layers count from 0."""
    return {
        "dry_run": True,
        **plan_fields(plan, name),
        "out": str(out),
        "files": [
            {"name": file.name, "nbytes": file.nbytes, "identical_to": file.identical_to}
            | _tally_fields(tally_file(file))
            for file in plan.files
        ],
        "small_files": [document.name for document in plan.documents]
        + [file.name for file in plan.side_files],
        "free_nbytes": _free(out),
        "notes": list(plan.notes),
    }


def describe_preview(preview: Preview, out: Path, *, verbose: bool) -> str:
    """Return a dry run's text, with what is known of the writing."""
    text = describe_plan(preview.plan, preview.source, out, verbose=verbose)
    lines = [] if preview.finished is None else [preview.finished]
    write = preview.write
    if write is not None:
        lines.append(f"moves {_moved(preview.moved)}; {_time(preview.moved)}")
        if write.needed is not None:
            lines.append(f"needs {format_size(write.needed)} on the disk")
        if write.found:
            lines.append(f"goes on with {format_size(write.found)} that an earlier run finished")
        if write.replaced is not None:
            gone = write.replaced
            lines.append(
                f"replaces {gone.files} files, {format_size(gone.nbytes)}, in {gone.folder}: "
                + and_more(gone.names, 20)
            )
    return "\n".join([text, join_lines(lines)] if lines else [text])


def preview_as_json(preview: Preview, out: Path) -> dict[str, Any]:
    """Return a dry run for scripts, with what is known of the writing."""
    write = preview.write
    gone = None if write is None else write.replaced
    return plan_as_json(preview.plan, preview.source, out) | {
        "already_there": preview.finished,
        "would_move": _moved_fields(preview.moved),
        "estimated_seconds": round(_seconds(preview.moved), 1),
        "needed_nbytes": None if write is None else write.needed,
        "found_nbytes": None if write is None else write.found,
        "linked_nbytes": None if write is None else write.linked,
        "shares_blocks": None if write is None else write.shares,
        "replaces": None
        if gone is None
        else {"files": gone.files, "nbytes": gone.nbytes, "names": list(gone.names)},
    }


def describe_expansion(result: Expansion, *, verbose: bool) -> str:
    """Return the summary of a finished expansion."""
    plan = result.plan
    lines = describe_layers(plan, result.source)
    if verbose:
        lines += [f"  {file.name}  {format_size(file.nbytes)}" for file in plan.files]
        lines += [f"  {document.name}" for document in plan.documents]
        lines += [f"  {file.name}" for file in plan.side_files]
    lines.append(f"{shorten_path(result.out)}: {format_size(plan.nbytes)}, {_moved(result.moved)}")
    if result.verification is not None:
        lines.append(describe_proof(result.verification, result.proof))
    if result.pushed is not None:
        lines.append(f"uploaded: {result.pushed}")
    lines += _remarks(result.notes, plan.left_behind)
    return join_lines(lines)


def expansion_as_json(result: Expansion) -> dict[str, Any]:
    """Return a finished expansion for scripts."""
    return {
        **plan_fields(result.plan, result.source),
        "out": str(result.out),
        "files": [{"name": file.name, "nbytes": file.nbytes} for file in result.plan.files],
        "moved": _moved_fields(result.moved),
        "verified": None
        if result.verification is None
        else verification_as_json(result.verification, result.proof, result.out),
        "pushed": result.pushed,
        "notes": list(result.notes),
    }


def plan_fields(plan: Plan, name: ModelRef) -> dict[str, Any]:
    """Return what every result says of its plan, for scripts."""
    return {
        "source": {"model": name.model, "repo": name.repo, "commit": name.commit},
        "model_type": plan.model_type,
        "original_layers": plan.original_layers,
        "layers": len(plan.layer_map),
        "layer_map": [entry.source for entry in plan.layer_map],
        "new_layers": list(plan.new_layers),
        "keeps_function": None if plan.is_unproven else plan.keeps_function,
        "readers": [
            {
                "reader": view.reader,
                "versions": view.versions,
                "period": view.period,
                "field": view.field,
                "same_function": view.same_function,
                "moved_layers": list(view.moved),
                "untrue_new_layers": list(view.untrue),
            }
            for view in plan.readers
        ],
        "neutral": dict(plan.neutral),
        "dtype": plan.dtype,
        "nbytes": plan.nbytes,
        "position": plan.options.position,
        "parameters": parameters_as_json(count_parameters(plan)),
        "left_behind": list(plan.left_behind),
        "fingerprint": plan.fingerprint,
    }


def parameters_as_json(parameters: Parameters) -> dict[str, Any]:
    """Return counts of parameters for scripts; the share is None where it cannot be told."""
    return {
        "total": parameters.total,
        "new": parameters.new,
        "new_share": parameters.new_share,
        "packed_nbytes": parameters.packed_nbytes,
        "new_packed_nbytes": parameters.new_packed_nbytes,
    }


def describe_layers(plan: Plan, name: ModelRef) -> list[str]:
    """Return the lines that say what is made of which layers."""
    return [_headline(plan, name), *_layer_lines(plan)]


def _headline(plan: Plan, name: ModelRef) -> str:
    if plan.adapters:
        return (
            f"{name.model} ({plan.model_type}): {plan.original_layers} layers + "
            f"{len(plan.new_layers)} of {join(plan.adapters)} = {len(plan.layer_map)}, {plan.dtype}"
        )
    if not plan.keeps_function:
        return (
            f"{name.model} ({plan.model_type}): {len(plan.layer_map)} layers in an order that "
            f"changes what the model computes, {plan.dtype}"
        )
    return (
        f"{name.model} ({plan.model_type}): {plan.original_layers} layers + "
        f"{len(plan.new_layers)} new = {len(plan.layer_map)}, {plan.dtype}"
    )


def _layer_lines(plan: Plan) -> list[str]:
    lines = []
    for first, last, source, is_new in layer_runs(plan.layer_map):
        layers = f"layer  {first}" if first == last else f"layers {first}-{last}"
        origin = f"{source}" if first == last or is_new else f"{source}-{source + last - first}"
        model = plan.layer_map[first].model
        of = f" of {plan.name_model(model)}" if model else ""
        how = "from " if not is_new else "trained block, on " if plan.adapters else "new, clone of "
        lines.append(f"  {layers:14} {how}{origin}{of}")
    if plan.adapters and not plan.keeps_function:
        return lines
    zeroed = [suffix for suffix, constant in describe_neutral(plan.neutral) if constant == 0]
    changed = [f"{s} = {c:g}" for s, c in describe_neutral(plan.neutral) if c]
    if zeroed:
        lines.append(f"  zeroed in each new layer: {', '.join(zeroed)}")
    if changed:
        lines.append(f"  set in each new layer: {', '.join(changed)}")
    lines.append(f"  {describe_parameters(count_parameters(plan))}")
    if plan.is_unproven:
        lines.append("  whether it computes what its source computes is NOT PROVEN")
        return lines
    lines.append(
        "  it computes exactly what its source computes"
        if plan.keeps_function
        else "  it does NOT compute what its source computes: layers are repeated, dropped or moved"
    )
    return lines


def _parts(tally: Tally) -> str:
    names = {
        "copied": tally.copied,
        "converted": tally.converted,
        "zeroed": tally.zeroed,
        "set": tally.filled,
        "scaled": tally.scaled,
    }
    return ", ".join(f"{format_size(n)} {name}" for name, n in names.items() if n) or "empty"


def _tally_fields(tally: Tally) -> dict[str, int]:
    return {
        "copied": tally.copied,
        "converted": tally.converted,
        "zeroed": tally.zeroed,
        "filled": tally.filled,
        "scaled": tally.scaled,
    }


def _moved_fields(moved: Moved) -> dict[str, int]:
    return {
        "shared": moved.shared,
        "copied": moved.copied,
        "converted": moved.converted,
        "holes": moved.holes,
        "linked": moved.linked,
        "reused": moved.reused,
    }


def _seconds(moved: Moved) -> float:
    """Estimate the moving; how fast a disk is, only the run tells."""
    return moved.copied / _COPIED_NBYTES_PER_SECOND + moved.converted / _COMPUTED_NBYTES_PER_SECOND


def _time(moved: Moved) -> str:
    seconds = _seconds(moved)
    if seconds < 1:
        return format_duration(seconds)
    return f"about {format_duration(seconds)} where the disk moves 1 GB/s"


def _moved(moved: Moved) -> str:
    names = {
        "shared with the source": moved.shared,
        "linked to the source": moved.linked,
        "copied": moved.copied,
        "converted": moved.converted,
        "of zeros stored sparsely (no disk used)": moved.holes,
        "kept from an earlier run": moved.reused,
    }
    return ", ".join(f"{format_size(n)} {name}" for name, n in names.items() if n)


def _remarks(notes: tuple[str, ...], left_behind: tuple[str, ...]) -> list[str]:
    lines = [f"note: {note}" for note in notes]
    if left_behind:
        lines.append(
            f"note: left behind, other weights and what belongs to them: {and_more(left_behind, 5)}"
        )
    return lines


def shorten_path(out: Path) -> Path:
    """Return a path as a user would type it here."""
    return out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out


def _free(out: Path) -> int:
    return shutil.disk_usage(existing_folder(expand_home(out))).free
