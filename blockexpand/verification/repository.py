"""What a repository of the Hub lists and gives, against the plan of what must be in it.

By digests where a file is a copy of the source's, by its bytes otherwise. It fetches nothing: what
was fetched lies in folders that it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints.checkpoint import Shard
from ..checkpoints.files import CARD_FILE
from ..checkpoints.hub.files import RepoFile
from ..formats.safetensors import HeaderEntry
from ..fs.reading import Place
from ..models.decoder import split_name
from ..planning.origins import Copy, Extent, Fill, Zeros
from ..planning.plan import Plan
from ..planning.shards import PlannedTensor
from ..progress import Progress
from .comparison import compare_tensors, is_zero
from .expectation import constant_origin, in_dtype
from .findings import Finding
from .folder import NOT_PART, first_difference, show_spec
from .output import is_new
from .saved import describe_mismatch

# Made by the Hub itself in every repository.
_OF_THE_HUB = frozenset({".gitattributes"})


@dataclass(slots=True, kw_only=True)
class RepositoryFindings:
    """What has been found so far; `active` are new layers that do not pass their input through."""

    findings: list[Finding] = field(default_factory=list)
    trained: list[Finding] = field(default_factory=list)
    active: set[int] = field(default_factory=set)
    different: set[str] = field(default_factory=set)


def compare_listed_names(plan: Plan, names: Collection[str]) -> Iterator[Finding]:
    """Find small files that are missing, and files that are no part of the expansion."""
    small = {file.name for file in plan.side_files} | {item.name for item in plan.documents}
    for name in sorted(small - set(names) - {CARD_FILE}):
        yield Finding(file=name, message="is missing")
    expected = small | {CARD_FILE} | _OF_THE_HUB
    for name in sorted(set(names) - expected):
        if not name.endswith(".safetensors"):
            yield Finding(file=name, message=NOT_PART)


def has_same_digest(one: RepoFile, other: RepoFile) -> bool | None:
    """Tell whether two files are the same by their digests; None where they have none in common."""
    if one.nbytes != other.nbytes:
        return False
    if one.sha256 and other.sha256:
        return one.sha256 == other.sha256
    if one.blob_id and other.blob_id:
        return one.blob_id == other.blob_id
    return None


def find_original(
    shard: Shard, planned: Mapping[str, PlannedTensor], sources: Iterable[Shard]
) -> Shard | None:
    """Return the source's shard whose every tensor a shard must repeat in its place, if one is.

    Then, and only then, equal digests of the two say that the shard is right.
    """
    entries = shard.header.entries
    for source in sources:
        if source.file.nbytes == shard.file.nbytes and all(
            entry.name in planned
            and planned[entry.name].spec == entry.spec
            and planned[entry.name].origin == Copy(*_extent(source, entry))
            for entry in entries
        ):
            return source
    return None


def compare_header_bytes(plan: Plan, shards: Iterable[Shard]) -> Iterator[Finding]:
    """Find shards whose headers are not those of the plan, byte for byte."""
    headers = {file.name: file.header for file in plan.files}
    for shard in shards:
        expected = headers.get(shard.file.name)
        if expected is not None and expected != shard.header_bytes:
            message = f"header: {first_difference(expected, shard.header_bytes)}"
            yield Finding(file=shard.file.name, message=message)


def place_tensors(
    plan: Plan,
    shard: Shard,
    planned: Mapping[str, PlannedTensor],
    result: RepositoryFindings,
) -> tuple[PlannedTensor, ...]:
    """Return a shard's tensors where they lie, each with the origin that it must have.

    A wider or narrower copy must hold the same values, rounded. What cannot be compared is found.
    """
    placed = []
    for entry in shard.header.entries:
        expected = planned.get(entry.name)
        if expected is None:
            continue
        origin, spec = expected.origin, entry.spec
        if spec != expected.spec:
            wider = None
            if spec.shape == expected.spec.shape and isinstance(origin, Zeros | Fill):
                suffix = (split_name(entry.name, plan.layer_prefix) or (0, ""))[1]
                value = plan.neutral.get(suffix, 0.0)
                wider = constant_origin(value, spec.dtype, spec.nbytes)
            elif spec.shape == expected.spec.shape:
                wider = in_dtype(origin, expected.spec, spec.dtype)
            if wider is None:
                message = f"expected {show_spec(expected.spec)}, found {show_spec(spec)}"
                result.findings.append(
                    Finding(file=shard.file.name, tensor=entry.name, message=message)
                )
                result.different.add(entry.name)
                continue
            origin = wider
        offset = shard.header.data_start + entry.data_offset
        placed.append(PlannedTensor(entry.name, spec, offset, origin))
    return tuple(placed)


def compare_shard(
    plan: Plan,
    shard: Shard,
    folder: Path,
    placed: tuple[PlannedTensor, ...],
    progress: Progress,
    result: RepositoryFindings,
    *,
    untrained: bool,
) -> None:
    """Compare a shard that lies in `folder` with what its tensors' origins say.

    `plan` is that of the shard alone, with its sources where they are now.
    """
    file = shard.file
    sources = Place(plan.root, {one.name: one for one in plan.source_files}, plan.paths)
    found = Place(folder, {file.name: file})
    mismatches = compare_tensors(sources, found, {file.name: placed}, progress).mismatches
    for tensor in placed:
        mismatch = mismatches.get(tensor.name)
        if mismatch is None:
            continue
        finding = describe_mismatch(mismatch)
        if not is_new(plan, tensor.name):
            result.findings.append(finding)
            result.different.add(tensor.name)
            continue
        (result.findings if untrained else result.trained).append(finding)
        extent = Extent(file.name, tensor.offset, tensor.spec.nbytes)
        if isinstance(tensor.origin, Fill) or (
            isinstance(tensor.origin, Zeros)
            and not is_zero(folder / file.name, extent, tensor.spec.dtype)
        ):
            result.active.add((split_name(tensor.name, plan.layer_prefix) or (0, ""))[0])


def _extent(source: Shard, entry: HeaderEntry) -> Extent:
    offset = source.header.data_start + entry.data_offset
    return Extent(source.file.name, offset, entry.spec.nbytes)
