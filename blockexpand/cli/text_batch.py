"""Batches as text for a terminal and as JSON for scripts. It prints nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..api.batch import JobResult
from ..api.batch_plan import name_layers
from ..api.planned_job import Batch, PlannedJob
from ..messages import and_more, join_lines
from .text import expansion_as_json, plan_as_json, shorten_path
from .text_sizes import format_size

_LONGEST_OUT = 34


def describe_batch(batch: Batch, *, verbose: bool) -> str:
    """Return a dry run's text: a line per job, and what the disks need and have."""
    rows = [(*_columns(job), "finished" if job.is_finished else "to do") for job in batch.jobs]
    lines = make_table(("out", "layers", "position", "size", "state"), rows)
    for need in batch.disk:
        lines.append(
            f"needs {format_size(need.nbytes)}, {format_size(need.free)} free at {need.folder}"
        )
    lines += _notes([(job.out, note) for job in batch.jobs for note in job.plan.notes])
    return join_lines(lines)


def batch_as_json(batch: Batch) -> dict[str, Any]:
    """Return a dry run for scripts; sizes in bytes."""
    return {
        "dry_run": True,
        "jobs": [
            {"where": job.job.where, "finished": job.is_finished}
            | plan_as_json(job.plan, job.source.name, job.out)
            for job in batch.jobs
        ],
        "disk": [
            {"folder": str(need.folder), "nbytes": need.nbytes, "free_nbytes": need.free}
            for need in batch.disk
        ],
    }


def describe_results(results: Sequence[JobResult], *, verbose: bool) -> str:
    """Return a line per job, and in full what failed."""
    rows = [
        (*_columns(result.planned), f"{result.seconds:.1f} s", result.state) for result in results
    ]
    lines = make_table(("out", "layers", "position", "size", "time", "state"), rows)
    for result in results:
        if result.error is not None:
            lines.append(f"{result.planned.job.where}: {explain_error(result.error)}")
        elif result.expansion is not None and result.expansion.pushed is not None:
            lines.append(f"{result.planned.out}: uploaded: {result.expansion.pushed}")
    made = [result.expansion for result in results if result.expansion is not None]
    lines += _notes([(expansion.out, note) for expansion in made for note in expansion.notes])
    return join_lines(lines)


def results_as_json(results: Sequence[JobResult]) -> dict[str, Any]:
    """Return a batch's results for scripts."""
    return {
        "jobs": [
            {
                "where": result.planned.job.where,
                "out": str(result.planned.out),
                "state": result.state,
                "seconds": round(result.seconds, 3),
                "error": None if result.error is None else explain_error(result.error),
                "expansion": None
                if result.expansion is None
                else expansion_as_json(result.expansion),
            }
            for result in results
        ],
        "failed": sum(result.error is not None for result in results),
    }


def explain_error(error: Exception) -> str:
    """Return an error on one line; of one that nobody foresaw also what it is."""
    from ..errors import BlockExpandError

    said = " ".join(str(error).split())
    return said if isinstance(error, BlockExpandError) else f"{type(error).__name__}: {said}"


def _notes(notes: Sequence[tuple[Path, str]]) -> list[str]:
    """Return each note once, with the jobs that it holds for."""
    outs: dict[str, list[str]] = {}
    for out, note in notes:
        outs.setdefault(note, []).append(str(shorten_path(out)))
    return [f"note: {and_more(names, 3)}: {note}" for note, names in outs.items()]


def _shorten(path: Path) -> str:
    """Return the end of a path, so that a row fits into 80 columns."""
    text = str(path)
    return text if len(text) <= _LONGEST_OUT else f"…{text[1 - _LONGEST_OUT :]}"


def _columns(job: PlannedJob) -> tuple[str, str, str, str]:
    plan = job.plan
    return (
        _shorten(shorten_path(job.out)),
        f"{plan.original_layers} + {len(plan.new_layers)}",
        name_layers(job.job),
        format_size(plan.nbytes),
    )


def make_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines with the cells of each column under each other."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(f"{word:{width}}" for word, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
