"""A model made on the Hub as text and as JSON. It prints nothing itself."""

from __future__ import annotations

from typing import Any

from ..api.on_hub import HubResult
from ..messages import join_lines
from .text import describe_layers, plan_fields


def describe(result: HubResult, *, verbose: bool) -> str:
    """Return the plan, or the summary of what was done."""
    planned = result.done
    lines = describe_layers(planned.plan, planned.source.name)
    lines.append(planned.describe())
    if verbose:
        lines += [f"  {copy.name}  copy of {copy.source.name}" for copy in planned.copies]
        lines += [f"  {file.name}  made here" for file in planned.made]
    lines += [f"note: {note}" for note in (*planned.notes, *planned.plan.notes)]
    if result.pushed is not None:
        lines.append(f"committed, and held to the digests that were meant: {result.pushed}")
    return join_lines(lines)


def as_json(result: HubResult) -> dict[str, Any]:
    """Return the same for scripts; sizes in bytes."""
    planned = result.done
    return {
        **plan_fields(planned.plan, planned.source.name),
        "dry_run": result.pushed is None,
        "repo": result.repo,
        "pushed": result.pushed,
        "copies": {copy.name: copy.source.name for copy in planned.copies},
        "copied_nbytes": planned.copied_nbytes,
        "fetched_nbytes": planned.fetched_nbytes,
        "sent_nbytes": planned.sent_nbytes,
        "notes": [*planned.notes, *planned.plan.notes],
    }
