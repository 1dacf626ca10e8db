"""Train what is trainable in a model, on one device or shared out over processes.

Everything that decides the result is in the arguments and in the number of a step: examples,
learning rate and random numbers follow from it, so that a run that is resumed ends as one that was
never stopped. Processes, devices and sums over them are accelerate's. It writes no file.
Source: LLaMA Pro, arXiv 2401.02415, section 4.1 (AdamW, cosine, warm-up, weight decay).
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ProcessError, TrainingError
from ..messages import one_line
from .texts import Schedule

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]

    from .texts import Examples


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a model is trained. `batch_size` counts examples a step over all processes;
    `micro_batch` those that a process takes at a time, None all of its part.

    `dtype` is what is computed in, with the trained parameters in float32 whatever it is;
    `sharded` shares the model out over the processes (FSDP) instead of repeating it (DDP).
    """

    steps: int
    batch_size: int = 8
    micro_batch: int | None = None
    learning_rate: float = 2e-4
    warmup_share: float = 0.06
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0
    dtype: str = "bfloat16"
    gradient_checkpointing: bool = False
    sharded: bool = False

    @property
    def decisive(self) -> dict[str, Any]:
        """All that decides the result; not how the same numbers are computed."""
        settings = asdict(self)
        for name in ("micro_batch", "sharded", "gradient_checkpointing"):
            del settings[name]
        return settings

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: linear warm-up, then a cosine."""
        warmup = math.ceil(self.warmup_share * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(slots=True, kw_only=True)
class Training:
    """A model in training: `raw` as it was loaded, `model` as the processes run it."""

    accelerator: Accelerator
    raw: torch.nn.Module
    model: Any
    optimizer: torch.optim.Optimizer
    settings: TrainSettings
    trained: Mapping[str, torch.nn.Parameter] = field(default_factory=dict)


@contextlib.contextmanager
def join_processes() -> Iterator[Accelerator]:
    """Join the processes of this run, and leave them where all went well.

    A process that ends with the group's threads still at work can be aborted by them, which would
    call a run failed whose output is complete. After an error there is no waiting for the others:
    the launcher ends them. A group that was there before is left to whoever made it.
    Raises: TrainingError where it was launched for a system that new blocks are not trained with,
    or another trainer has set up accelerate otherwise; ProcessError for what fails in one of
    several processes, also because another one has gone.
    """
    import torch
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    was_joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    accelerator = _open_accelerator()
    try:
        yield accelerator
    except (TrainingError, RuntimeError) as error:
        if accelerator.num_processes == 1:
            raise
        which = f"process {accelerator.process_index + 1} of {accelerator.num_processes}"
        raise ProcessError(f"{which}: {one_line(error, 300)}") from error
    if accelerator.num_processes > 1 and not was_joined:
        accelerator.wait_for_everyone()
        # Models refer to themselves, and hold on to the group until they are collected.
        gc.collect()
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def _open_accelerator() -> Accelerator:
    from accelerate import Accelerator

    # The model is shared out here (`--fsdp`), in the same way on every device.
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if os.environ.get(name, "false").lower() == "true":
            raise TrainingError(
                f"{name} is set: launch without it, and give --fsdp to share the model out over "
                "the processes"
            )
    try:
        return Accelerator(mixed_precision="no")
    except ValueError:
        # Its settings are one for a process, and belong to whoever asked first.
        raise TrainingError(
            "accelerate has been set up otherwise in this process, by a trainer that ran before; "
            "train in a process of its own, as the command does"
        ) from None


def prepare_training(
    model: torch.nn.Module, settings: TrainSettings, accelerator: Accelerator
) -> Training:
    """Put a model, whose trainable parameters are float32, on the processes' devices.

    Raises: TrainingError where examples cannot be shared out evenly.
    """
    import torch

    processes = accelerator.num_processes
    if settings.batch_size % processes:
        raise TrainingError(
            f"--batch-size {settings.batch_size} cannot be shared out over {processes} processes; "
            f"give a multiple of {processes}"
        )
    part = settings.batch_size // processes
    if settings.micro_batch is not None and part % settings.micro_batch:
        raise TrainingError(
            f"--micro-batch {settings.micro_batch} does not divide the {part} examples of a "
            "process and step"
        )
    if settings.gradient_checkpointing:
        _checkpoint_activations(model)
    wrapped: Any = model
    if settings.sharded and processes > 1:
        _shard(model, accelerator)
    else:
        wrapped = accelerator.prepare_model(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # Norms and biases are not pulled to 0: in a new block a norm may have to stay at -1.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained.values() if p.ndim > 1]},
        {"params": [p for p in trained.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    return Training(
        accelerator=accelerator,
        raw=model,
        model=wrapped,
        optimizer=optimizer,
        settings=settings,
        trained=trained,
    )


def _checkpoint_activations(model: Any) -> None:
    """Let a model compute activations twice. Raises: TrainingError where it cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise TrainingError("this model has no gradient checkpointing in transformers")
    plain = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # what transformers 5 calls it
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=plain)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=plain)


def _shard(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Share the parameters out, decoder layer by decoder layer: each is of one dtype."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = accelerator.device.type
    mesh = init_device_mesh(kind, (accelerator.num_processes,))
    classes = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in classes:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(accelerator.device)


def run_steps(
    training: Training,
    schedule: Schedule,
    examples: tuple[Examples, Examples | None],
    *,
    first: int = 0,
    after_step: Callable[[int, float], None],
) -> None:
    """Train from step `first` to the last. `examples` are those of the text and of the replayed.

    `after_step` is called with the number of steps done and the mean loss of the last one.
    Raises: TrainingError where the loss is no number, or the memory does not suffice.
    """
    import torch

    settings, accelerator = training.settings, training.accelerator
    fresh, replayed = examples
    part = settings.batch_size // accelerator.num_processes
    micro = settings.micro_batch or part
    for step in range(first, settings.steps):
        torch.manual_seed(_seed(settings.seed, step, accelerator.process_index))
        numbers, again = schedule.batch(step)
        batch = [fresh[number] for number in numbers]
        if replayed is not None:
            batch += [replayed[number] for number in again]
        mine = batch[accelerator.process_index :: accelerator.num_processes]
        for group in training.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        training.model.train()
        total = torch.zeros((), device=accelerator.device)
        with _explaining(step):
            for start in range(0, part, micro):
                is_last = start + micro >= part
                with _collecting(training, is_last=is_last):
                    loss = _loss(training, mine[start : start + micro])
                    (loss * (micro / part)).backward()
                total += loss.detach() * (micro / part)
            torch.nn.utils.clip_grad_norm_(training.trained.values(), settings.max_grad_norm)
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)
        mean = float(accelerator.reduce(total, "mean"))
        if not math.isfinite(mean):
            raise TrainingError(
                f"step {step + 1}: the loss is {mean}; give a smaller --learning-rate and begin "
                "anew"
            )
        after_step(step + 1, mean)


def evaluate(training: Training, examples: Examples) -> float:
    """Return the mean loss per token of examples; every process takes its part."""
    import torch

    accelerator, settings = training.accelerator, training.settings
    processes = accelerator.num_processes
    size = settings.micro_batch or max(1, settings.batch_size // processes)
    total = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    training.model.eval()
    with _explaining(None), torch.no_grad():
        # Shards are gathered by all processes together, so that each runs as often as the others.
        for start in range(0, len(examples), size * processes):
            mine = examples[start + accelerator.process_index * size :][:size]
            loss = _loss(training, mine if len(mine) else examples[:1])
            total += torch.tensor([float(loss) * len(mine), len(mine)]).to(total)
    summed = accelerator.reduce(total, "sum")
    return float(summed[0] / summed[1])


def _loss(training: Training, batch: Any) -> torch.Tensor:
    """Return the mean loss of predicting each next token of examples `[examples, length]`."""
    import numpy as np
    import torch

    device = training.accelerator.device
    ids = torch.from_numpy(np.stack(list(batch)).astype(np.int64)).to(device)
    dtype = getattr(torch, training.settings.dtype)
    # float32 everywhere needs no autocast.
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
        logits = training.model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten()
    )


@contextlib.contextmanager
def _collecting(training: Training, *, is_last: bool) -> Iterator[None]:
    """Add gradients up in each process, until the last part of a step brings them together."""
    model = training.model
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(is_last)
        yield
    elif hasattr(model, "no_sync") and not is_last:
        with model.no_sync():
            yield
    else:
        yield


@contextlib.contextmanager
def _explaining(step: int | None) -> Iterator[None]:
    """Say in a line what failed in the model's own code."""
    import torch

    where = "the first evaluation" if step is None else f"step {step + 1}"
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(
            f"{where}: not enough memory; give a smaller --micro-batch or --length, or "
            "--gradient-checkpointing"
        ) from error
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise TrainingError(f"{where}: the model failed: {one_line(error, 300)}") from error


def _seed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step) * 4096 + process
