"""Many expansions from one jobs file: all planned and checked first, then written one by one.

Nothing is written before every job is known to fit: names, outputs, disk. It prints nothing.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sources import fetch_weights
from ..errors import BlockExpandError, OutputBusyError, OutputError
from ..fs.paths import expand_home
from ..progress import SILENT, Progress
from ..writing.shard import Moved
from .arguments import check_arguments
from .batch_plan import make_job_plan, name_plan, plan_batch
from .jobs_file import open_jobs
from .pipeline import Expansion, PlannedOutput, PublishOptions, verify_and_push, write_and_publish
from .planned_job import Batch, PlannedJob


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended: `done`, `skipped` (finished by an earlier run), `failed` or `not started`.

    `error` is set for those that failed.
    """

    planned: PlannedJob
    state: str
    seconds: float = 0.0
    expansion: Expansion | None = None
    error: Exception | None = None


def expand_batch(
    jobs_file: str | Path,
    *,
    fail_fast: bool = False,
    parallel: int = 1,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    executor: Executor | None = None,
    progress: Progress = SILENT,
) -> tuple[JobResult, ...]:
    """Make every expansion of a jobs file.

    `parallel` jobs run at the same time; after a failure the others go on unless `fail_fast`.
    `executor` writes the files of each job, as in `expand`.
    Raises: BlockExpandError with the faults of all jobs, before anything is written; what fails
    later is in the results.
    """
    check_arguments(locals())
    path = expand_home(jobs_file)
    batch = plan_batch(open_jobs(path), token=token, cache_dir=cache_dir, kept=(path,))
    return run_batch(
        batch, fail_fast=fail_fast, parallel=parallel, executor=executor, progress=progress
    )


def run_batch(
    batch: Batch,
    *,
    fail_fast: bool = False,
    parallel: int = 1,
    executor: Executor | None = None,
    progress: Progress = SILENT,
) -> tuple[JobResult, ...]:
    """Fetch what has to be fetched, then write; results are in the order of the jobs.

    Raises: KeyboardInterrupt that says how far the batch came.
    """
    run = _Run(batch, fail_fast, executor, progress)
    try:
        run.fetch()
        run.write(parallel)
    except KeyboardInterrupt as interrupt:
        done = sum(result.state in ("done", "skipped") for result in run.results.values())
        said = f"{interrupt}; " if str(interrupt) else ""
        raise KeyboardInterrupt(
            f"{said}{done} of {len(batch.jobs)} jobs are done: run the same command again to go on"
        ) from None
    return tuple(
        run.results.get(index) or JobResult(planned=planned, state="not started")
        for index, planned in enumerate(batch.jobs)
    )


# Between two looks whether another run has ended.
_WAIT_SECONDS = 1.0


class _Stopped(BlockExpandError):
    """Ends the other jobs of a batch that was interrupted; nobody sees it."""


class _Run:
    """One run of a batch; `results` maps a job's index to how it ended."""

    def __init__(
        self, batch: Batch, fail_fast: bool, executor: Executor | None, progress: Progress
    ) -> None:
        self._jobs = list(batch.jobs)
        self._fail_fast = fail_fast
        self._executor = executor
        self._progress = progress
        self._checkpoints: dict[int, Checkpoint] = {}
        self._failed = threading.Event()
        self._stopped = threading.Event()
        self._busy: set[int] = set()
        self.results: dict[int, JobResult] = {}

    def fetch(self) -> None:
        """Download each source that a job needs, once; fail the jobs of one that cannot be."""
        errors: dict[int, Exception] = {}
        for index, planned in enumerate(self._jobs):
            source = planned.source
            if planned.is_finished and planned.job.verify is None:
                continue
            if self._is_over():
                return
            if id(source) not in self._checkpoints and id(source) not in errors:
                try:
                    self._checkpoints[id(source)] = (
                        source.checkpoint
                        if source.snapshot is None
                        else fetch_weights(source, planned.hub, self._progress)
                    )
                except Exception as error:
                    errors[id(source)] = error
            if id(source) in errors:
                self._end(
                    index, JobResult(planned=planned, state="failed", error=errors[id(source)])
                )

    def write(self, parallel: int) -> None:
        left = [index for index in range(len(self._jobs)) if index not in self.results]
        self._progress.begin("writing", sum(self._nbytes(self._jobs[index]) for index in left))
        if parallel == 1:
            for index in left:
                self._do(index)
        else:
            self._write_at_once(left, parallel)
        # What another run was at work on may be finished by now; else this one waits for it.
        while self._busy and not self._is_over():
            waiting, self._busy = sorted(self._busy), set()
            self._progress.tell(
                f"{self._jobs[waiting[0]].out}: another run is writing it; waiting until it ends"
            )
            self._stopped.wait(_WAIT_SECONDS)
            for index in waiting:
                self._do(index, again=True)

    def _write_at_once(self, left: list[int], parallel: int) -> None:
        with ThreadPoolExecutor(parallel) as pool:
            futures = [pool.submit(self._do, index) for index in left]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                # What is being written ends at its next piece, and leaves its parts for a rerun.
                self._stopped.set()
                raise

    def _do(self, index: int, *, again: bool = False) -> None:
        if self._is_over():
            return
        planned = self._jobs[index]
        start = time.monotonic()
        self._progress.begin_job(str(planned.out))
        try:
            planned = (planned.find_finished() if again else None) or planned
            expansion = self._expand(planned)
        except _Stopped:
            return
        except OutputBusyError:
            self._busy.add(index)
            return
        except OutputError as error:
            # Another run of this batch may have finished the job since it was planned.
            finished = planned.find_finished()
            if finished is None or planned.is_finished:
                result = JobResult(planned=planned, state="failed", error=error)
            else:
                # What follows, a proof or an upload, is done as for any finished job.
                self._jobs[index] = finished
                return self._do(index)
        except Exception as error:
            result = JobResult(planned=planned, state="failed", error=error)
        else:
            state = "skipped" if planned.is_finished else "done"
            result = JobResult(planned=planned, state=state, expansion=expansion)
        self._end(index, replace(result, seconds=time.monotonic() - start))

    def _expand(self, planned: PlannedJob) -> Expansion:
        job, source = planned.job, planned.source
        publish = PublishOptions(
            verify=job.verify,
            push_to_hub=job.push_to_hub,
            private=job.private,
            token=planned.hub.token,
            own_code=job.trust_remote_code,
        )
        progress = Progress(
            advance=self._report,
            stage=self._progress.stage,
            begin_file=self._progress.begin_file,
            end_file=self._progress.end_file,
            tell=self._progress.tell,
        )
        checkpoint = self._checkpoints.get(id(source), source.checkpoint)
        if planned.is_finished:
            # Nothing in an output says whether it was proven and uploaded: that is done again.
            expansion = Expansion(
                out=planned.out,
                source=source.name,
                plan=planned.plan,
                moved=Moved(reused=planned.plan.nbytes),
                notes=(*planned.plan.notes, f"already there: {planned.compared}"),
            )
            return verify_and_push(checkpoint, expansion, publish, progress)
        plan = planned.plan
        if source.snapshot is not None:
            plan = name_plan(make_job_plan(planned, checkpoint), job, source)
            plan = replace(plan, notes=planned.plan.notes)
        output = PlannedOutput(checkpoint=checkpoint, name=source.name, plan=plan, out=planned.out)
        return write_and_publish(output, planned.options, publish, progress, self._executor)

    def _report(self, nbytes: int) -> None:
        if self._stopped.is_set():
            raise _Stopped
        self._progress.advance(nbytes)

    def _end(self, index: int, result: JobResult) -> None:
        self.results[index] = result
        self._progress.end_job(str(result.planned.out), result.state)
        if result.error is not None:
            self._failed.set()

    def _is_over(self) -> bool:
        return self._stopped.is_set() or (self._fail_fast and self._failed.is_set())

    def _nbytes(self, planned: PlannedJob) -> int:
        written = 0 if planned.is_finished else planned.plan.nbytes
        proven = 0
        if planned.job.verify is not None:
            proven = sum(file.nbytes - len(file.header) for file in planned.plan.files)
            proven += sum(file.nbytes for file in planned.plan.side_files)
        return written + proven
