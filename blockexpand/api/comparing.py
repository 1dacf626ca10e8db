"""`verify` and `diff`: open both sides, compare, and say what was found. Nothing is printed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.files import MANIFEST_FILE
from ..checkpoints.sources import (
    HubOptions,
    OpenedSource,
    fetch_weights,
    open_headers,
    open_source,
)
from ..fs.paths import expand_home
from ..planning.manifest import Claims
from ..progress import SILENT, Progress
from ..verification.difference import Difference, compare_checkpoints
from ..verification.findings import CommitCheck, Finding
from ..verification.other_tools import verify_other
from ..verification.output import check_stated, read_stated, verify_output
from .arguments import check_arguments
from .opening import open_others
from .options import check_revision, make_hub_options
from .pipeline import Verified, prove_logits


def verify(
    src: str | Path,
    out: str | Path,
    *,
    logits: bool = False,
    untrained: bool = False,
    paranoid: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = SILENT,
) -> Verified:
    """Prove an output against its source: every byte, and optionally the logits.

    `src` is, of a recipe's output, the model whose config it has; it names the others itself. An
    output that another tool made, or whose new blocks were trained, is compared by its tensors,
    unless it must be `untrained`. What lies on the source's own blocks of the disk is not read
    again, unless `paranoid`.
    Raises: ProofError where logits differ; what differs in the bytes is in the findings.
    """
    check_arguments(
        src=src,
        out=out,
        logits=logits,
        untrained=untrained,
        paranoid=paranoid,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        progress=progress,
    )
    check_revision(src, revision)
    hub = make_hub_options(revision, token, cache_dir, progress)
    folder = expand_home(out)
    source = open_headers(str(src), hub)
    has_manifest = (folder / MANIFEST_FILE).is_file()
    stated = read_stated(folder) if has_manifest else None
    pinned = _pin(source, None if stated is None else stated.claims, str(src), hub)
    source = pinned.source
    if stated is None:
        checkpoint = _fetch(source, hub, progress)
        verification = verify_other(
            checkpoint, source.name, folder, progress, untrained=untrained, paranoid=paranoid
        )
    else:
        others, notes = open_others(stated.claims.models, hub, offline=source.snapshot is None)
        if refused := check_stated(
            stated, source.checkpoint, source.name, {k: o.checkpoint for k, o in others.items()}
        ):
            return Verified(replace(refused, commit=pinned.commit), None)
        checkpoint = _fetch(source, hub, progress)
        verification = verify_output(
            checkpoint,
            source.name,
            folder,
            progress,
            {name: _fetch(other, hub, progress) for name, other in others.items()},
            untrained=untrained,
            paranoid=paranoid,
        )
        verification = replace(verification, notes=verification.notes + notes)
    verification = replace(
        verification,
        commit=pinned.commit,
        findings=pinned.findings + verification.findings,
        keeps_function=None if pinned.findings else verification.keeps_function,
    )
    proof = None
    if logits and not verification.findings:
        proof = prove_logits(checkpoint, folder, verification, progress)
    return Verified(verification, proof)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pinned:
    """A source at the commit that is compared with, and what is wrong with the stated one."""

    source: OpenedSource
    commit: CommitCheck | None = None
    findings: tuple[Finding, ...] = ()


def _pin(source: OpenedSource, claims: Claims | None, src: str, hub: HubOptions) -> _Pinned:
    """Take the stated commit of a repository whose branch moved on, if the branch had it.

    The branch may have moved by a word in its card alone. But anybody can propose a commit to a
    repository: one that the branch never had is not what the user means by its name.
    """
    snapshot = source.snapshot
    if snapshot is None:
        return _Pinned(source=source)
    repo, branch = snapshot.repo_id, snapshot.revision
    is_online = snapshot.cached is None
    is_given = hub.revision is not None or "@" in src
    check = CommitCheck(
        repo=repo,
        revision=branch,
        commit=snapshot.commit,
        is_head=None if is_given or not is_online else True,
        in_history=None if is_given or not is_online else True,
    )
    stated = None if claims is None or claims.source.repo != repo else claims.source.commit
    if is_given or stated in (None, snapshot.commit):
        return _Pinned(source=source, commit=check)
    assert stated is not None
    from ..checkpoints.hub import is_in_history

    known = is_in_history(repo, stated, branch, token=hub.token) if is_online else None
    if known is False:
        message = (
            f"field 'source': says commit {stated} of {repo}, which is not in the history of "
            f"{branch}: compared with {branch} today ({snapshot.commit}); if you mean that commit, "
            f"give --revision {stated}"
        )
        return _Pinned(
            source=source, commit=check, findings=(Finding(file=MANIFEST_FILE, message=message),)
        )
    return _Pinned(
        source=open_headers(src, replace(hub, revision=stated)),
        commit=replace(
            check, commit=stated, is_head=False if is_online else None, in_history=known
        ),
    )


def _fetch(source: OpenedSource, hub: HubOptions, progress: Progress) -> Checkpoint:
    if source.snapshot is None:
        return source.checkpoint
    progress.tell(f"fetching {source.snapshot.repo_id} at commit {source.snapshot.commit}")
    return fetch_weights(source, hub, progress)


def diff(
    base: str | Path,
    other: str | Path,
    *,
    stats: bool = False,
    paranoid: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = SILENT,
) -> Difference:
    """Compare two checkpoints tensor by tensor; `base` may be a repository of the Hub.

    `stats` measures too how far each tensor has come from where it began (needs torch).
    What both have on the same blocks of a disk is not read, unless `paranoid`.
    Raises: CheckpointError, HubError; SourceChangedError where a file is written to meanwhile.
    """
    check_arguments(
        base=base,
        other=other,
        stats=stats,
        paranoid=paranoid,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        progress=progress,
    )
    check_revision(base, revision)
    hub = make_hub_options(revision, token, cache_dir, progress)
    theirs = open_checkpoint(expand_home(other))
    mine, _ = open_source(str(base), hub, progress=progress)
    progress.begin("comparing", sum(spec.nbytes for spec in mine.specs.values()))
    difference = compare_checkpoints(
        mine,
        theirs,
        progress,
        base_name=str(base),
        other_name=str(other),
        paranoid=paranoid,
    )
    if not stats:
        return difference
    from ..verification.statistics import find_pairs, measure_difference

    pairs = find_pairs(mine, theirs, difference)
    progress.begin("measuring", sum(theirs.specs[pair.other].nbytes for pair in pairs))
    return measure_difference(mine, theirs, difference, pairs, progress.advance)
