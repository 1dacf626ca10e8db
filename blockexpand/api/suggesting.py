"""How many blocks fit a model: the counts that make equal groups, with size, parameters, memory.

Only headers are read: each row is a whole plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sources import open_headers
from ..errors import UnsupportedModelError
from ..models.decoder import Decoder, find_decoder
from ..models.families.form import Row
from ..models.layer_map import MAX_LAYERS, list_equal_groups
from ..planning.parameters import Parameters, count_parameters
from ..planning.plan import make_plan, naming
from ..planning.recipe import Recipe
from .options import check_revision, make_hub_options
from .rows import INFERRED, guess_row

# LLaMA Pro's own: 8 blocks in 32 layers did best of 1, 2, 4, 8, 16 and 32.
_PAPERS_GROUP = 4

# Beside the weights in bfloat16: a copy in float32, a gradient and Adam's two moments in float32.
_TRAINED_NBYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """One count of new blocks. `group` is the number of original layers before each of them.

    `nbytes` is the size of the output; `training_nbytes` the memory for weights, gradients and
    Adam's state when the new blocks alone are trained, without activations.
    """

    new_layers: int
    position: str
    group: int
    layers: int
    nbytes: int
    parameters: Parameters
    training_nbytes: int
    is_papers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestions:
    """The counts that fit a model of `layers` layers; `notes` say what else there is to know."""

    name: str
    model_type: str
    layers: int
    rows: tuple[Suggestion, ...]
    notes: tuple[str, ...]


def suggest(
    src: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Suggestions:
    """Return the counts of new blocks that make equal groups, each planned from the headers.

    Where new blocks cannot stand between a model's layers, the same counts at its end.
    Raises: CheckpointError, HubError, UnsupportedModelError.
    """
    check_revision(src, revision)
    source = open_headers(str(src), make_hub_options(revision, token, cache_dir))
    checkpoint = source.checkpoint
    row = guess_row(checkpoint, with_defaults=True)
    with naming(checkpoint):
        decoder = find_decoder(checkpoint.config, checkpoint.specs, row)
    counts = [n for n in list_equal_groups(decoder.layers) if decoder.layers + n <= MAX_LAYERS]
    papers = min(counts, key=lambda n: (abs(decoder.layers / n - _PAPERS_GROUP), n))
    rows: list[Suggestion] = []
    notes: list[str] = [] if row is None else [INFERRED]
    for count in counts:
        # A plan at a time: each is as large as the model has tensors.
        suggestion, refused = _suggest(checkpoint, decoder, count, row, is_papers=count == papers)
        rows.append(suggestion)
        notes += refused
    return Suggestions(
        name=source.name.model,
        model_type=decoder.model_type,
        layers=decoder.layers,
        rows=tuple(rows),
        notes=tuple(dict.fromkeys(notes)),
    )


def _suggest(
    checkpoint: Checkpoint, decoder: Decoder, count: int, row: Row | None, *, is_papers: bool
) -> tuple[Suggestion, list[str]]:
    """Plan one count; also return why its blocks cannot stand between the layers, if so."""
    position, notes = "interleaved", []
    try:
        plan = make_plan(checkpoint, Recipe(new_layers=count, position=position, row=row))
    except UnsupportedModelError as error:
        notes.append(f"{count} interleaved: {error}")
        position = "end"
        plan = make_plan(checkpoint, Recipe(new_layers=count, position=position, row=row))
    parameters = count_parameters(plan)
    suggestion = Suggestion(
        new_layers=count,
        position=position,
        group=decoder.layers // count,
        layers=len(plan.layer_map),
        nbytes=plan.nbytes,
        parameters=parameters,
        training_nbytes=sum(f.nbytes for f in plan.files) + _TRAINED_NBYTES * parameters.new,
        is_papers=is_papers,
    )
    return suggestion, notes
