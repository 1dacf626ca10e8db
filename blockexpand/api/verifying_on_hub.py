"""`verify SRC ME/REPO`: an output on the Hub is proven without a download of the model.

Files that must be copies of the source's are compared by the digests that the Hub lists, those of a
local source are worked out here. The others are read, one shard at a time, each held to its own
digest, and compared byte for byte with the ranges that they are made of.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..checkpoints import hub
from ..checkpoints.checkpoint import Checkpoint, Shard
from ..checkpoints.files import MANIFEST_FILE
from ..checkpoints.hub.digests import describe_path
from ..checkpoints.hub.files import RepoFile, RepoSnapshot
from ..checkpoints.sources import HubOptions, ModelRef, fetch_weights, open_headers
from ..errors import CheckpointError, HubError, NoProofError
from ..formats.json_object import MOST_JSON_NBYTES
from ..formats.safetensors import read_header
from ..fs.io import make_folders
from ..fs.paths import expand_home
from ..fs.reading import describe_file
from ..planning.card import add_card
from ..planning.manifest import compare_with_plan, parse_claims, parse_manifest
from ..planning.plan import Plan
from ..planning.shards import PlannedFile, PlannedTensor
from ..progress import SILENT, Progress
from ..verification.claims import check_models, compare_claims, plan_again
from ..verification.findings import FileProof, Finding, Verification
from ..verification.folder import compare_documents, compare_headers
from ..verification.output import Stated, check_stated, find_other_weights, is_new, note_claims
from ..verification.repository import (
    RepositoryFindings,
    compare_header_bytes,
    compare_listed_names,
    compare_shard,
    find_original,
    has_same_digest,
    place_tensors,
)
from ..writing.locking import lock_target
from .pinning import pin_source
from .pipeline import Verified
from .shard_sources import bring_sources, count_ranges, take_alone

_ABOUT_DIGESTS = (
    "a digest is what the Hub lists of a file: it proves that the file is a copy as far as the Hub "
    "gives the bytes that it lists, which whoever downloads them can check (sha256sum)"
)


@dataclass(slots=True, kw_only=True)
class _Side:
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
class _Work:
    """What every step of a proof needs. `folder` is its own, for a shard at a time."""

    plan: Plan
    mine: _Side
    snapshot: RepoSnapshot
    folder: Path
    options: HubOptions
    progress: Progress
    untrained: bool
    result: RepositoryFindings = field(default_factory=RepositoryFindings)


def verify_on_hub(
    src: str, out: str, options: HubOptions, progress: Progress, *, untrained: bool
) -> Verified:
    """Compare a repository with the expansion that it says it is. Raises: BlockExpandError."""
    theirs = open_headers(out, replace(options, revision=None))
    snapshot = theirs.snapshot
    assert snapshot is not None
    if snapshot.cached is not None:
        raise HubError(f"{out}: the Hub cannot be reached to prove what lies there")
    stated = _read_stated(snapshot, out, options)
    pinned = pin_source(open_headers(src, options), stated.claims, src, options)
    source = pinned.source
    if refused := check_stated(stated, source.checkpoint, source.name, {}):
        return Verified(replace(refused, commit=pinned.commit), None)
    checkpoint, is_here = source.checkpoint, source.snapshot is None
    if source.snapshot is not None and source.snapshot.cached is not None:
        checkpoint, is_here = fetch_weights(source, options, progress), True
    mine = _Side(snapshot=source.snapshot, folder=checkpoint.root if is_here else None)
    bare = plan_again(stated.manifest, stated.claims, checkpoint, {})
    plan = add_card(bare, stated.claims.source, stated.claims.command, stated.claims.models)
    folder = _work_folder(snapshot)
    make_folders(folder)
    with lock_target(folder):
        work = _Work(
            plan=plan,
            mine=mine,
            snapshot=snapshot,
            folder=folder,
            options=options,
            progress=progress,
            untrained=untrained,
        )
        verification = _compare(work, stated, checkpoint, source.name, theirs.checkpoint.shards)
        shutil.rmtree(folder, ignore_errors=True)
    return Verified(
        replace(
            verification,
            commit=pinned.commit,
            findings=pinned.findings + verification.findings,
            keeps_function=None if pinned.findings else verification.keeps_function,
        ),
        None,
    )


def _read_stated(snapshot: RepoSnapshot, out: str, options: HubOptions) -> Stated:
    """Read what a repository says of itself. Raises: CheckpointError."""
    if not any(file.name == MANIFEST_FILE for file in snapshot.files):
        raise CheckpointError(
            f"{out}: the repository has no {MANIFEST_FILE}, which says how it was made: download "
            f"it (`hf download {snapshot.repo_id}`) and give the folder, which is compared by its "
            "tensors"
        )
    manifest = parse_manifest(_fetch(snapshot, MANIFEST_FILE, options), f"{out}/{MANIFEST_FILE}")
    claims = parse_claims(manifest)
    check_models(manifest, claims)
    if claims.recipe_text is not None:
        raise NoProofError(
            f"{out}: it follows a recipe file, which is proven with all of its models at hand: "
            f"download it (`hf download {snapshot.repo_id}`) and give the folder"
        )
    return Stated(manifest=manifest, claims=claims)


def _compare(
    work: _Work,
    stated: Stated,
    checkpoint: Checkpoint,
    source: ModelRef,
    shards: tuple[Shard, ...],
) -> Verification:
    plan, result = work.plan, work.result
    faults, unknown = compare_with_plan(stated.manifest, plan)
    claim_faults, unconfirmed = compare_claims(stated.claims, source)
    result.findings += [Finding(file=MANIFEST_FILE, message=f) for f in faults + claim_faults]
    result.findings += compare_listed_names(plan, [file.name for file in work.snapshot.files])
    documents, proof = _read_documents(work)
    notes = note_claims(plan, stated.claims, unknown, documents)
    proofs = [*_compare_side_files(work), proof]
    planned = {tensor.name: tensor for file in plan.files for tensor in file.tensors}
    notes += _check_layout(work, planned, shards)
    copied, left = _find_copies(work, planned, checkpoint.shards, shards)
    proofs.append(_prove("digest", copied))
    placed = {shard.file.name: place_tensors(plan, shard, planned, result) for shard in left}
    here = {file.name: checkpoint.root for file in plan.source_files} if work.mine.folder else {}
    read = sum(count_ranges(_as_planned(shard, placed[shard.file.name]), here) for shard in left)
    proofs.append(replace(_prove("read", left), read=read))
    work.progress.begin("comparing", sum(shard.file.nbytes for shard in left))
    for shard in left:
        _read_shard(work, shard, placed[shard.file.name])
    found = {entry.name for shard in shards for entry in shard.header.entries}
    originals = {name for name in planned if not is_new(plan, name)}
    different = len(result.different & originals)
    return Verification(
        source=source,
        has_manifest=True,
        original_layers=plan.original_layers,
        layer_map=plan.layer_map,
        tensors=len(planned),
        nbytes=plan.nbytes,
        dtype=plan.dtype,
        keeps_function=None
        if result.findings or plan.options.row is not None
        else plan.keeps_function and not result.active,
        is_unpacked=plan.options.quantized == "dequantize",
        findings=tuple(result.findings),
        trained=tuple(result.trained),
        notes=(*notes, *([_ABOUT_DIGESTS] if copied else [])),
        originals=len(originals),
        identical=len((originals & found) - result.different),
        active=tuple(sorted(result.active)),
        stated=tuple(unconfirmed),
        wrong_source=find_other_weights(different, len(originals), source, stated.claims),
        proofs=tuple(proof for proof in proofs if proof.files),
    )


def _read_documents(work: _Work) -> tuple[Path, FileProof]:
    """Fetch config, index, card and manifest, compare them; return where they are."""
    listed = {file.name for file in work.snapshot.files}
    folder = work.folder / "documents"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = [document.name for document in work.plan.documents if document.name in listed]
    for name in names:
        (folder / name).write_bytes(_fetch(work.snapshot, name, work.options))
    work.result.findings += compare_documents(work.plan, folder)
    nbytes = sum(path.stat().st_size for path in folder.iterdir())
    return folder, FileProof(by="read", files=tuple(names), nbytes=nbytes)


def _find_copies(
    work: _Work,
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


def _check_layout(
    work: _Work, planned: Mapping[str, PlannedTensor], shards: tuple[Shard, ...]
) -> list[str]:
    """Find what headers tell; return notes. Raises: NoProofError for tensors of other names."""
    plan, result, repo = work.plan, work.result, work.snapshot.repo_id
    headers = {shard.file.name: (shard.header, shard.file) for shard in shards}
    if headers.keys() == {file.name for file in plan.files}:
        found = list(compare_headers(plan, headers))
        result.findings += found
        result.different |= {finding.tensor for finding in found if finding.tensor}
        named = {finding.file for finding in found}
        strange = compare_header_bytes(plan, shards)
        result.findings += [finding for finding in strange if finding.file not in named]
        return []
    names = {entry.name for shard in shards for entry in shard.header.entries}
    if names != planned.keys():
        odd = sorted(names ^ planned.keys())[0]
        raise NoProofError(
            f"{repo}: it has other shards and other tensors than were planned (such as {odd!r}): "
            f"another program saved it: download it (`hf download {repo}`) and give the folder"
        )
    return [
        "its shards are not those that an expansion has: another program saved it, or blocks of "
        "an adapter are in it: tensors were compared wherever they lie"
    ]


def _compare_side_files(work: _Work) -> list[FileProof]:
    listed = {file.name: file for file in work.snapshot.files}
    by: dict[str, list[RepoFile]] = {"digest": [], "read": []}
    for name in [file.name for file in work.plan.side_files if file.name in listed]:
        theirs, way = listed[name], "digest"
        same = has_same_digest(work.mine.describe(name, SILENT), theirs)
        mine = work.mine.snapshot
        if same is None and mine is not None and theirs.nbytes <= MOST_JSON_NBYTES:
            way = "read"
            same = _fetch(work.snapshot, name, work.options) == _fetch(mine, name, work.options)
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


def _read_shard(work: _Work, shard: Shard, placed: tuple[PlannedTensor, ...]) -> None:
    """Fetch a shard, and what it is made of, compare them, and delete them again."""
    file, repo = _as_planned(shard, placed), work.snapshot.repo_id
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


def _as_planned(shard: Shard, placed: tuple[PlannedTensor, ...]) -> PlannedFile:
    """Return a shard as it lies there, with what its tensors must be made of."""
    return PlannedFile(
        name=shard.file.name,
        header=shard.header_bytes,
        tensors=placed,
        nbytes=shard.file.nbytes,
        identical_to=None,
    )


def _prove(by: str, shards: list[Shard]) -> FileProof:
    return FileProof(
        by=by,
        files=tuple(shard.file.name for shard in shards),
        nbytes=sum(shard.file.nbytes for shard in shards),
    )


def _fetch(snapshot: RepoSnapshot, name: str, options: HubOptions) -> bytes:
    return hub.fetch_document(
        snapshot, name, token=options.token, cache_dir=options.cache_dir, tell=options.tell
    )


def _work_folder(snapshot: RepoSnapshot) -> Path:
    cache = expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    name = f"{snapshot.repo_id.replace('/', '--')}-{snapshot.commit[:16]}"
    return cache / "blockexpand" / "verify" / name
