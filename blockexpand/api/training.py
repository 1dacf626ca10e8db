"""`train`: the new blocks of an expansion on plain text, and a folder that holds the result.

Everything is checked before the model is loaded. The state of a run lies beside its output, so that
the same call goes on after a kill; the output is absent or complete, and never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Shard
from ..checkpoints.files import CARD_FILE
from ..errors import TrainingError
from ..fs.paths import existing_folder
from ..fs.sharing import file_system_block
from ..messages import and_more
from ..progress import SILENT, Progress
from ..training.digests import digest_tensors, find_tensors
from ..training.memory import check_memory
from ..training.output import plan_trained
from ..training.states import State, find_state, load_state, remove_states, save_state
from ..training.stored import BLOCKS_FILE
from ..training.texts import pick_evaluated
from ..writing.locking import lock_target
from ..writing.preflight import check_write
from ..writing.target import WriteOptions
from ..writing.writer import write
from .extraction import extract
from .training_plan import Trained, TrainingPlan, plan_training

if TYPE_CHECKING:
    from ..planning.plan import Plan
    from ..training.loop import Training


def train(
    out: str | Path,
    trained: str | Path,
    *,
    texts: Sequence[str | Path],
    replay: str | Path | None = None,
    replay_share: float = 0.1,
    steps: int | None = None,
    batch_size: int = 8,
    micro_batch: int | None = None,
    length: int | None = None,
    learning_rate: float = 2e-4,
    weight_decay: float = 0.1,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    fsdp: bool = False,
    evaluate_every: int | None = None,
    save_every: int | None = None,
    extract_to: str | Path | None = None,
    base: str | Path | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    token: str | None = None,
    progress: Progress = SILENT,
    told: Callable[[dict[str, Any]], object] = lambda evaluation: None,
) -> Trained:
    """Train the new blocks of the expansion `out` on plain texts, into the new folder `trained`.

    The new blocks are held in float32 and stored in the dtypes of `out`; every other tensor is
    copied from `out`. `batch_size` examples of `length` tokens (None: 512, or what the model can
    read) are a step, of which each process takes `micro_batch` at a time; a `replay_share` of them
    comes from `replay`. `steps` None is one pass over the texts. `told` is called with each
    evaluation: its step, losses and growth.
    A run that was stopped goes on where its last state was saved, and ends as if it had not been.
    `extract_to` then gets the blocks as an adapter of `base`.
    Under a launcher it joins the group of processes and leaves it again; a program that trains
    more than once makes the group itself before (`torch.distributed.init_process_group`).
    Raises: BlockExpandError; then `trained` is absent.
    """
    plan = plan_training(
        out,
        trained,
        texts=texts,
        replay=replay,
        replay_share=replay_share,
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        length=length,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        gradient_checkpointing=gradient_checkpointing,
        fsdp=fsdp,
        evaluate_every=evaluate_every,
        save_every=save_every,
        extract_to=extract_to,
        base=base,
        push_to_hub=push_to_hub,
        token=token,
    )
    if plan.finished is not None:
        return _finish(plan, plan.finished, progress, private, token, already=True)
    from ..training.loop import join_processes

    with _interruptible(plan), ExitStack() as held:
        with join_processes() as accelerator:
            processes = accelerator.num_processes
            needed = plan.memory_nbytes // (processes if fsdp else 1)
            check_memory(needed, processes, on_gpu=accelerator.device.type == "cuda")
            is_main: bool = accelerator.is_main_process
            if is_main:
                held.enter_context(lock_target(plan.work))
            evaluations, shard = _run(plan, accelerator, progress, told)
        # The others need not wait for the files of a large model.
        if shard is not None:
            _write_trained(plan, shard, evaluations, progress)
    if not is_main:
        return Trained(plan=plan, out=plan.trained, evaluations=tuple(evaluations))
    return _finish(plan, evaluations, progress, private, token)


@contextmanager
def _interruptible(plan: TrainingPlan) -> Iterator[None]:
    """Say at an interruption from where the same call goes on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        step = find_state(plan.work, plan.run)
        remark = (
            f"step {step} is kept in {plan.work}: the same command goes on from there"
            if step is not None
            else str(interrupt) or "nothing was saved yet"
        )
        raise KeyboardInterrupt(remark) from interrupt


def _write_trained(
    plan: TrainingPlan, shard: Shard, evaluations: list[dict[str, Any]], progress: Progress
) -> None:
    """Write the output, and remove the run's own folder."""
    trained_tensors = find_tensors(plan.work, [shard])
    places = find_tensors(plan.root, plan.checkpoint.shards) | trained_tensors
    blocks = {"blocks_sha256": digest_tensors(places, plan.new_tensors)}
    output = _plan_output(plan, shard, plan.record(evaluations) | blocks)
    progress.begin("writing", output.nbytes)
    write(output, plan.trained, WriteOptions(), progress)
    (plan.work / BLOCKS_FILE).unlink(missing_ok=True)
    remove_states(plan.work)


def _run(
    plan: TrainingPlan,
    accelerator: Any,
    progress: Progress,
    told: Callable[[dict[str, Any]], object],
) -> tuple[list[dict[str, Any]], Shard | None]:
    """Load and train; the main process also writes the new blocks into the run's own folder."""
    import torch

    from ..models.loading import load_whole_model, quiet_transformers
    from ..training.freezing import freeze_original_layers
    from ..training.gathering import gather, gather_state, measure_growth, restore_state
    from ..training.loop import evaluate, prepare_training, run_steps
    from ..training.stored import find_closing, name_stored, write_blocks

    progress.stage("loading the model")
    with quiet_transformers():
        model = load_whole_model(plan.root, plan.settings.dtype)
    freeze_original_layers(model, plan.root, dtype=torch.float32)
    is_main = accelerator.is_main_process
    specs = plan.checkpoint.specs
    if is_main:
        _check_stored(plan, name_stored(model, _weights_of(model), specs))
    closing = find_closing(model, plan.manifest)
    training = prepare_training(model, plan.settings, accelerator)
    first = find_state(plan.work, plan.run)
    evaluations: list[dict[str, Any]] = []
    if first is not None:
        state = load_state(plan.work, first)
        restore_state(training, state.tensors, first)
        evaluations = state.evaluations
        for evaluation in evaluations:
            told(evaluation)
    accelerator.wait_for_everyone()
    held_out = pick_evaluated([text.held_out for text in plan.texts])
    replay_held_out = None if plan.replay is None else pick_evaluated([plan.replay.held_out])

    def look(step: int, loss: float | None) -> None:
        growth = measure_growth(training, closing)
        evaluation = {
            "step": step,
            "steps": plan.settings.steps,
            "loss": evaluate(training, held_out),
            "replay_loss": None if replay_held_out is None else evaluate(training, replay_held_out),
            "training_loss": loss,
            "learning_rate": plan.settings.learning_rate_at(max(0, step - 1)),
            "growth": {str(layer): value for layer, value in growth.items()},
        }
        evaluations.append(evaluation)
        told(evaluation)

    def after_step(step: int, loss: float) -> None:
        is_last = step == plan.settings.steps
        if step % plan.evaluate_every == 0 and not is_last:
            look(step, loss)
        if step % plan.save_every == 0 or is_last:
            if is_last:
                # What is stored is what is judged: the blocks as they will be in the files.
                _round(training, plan)
                look(step, loss)
            state = gather_state(training)
            if is_main:
                save_state(
                    plan.work,
                    State(step=step, run=plan.run, evaluations=evaluations, tensors=state),
                )
            accelerator.wait_for_everyone()

    begun = first or 0
    progress.stage(f"training, from step {begun} to {plan.settings.steps}")
    if not evaluations:
        look(0, None)
    run_steps(
        training,
        plan.schedule,
        (plan.examples, None if plan.replay is None else plan.replay.trained),
        first=begun,
        after_step=after_step,
    )
    weights = {name: gather(parameter) for name, parameter in training.trained.items()}
    shard = write_blocks(plan.work, name_stored(model, weights, specs)) if is_main else None
    return evaluations, shard


def _weights_of(model: Any) -> dict[str, Any]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _round(training: Training, plan: TrainingPlan) -> None:
    """Bring the trained parameters to values that their dtype in the files can hold."""
    import torch

    dtype = {"BF16": torch.bfloat16, "F16": torch.float16}.get(plan.stored_dtype or "")
    if dtype is not None:
        with torch.no_grad():
            for parameter in training.trained.values():
                parameter.copy_(parameter.to(dtype))


def _check_stored(plan: TrainingPlan, stored: dict[str, Any]) -> None:
    """Refuse a model whose new blocks would not come back as they are in the files."""
    from safetensors import safe_open

    changed = []
    by_file: dict[str, list[str]] = {}
    for shard in plan.checkpoint.shards:
        names = [entry.name for entry in shard.header.entries if entry.name in stored]
        by_file[shard.file.name] = names
    for file, names in by_file.items():
        with safe_open(plan.root / file, framework="pt") as opened:
            changed += [
                repr(name) for name in names if not _same(opened.get_tensor(name), stored[name])
            ]
    if changed:
        raise TrainingError(
            f"{plan.root}: transformers changes {and_more(changed)} when it loads and saves them; "
            "train it with another trainer (train-config)"
        )


def _same(one: Any, other: Any) -> bool:
    import torch

    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def _plan_output(plan: TrainingPlan, shard: Shard, record: dict[str, Any]) -> Plan:
    card = plan.root / CARD_FILE
    out = replace(plan.checkpoint, card=card.read_bytes() if card.is_file() else None)
    output = plan_trained(
        out,
        plan.manifest,
        plan.decoder,
        shard,
        plan.work,
        record,
        file_system_block(existing_folder(plan.trained)),
    )
    check_write(output, plan.trained, WriteOptions())
    return output


def _finish(
    plan: TrainingPlan,
    evaluations: Sequence[dict[str, Any]],
    progress: Progress,
    private: bool,
    token: str | None,
    *,
    already: bool = False,
) -> Trained:
    """Extract and upload what is complete."""
    result = Trained(plan=plan, out=plan.trained, evaluations=tuple(evaluations), was_there=already)
    if plan.extract_to is not None and plan.base is not None:
        progress.stage(f"extracting the new blocks to {plan.extract_to}")
        extraction = extract(
            plan.trained,
            plan.extract_to,
            base=plan.base,
            revision=plan.base_revision,
            token=token,
            progress=progress,
        )
        result = replace(result, extraction=extraction)
    if plan.push_to_hub is not None:
        from ..publishing.folder import push_folder

        progress.stage(f"uploading to {plan.push_to_hub}")
        pushed = push_folder(
            plan.trained,
            plan.push_to_hub,
            private=private,
            token=token,
            show_progress=progress.is_shown,
        )
        result = replace(result, pushed=pushed)
    return result
