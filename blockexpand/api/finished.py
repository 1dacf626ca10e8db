"""Whether an output that is there is the finished one of a plan, and what was compared to tell.

A requeued task, or a batch that is run again, then has nothing to do. It only looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..adapters.format import ADAPTER_FILE
from ..checkpoints.checkpoint import open_checkpoint
from ..checkpoints.files import CONFIG_FILE, INDEX_FILE, MANIFEST_FILE, read_manifest
from ..checkpoints.sources import ModelRef
from ..errors import BlockExpandError, OutputError
from ..messages import show
from ..planning.claims import parse_claims
from ..planning.manifest import compare_with_plan, parse_manifest
from ..planning.plan import Plan
from ..planning.shards import PlannedFile
from ..verification.sampling import find_sampled_difference, place_tensors
from ..writing.leftovers import is_untidy


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedOutput:
    """An output of the same plan. `compared` says in words what was; `stale` why it may have other
    weights than its source has by now, None where nothing says so."""

    compared: str
    stale: str | None = None


def find_finished(plan: Plan, out: Path, name: ModelRef, *, is_here: bool) -> FinishedOutput | None:
    """Return what is known of an output that an earlier run of this very plan has finished.

    None where there is no such output: by its manifest, names, sizes, headers and documents.
    `name` is what the plan's source is called; `is_here` says that it is on the disk.
    """
    files = _find_files(plan, out)
    if files is None:
        return None
    try:
        return _compare_weights(plan, files, out, name, is_here)
    except (BlockExpandError, OSError) as error:
        return FinishedOutput(compared="same plan", stale=f"cannot be compared: {error}")


def use_finished(plan: Plan, out: Path, name: ModelRef, *, is_here: bool) -> str | None:
    """Return a note on the finished output of a plan that nothing has to be done for; else None.

    Raises: OutputError where it is one, but of other weights.
    """
    found = find_finished(plan, out, name, is_here=is_here)
    if found is None:
        return None
    if found.stale is not None:
        raise OutputError(
            f"{out}: {found.stale}; choose another folder (--overwrite would replace what is "
            "there, trained or not)"
        )
    return f"already there: {found.compared}; --overwrite makes it anew"


def use_finished_adapter(plan: Plan, out: Path) -> str | None:
    """Return a note on a block adapter that an earlier run of this plan has written; else None.

    Its description has a digest of every tensor, so the same description is of the same blocks.
    """
    with suppress(OSError, BlockExpandError):
        if (
            not is_untidy(out)
            and _has_document(plan, out, ADAPTER_FILE)
            and _is_as_planned(plan, out)
            and find_sampled_difference(plan, plan.files, out, is_here=True)[0] is None
        ):
            return "already there: the same blocks of the same base; --overwrite makes it anew"
    return None


def _find_files(plan: Plan, out: Path) -> tuple[PlannedFile, ...] | None:
    """Return the files of a finished output, with the plan's tensors; None where it is none."""
    with suppress(OSError, BlockExpandError):
        manifest = parse_manifest(*read_manifest(out))
        # Neither the fingerprint nor the shards decide: another release may take the one and lay
        # out the others otherwise, and make the same model.
        if (
            not compare_with_plan(manifest, plan)[0]
            and parse_claims(manifest).recipe_text == plan.recipe_text
            and not is_untidy(out)
            and all((out / file.name).stat().st_size == file.nbytes for file in plan.side_files)
            and _has_document(plan, out, CONFIG_FILE)
        ):
            return (
                plan.files
                if _is_as_planned(plan, out)
                else place_tensors(plan, open_checkpoint(out))
            )
    return None


def _is_as_planned(plan: Plan, out: Path) -> bool:
    with suppress(OSError):
        return (
            all(_begins_with(out / file.name, file.header) for file in plan.files)
            and all((out / file.name).stat().st_size == file.nbytes for file in plan.files)
            and _has_document(plan, out, INDEX_FILE)
        )
    return False


def _has_document(plan: Plan, out: Path, name: str) -> bool:
    return all(
        (out / document.name).read_bytes() == document.data
        for document in plan.documents
        if document.name == name
    )


def _begins_with(path: Path, header: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(header)) == header


def _compare_weights(
    plan: Plan, files: Sequence[PlannedFile], out: Path, name: ModelRef, is_here: bool
) -> FinishedOutput:
    """Say why a finished output may not have the weights that its source has by now.

    The headers of two states of a model, or of two models of one shape, are the same, and so are
    their plans.
    """
    stated = parse_claims(parse_manifest(*read_manifest(out))).source
    is_commit = stated.commit is not None and name.commit is not None
    stale = None
    if is_commit and stated.commit != name.commit:
        stale = f"was made from commit {stated.commit} of {name.model}, which is at {name.commit}"
    elif not is_commit and PurePath(stated.model).name != PurePath(name.model).name:
        stale = f"was made from {show(stated.model)}, not from {name.model}"
    made = (out / MANIFEST_FILE).stat()
    if stale is None and not is_commit:
        for file in plan.source_files:
            if file.mtime_ns > made.st_mtime_ns:
                stale = f"was made before {file.name} of {name.model} was last changed"
                break
    what = "the same plan and commit" if is_commit else "the same plan"
    if stale is not None:
        return FinishedOutput(compared=what, stale=stale)
    tensor, count = find_sampled_difference(plan, files, out, is_here=is_here)
    if tensor is not None:
        stale = f"tensor {show(tensor)} is not what {name.model} and this plan make it"
    blocks = f"a block of {count} tensors" + (
        "" if is_here else " that take nothing from the source"
    )
    layout = "sizes and headers" if files is plan.files else "headers of files laid out otherwise"
    compared = f"{what}, {layout}, and {blocks} compared"
    touched = [
        file.name
        for file in plan.source_files
        if is_here and file.links == 1 and (file.ctime_ns or 0) > made.st_ctime_ns
    ]
    if touched:
        compared += f"; {touched[0]} of the source was changed, moved or copied since"
    return FinishedOutput(compared=f"{compared} (verify compares every byte)", stale=stale)
