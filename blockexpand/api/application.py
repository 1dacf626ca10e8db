"""`apply`: a base with the blocks of adapters in it, as a folder or on the Hub."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from ..adapters.application import plan_application
from ..checkpoints.sources import ModelRef, fetch_weights, open_headers
from ..errors import CheckpointError
from ..fs.paths import existing_folder, expand_home
from ..fs.sharing import file_system_block
from ..planning.plan import Plan
from ..planning.recipe import parse_size
from ..progress import SILENT, Progress
from ..publishing.target import parse_push_target
from ..writing.preflight import check_write
from ..writing.target import WriteOptions, check_target, resolve_target
from .arguments import Reflink, check_arguments
from .finished import use_finished
from .on_hub import HubResult, divide, make_on_hub, open_on_hub
from .on_hub_shards import HubPlan
from .opening_adapters import (
    PROVEN_BY_LISTING,
    TRUSTED,
    add_documents,
    check_adapters,
    check_content,
    check_headers,
    is_proven_by_listing,
    open_adapters,
)
from .options import make_hub_options, refuse_folder
from .pipeline import (
    Expansion,
    PlannedOutput,
    PublishOptions,
    check_out,
    return_finished,
    write_and_publish,
)


def apply(
    base: str | Path,
    *adapters: str | Path,
    out: str | Path,
    scale: float = 1.0,
    trust_base: bool = False,
    force_base: bool = False,
    max_shard_size: str | int | None = None,
    reflink: Reflink = "auto",
    hardlink: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    commit_message: str | None = None,
    create_pr: bool = False,
    executor: Executor | None = None,
    progress: Progress = SILENT,
    command: str | None = None,
) -> Expansion:
    """Make a whole model of a base and one block adapter or several.

    The finished output of the same plan is returned as it is; `overwrite` makes it anew.
    The base is proven first to be the one that the blocks were trained in: by its config and its
    headers always, by its bytes unless `trust_base`. `force_base` takes another base of the same
    shape, and the card says so. `scale` multiplies what closes the new residual branches: 1 is the
    trained model exactly, 0 is the base exactly.
    Raises: CheckpointError where base and adapter do not fit; as `expand` otherwise.
    """
    check_arguments(locals())
    target = resolve_target(expand_home(out))
    options = WriteOptions(reflink=reflink, hardlink=hardlink, overwrite=overwrite)
    hub = make_hub_options(revision, token, cache_dir, progress)
    most = parse_size(max_shard_size)
    check_out(target, options, push_to_hub=push_to_hub, token=token, create_pr=create_pr)
    opened = open_adapters(adapters, hub)
    source = open_headers(str(base), hub)
    plan_application(source.checkpoint, opened, scale=scale)
    notes = check_headers(source.checkpoint, opened, force_base)
    checkpoint = fetch_weights(source, hub, progress) if source.snapshot else source.checkpoint
    check_adapters(opened, progress)
    if trust_base:
        notes += (TRUSTED,)
    else:
        notes += check_content(source, checkpoint, opened, force_base, progress)
    block_nbytes = file_system_block(existing_folder(target))
    plan = plan_application(
        checkpoint, opened, scale=scale, block_nbytes=block_nbytes, max_shard_nbytes=most
    )
    plan = add_documents(plan, source.name, opened, scale, notes, command or "")
    note = None if options.replaces else use_finished(plan, target, source.name, is_here=True)
    if note is None:
        check_write(plan, target, options)
    output = PlannedOutput(
        checkpoint=checkpoint,
        name=source.name,
        plan=replace(plan, notes=plan.notes + notes),
        out=target,
    )
    publish = PublishOptions(
        push_to_hub=push_to_hub,
        private=private,
        token=token,
        commit_message=commit_message,
        create_pr=create_pr,
    )
    if note is not None:
        return return_finished(output, note, publish, progress)
    return write_and_publish(output, options, publish, progress, executor)


def plan_apply(
    base: str | Path,
    *adapters: str | Path,
    out: str | Path,
    scale: float = 1.0,
    force_base: bool = False,
    max_shard_size: str | int | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[Plan, ModelRef]:
    """Return the plan of `apply`; of a base on the Hub only headers are fetched."""
    check_arguments(locals())
    target = resolve_target(expand_home(out))
    options = WriteOptions(overwrite=overwrite)
    check_target(target, options, planned=False)
    hub = make_hub_options(revision, token, cache_dir)
    opened = open_adapters(adapters, hub)
    source = open_headers(str(base), hub)
    notes = check_headers(source.checkpoint, opened, force_base)
    plan = plan_application(
        source.checkpoint,
        opened,
        scale=scale,
        block_nbytes=file_system_block(existing_folder(target)),
        max_shard_nbytes=parse_size(max_shard_size),
    )
    plan = add_documents(plan, source.name, opened, scale, notes, "")
    is_here = source.snapshot is None
    note = None if options.replaces else use_finished(plan, target, source.name, is_here=is_here)
    if note is not None:
        notes = (*notes, note)
    else:
        check_write(plan, target, options, is_here=is_here)
    return replace(plan, notes=plan.notes + notes), source.name


def apply_on_hub(
    base: str,
    *adapters: str | Path,
    repo: str,
    scale: float = 1.0,
    trust_base: bool = False,
    force_base: bool = False,
    max_shard_size: str | int | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    private: bool = False,
    commit_message: str | None = None,
    create_pr: bool = False,
    work: str | Path | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> HubResult:
    """Put block adapters on a base of the Hub into `repo` (or `repo@branch`) there.

    As `expand_on_hub`: shards of the base that stay as they are are copied by the Hub itself.
    Nothing here reads the base, so it is proven by the Hub's digests of its files, or taken as
    `trust_base` says. The other arguments are those of `apply`.
    Raises: CheckpointError where the digests prove nothing and `trust_base` is not given, or where
    base and adapter do not fit; as `expand_on_hub` otherwise.
    """
    check_arguments(locals())
    refuse_folder("base", base)
    target = parse_push_target(
        repo, private=private, message=commit_message, create_pr=create_pr, token=token
    )
    hub = make_hub_options(revision, token, cache_dir, progress)
    most = parse_size(max_shard_size)

    def plan() -> HubPlan:
        opened = open_adapters(adapters, hub)
        source = open_on_hub(base, hub)
        made = plan_application(source.checkpoint, opened, scale=scale, max_shard_nbytes=most)
        notes = check_headers(source.checkpoint, opened, force_base)
        if is_proven_by_listing(source, opened):
            notes += (PROVEN_BY_LISTING,)
        elif trust_base:
            notes += (TRUSTED,)
        else:
            raise CheckpointError(
                f"{base}: the Hub's digests of its files are not those of the base that the blocks "
                "were trained in (it may be the same in other shards): apply without --on-hub, "
                "which reads the base to prove it, or give --trust-base"
            )
        check_adapters(opened, progress)
        made = add_documents(made, source.name, opened, scale, notes, "")
        return divide(source, replace(made, notes=made.notes + notes), hub)

    return make_on_hub(
        plan, target, hub, work=work, overwrite=overwrite, dry_run=dry_run, progress=progress
    )
