"""`verify` and `diff`: open both sides, compare, and say what was found. Nothing is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.files import MANIFEST_FILE
from ..checkpoints.sources import (
    HubOptions,
    OpenedSource,
    fetch_weights,
    names_repository,
    open_headers,
    open_source,
)
from ..errors import UsageError
from ..fs.paths import expand_home
from ..progress import SILENT, Progress
from ..verification.difference import Difference, compare_checkpoints
from ..verification.other_tools import verify_other
from ..verification.output import check_stated, read_stated, verify_output
from .arguments import check_arguments
from .opening import open_others
from .options import check_revision, make_hub_options
from .pinning import pin_source
from .pipeline import Verified, prove_logits


def verify(
    src: str | Path,
    out: str | Path,
    *,
    logits: bool = False,
    untrained: bool = False,
    paranoid: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = SILENT,
) -> Verified:
    """Prove an output against its source: every byte, and optionally the logits.

    `src` is, of a recipe's output, the model whose config it has; it names the others itself. An
    output that another tool made, or whose new blocks were trained, is compared by its tensors,
    unless it must be `untrained`. What lies on the source's own blocks of the disk is not read
    again, unless `paranoid`. `out` may be a repository of the Hub that has a manifest: copies of
    the source's files are compared by digests, the other files are read one at a time.
    `trust_remote_code` lets the source's own code compute the logits, in a child process.
    Raises: ProofError where logits differ; what differs in the bytes is in the findings.
    """
    check_arguments(locals())
    check_revision(src, revision)
    hub = make_hub_options(revision, token, cache_dir, progress)
    folder = expand_home(out)
    if names_repository(out):
        if logits:
            raise UsageError(
                f"--logits needs both models here, and {out} is on the Hub: download it with "
                f"`hf download {out}`, and give the folder"
            )
        from .verifying_on_hub import verify_on_hub

        return verify_on_hub(str(src), str(out), hub, progress, untrained=untrained)
    source = open_headers(str(src), hub)
    has_manifest = (folder / MANIFEST_FILE).is_file()
    stated = read_stated(folder) if has_manifest else None
    pinned = pin_source(source, None if stated is None else stated.claims, str(src), hub)
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
        proof = prove_logits(checkpoint, folder, verification, progress, own_code=trust_remote_code)
    return Verified(verification, proof)


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
    check_arguments(locals())
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
