"""The jobs of a batch, planned together.

Only headers are read: whatever can be known to fail is told before the first byte is written. It
prints nothing and writes nothing but nameless probes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sources import HubOptions, OpenedSource, open_headers
from ..errors import BlockExpandError, OutputError, RecipeError
from ..fs.paths import expand_home
from ..models.layer_map import parse_layers
from ..planning.card import add_card, draft_card
from ..planning.plan import Plan, make_plan
from ..planning.ranks import MARK
from ..planning.recipe import Recipe, render_command, spell_position
from ..writing.leftovers import clear_debris
from ..writing.preflight import check_write
from ..writing.target import resolve_target
from .batch_checks import count_disk, find_collisions
from .finished import find_finished
from .job_options import fill_template
from .jobs_file import Job
from .options import make_hub_options, make_recipe, name_base
from .planned_job import Batch, PlannedJob
from .rows import check_row, choose_source_row


@dataclass(frozen=True, slots=True)
class Plans:
    """What jobs have in common that differ in their outputs alone, by the source's identity and the
    recipe: one plan with one draft of its card, and the row that was proven for it."""

    plans: dict[tuple[int, Recipe, str | None], tuple[Plan, Callable[[str], Plan]]] = field(
        default_factory=dict
    )
    rows: dict[tuple[int, Recipe, str | None, bool, bool], Recipe] = field(default_factory=dict)


def plan_batch(
    jobs: Sequence[Job],
    *,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    kept: tuple[Path, ...] = (),
) -> Batch:
    """Plan all jobs and check them, also against each other; of the Hub only headers are fetched.

    Each source is opened once; `kept` are files that no output may replace.
    Raises: an error with all faults on one line, of the class of the first that is about values,
    else of the first; OutputError where the disk has no room for all jobs together.
    """
    sources: dict[tuple[str, HubOptions], OpenedSource | BlockExpandError] = {}
    plans = Plans()
    account: dict[str, Any] | None = None
    faults: dict[str, BlockExpandError] = {}
    planned: list[PlannedJob] = []
    for job in jobs:
        hub = make_hub_options(job.revision, token, cache_dir)
        key = job.src, hub
        if key not in sources:
            try:
                sources[key] = open_headers(job.src, hub)
            except BlockExpandError as error:
                sources[key] = error
        source = sources[key]
        try:
            if isinstance(source, BlockExpandError):
                raise source
            one = _plan_job(job, source, hub, plans, kept)
            planned.append(one)
            if one.job.push_to_hub is not None:
                from ..publishing.target import check_push

                # The owner of the token is the same for all jobs, and may not be asked for often.
                account = check_push(one.job.push_to_hub, token=token, account=account)
        except BlockExpandError as error:
            faults[f"{job.where}: {error}"] = error
    faults |= {fault: RecipeError(fault) for fault in find_collisions(planned)}
    if faults:
        # Wrong values go before what could not be done: no rerun mends them.
        first = min(faults.values(), key=lambda error: error.status)
        raise (RecipeError if first.status == 2 else type(first))("; ".join(faults))
    disk = count_disk(planned)
    for need in disk:
        if need.nbytes > need.free:
            raise OutputError(
                f"{need.folder}: not enough disk for all jobs together: {need.nbytes:,} bytes to "
                f"write, {need.free:,} free; free some space or write some of them elsewhere"
            )
    return Batch(jobs=tuple(planned), disk=disk)


def _plan_job(
    job: Job, source: OpenedSource, hub: HubOptions, plans: Plans, kept: tuple[Path, ...]
) -> PlannedJob:
    # The names need the plan, and the plan needs the file system that the names lie on.
    draft, _ = _plan_once(job, source, hub, Path.cwd(), plans)
    values = {
        "model": _base_name(job.src, source),
        "layers": str(len(draft.layer_map)),
        "new-layers": str(len(draft.new_layers)),
        "position": name_layers(job, "-"),
        "dtype": draft.dtype if job.dtype is None else job.dtype,
    }
    job = replace(
        job,
        out=fill_template(job.out, values),
        push_to_hub=None if job.push_to_hub is None else fill_template(job.push_to_hub, values),
    )
    out = resolve_target(expand_home(job.out))
    plan, add_card_with = _plan_once(job, source, hub, out, plans)
    planned = PlannedJob(
        job=job,
        out=out,
        source=source,
        plan=add_card_with(_show_command(plan, job)),
        hub=hub,
        is_finished=False,
        kept=kept,
    )
    clear_debris(out)
    is_here = source.snapshot is None
    found = find_finished(plan, out, source.name, is_here=is_here)
    if found is not None and found.stale is not None:
        if not job.overwrite:
            raise OutputError(
                f"{out}: {found.stale}; choose another folder (overwrite: true would replace what "
                "is there, trained or not)"
            )
        found = None
    if found is not None:
        planned = replace(planned, is_finished=True, compared=found.compared)
    else:
        # The room is counted for all jobs together.
        check_write(planned.plan, out, planned.options, is_here=is_here)
    if job.check and not planned.is_finished:
        note = check_row(source.checkpoint, plan)
        planned = replace(planned, plan=replace(planned.plan, notes=(*plan.notes, note)))
    return planned


def make_job_plan(planned: PlannedJob, checkpoint: Checkpoint) -> Plan:
    """Plan a job's output anew with the source's files, but for its card."""
    recipe = _make_recipe(planned.job, planned.out)
    options = planned.plan.options
    return make_plan(checkpoint, replace(recipe, row=options.row, row_proof=options.row_proof))


def _plan_once(
    job: Job, source: OpenedSource, hub: HubOptions, out: Path, plans: Plans
) -> tuple[Plan, Callable[[str], Plan]]:
    recipe = _make_recipe(job, out)
    # No proof depends on the file system of an output.
    asked = replace(recipe, block_nbytes=0, max_shard_nbytes=None)
    row_key = id(source), asked, job.family, job.no_proof, job.trust_remote_code
    if row_key not in plans.rows:
        plans.rows[row_key] = choose_source_row(
            source,
            hub,
            recipe,
            job.family,
            needs_proof=not job.no_proof,
            own_code=job.trust_remote_code,
        )
    chosen = plans.rows[row_key]
    recipe = replace(recipe, row=chosen.row, row_proof=chosen.row_proof)
    key = id(source), recipe, job.base_model
    if key not in plans.plans:
        plan = make_plan(source.checkpoint, recipe)
        plans.plans[key] = plan, draft_card(plan, name_base(source.name, job.base_model))
    return plans.plans[key]


def _make_recipe(job: Job, out: Path) -> Recipe:
    return make_recipe(
        out,
        job.new_layers,
        job.position,
        job.dtype,
        job.max_shard_size,
        job.phase,
        job.layers,
        job.quantized,
    )


def name_plan(plan: Plan, job: Job, source: OpenedSource) -> Plan:
    """Add the card, which shows the command that makes the same."""
    return add_card(plan, name_base(source.name, job.base_model), _show_command(plan, job))


def _show_command(plan: Plan, job: Job) -> str:
    recipe = Recipe(
        new_layers=len(plan.new_layers),
        position=job.position,
        dtype=job.dtype,
        keeps_phase=job.phase == "keep",
        layers=None if job.layers is None else parse_layers(job.layers),
        quantized=job.quantized,
        row=plan.options.row,
    )
    return render_command(job.src, job.out, recipe, job.max_shard_size)


def name_layers(job: Job, separator: str = ",") -> str:
    """Return where a job's blocks go, as it is typed, or, with `-`, as part of a file's name."""
    if job.layers is None:
        if separator != "," and isinstance(job.position, str) and job.position.startswith(MARK):
            return Path(job.position.removeprefix(MARK)).stem
        return spell_position(job.position, separator)
    return job.layers if separator == "," else job.layers.replace(",", "_").replace("*", "x")


def _base_name(src: str, source: OpenedSource) -> str:
    if source.snapshot is not None:
        return source.snapshot.repo_id.rpartition("/")[2]
    return Path(os.path.realpath(expand_home(src))).name
