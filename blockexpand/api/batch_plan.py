"""The jobs of a batch, planned and checked together, also against each other.

Only headers are read: whatever can be known to fail is told before the first byte is written. It
prints nothing and writes nothing but nameless probes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sources import HubOptions, OpenedSource, open_headers
from ..errors import BlockExpandError, OutputError, RecipeError
from ..fs.paths import FolderIndex, existing_folder, expand_home
from ..models.layer_map import parse_layers
from ..planning.card import add_card, draft_card
from ..planning.plan import Plan, make_plan
from ..planning.recipe import Recipe, render_command, spell_position
from ..writing.leftovers import clear_debris
from ..writing.preflight import check_write
from ..writing.space import count_missing, shares_blocks, would_share
from ..writing.staging import find_staging
from ..writing.target import WriteOptions, resolve_target
from .finished import find_finished
from .jobs_file import Job, fill_template
from .options import make_hub_options, make_recipe, make_write_options, name_base
from .rows import check_row, choose_source_row


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """A job with its names filled in, its plan, and whether an earlier run has finished it.

    `compared` says how that was told; `kept` are files that no output may replace.
    """

    job: Job
    out: Path
    source: OpenedSource
    plan: Plan
    hub: HubOptions
    is_finished: bool
    compared: str | None = None
    kept: tuple[Path, ...] = ()

    @property
    def options(self) -> WriteOptions:
        job = self.job
        return make_write_options(job.reflink, job.hardlink, job.overwrite, None, self.kept)

    def find_finished(self) -> PlannedJob | None:
        """Return the job as finished, if by now it is."""
        is_here = self.source.snapshot is None
        found = find_finished(self.plan, self.out, self.source.name, is_here=is_here)
        if found is None or found.stale is not None:
            return None
        return replace(self, is_finished=True, compared=found.compared)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """What all jobs together need of a file system, named by a folder on it, and what is free."""

    folder: Path
    nbytes: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Jobs that can all be done, as far as can be known before."""

    jobs: tuple[PlannedJob, ...]
    disk: tuple[DiskNeed, ...]


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
    faults |= {fault: RecipeError(fault) for fault in _find_collisions(planned)}
    if faults:
        # Wrong values go before what could not be done: no rerun mends them.
        first = min(faults.values(), key=lambda error: error.status)
        raise (RecipeError if first.status == 2 else type(first))("; ".join(faults))
    disk = _count_disk(planned)
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
        return spell_position(job.position, separator)
    return job.layers if separator == "," else job.layers.replace(",", "_").replace("*", "x")


def _base_name(src: str, source: OpenedSource) -> str:
    if source.snapshot is not None:
        return source.snapshot.repo_id.rpartition("/")[2]
    return Path(os.path.realpath(expand_home(src))).name


def _find_collisions(jobs: Sequence[PlannedJob]) -> list[str]:
    """Return what of the jobs gets into the way of others, each job compared with the first such.

    Every folder is looked at once, however many jobs there are.
    """
    faults: dict[str, None] = {}
    outs: FolderIndex[int] = FolderIndex()
    roots: FolderIndex[Path] = FolderIndex()
    sources: dict[Path, str] = {}
    uploads: dict[str, int] = {}
    for index, job in enumerate(jobs):
        outs.add(job.out, index)
        if job.source.snapshot is None:
            root = resolve_target(job.plan.root)
            if root not in sources:
                sources[root] = job.job.where
                roots.add(root, root, below=False)
    for index, one in enumerate(jobs):
        where = one.job.where
        for found in outs.find(one.out):
            if found == index:
                continue
            first, later = jobs[min(found, index)], jobs[max(found, index)]
            does = (
                f"is also the output of {first.job.where}"
                if first.out == later.out
                else f"lies inside, or around, {first.out} of {first.job.where}"
            )
            faults[f"{later.job.where}: {later.out}: {does}"] = None
        for root in roots.find(one.out):
            faults[_blame_source(one, root, sources[root])] = None
        repo = one.job.push_to_hub
        if repo is not None and uploads.setdefault(repo, index) != index:
            other = jobs[uploads[repo]].job.where
            faults[f"{where}: uploads to {repo}, as {other} does"] = None
    for root, where in sources.items():
        for found in outs.find(root):
            faults[_blame_source(jobs[found], root, where)] = None
    return list(faults)


def _blame_source(job: PlannedJob, root: Path, where: str) -> str:
    return f"{job.job.where}: {job.out}: lies inside, or around, {root}, the source of {where}"


def _count_disk(jobs: Sequence[PlannedJob]) -> tuple[DiskNeed, ...]:
    """Sum up, for every file system, what all jobs together write and fetch."""
    needs: dict[int, tuple[Path, int]] = {}

    def add(folder: Path, nbytes: int) -> None:
        device = folder.stat().st_dev
        first, sum_ = needs.get(device, (folder, 0))
        needs[device] = first, sum_ + nbytes

    fetched: set[int] = set()
    for job in jobs:
        if job.is_finished:
            continue
        folder = existing_folder(job.out.parent)
        options = job.options
        if job.source.snapshot is None:
            shares = shares_blocks(job.plan, folder, reflink=options.reflink)
        else:
            from ..checkpoints.hub.client import cache_folder
            from ..checkpoints.hub.download import count_uncached

            cache = existing_folder(cache_folder(job.hub.cache_dir))
            shares = would_share(cache, folder, reflink=options.reflink)
            if id(job.source) not in fetched:
                fetched.add(id(job.source))
                names = [file.name for file in job.plan.source_files + job.plan.side_files]
                add(cache, count_uncached(job.source.snapshot, names, job.hub.cache_dir))
        staging = find_staging(job.out, job.plan.fingerprint)
        missing = count_missing(job.plan, staging, hardlink=options.hardlink, shares=shares)
        add(folder, missing)
    return tuple(
        DiskNeed(folder=folder, nbytes=nbytes, free=shutil.disk_usage(folder).free)
        for folder, nbytes in needs.values()
    )
