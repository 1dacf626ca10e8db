"""The whole job, as the command line and the Python API both do it: open, plan, prove, write.

It prints nothing: progress goes to callbacks, everything else is in what it returns or raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from .checkpoint import Checkpoint
from .errors import ProofError, RecipeError
from .file_writing import Moved
from .logits import LogitsProof, compare_logits
from .manifest import stated_commit
from .merge_sources import open_others
from .model_card import SourceName, add_card
from .plan import Plan, make_plan
from .progress import SILENT, Progress
from .sources import (
    HubOptions,
    Source,
    fetch_side_files,
    open_headers,
    open_source,
    open_stream,
)
from .staging import check_target, clear_debris
from .streaming import Stream
from .user_paths import expand_home
from .verification import Verification, read_manifest, stated_models, verify_output
from .wishes import make_recipe, render_command
from .writing import WriteOptions, check_write, resolve_target, write


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """A finished expansion: where it is, what it is, and how its bytes got there.

    `pushed` is the address of the commit on the Hub, where it was uploaded.
    """

    out: Path
    source: SourceName
    plan: Plan
    moved: Moved
    notes: tuple[str, ...]
    verification: Verification | None = None
    proof: LogitsProof | None = None
    pushed: str | None = None


def expand(
    src: str | Path,
    out: str | Path,
    *,
    new_layers: int | None = None,
    position: str | Sequence[int] = "end",
    dtype: str = "bfloat16",
    max_shard_size: str | int | None = None,
    reflink: str = "auto",
    hardlink: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    stream: bool = False,
    overwrite: bool = False,
    check: bool = False,
    verify_after: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    executor: Executor | None = None,
    progress: Progress = SILENT,
    command: str | None = None,
) -> Expansion:
    """Add blocks to a checkpoint without changing what it computes; the arguments are cli.py's.

    `stream` fetches one shard of a Hub source at a time; `verify_after` is `tensors` or `logits`;
    `push_to_hub` names the repository that a complete (and verified) output is uploaded to. The
    workers of an `executor` write a file each at a time; they have to see source and output under
    the same paths. `command` is what the model card shows, by default the equivalent command line.
    Raises: BlockExpandError; then `out` is what it was before. ProofError where `out` was written
    and does not hold what it should; HubError where it is complete and only the upload is not.
    """
    target = resolve_target(expand_home(out))
    recipe = make_recipe(target, new_layers, position, dtype, max_shard_size)
    options = WriteOptions(reflink=reflink, hardlink=hardlink, overwrite=overwrite)
    hub = HubOptions(
        revision=revision, token=token, cache_dir=Path(cache_dir) if cache_dir else None
    )
    clear_debris(target)
    check_target(target, overwrite=overwrite)
    if push_to_hub is not None:
        from .hub import check_push

        check_push(push_to_hub, token=token)

    def vet(checkpoint: Checkpoint) -> None:
        make_plan(checkpoint, recipe)

    source: Source | None = None
    if stream:
        _check_stream(verify_after, reflink, hardlink, executor)
        source = open_headers(str(src), hub)
        if source.snapshot is None:
            raise RecipeError(f"{src}: --stream is for a repository of the Hub, not for a folder")
        vet(source.checkpoint)
        checkpoint, name = fetch_side_files(source, hub), source.name
        options = replace(options, reflink="never")
    else:
        checkpoint, name = open_source(str(src), hub, progress=progress, vet=vet)
    plan = make_plan(checkpoint, recipe)
    shown = command or render_command(str(src), str(out), recipe, max_shard_size)
    plan = add_card(plan, name, shown)
    check_write(plan, target, options)
    notes: tuple[str, ...] = ()
    if check:
        from .preflight import check_plan

        notes += (check_plan(checkpoint, plan),)
    return carry_out(
        checkpoint,
        name,
        replace(plan, notes=plan.notes + notes),
        target,
        options,
        After(verify=verify_after, push_to_hub=push_to_hub, private=private, token=token),
        progress,
        executor,
        None if source is None else open_stream(source, hub),
    )


def _check_stream(
    verify_after: str | None, reflink: str, hardlink: bool, executor: Executor | None
) -> None:
    """Refuse what needs the whole source at once. Raises: RecipeError."""
    refused = {
        "--verify": verify_after is not None,
        "--reflink=always": reflink == "always",
        "--hardlink": hardlink,
        "--executor": executor is not None,
    }
    for option, is_given in refused.items():
        if is_given:
            raise RecipeError(
                f"{option} needs the whole source, of which --stream keeps one shard at a time; "
                "leave one of them out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """What follows once an output is in its place: the arguments of `expand` of these names."""

    verify: str | None = None
    push_to_hub: str | None = None
    private: bool = False
    token: str | None = None


def carry_out(
    checkpoint: Checkpoint,
    name: SourceName,
    plan: Plan,
    target: Path,
    options: WriteOptions,
    after: After,
    progress: Progress,
    executor: Executor | None = None,
    stream: Stream | None = None,
    *,
    others: Mapping[str, Checkpoint] | None = None,
) -> Expansion:
    """Write a plan that `check_write` has passed, then prove and upload as wished.

    `others` holds the further models of a recipe, by the names that it gives them.
    Raises: as `expand`.
    """
    progress.total("writing", plan.nbytes)
    written = write(plan, target, options, progress.done, executor, stream)
    result = Expansion(
        out=written.out,
        source=name,
        plan=plan,
        moved=written.moved,
        notes=plan.notes + written.notes,
    )
    return finish(checkpoint, result, after, progress, others)


def finish(
    checkpoint: Checkpoint,
    result: Expansion,
    after: After,
    progress: Progress,
    others: Mapping[str, Checkpoint] | None = None,
) -> Expansion:
    """Prove and upload an output that is complete. Raises: as `expand`."""
    out = result.out
    if after.verify is not None:
        try:
            verification, proof = _prove(
                checkpoint, out, after.verify == "logits", progress, others
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{out} is complete, but not verified") from None
        if verification.findings:
            raise ProofError(f"{out}: {verification.findings[0]}; make it again")
        result = replace(result, verification=verification, proof=proof)
    if after.push_to_hub is not None:
        from .hub import push_folder

        try:
            pushed = push_folder(
                out,
                after.push_to_hub,
                private=after.private,
                token=after.token,
                show_progress=progress.is_shown,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{out} is complete, but not uploaded") from None
        result = replace(result, pushed=pushed)
    return result


def plan_only(
    src: str | Path,
    out: str | Path,
    *,
    new_layers: int | None = None,
    position: str | Sequence[int] = "end",
    dtype: str = "bfloat16",
    max_shard_size: str | int | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    check: bool = False,
) -> tuple[Plan, SourceName]:
    """Return the plan of an expansion; of a Hub repository only headers are fetched.

    What `check` proves is in the plan's notes.
    """
    target = resolve_target(expand_home(out))
    recipe = make_recipe(target, new_layers, position, dtype, max_shard_size)
    hub = HubOptions(
        revision=revision, token=token, cache_dir=Path(cache_dir) if cache_dir else None
    )
    checkpoint, name = open_source(str(src), hub, headers_only=True)
    plan = make_plan(checkpoint, recipe)
    plan = add_card(plan, name, render_command(str(src), str(out), recipe, max_shard_size))
    if check:
        from .preflight import check_plan

        plan = replace(plan, notes=(*plan.notes, check_plan(checkpoint, plan)))
    return plan, name


def verify(
    src: str | Path,
    out: str | Path,
    *,
    logits: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Verification, LogitsProof | None]:
    """Prove an output against its source: every byte, and on wish the logits.

    `src` is, of a recipe's output, the model whose config it has; it names the others itself.
    Raises: ProofError where logits differ; what differs in the bytes is in the findings.
    """
    hub = HubOptions(
        revision=revision, token=token, cache_dir=Path(cache_dir) if cache_dir else None
    )
    folder = expand_home(out)
    manifest = read_manifest(folder)
    stated = stated_models(manifest)
    commit = stated_commit(manifest, str(src)) if revision is None else None
    own = replace(hub, revision=commit) if commit else hub
    checkpoint, _ = open_source(str(src), own, progress=progress)
    others = open_others(stated, hub, progress)
    return _prove(checkpoint, folder, logits, progress, others)


def _prove(
    checkpoint: Checkpoint,
    folder: Path,
    logits: bool,
    progress: Progress,
    others: Mapping[str, Checkpoint] | None = None,
) -> tuple[Verification, LogitsProof | None]:
    verification = verify_output(checkpoint, folder, progress, others)
    proof = None
    if logits and not verification.findings:
        if not verification.keeps_function:
            raise ProofError(
                f"{folder}: every byte is as its recipe says, which changes what the model "
                "computes: the logits cannot be those of the source; leave --logits out"
            )
        proof = compare_logits(checkpoint.root, folder, verification.dtype)
    return verification, proof
