"""`verify SRC ME/REPO`: an output on the Hub is proven without a download of the model.

Files that must be copies of the source's are compared by the digests that the Hub lists, those of a
local source are worked out here. The others are read, one shard at a time, each held to its own
digest, and compared byte for byte with the ranges that they are made of.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint, Shard
from ..checkpoints.files import MANIFEST_FILE
from ..checkpoints.hub.files import RepoSnapshot
from ..checkpoints.sources import HubOptions, ModelRef, fetch_weights, open_headers
from ..errors import CheckpointError, HubError, NoProofError
from ..fs.io import make_folders
from ..fs.paths import expand_home
from ..planning.card import add_card
from ..planning.claims import parse_claims
from ..planning.manifest import compare_with_plan, parse_manifest
from ..planning.shards import PlannedTensor
from ..progress import Progress
from ..verification.claims import (
    check_models,
    compare_claims,
    find_other_weights,
    note_claims,
    plan_again,
)
from ..verification.findings import Finding, Verification
from ..verification.folder import compare_headers
from ..verification.output import Stated, check_stated, is_new
from ..verification.repository import (
    compare_header_bytes,
    compare_listed_names,
    place_tensors,
)
from ..writing.locking import lock_target
from ..writing.staging import check_owner
from .comparing_on_hub import (
    Side,
    Work,
    as_planned,
    compare_side_files,
    fetch_small,
    find_copies,
    prove,
    read_documents,
    read_shard,
)
from .pinning import pin_source
from .pipeline import Verified
from .shard_sources import count_ranges

_ABOUT_DIGESTS = (
    "a digest is what the Hub lists of a file: it proves that the file is a copy as far as the Hub "
    "gives the bytes that it lists, which whoever downloads them can check (sha256sum)"
)


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
    mine = Side(snapshot=source.snapshot, folder=checkpoint.root if is_here else None)
    bare = plan_again(stated.manifest, stated.claims, checkpoint, {})
    plan = add_card(bare, stated.claims.source, stated.claims.command, stated.claims.models)
    folder = _work_folder(snapshot)
    check_owner(folder)
    make_folders(folder)
    with lock_target(folder):
        work = Work(
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
    manifest = parse_manifest(
        fetch_small(snapshot, MANIFEST_FILE, options), f"{out}/{MANIFEST_FILE}"
    )
    claims = parse_claims(manifest)
    check_models(manifest, claims)
    if claims.recipe_text is not None:
        raise NoProofError(
            f"{out}: it follows a recipe file, which is proven with all of its models at hand: "
            f"download it (`hf download {snapshot.repo_id}`) and give the folder"
        )
    return Stated(manifest=manifest, claims=claims)


def _compare(
    work: Work,
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
    documents, proof = read_documents(work)
    notes = note_claims(plan, stated.claims, unknown, documents)
    proofs = [*compare_side_files(work), proof]
    planned = {tensor.name: tensor for file in plan.files for tensor in file.tensors}
    notes += _check_layout(work, planned, shards)
    copied, left = find_copies(work, planned, checkpoint.shards, shards)
    proofs.append(prove("digest", copied))
    placed = {shard.file.name: place_tensors(plan, shard, planned, result) for shard in left}
    here = {file.name: checkpoint.root for file in plan.source_files} if work.mine.folder else {}
    read = sum(count_ranges(as_planned(shard, placed[shard.file.name]), here) for shard in left)
    proofs.append(replace(prove("read", left), read=read))
    work.progress.begin("comparing", sum(shard.file.nbytes for shard in left))
    for shard in left:
        read_shard(work, shard, placed[shard.file.name])
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


def _check_layout(
    work: Work, planned: Mapping[str, PlannedTensor], shards: tuple[Shard, ...]
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


def _work_folder(snapshot: RepoSnapshot) -> Path:
    cache = expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    name = f"{snapshot.repo_id.replace('/', '--')}-{snapshot.commit[:16]}"
    return cache / "blockexpand" / "verify" / name
