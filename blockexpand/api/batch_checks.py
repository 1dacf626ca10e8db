"""The jobs of a batch held against each other: who gets into whose way, and whether the disk has
room for all of them. It only looks.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..fs.paths import FolderIndex, existing_folder
from ..writing.space import count_missing, shares_blocks, would_share
from ..writing.staging import find_staging
from ..writing.target import resolve_target
from .planned_job import DiskNeed, PlannedJob


def find_collisions(jobs: Sequence[PlannedJob]) -> list[str]:
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


def count_disk(jobs: Sequence[PlannedJob]) -> tuple[DiskNeed, ...]:
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
