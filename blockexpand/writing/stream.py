"""Write a plan's shards while the source's come one at a time, each deleted again once it is used.

An output file may take from several source shards: it grows pass by pass in the staging folder,
where its journal says what it holds already. Knows nothing of the Hub.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ..checkpoints.sources import ShardStream
from ..errors import SourceChangedError
from ..fs.io import attempt
from ..fs.journal import remove_journal
from ..fs.reading import FileStat, Place, describe_file
from ..planning.plan import Plan
from ..progress import Progress, Report
from .finished import is_finished, note_finished, take_back
from .shard import Moved, count_taken, count_unshared, find_sources_left, write_file
from .staging import Staging
from .tasks import FileTask


def write_from_stream(
    plan: Plan, staging: Staging, tasks: Sequence[FileTask], stream: ShardStream, progress: Progress
) -> Moved:
    """Write all planned shards; shards that nothing unfinished takes from are not fetched.

    Raises: HubError, TransferError, SourceChangedError.
    """
    moved = Moved()
    growing: list[_GrowingFile] = []
    for task in tasks:
        if is_finished(staging.files / task.name, staging.note(task.name), task.file.nbytes):
            moved += Moved(reused=task.file.nbytes)
            progress.advance(task.file.nbytes)
        else:
            take_back(staging.files / task.name, *staging.begun(task.name))
            growing.append(_GrowingFile(task, progress.advance))
    for file in growing:
        if not file.left:
            file.finish()
    needed = set[str]().union(*(file.left for file in growing))
    names = [file.name for file in plan.source_files if file.name in needed]
    sources = {file.name: file for file in plan.source_files}
    # What is fetched ahead lies where the output that is made of it will be.
    ahead = {name: sum(count_taken(file.file, name) for file in growing) for name in names}
    with closing(stream.fetch(names, staging.source, ahead)) as shards:
        for path in shards:
            progress.begin_file(path.name)
            for file in growing:
                if path.name in file.left:
                    file.add(path, sources[path.name])
            progress.end_file(path.name)
    return sum((file.moved for file in growing), start=moved)


class _GrowingFile:
    """An output file, and the source shards that it has still to take from."""

    def __init__(self, task: FileTask, report: Report) -> None:
        self.file = task.file
        self._task = task
        self._begun = task.staging.begun(task.name)
        self._report = report
        self._reported = 0
        self._lock = threading.Lock()
        self.moved = Moved()
        self.left = find_sources_left(task.file, self._begun, task.block_nbytes)

    def add(self, path: Path, planned: FileStat) -> None:
        """Write all that comes from one source shard."""
        status = attempt("read", path, os.stat, path)
        if status.st_size != planned.nbytes:
            raise SourceChangedError(
                f"{path}: expected {planned.nbytes} bytes, found {status.st_size}; run the same "
                "command again"
            )
        # The plan knows the shard as the Hub lists it, without a time of change.
        found = describe_file(planned.name, status)
        self._pass(Place(path.parent, {planned.name: found}))
        self.left.remove(planned.name)
        if not self.left:
            self.finish()

    def finish(self) -> None:
        """Give the file its place, once there is nothing left to take."""
        if not self.moved.copied + self.moved.converted:
            # Nothing but what the plan itself holds, or what an earlier run had written.
            self._pass(Place(self._begun.path.parent, {}))
        unshared = count_unshared(self.file, self._task.block_nbytes, shares=False)
        written = self.moved.copied + self.moved.converted
        self.moved += Moved(holes=self.file.nbytes - unshared, reused=unshared - written)
        staging, final = self._task.staging, self._task.staging.files / self.file.name
        attempt("rename", final, os.rename, self._begun.path, final)
        note_finished(final, staging.note(self.file.name))
        remove_journal(self._begun.journal)
        self._report(self.file.nbytes - self._reported)

    def _pass(self, sources: Place) -> None:
        self.moved += write_file(
            self.file,
            sources,
            self._begun,
            reflink="never",
            block_nbytes=self._task.block_nbytes,
            report=self._count,
            taking=frozenset(sources.files),
        )

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self._reported += nbytes
        self._report(nbytes)
