"""The whole job, as the command line and the Python API both do it: open, plan, prove, write.

It prints nothing: progress goes to callbacks, everything else is in what it returns or raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sources import (
    OpenedSource,
    fetch_side_files,
    fetch_weights,
    open_headers,
    open_stream,
)
from ..errors import ArgumentError, RecipeError
from ..formats.elements import load_beside
from ..fs.paths import expand_home
from ..planning.card import add_card
from ..planning.origins import sources_of
from ..planning.plan import Plan, make_plan
from ..planning.recipe import render_command
from ..progress import SILENT, Progress
from ..writing.target import check_target, resolve_target
from .arguments import Dtype, Phase, Proof, Quantized, Reflink, check_arguments
from .finished import use_finished
from .options import (
    check_revision,
    make_hub_options,
    make_recipe,
    make_write_options,
    name_base,
    note_base,
    refuse_source,
)
from .pipeline import (
    CHECKING,
    Expansion,
    PlannedOutput,
    PublishOptions,
    check_out,
    return_finished,
    write_and_publish,
)
from .readiness import Preview, check_output
from .rows import check_row, choose_source_row, read_row


def expand(
    src: str | Path,
    out: str | Path,
    *,
    new_layers: int | None = None,
    position: str | Sequence[int] = "end",
    layers: str | None = None,
    phase: Phase | None = None,
    family: str | None = None,
    no_proof: bool = False,
    trust_remote_code: bool = False,
    dtype: Dtype | None = None,
    quantized: Quantized = "keep",
    max_shard_size: str | int | None = None,
    reflink: Reflink = "auto",
    hardlink: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    stream: bool = False,
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
    """Add blocks to a checkpoint without changing what it computes; arguments as in a command.

    `dtype` None is bfloat16, or of a quantised source what each tensor has. `quantized` says what
    becomes of one: `keep`, `new-blocks-full` or `dequantize`, which alone may have 0 new layers.
    `layers` lists every layer of the output instead (`0-31,31*4`): one that repeats, drops or moves
    layers changes what the model computes, which the plan's `keeps_function` says.
    `phase` "keep" makes layers that readers which go by a layer's number see as they were;
    `family` is a row for a model type that the table does not have: a .yaml file, or the family
    that the model is built like; it is proven first unless `no_proof`. `trust_remote_code` lets the
    proof run the checkpoint's own code, in a child process.
    `stream` fetches one shard of a Hub source at a time; `verify_after` is `tensors` or `logits`;
    `push_to_hub` names the repository that a complete (and verified) output is uploaded to. The
    workers of an `executor` write a file each at a time; they have to see source and output under
    the same paths. `base_model` is the repository that the card names as a local folder's base;
    `command` is the command that it shows, by default the equivalent one.
    The finished output of the same plan is returned as it is. `overwrite` makes it anew, and
    replaces what blockexpand made or what is plainly a checkpoint; `overwrite_anything` is the path
    of `out` once more, and replaces whatever is there.
    Raises: BlockExpandError; then `out` is what it was before. ProofError where `out` was written
    and does not hold what it should; HubError where it is complete and only the upload is not.
    """
    check_arguments(locals())
    check_revision(src, revision)
    target = resolve_target(expand_home(out))
    refuse_source(src, target)
    recipe = make_recipe(
        target, new_layers, position, dtype, max_shard_size, phase, layers, quantized
    )
    options = make_write_options(reflink, hardlink, overwrite, overwrite_anything)
    hub = make_hub_options(revision, token, cache_dir, progress)
    check_out(target, options, push_to_hub=push_to_hub, token=token, create_pr=create_pr)
    if family is not None:
        read_row(family)
    if stream:
        check_stream(verify_after, reflink, hardlink, executor)
        options = replace(options, reflink="never")
    source = open_headers(str(src), hub)
    recipe = choose_source_row(
        source, hub, recipe, family, needs_proof=not no_proof, own_code=trust_remote_code
    )
    shown = command or render_command(str(src), str(out), recipe, max_shard_size)
    name = name_base(source.name, base_model)

    def plan_with(checkpoint: Checkpoint) -> Plan:
        plan = make_plan(checkpoint, recipe)
        _check_provable(plan, check, verify_after)
        return add_card(plan, name, shown)

    plan = plan_with(source.checkpoint)
    if stream:
        _check_streamed(str(src), source, plan)
    publish = PublishOptions(
        verify=verify_after,
        push_to_hub=push_to_hub,
        private=private,
        token=token,
        commit_message=commit_message,
        create_pr=create_pr,
        own_code=trust_remote_code,
    )
    is_here = source.snapshot is None
    note = None if options.replaces else use_finished(plan, target, name, is_here=is_here)
    if note is None:
        if executor is None and plan.computes:
            load_beside()
        check_output(plan, target, options, source, hub, stream=stream)
    checkpoint = source.checkpoint
    if stream and note is None:
        checkpoint = fetch_side_files(source, hub)
    elif not is_here and (note is None or verify_after is not None):
        checkpoint = fetch_weights(source, hub, progress)
    plan = plan_with(checkpoint) if checkpoint is not source.checkpoint else plan
    if check and note is None:
        progress.stage(CHECKING)
        plan = _prove(checkpoint, plan)
    plan = replace(plan, notes=plan.notes + note_base(name))
    output = PlannedOutput(checkpoint=checkpoint, name=name, plan=plan, out=target)
    if note is not None:
        return return_finished(output, note, publish, progress)
    shards = open_stream(source, hub) if stream else None
    return write_and_publish(output, options, publish, progress, executor, shards)


def _prove(checkpoint: Checkpoint, plan: Plan) -> Plan:
    """Prove a plan at toy width; return it with a note of what was proven."""
    return replace(plan, notes=(*plan.notes, check_row(checkpoint, plan)))


def _check_provable(plan: Plan, check: bool, verify_after: Proof | None) -> None:
    """Refuse to prove that a function is kept that is not. Raises: RecipeError."""
    if plan.keeps_function:
        return
    for option, is_given in {"--check": check, "--verify logits": verify_after == "logits"}.items():
        if is_given:
            raise RecipeError(
                "these layers change what the model computes, so there is nothing for "
                f"{option} to prove; leave it out"
            )


def check_stream(verify_after: str | None, reflink: str, hardlink: bool, executor: object) -> None:
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


def _check_streamed(src: str, source: OpenedSource, plan: Plan) -> None:
    """Refuse to stream a folder, or a module whose parts lie in several shards.

    Raises: ArgumentError, RecipeError.
    """
    if source.snapshot is None:
        raise ArgumentError(
            "stream", f"for a repository of the Hub alone, and {src} is a folder; leave it out"
        )
    for file in plan.files:
        for tensor in file.tensors:
            if len({extent.file for extent in sources_of(tensor.origin)}) > 1:
                raise RecipeError(
                    f"tensor {tensor.name!r} is made of several shards, of which --stream keeps "
                    "one at a time; leave it out"
                )


def preview_expansion(
    src: str | Path,
    out: str | Path,
    *,
    new_layers: int | None = None,
    position: str | Sequence[int] = "end",
    layers: str | None = None,
    phase: Phase | None = None,
    family: str | None = None,
    no_proof: bool = False,
    trust_remote_code: bool = False,
    dtype: Dtype | None = None,
    quantized: Quantized = "keep",
    max_shard_size: str | int | None = None,
    reflink: Reflink = "auto",
    hardlink: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    stream: bool = False,
    overwrite: bool = False,
    overwrite_anything: str | Path | None = None,
    base_model: str | None = None,
    check: bool = False,
    command: str | None = None,
) -> Preview:
    """Return what `expand` would do; of a Hub repository only headers are fetched.

    What `check` proves is in the plan's notes. Raises: what `expand` would raise before it writes.
    """
    check_arguments(locals())
    check_revision(src, revision)
    target = resolve_target(expand_home(out))
    refuse_source(src, target)
    recipe = make_recipe(
        target, new_layers, position, dtype, max_shard_size, phase, layers, quantized
    )
    options = make_write_options(reflink, hardlink, overwrite, overwrite_anything)
    hub = make_hub_options(revision, token, cache_dir)
    check_target(target, options, planned=False)
    if stream:
        check_stream(None, reflink, hardlink, None)
        options = replace(options, reflink="never")
    source = open_headers(str(src), hub)
    recipe = choose_source_row(
        source, hub, recipe, family, needs_proof=not no_proof, own_code=trust_remote_code
    )
    plan = make_plan(source.checkpoint, recipe)
    _check_provable(plan, check, None)
    if stream:
        _check_streamed(str(src), source, plan)
    name = name_base(source.name, base_model)
    shown = command or render_command(str(src), str(out), recipe, max_shard_size)
    plan = add_card(plan, name, shown)
    is_here = source.snapshot is None
    note = None if options.replaces else use_finished(plan, target, name, is_here=is_here)
    write = None
    if note is None:
        write = check_output(plan, target, options, source, hub, stream=stream)
    if check:
        plan = _prove(source.checkpoint, plan)
    return Preview(plan=plan, source=name, write=write, finished=note)
