"""`rank`: which layers of a model matter least on a text. A choice of places, never a default."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.sources import open_source
from ..errors import ArgumentError, TrainingError
from ..fs.paths import expand_home
from ..models.decoder import find_decoder, split_name
from ..models.loading import quiet_transformers
from ..planning.plan import naming
from ..progress import SILENT, Progress
from ..training.layerwise import open_by_layers
from ..training.ranking import LayerScore, score_layers
from ..training.texts import join_examples, read_text
from ..training.tokenizing import check_vocabulary, load_tokenizer
from .arguments import check_arguments
from .options import check_revision, make_hub_options

_EXAMPLE_TOKENS = 256

_DEFAULT_TOKENS = 2048

# As in LLaMA Pro: one new block for about every four layers.
_GROUP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The layers of a model with their scores, in order, and the text that they were scored on.

    `loss` is the whole model's, in nats a token; `least` are the layers of least influence, as
    many as were asked for, in order. `memory_nbytes` is what the weights took at most.
    """

    name: str
    scores: tuple[LayerScore, ...]
    least: tuple[int, ...]
    loss: float
    tokens: int
    text: str
    text_sha256: str
    dtype: str
    memory_nbytes: int


def rank(
    src: str | Path,
    text: str | Path,
    *,
    new_layers: int | None = None,
    tokens: int = _DEFAULT_TOKENS,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = SILENT,
) -> Ranking:
    """Score every decoder layer of `src` on the first `tokens` tokens of a plain text.

    One layer is in memory at a time, in float32, beside the embeddings; where a model cannot be
    read so (quantized weights, experts that transformers merges), it is loaded whole, in its own
    dtype. `new_layers` says how many layers are wanted (default: one for every four).
    Raises: TrainingError where the model does not fit the memory or the text is too short;
    ArgumentError, CheckpointError, HubError, UnsupportedModelError.
    """
    check_arguments(locals())
    check_revision(src, revision)
    source, name = open_source(
        str(src), make_hub_options(revision, token, cache_dir, progress), progress=progress
    )
    with naming(source):
        decoder = find_decoder(source.config, source.specs)
    if new_layers is not None and new_layers > decoder.layers:
        raise ArgumentError(
            "new_layers", f"{name.model} has {decoder.layers} layers, found {new_layers}"
        )
    with quiet_transformers():
        tokenizer, config = load_tokenizer(source.root)
        read = read_text(expand_home(text), tokenizer, _EXAMPLE_TOKENS)
        check_vocabulary(source.root, read, config.vocab_size)
        examples = join_examples((read.trained, read.held_out))[: max(1, tokens // _EXAMPLE_TOKENS)]
        opened = open_by_layers(source, decoder, _check_memory)
        sizes = [0] * decoder.layers
        for tensor, spec in source.specs.items():
            if (split := split_name(tensor, decoder.prefix)) is not None:
                sizes[split[0]] += spec.nbytes
        progress.begin("running the layers", sum(sizes) * len(examples))
        loss, scores = score_layers(
            opened, examples.tolist(), lambda layer: progress.advance(sizes[layer])
        )
    count = new_layers or max(1, decoder.layers // _GROUP)
    by_influence = sorted(scores, key=lambda score: score.influence)
    return Ranking(
        name=str(src),
        scores=scores,
        least=tuple(sorted(score.layer for score in by_influence[:count])),
        loss=loss,
        tokens=len(examples) * _EXAMPLE_TOKENS,
        text=read.name,
        text_sha256=read.sha256,
        dtype=opened.dtype,
        memory_nbytes=opened.nbytes,
    )


def _check_memory(needed: int, is_whole: bool) -> None:
    """Refuse weights that do not fit, where the system tells. Raises: TrainingError."""
    what = "the model, which has to be loaded whole," if is_whole else "one layer at a time"
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
                if needed > free:
                    raise TrainingError(
                        f"{what} takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB "
                        "are free here; rank it on a larger machine"
                    )
