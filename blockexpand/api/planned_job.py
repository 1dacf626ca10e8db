"""A job of a batch with its plan, and what is known of a whole batch before it begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.sources import HubOptions, OpenedSource
from ..planning.plan import Plan
from ..writing.target import WriteOptions
from .finished import find_finished
from .jobs_file import Job
from .options import make_write_options


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
