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
    ModelRef,
    OpenedSource,
    fetch_side_files,
    open_headers,
    open_source,
    open_stream,
)
from ..errors import RecipeError
from ..fs.paths import expand_home
from ..planning.card import add_card
from ..planning.origins import sources_of
from ..planning.plan import Plan, make_plan
from ..planning.recipe import render_command
from ..progress import SILENT, Progress
from ..writing.writer import WriteOptions, check_write, resolve_target
from .arguments import Dtype, Phase, Proof, Quantized, Reflink, check_arguments
from .options import make_hub_options, make_recipe, name_base, note_base
from .pipeline import (
    CHECKING,
    Expansion,
    PlannedOutput,
    PublishOptions,
    check_out,
    write_and_publish,
)


def expand(
    src: str | Path,
    out: str | Path,
    *,
    new_layers: int | None = None,
    position: str | Sequence[int] = "end",
    layers: str | None = None,
    phase: Phase | None = None,
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
    check: bool = False,
    verify_after: Proof | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
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
    `stream` fetches one shard of a Hub source at a time; `verify_after` is `tensors` or `logits`;
    `push_to_hub` names the repository that a complete (and verified) output is uploaded to. The
    workers of an `executor` write a file each at a time; they have to see source and output under
    the same paths. `base_model` is the repository that the card names as a local folder's base;
    `command` is the command that it shows, by default the equivalent one.
    Raises: BlockExpandError; then `out` is what it was before. ProofError where `out` was written
    and does not hold what it should; HubError where it is complete and only the upload is not.
    """
    check_arguments(
        src=src,
        out=out,
        new_layers=new_layers,
        position=position,
        layers=layers,
        phase=phase,
        dtype=dtype,
        quantized=quantized,
        max_shard_size=max_shard_size,
        reflink=reflink,
        hardlink=hardlink,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        stream=stream,
        overwrite=overwrite,
        check=check,
        verify_after=verify_after,
        push_to_hub=push_to_hub,
        private=private,
        base_model=base_model,
        executor=executor,
        progress=progress,
        command=command,
    )
    target = resolve_target(expand_home(out))
    recipe = make_recipe(
        target, new_layers, position, dtype, max_shard_size, phase, layers, quantized
    )
    options = WriteOptions(reflink=reflink, hardlink=hardlink, overwrite=overwrite)
    hub = make_hub_options(revision, token, cache_dir, progress)
    check_out(target, overwrite=overwrite, push_to_hub=push_to_hub, token=token)

    def check_headers(checkpoint: Checkpoint) -> None:
        plan = make_plan(checkpoint, recipe)
        if stream:
            _check_parts(plan)
        _check_provable(plan, check, verify_after)

    source: OpenedSource | None = None
    if stream:
        _check_stream(verify_after, reflink, hardlink, executor)
        source = open_headers(str(src), hub)
        if source.snapshot is None:
            raise RecipeError(f"{src}: --stream is for a repository of the Hub, not for a folder")
        check_headers(source.checkpoint)
        checkpoint, name = fetch_side_files(source, hub), source.name
        options = replace(options, reflink="never")
    else:
        checkpoint, name = open_source(str(src), hub, progress=progress, check=check_headers)
    plan = make_plan(checkpoint, recipe)
    if stream:
        _check_parts(plan)
    _check_provable(plan, check, verify_after)
    shown = command or render_command(str(src), str(out), recipe, max_shard_size)
    name = name_base(name, base_model)
    plan = add_card(plan, name, shown)
    check_write(plan, target, options)
    notes = note_base(name)
    if check:
        from ..verification.preflight import check_plan

        progress.stage(CHECKING)
        notes += (check_plan(checkpoint, plan),)
    output = PlannedOutput(
        checkpoint=checkpoint,
        name=name,
        plan=replace(plan, notes=plan.notes + notes),
        out=target,
    )
    publish = PublishOptions(
        verify=verify_after, push_to_hub=push_to_hub, private=private, token=token
    )
    shards = None if source is None else open_stream(source, hub)
    return write_and_publish(output, options, publish, progress, executor, shards)


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


def _check_parts(plan: Plan) -> None:
    """Refuse to stream a module whose parts lie in several shards. Raises: RecipeError."""
    for file in plan.files:
        for tensor in file.tensors:
            if len({extent.file for extent in sources_of(tensor.origin)}) > 1:
                raise RecipeError(
                    f"tensor {tensor.name!r} is made of several shards, of which --stream keeps "
                    "one at a time; leave it out"
                )


def plan_expansion(
    src: str | Path,
    out: str | Path,
    *,
    new_layers: int | None = None,
    position: str | Sequence[int] = "end",
    layers: str | None = None,
    phase: Phase | None = None,
    dtype: Dtype | None = None,
    quantized: Quantized = "keep",
    max_shard_size: str | int | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    base_model: str | None = None,
    check: bool = False,
) -> tuple[Plan, ModelRef]:
    """Return the plan of an expansion; of a Hub repository only headers are fetched.

    What `check` proves is in the plan's notes.
    """
    check_arguments(
        src=src,
        out=out,
        new_layers=new_layers,
        position=position,
        layers=layers,
        phase=phase,
        dtype=dtype,
        quantized=quantized,
        max_shard_size=max_shard_size,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        base_model=base_model,
        check=check,
    )
    target = resolve_target(expand_home(out))
    recipe = make_recipe(
        target, new_layers, position, dtype, max_shard_size, phase, layers, quantized
    )
    hub = make_hub_options(revision, token, cache_dir)
    checkpoint, name = open_source(str(src), hub, headers_only=True)
    plan = make_plan(checkpoint, recipe)
    _check_provable(plan, check, None)
    name = name_base(name, base_model)
    plan = add_card(plan, name, render_command(str(src), str(out), recipe, max_shard_size))
    if check:
        from ..verification.preflight import check_plan

        plan = replace(plan, notes=(*plan.notes, check_plan(checkpoint, plan)))
    return plan, name
