"""Which row holds for a checkpoint: each candidate is planned with and proven, the likeliest first.

It decides nothing of a row but whether it holds, and does so at toy width.
"""

from __future__ import annotations

from dataclasses import replace

from ..checkpoints.checkpoint import Checkpoint
from ..errors import BlockExpandError, NoProofError, UnsupportedModelError
from ..models.families.form import Row
from ..models.inference import infer_forms
from ..planning.plan import make_plan
from ..planning.recipe import Recipe
from .preflight import check_plan
from .toy_model import TRANSFORMERS, Toys


def find_row(
    checkpoint: Checkpoint, recipe: Recipe, row: Row | None, toys: Toys = TRANSFORMERS
) -> Row:
    """Return the row that was given, or else inferred, and is proven for this very recipe.

    Raises: UnsupportedModelError where none can be inferred, or none holds, with the reason;
    NoProofError where nothing can be proven of the likeliest.
    """
    given = row is not None
    candidates = (
        (row,)
        if row is not None
        else infer_forms(checkpoint.config, checkpoint.specs, toys.read_config(checkpoint))
    )
    faults: list[BlockExpandError] = []
    for candidate in candidates:
        try:
            prove_row(checkpoint, replace(recipe, row=candidate), toys)
        except BlockExpandError as error:
            faults.append(error)
        else:
            return candidate
    if isinstance(faults[0], NoProofError):
        raise faults[0]
    what = "the row that was given" if given else "the row inferred for it"
    raise UnsupportedModelError(f"{what} does not hold: {faults[0]}")


def prove_row(checkpoint: Checkpoint, recipe: Recipe, toys: Toys = TRANSFORMERS) -> None:
    """Prove that a recipe's row holds for it. Raises: ProofError, and what `make_plan` raises."""
    check_plan(checkpoint, make_plan(checkpoint, recipe), strict=True, toys=toys)
