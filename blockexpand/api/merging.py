"""A mergekit recipe from its file to the finished output: what `expand` is for positions.

It prints nothing: progress goes to callbacks, everything else is in what it returns or raises.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import MANIFEST_FILE
from ..checkpoints.sources import HubOptions, ModelRef
from ..checkpoints.tokenizer_files import read_tokenizers
from ..errors import RecipeError
from ..fs.paths import existing_folder, expand_home
from ..fs.sharing import file_system_block
from ..messages import and_more, show
from ..planning.card import add_card
from ..planning.mergekit.plan import make_merge_plan
from ..planning.mergekit.recipe import MergeRecipe
from ..planning.mergekit.vocabulary import name_tokenizers, parse_vocabularies
from ..planning.plan import Plan
from ..planning.recipe import parse_size
from ..progress import SILENT, Progress
from ..writing.preflight import check_write
from ..writing.target import WriteOptions, check_target, resolve_target
from .arguments import Proof, Reflink, check_arguments
from .finished import use_finished
from .opening import find_others, open_models, read_recipe
from .options import check_revision, make_hub_options, make_write_options, name_base, note_base
from .pipeline import (
    CHECKING,
    Expansion,
    PlannedOutput,
    PublishOptions,
    check_out,
    return_finished,
    write_and_publish,
)
from .readiness import Preview


def merge(
    recipe: str | Path,
    out: str | Path,
    *,
    src: str | Path | None = None,
    max_shard_size: str | int | None = None,
    reflink: Reflink = "auto",
    hardlink: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    overwrite_anything: str | Path | None = None,
    check: bool = False,
    verify_after: Proof | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    commit_message: str | None = None,
    create_pr: bool = False,
    base_model: str | None = None,
    executor: Executor | None = None,
    progress: Progress = SILENT,
    command: str | None = None,
) -> Expansion:
    """Make the model of a mergekit passthrough recipe; the arguments are those of `expand`.

    `src` says where the only model of a recipe is, if not where the recipe says. Paths in a recipe
    are relative to the current folder.
    Raises: as `expand`; RecipeError with every fault of the recipe, each with its line.
    """
    check_arguments(locals(), optional=("src",))
    target = resolve_target(expand_home(out))
    kept = (expand_home(recipe),)
    options = make_write_options(reflink, hardlink, overwrite, overwrite_anything, kept)
    hub = make_hub_options(revision, token, cache_dir, progress)
    if src is not None:
        check_revision(src, revision)
    request = _read_request(recipe, target, src, max_shard_size, hub)
    check_out(target, options, push_to_hub=push_to_hub, token=token, create_pr=create_pr)
    shown = command or _render_command(recipe, src, out, max_shard_size)
    note = None
    if not options.replaces and (target / MANIFEST_FILE).is_file():
        found = _open(request, shown, base_model, headers_only=True)
        note = use_finished(found.plan, target, found.name, is_here=_is_here(found.plan))
    write = None if note is not None else options
    output = _open(request, shown, base_model, write, progress=progress)
    if verify_after == "logits":
        _check_keeps_function(output.plan, recipe, "--verify logits")
    if note is None:
        check_write(output.plan, target, options)
    if check and note is None:
        progress.stage(CHECKING)
    plan = _check(output, recipe) if check and note is None else output.plan
    output = replace(output, plan=replace(plan, notes=plan.notes + note_base(output.name)))
    if push_to_hub is not None:
        _tell_paths(plan, progress)
    publish = PublishOptions(
        verify=verify_after,
        push_to_hub=push_to_hub,
        private=private,
        token=token,
        commit_message=commit_message,
        create_pr=create_pr,
    )
    if note is not None:
        return return_finished(output, note, publish, progress)
    return write_and_publish(output, options, publish, progress, executor)


def _tell_paths(plan: Plan, progress: Progress) -> None:
    """Say before an upload which paths of this machine the manifest holds."""
    paths = [
        name
        for name in plan.models
        if name.startswith(("/", "~", ".")) or ("/" in name and expand_home(name).is_dir())
    ]
    if paths:
        named = and_more([show(path) for path in paths], 3)
        progress.tell(
            f"{MANIFEST_FILE} is uploaded with the recipe as it is, which has paths of this "
            f"machine ({named}); name repositories in it instead"
        )


def _is_here(plan: Plan) -> bool:
    """Tell whether all models of a plan are on the disk."""
    return all(plan.path(file.name).is_file() for file in plan.source_files)


def plan_merge(
    recipe: str | Path,
    out: str | Path,
    *,
    src: str | Path | None = None,
    max_shard_size: str | int | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    base_model: str | None = None,
    check: bool = False,
    command: str | None = None,
) -> tuple[Plan, ModelRef]:
    """Return the plan of a recipe; of Hub repositories only headers are fetched."""
    check_arguments(locals(), optional=("src",))
    target = resolve_target(expand_home(out))
    hub = make_hub_options(revision, token, cache_dir)
    if src is not None:
        check_revision(src, revision)
    request = _read_request(recipe, target, src, max_shard_size, hub)
    shown = command or _render_command(recipe, src, out, max_shard_size)
    output = _open(request, shown, base_model, headers_only=True)
    return (_check(output, recipe) if check else output.plan), output.name


def preview_merge(
    recipe: str | Path,
    out: str | Path,
    *,
    src: str | Path | None = None,
    max_shard_size: str | int | None = None,
    reflink: Reflink = "auto",
    hardlink: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    overwrite_anything: str | Path | None = None,
    base_model: str | None = None,
    check: bool = False,
    command: str | None = None,
) -> Preview:
    """Return what `merge` would do; of Hub repositories only headers are fetched.

    Raises: what `merge` would raise before it writes.
    """
    target = resolve_target(expand_home(out))
    kept = (expand_home(recipe),)
    options = make_write_options(reflink, hardlink, overwrite, overwrite_anything, kept)
    check_target(target, options, planned=False)
    plan, name = plan_merge(
        recipe,
        out,
        src=src,
        max_shard_size=max_shard_size,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        base_model=base_model,
        check=check,
        command=command,
    )
    is_here = _is_here(plan)
    note = None if options.replaces else use_finished(plan, target, name, is_here=is_here)
    write = check_write(plan, target, options, is_here=is_here) if note is None else None
    return Preview(plan=plan, source=name, write=write, finished=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A recipe with all that its plan depends on besides the models."""

    merge: MergeRecipe
    out: Path
    src: str | None
    hub: HubOptions
    max_shard_nbytes: int | None
    block_nbytes: int


def _read_request(
    recipe: str | Path,
    target: Path,
    src: str | Path | None,
    max_shard_size: str | int | None,
    hub: HubOptions,
) -> _Request:
    source = None if src is None else str(src)
    return _Request(
        merge=read_recipe(recipe, source),
        out=target,
        src=source,
        hub=hub,
        max_shard_nbytes=parse_size(max_shard_size),
        block_nbytes=file_system_block(existing_folder(target)),
    )


def _open(
    request: _Request,
    command: str,
    base_model: str | None,
    write: WriteOptions | None = None,
    *,
    headers_only: bool = False,
    progress: Progress = SILENT,
) -> PlannedOutput:
    """Open the models and plan; what the headers tell is found before anything is downloaded.

    `write` says how the plan is to be written, if it is.
    """

    def plan(checkpoints: Mapping[str, Checkpoint]) -> Plan:
        named = name_tokenizers(request.merge)
        tokenizers = read_tokenizers({name: checkpoints[name] for name in named})
        return make_merge_plan(
            request.merge,
            checkpoints,
            vocabularies=parse_vocabularies(tokenizers),
            max_shard_nbytes=request.max_shard_nbytes,
            block_nbytes=request.block_nbytes,
        )

    def check(checkpoints: Mapping[str, Checkpoint]) -> None:
        planned = plan(checkpoints)
        if write is not None:
            check_write(planned, request.out, write, is_here=_is_here(planned))

    checkpoints, names = open_models(
        request.merge,
        request.src,
        request.hub,
        headers_only=headers_only,
        progress=progress,
        check=check,
    )
    base = request.merge.base
    names[base] = name_base(names[base], base_model)
    others = find_others(request.merge, checkpoints, names)
    return PlannedOutput(
        checkpoint=checkpoints[base],
        name=names[base],
        plan=add_card(plan(checkpoints), names[base], command, others),
        out=request.out,
        others={name: checkpoints[name] for name in others},
    )


def _check(output: PlannedOutput, recipe: str | Path) -> Plan:
    """Prove a plan at toy width; return it with a note of what was proven."""
    from ..verification.preflight import check_plan

    _check_keeps_function(output.plan, recipe, "--check")
    note = check_plan(output.checkpoint, output.plan)
    return replace(output.plan, notes=(*output.plan.notes, note))


def _check_keeps_function(plan: Plan, recipe: str | Path, option: str) -> None:
    if not plan.keeps_function:
        raise RecipeError(
            f"{recipe}: this recipe changes what the model computes, so there is nothing for "
            f"{option} to prove; leave it out"
        )


def _render_command(
    recipe: str | Path, src: str | Path | None, out: str | Path, max_shard_size: str | int | None
) -> str:
    """Return the command line that makes the same output."""
    words = ["python", "-m", "blockexpand", "--recipe", str(recipe), "--out", str(out)]
    if src is not None:
        words += ["--src", str(src)]
    if max_shard_size is not None:
        words += ["--max-shard-size", str(max_shard_size)]
    return shlex.join(words)
