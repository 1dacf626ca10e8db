"""What `train` will do, from headers and texts alone: all that can be refused before a model loads.

The dry run and the run itself call the same function. It writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.files import MANIFEST_FILE, read_manifest
from ..checkpoints.sources import open_source
from ..errors import (
    ArgumentError,
    BlockExpandError,
    CheckpointError,
    OutputError,
    TrainingError,
    UsageError,
)
from ..fs.paths import existing_folder, expand_home, overlaps
from ..messages import one_line
from ..models.decoder import Decoder, find_decoder, split_name
from ..models.families.form import Row
from ..planning.manifest import Manifest, parse_claims, parse_manifest
from ..training.freezing import open_manifest
from ..training.loop import TrainSettings
from ..training.memory import choose_dtype, estimate_memory, estimate_states
from ..training.quantized import describe_loading
from ..training.states import find_state
from ..training.texts import Schedule, Text, join_examples, read_text
from ..writing.leftovers import clear_debris
from ..writing.target import WriteOptions, check_target, resolve_target
from .options import make_hub_options

if TYPE_CHECKING:
    from ..training.texts import Examples
    from .extraction import Extraction


_LENGTH = 512
"""Tokens an example where nothing is said, and the model can read as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """A training that nothing speaks against.

    `root` is the expansion, `trained` the output, `work` the folder of the run's states; `run` is a
    digest of all that decides the result. `memory_nbytes` is for weights, gradients and moments,
    `disk_nbytes` for the output and the states. `resumed_step` is where a run that was stopped goes
    on; `finished` are the evaluations of one that has ended, whose output is there.
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
    extract_to: Path | None
    base: str | None
    base_revision: str | None
    push_to_hub: str | None

    @property
    def examples(self) -> Examples:
        """All examples of the texts that are trained on."""
        return join_examples([text.trained for text in self.texts])

    def record(self, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return what the manifest of the output says of this training."""
        settings = asdict(self.settings)
        for name in ("micro_batch", "sharded", "gradient_checkpointing"):
            del settings[name]
        return {
            "run": self.run,
            **settings,
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
            "evaluations": list(evaluations),
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
    _check_numbers(
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
    root = expand_home(out)
    manifest = open_manifest(root)
    if not manifest.new_layers:
        raise TrainingError(f"{manifest.file}: the model has no new layer to train")
    describe_loading(manifest, is_adapter=False)
    checkpoint = open_checkpoint(root)
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
    new = [
        name
        for name in checkpoint.specs
        if (split := split_name(name, manifest.layer_prefix)) is not None
        and split[0] in manifest.new_layers
    ]
    read, again, length = _read_texts(root, texts, replay, length)
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
    run = _digest(checkpoint, manifest, new, read, again, length, settings, schedule)
    clear_debris(target)
    finished = _find_finished(target, run)
    if finished is None:
        check_target(target, WriteOptions())
    where = _check_after(root, manifest, extract_to, base, push_to_hub, token)
    disk = sum(shard.file.nbytes for shard in checkpoint.shards)
    disk += sum(file.nbytes for file in checkpoint.side_files)
    disk += estimate_states(checkpoint.specs, manifest.layer_prefix, manifest.new_layers)
    resumed = None if finished is not None else find_state(work, run)
    if finished is None and resumed is None:
        _check_disk(
            target, estimate_states(checkpoint.specs, manifest.layer_prefix, manifest.new_layers)
        )
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
        extract_to=None if extract_to is None else expand_home(extract_to),
        base=where[0],
        base_revision=where[1],
        push_to_hub=push_to_hub,
    )


def _row(manifest: Manifest) -> Row | None:
    """Return the family row that the expansion was made with, if it is none of the table's."""
    recipe = parse_claims(manifest).recipe
    return None if recipe is None else recipe.row


def _check_numbers(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is None:
            continue
        least = 0 if name in ("seed", "weight_decay") else 2 if name == "length" else 1
        is_fraction = name in ("learning_rate", "weight_decay")
        if isinstance(value, bool) or not isinstance(value, (int, float) if is_fraction else int):
            raise ArgumentError(name, f"expected a number, found {value!r}")
        if (name == "learning_rate" and not 0 < value < 1) or (not is_fraction and value < least):
            expected = "above 0 and below 1" if is_fraction else f"{least} or more"
            raise ArgumentError(name, f"expected {expected}, found {value}")
        if name == "weight_decay" and not 0 <= value < 1:
            raise ArgumentError(name, f"expected 0 or more and below 1, found {value}")


def _read_texts(
    root: Path,
    texts: Sequence[str | Path],
    replay: str | Path | None,
    length: int | None,
) -> tuple[tuple[Text, ...], Text | None, int]:
    """Cut the texts with the model's own tokenizer; return the length of an example too.

    Raises: TrainingError, InputError, ArgumentError.
    """
    from transformers import AutoConfig, AutoTokenizer

    from ..models.loading import quiet_transformers

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(root, trust_remote_code=False)
            config = AutoConfig.from_pretrained(root, trust_remote_code=False).get_text_config()
    except Exception as error:  # whatever is wrong with its files
        raise TrainingError(
            f"{root}: its tokenizer or config cannot be loaded: {one_line(error, 300)}"
        ) from error
    most = getattr(config, "max_position_embeddings", None)
    most = most if isinstance(most, int) else None
    if length is not None and most is not None and length > most:
        raise ArgumentError("length", f"the model reads at most {most} tokens, found {length}")
    length = length or min(_LENGTH, most or _LENGTH)
    read = tuple(read_text(expand_home(path), tokenizer, length) for path in texts)
    again = None if replay is None else read_text(expand_home(replay), tokenizer, length)
    for text in (*read, *([again] if again else ())):
        highest = int(max(text.trained.max(), text.held_out.max()))
        if highest >= config.vocab_size:
            raise TrainingError(
                f"{root}: its tokenizer makes token {highest} of {text.name}, its model knows "
                f"{config.vocab_size}"
            )
    return read, again, length


def _digest(
    checkpoint: Checkpoint,
    manifest: Manifest,
    new: Sequence[str],
    texts: Sequence[Text],
    replay: Text | None,
    length: int,
    settings: TrainSettings,
    schedule: Schedule,
) -> str:
    """Digest what decides the result: the blocks as they are, the texts, the settings."""
    decisive = asdict(settings)
    # How the same numbers are computed.
    for name in ("micro_batch", "sharded", "gradient_checkpointing"):
        del decisive[name]
    told = {
        "settings": decisive,
        "length": length,
        "replay_share": schedule.replay_share,
        "texts": [text.sha256 for text in texts],
        "replay": None if replay is None else replay.sha256,
        "layers": [manifest.layer_prefix, *manifest.new_layers],
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    digest.update(checkpoint.config_bytes)
    wanted = frozenset(new)
    for shard in checkpoint.shards:
        digest.update(shard.header_bytes)
        with (checkpoint.root / shard.file.name).open("rb") as stream:
            for entry in shard.header.entries:
                if entry.name in wanted:
                    stream.seek(shard.header.data_start + entry.data_offset)
                    digest.update(stream.read(entry.spec.nbytes))
    return digest.hexdigest()


def _find_finished(target: Path, run: str) -> list[dict[str, Any]] | None:
    """Return the evaluations of the same training where its output is there; else None."""
    try:
        stated = parse_manifest(*read_manifest(target)).content.get("training")
        last = stated[-1] if isinstance(stated, list) else {}
        evaluations = last["evaluations"] if last["run"] == run else None
        return list(evaluations) if evaluations is not None else None
    except (BlockExpandError, OSError, LookupError, TypeError):
        return None


def _check_after(
    root: Path,
    manifest: Manifest,
    extract_to: str | Path | None,
    base: str | Path | None,
    push_to_hub: str | None,
    token: str | None,
) -> tuple[str | None, str | None]:
    """Refuse what would fail after the training; return the base to extract from, and its
    revision. Raises: UsageError, OutputError, HubError, CheckpointError."""
    if push_to_hub is not None:
        from ..publishing.target import check_push

        check_push(push_to_hub, token=token)
    if extract_to is None:
        if base is not None:
            raise UsageError("--base is for --extract DIR")
        return None, None
    check_target(resolve_target(expand_home(extract_to)), WriteOptions())
    revision = None
    if base is None:
        source = parse_claims(manifest).source
        if source.repo is None:
            raise UsageError(
                f"--extract needs --base BASE, the model that {root} was expanded from"
            )
        base, revision = source.repo, source.commit
    opened, _ = open_source(str(base), make_hub_options(revision, token, None), headers_only=True)
    layers = find_decoder(opened.config, opened.specs).layers
    if layers != manifest.original_layers:
        raise CheckpointError(
            f"{base}: has {layers} layers; {root} was expanded from a model of "
            f"{manifest.original_layers}"
        )
    return str(base), revision


def _check_disk(target: Path, states: int) -> None:
    """Refuse a disk without room for the states of a run; the output is checked when it is known.

    Raises: OutputError.
    """
    free = shutil.disk_usage(existing_folder(target.parent)).free
    if free < states:
        raise OutputError(
            f"{target.parent}: the states of the run take {states / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; make room, or choose another --out"
        )
