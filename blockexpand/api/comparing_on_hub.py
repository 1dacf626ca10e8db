"""Compare the files of an output on the Hub with their plan, each in the cheapest way to prove it.

By digests where a file has to be a copy; else it is read, one shard at a time, held to its own
digest, and compared with the ranges of the source that it is made of.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..checkpoints import hub
from ..checkpoints.checkpoint import Shard
from ..checkpoints.hub.digests import describe_path
from ..checkpoints.hub.files import RepoFile, RepoSnapshot
from ..checkpoints.sources import HubOptions
from ..errors import HubError
from ..formats.json_object import MOST_JSON_NBYTES
from ..formats.safetensors import read_header
from ..fs.reading import describe_file
from ..planning.plan import Plan
from ..planning.shards import PlannedFile, PlannedTensor
from ..progress import SILENT, Progress
from ..verification.findings import FileProof, Finding
from ..verification.folder import compare_documents
from ..verification.repository import (
    RepositoryFindings,
    compare_shard,
    find_original,
    has_same_digest,
)
from .shard_sources import bring_sources, take_alone


@dataclass(slots=True, kw_only=True)
class Side:
    """One side of the comparison; `folder` is None where it lies on the Hub."""

    snapshot: RepoSnapshot | None
    folder: Path | None
    known: dict[str, RepoFile] = field(default_factory=dict)

    def describe(self, name: str, progress: Progress) -> RepoFile:
        """Return a file with its digests: as the Hub lists it, or worked out here."""
        if self.folder is None:
            assert self.snapshot is not None
            return self.snapshot.file(name)
        if name not in self.known:
            self.known[name] = describe_path(name, self.folder / name, progress.advance)
        return self.known[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every step of a proof needs. `folder` is its own, for a shard at a time."""

    plan: Plan
    mine: Side
    snapshot: RepoSnapshot
    folder: Path
    options: HubOptions
    progress: Progress
    untrained: bool
    result: RepositoryFindings = field(default_factory=RepositoryFindings)


def read_documents(work: Work) -> tuple[Path, FileProof]:
    """Fetch config, index, card and manifest, compare them; return where they are."""
    listed = {file.name for file in work.snapshot.files}
    folder = work.folder / "documents"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = [document.name for document in work.plan.documents if document.name in listed]
    for name in names:
        (folder / name).write_bytes(fetch_small(work.snapshot, name, work.options))
    work.result.findings += compare_documents(work.plan, folder)
    nbytes = sum(path.stat().st_size for path in folder.iterdir())
    return folder, FileProof(by="read", files=tuple(names), nbytes=nbytes)


def find_copies(
    work: Work,
    planned: Mapping[str, PlannedTensor],
    sources: tuple[Shard, ...],
    shards: tuple[Shard, ...],
) -> tuple[list[Shard], list[Shard]]:
    """Tell shards that digests prove to be copies from those that have to be read."""
    copied: list[Shard] = []
    left: list[Shard] = []
    is_here = work.mine.folder is not None
    work.progress.begin("comparing", sum(s.file.nbytes for s in sources) if is_here else 0)
    for shard in shards:
        original = find_original(shard, planned, sources)
        if original is None or not has_same_digest(
            work.mine.describe(original.file.name, work.progress),
            work.snapshot.file(shard.file.name),
        ):
            left.append(shard)
            continue
        copied.append(shard)
        if original.header_bytes != shard.header_bytes:
            message = "the Hub gives another header than the file has whose digest it lists"
            work.result.findings.append(Finding(file=shard.file.name, message=message))
    return copied, left


def compare_side_files(work: Work) -> list[FileProof]:
    """Compare what is copied from the source beside the weights; say how each was proven."""
    listed = {file.name: file for file in work.snapshot.files}
    by: dict[str, list[RepoFile]] = {"digest": [], "read": []}
    for name in [file.name for file in work.plan.side_files if file.name in listed]:
        theirs, way = listed[name], "digest"
        same = has_same_digest(work.mine.describe(name, SILENT), theirs)
        mine = work.mine.snapshot
        if same is None and mine is not None and theirs.nbytes <= MOST_JSON_NBYTES:
            way = "read"
            same = fetch_small(work.snapshot, name, work.options) == fetch_small(
                mine, name, work.options
            )
        if same:
            by[way].append(theirs)
            continue
        message = "is another file than the source's"
        if same is None:
            message = "could not be compared: the Hub lists no digest of it"
        work.result.findings.append(Finding(file=name, message=message))
    return [
        FileProof(
            by=way,
            files=tuple(file.name for file in files),
            nbytes=sum(file.nbytes for file in files),
        )
        for way, files in by.items()
    ]


def read_shard(work: Work, shard: Shard, placed: tuple[PlannedTensor, ...]) -> None:
    """Fetch a shard, and what it is made of, compare them, and delete them again."""
    file, repo = as_planned(shard, placed), work.snapshot.repo_id
    if work.mine.folder is not None:
        alone = take_alone(work.plan, file)
    else:
        assert work.mine.snapshot is not None
        place = work.folder / "source"
        alone = bring_sources(work.plan, file, work.mine.snapshot, work.options, place)
    stream = hub.stream_shards(
        work.snapshot,
        [shard.file.name],
        work.folder / "output",
        token=work.options.token,
        cache_dir=work.options.cache_dir,
        tell=work.options.tell,
    )
    with closing(stream) as paths:
        for path in paths:
            with path.open("rb") as opened:
                status = os.fstat(opened.fileno())
                header_bytes = read_header(opened, status.st_size)
            if header_bytes != shard.header_bytes:
                raise HubError(
                    f"{repo}: {shard.file.name}: the Hub gives another header in a range than in "
                    "the whole file; do not use it"
                )
            here = replace(shard, file=describe_file(shard.file.name, status))
            compare_shard(
                alone,
                here,
                path.parent,
                placed,
                work.progress,
                work.result,
                untrained=work.untrained,
            )
    shutil.rmtree(work.folder / "source", ignore_errors=True)


def as_planned(shard: Shard, placed: tuple[PlannedTensor, ...]) -> PlannedFile:
    """Return a shard as it lies there, with what its tensors must be made of."""
    return PlannedFile(
        name=shard.file.name,
        header=shard.header_bytes,
        tensors=placed,
        nbytes=shard.file.nbytes,
        identical_to=None,
    )


def prove(by: str, shards: list[Shard]) -> FileProof:
    """Return that these shards were compared `by` digest, or read."""
    return FileProof(
        by=by,
        files=tuple(shard.file.name for shard in shards),
        nbytes=sum(shard.file.nbytes for shard in shards),
    )


def fetch_small(snapshot: RepoSnapshot, name: str, options: HubOptions) -> bytes:
    """Return a file of JSON or text whole, held to its digest. Raises: HubError."""
    return hub.fetch_document(
        snapshot, name, token=options.token, cache_dir=options.cache_dir, tell=options.tell
    )
