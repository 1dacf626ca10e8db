"""`verify` and `diff`: open both sides, compare, and say what was found. Nothing is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoints.checkpoint import open_checkpoint
from ..checkpoints.files import read_manifest
from ..checkpoints.sources import open_source
from ..fs.paths import expand_home
from ..planning.manifest import parse_claims, parse_manifest
from ..progress import SILENT, Progress
from ..verification.difference import Difference, compare_checkpoints
from .arguments import check_arguments
from .opening import open_others
from .options import make_hub_options
from .pipeline import Verified, prove_logits


def verify(
    src: str | Path,
    out: str | Path,
    *,
    logits: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = SILENT,
) -> Verified:
    """Prove an output against its source: every byte, and optionally the logits.

    `src` is, of a recipe's output, the model whose config it has; it names the others itself.
    Raises: ProofError where logits differ; what differs in the bytes is in the findings.
    """
    check_arguments(
        src=src,
        out=out,
        logits=logits,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        progress=progress,
    )
    hub = make_hub_options(revision, token, cache_dir, progress)
    folder = expand_home(out)
    claims = parse_claims(parse_manifest(*read_manifest(folder)))
    made = claims.source
    # The branch may have moved since, if only by a word in its card.
    moved = revision is None and made.repo == str(src) and made.revision == "main"
    own = replace(hub, revision=made.commit) if moved else hub
    checkpoint, _ = open_source(str(src), own, progress=progress)
    others = open_others(claims.models, hub, progress)
    return Verified(*prove_logits(checkpoint, folder, logits, progress, others))


def diff(
    base: str | Path,
    other: str | Path,
    *,
    stats: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = SILENT,
) -> Difference:
    """Compare two checkpoints tensor by tensor; `base` may be a repository of the Hub.

    `stats` measures too how far each tensor has come from where it began (needs torch).
    Raises: CheckpointError, HubError; SourceChangedError where a file is written to meanwhile.
    """
    check_arguments(
        base=base,
        other=other,
        stats=stats,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        progress=progress,
    )
    hub = make_hub_options(revision, token, cache_dir, progress)
    theirs = open_checkpoint(expand_home(other))
    mine, _ = open_source(str(base), hub, progress=progress)
    progress.begin("comparing", sum(spec.nbytes for spec in mine.specs.values()))
    difference = compare_checkpoints(
        mine, theirs, progress, base_name=str(base), other_name=str(other)
    )
    if not stats:
        return difference
    from ..verification.statistics import find_pairs, measure_difference

    pairs = find_pairs(mine, theirs, difference)
    progress.begin("measuring", sum(theirs.specs[pair.other].nbytes for pair in pairs))
    return measure_difference(mine, theirs, difference, pairs, progress.advance)
