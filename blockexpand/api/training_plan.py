"""What `train` will do, from headers and texts alone: all that can be refused before a model loads.

The dry run and the run itself call the same function. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.files import MANIFEST_FILE, read_manifest
from ..errors import (
    ArgumentError,
    BlockExpandError,
    CheckpointError,
    OutputError,
    TrainingError,
    UsageError,
)
from ..fs.paths import expand_home, overlaps
from ..models.decoder import Decoder, find_decoder, split_name
from ..models.families.form import Row
from ..planning.claims import parse_claims
from ..planning.manifest import Manifest, parse_manifest
from ..planning.plan import naming
from ..training.digests import digest_run, digest_tensors, find_tensors
from ..training.freezing import open_manifest
from ..training.loop import TrainSettings
from ..training.memory import choose_dtype, estimate_memory, estimate_states
from ..training.quantized import describe_loading
from ..training.states import find_state
from ..training.texts import Schedule, Text, join_examples
from ..training.tokenizing import read_texts
from ..writing.leftovers import clear_debris
from ..writing.target import WriteOptions, check_target, resolve_target
from .training_checks import (
    check_disk,
    check_numbers,
    check_sharding,
    check_what_follows,
    check_work_folder,
)

if TYPE_CHECKING:
    from ..training.texts import Examples
    from .extraction import Extraction


# So many evaluations are told of a run: a manifest is read whole, by every command.
_MOST_TOLD = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """A training that nothing speaks against.

    `root` is the expansion, `trained` the output, `work` the folder of the run's states; `run` is a
    digest of all that decides the result. `memory_nbytes` is for weights, gradients and moments,
    `disk_nbytes` for the output and the states. `resumed_step` is where a run that was stopped goes
    on; `finished` are the evaluations of one that has ended, whose output is there. `new_tensors`
    are what is trained, as the files name it.
    """

    root: Path
    checkpoint: Checkpoint
    manifest: Manifest
    decoder: Decoder
    trained: Path
    work: Path
    texts: tuple[Text, ...]
    replay: Text | None
    length: int
    settings: TrainSettings
    schedule: Schedule
    evaluate_every: int
    save_every: int
    stored_dtype: str | None
    run: str
    memory_nbytes: int
    disk_nbytes: int
    resumed_step: int | None
    finished: list[dict[str, Any]] | None
    new_tensors: tuple[str, ...]
    extract_to: Path | None
    base: str | None
    base_revision: str | None
    push_to_hub: str | None

    @property
    def examples(self) -> Examples:
        """All examples of the texts that are trained on."""
        return join_examples([text.trained for text in self.texts])

    def record(self, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return what is told of this training: of very many evaluations some, evenly spread."""
        step = -(-len(evaluations) // _MOST_TOLD) or 1
        told = [*evaluations[:-1:step], *evaluations[-1:]]
        return {
            "run": self.run,
            **self.settings.decisive,
            "length": self.length,
            "replay_share": self.schedule.replay_share,
            "texts": [
                {
                    "name": text.name,
                    "sha256": text.sha256,
                    "tokens": text.tokens,
                    "is_replay": text is self.replay,
                }
                for text in (*self.texts, *([self.replay] if self.replay else ()))
            ],
            "evaluations": told,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished training: where it is, and its evaluations (step, losses, growth) in order.

    `was_there` says that an earlier run of the same training had finished it.
    """

    plan: TrainingPlan
    out: Path
    evaluations: tuple[dict[str, Any], ...]
    extraction: Extraction | None = None
    pushed: str | None = None
    was_there: bool = False


def plan_training(
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
    token: str | None = None,
) -> TrainingPlan:
    """Return what `train` would do. Raises: what it would raise before the model is loaded."""
    check_numbers(
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        length=length,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        evaluate_every=evaluate_every,
        save_every=save_every,
    )
    if not texts:
        raise UsageError("give the text to train on: --text FILE")
    if not 0 <= replay_share < 1:
        raise ArgumentError("replay_share", f"expected 0 or more and below 1, found {replay_share}")
    if find_spec("accelerate") is None:
        raise TrainingError(
            "accelerate is needed to train, and is not installed: pip install accelerate"
        )
    if fsdp:
        check_sharding()
    root = expand_home(out)
    manifest = open_manifest(root)
    if not manifest.new_layers:
        raise TrainingError(f"{manifest.file}: the model has no new layer to train")
    describe_loading(manifest, is_adapter=False)
    checkpoint = open_checkpoint(root)
    with naming(checkpoint):
        decoder = find_decoder(checkpoint.config, checkpoint.specs, _row(manifest))
    if decoder.layers != len(manifest.layer_map):
        raise CheckpointError(
            f"{root}: config.json says {decoder.layers} layers, {MANIFEST_FILE} "
            f"{len(manifest.layer_map)}; is it the file of this model?"
        )
    target = resolve_target(expand_home(trained))
    if overlaps(target, root):
        raise OutputError(f"{target}: lies in {root}, or the other way round; choose another --out")
    work = target.with_name(target.name + ".training")
    check_work_folder(work)
    new = tuple(
        name
        for name in checkpoint.specs
        if (split := split_name(name, manifest.layer_prefix)) is not None
        and split[0] in manifest.new_layers
    )
    read, again, length = read_texts(root, texts, replay, length)
    count = sum(len(text.trained) for text in read)
    schedule = Schedule(
        examples=count,
        replayed=0 if again is None else len(again.trained),
        batch_size=batch_size,
        replay_share=0.0 if again is None else replay_share,
        seed=seed,
    )
    settings = TrainSettings(
        steps=steps or schedule.steps_per_pass,
        batch_size=batch_size,
        micro_batch=micro_batch,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        dtype=choose_dtype(checkpoint.specs, new),
        gradient_checkpointing=gradient_checkpointing,
        sharded=fsdp,
    )
    stored = {checkpoint.specs[name].dtype for name in new}
    decisive = {
        "settings": settings.decisive,
        "length": length,
        "replay_share": schedule.replay_share,
        "texts": [text.sha256 for text in read],
        "replay": None if again is None else again.sha256,
        "layers": [manifest.layer_prefix, *manifest.new_layers],
    }
    run = digest_run(checkpoint, new, decisive)
    clear_debris(target)
    finished = _find_finished(target, run, new)
    if finished is None:
        check_target(target, WriteOptions())
    base_name, base_revision = check_what_follows(
        root, checkpoint, manifest, extract_to, base, push_to_hub, token
    )
    states = estimate_states(checkpoint.specs, manifest.layer_prefix, manifest.new_layers)
    disk = states + sum(shard.file.nbytes for shard in checkpoint.shards)
    disk += sum(file.nbytes for file in checkpoint.side_files)
    resumed = None if finished is not None else find_state(work, run)
    if finished is None and resumed is None:
        check_disk(target, states)
    every = max(1, settings.steps // 10)
    return TrainingPlan(
        root=root,
        checkpoint=checkpoint,
        manifest=manifest,
        decoder=decoder,
        trained=target,
        work=work,
        texts=read,
        replay=again,
        length=length,
        settings=settings,
        schedule=schedule,
        evaluate_every=evaluate_every or every,
        save_every=save_every or every,
        stored_dtype=stored.pop() if len(stored) == 1 else None,
        run=run,
        memory_nbytes=estimate_memory(
            checkpoint.specs, manifest.layer_prefix, manifest.new_layers, settings.dtype
        ),
        disk_nbytes=disk,
        resumed_step=resumed,
        finished=finished,
        new_tensors=new,
        extract_to=None if extract_to is None else expand_home(extract_to),
        base=base_name,
        base_revision=base_revision,
        push_to_hub=push_to_hub,
    )


def _row(manifest: Manifest) -> Row | None:
    """Return the family row that the expansion was made with, if it is none of the table's."""
    recipe = parse_claims(manifest).recipe
    return None if recipe is None else recipe.row


def _find_finished(target: Path, run: str, new: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the evaluations of the same training where its output is there; else None.

    Trainers copy manifests: only with the very blocks of that training it is its output.
    """
    try:
        stated = parse_manifest(*read_manifest(target)).content.get("training")
        last = stated[-1] if isinstance(stated, list) else {}
        if last["run"] != run:
            return None
        found = open_checkpoint(target)
        if last["blocks_sha256"] != digest_tensors(find_tensors(found.root, found.shards), new):
            return None
        return list(last["evaluations"])
    except (BlockExpandError, OSError, LookupError, TypeError):
        return None
