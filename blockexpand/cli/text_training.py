"""What `train` prints: its plan, a line for each evaluation, its result; for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..planning.parameters import count_tensors, describe_parameters
from . import text_adapters

if TYPE_CHECKING:
    from ..api.training_plan import Trained, TrainingPlan


def describe_evaluation(evaluation: Mapping[str, Any]) -> str:
    """Return one line: the step, the losses, and how far each new block has come."""
    words = [f"step {evaluation['step']} of {evaluation['steps']}: loss {evaluation['loss']:.4f}"]
    if evaluation["replay_loss"] is not None:
        words.append(f"replayed text {evaluation['replay_loss']:.4f}")
    growth = " ".join(f"{layer}: {value:.3g}" for layer, value in evaluation["growth"].items())
    words.append(f"growth of layer {growth}")
    return ", ".join(words)


def describe_plan(plan: TrainingPlan, *, verbose: bool) -> str:
    """Return what a run would do."""
    lines = [*_describe_run(plan)]
    if plan.finished is not None:
        lines.append(f"already there: {plan.trained} is the output of this training")
        return "\n".join(lines)
    lines += [
        f"memory: {plan.memory_nbytes / 1e9:.2f} GB for weights, gradients and Adam's moments, "
        "activations on top" + (", shared out over the processes" if plan.settings.sharded else ""),
        f"disk: {plan.disk_nbytes / 1e9:.2f} GB at most, with the states of the run",
    ]
    if plan.resumed_step is not None:
        lines.append(f"goes on from step {plan.resumed_step}, kept in {plan.work}")
    lines.append("nothing was written")
    return "\n".join(lines)


def _describe_run(plan: TrainingPlan) -> list[str]:
    parameters = count_tensors(
        plan.checkpoint.specs.items(), plan.manifest.layer_prefix, plan.manifest.new_layers
    )
    settings = plan.settings
    examples = sum(len(text.trained) for text in plan.texts)
    share = plan.schedule.replay_share
    seen = settings.steps * settings.batch_size * (1 - share)
    lines = [
        f"new blocks: layers {', '.join(map(str, plan.manifest.new_layers))}; "
        f"{describe_parameters(parameters)}",
        f"text: {sum(text.tokens for text in plan.texts):,} tokens, {examples:,} examples of "
        f"{plan.length} to train on, {sum(len(text.held_out) for text in plan.texts):,} held out",
    ]
    if plan.replay is not None:
        lines.append(
            f"replayed: {plan.replay.tokens:,} tokens, {100 * share:g} % of each step's examples"
        )
    lines.append(
        f"{settings.steps} steps of {settings.batch_size} examples ({seen / examples:.2g} passes), "
        f"learning rate {settings.learning_rate:g}, computed in {settings.dtype}, new blocks in "
        "float32"
    )
    return lines


def plan_as_json(plan: TrainingPlan) -> dict[str, Any]:
    """Return a plan for scripts."""
    return {
        "dry_run": True,
        "model": str(plan.root),
        "out": str(plan.trained),
        "new_layers": list(plan.manifest.new_layers),
        **plan.record(()),
        "evaluate_every": plan.evaluate_every,
        "save_every": plan.save_every,
        "memory_nbytes": plan.memory_nbytes,
        "disk_nbytes": plan.disk_nbytes,
        "resumed_step": plan.resumed_step,
        "already_there": plan.finished is not None,
    }


def describe_trained(result: Trained, *, verbose: bool) -> str:
    """Return what a training came to."""
    if not result.evaluations:
        return ""
    first, last = result.evaluations[0], result.evaluations[-1]
    lines = [*_describe_run(result.plan)]
    if verbose:
        lines += [describe_evaluation(evaluation) for evaluation in result.evaluations]
    lines.append(f"loss on held-out text: {first['loss']:.4f} before, {last['loss']:.4f} after")
    if last["replay_loss"] is not None:
        lines.append(
            f"loss on held-out replayed text: {first['replay_loss']:.4f} before, "
            f"{last['replay_loss']:.4f} after"
        )
    growth = ", ".join(f"{layer}: {value:.3g}" for layer, value in last["growth"].items())
    lines.append(f"growth (norm of what was zero), layer {growth}")
    state = "already there" if result.was_there else "written"
    lines.append(f"{state}: {result.out}; every original tensor is that of {result.plan.root}")
    if result.extraction is not None:
        lines.append(text_adapters.describe_extraction(result.extraction, verbose=False))
    if result.pushed is not None:
        lines.append(f"uploaded: {result.pushed}")
    return "\n".join(lines)


def trained_as_json(result: Trained) -> dict[str, Any]:
    """Return a result for scripts."""
    return {
        "model": str(result.plan.root),
        "out": str(result.out),
        "new_layers": list(result.plan.manifest.new_layers),
        **result.plan.record(result.evaluations),
        "already_there": result.was_there,
        "extracted": None
        if result.extraction is None
        else text_adapters.extraction_as_json(result.extraction),
        "pushed": result.pushed,
    }
