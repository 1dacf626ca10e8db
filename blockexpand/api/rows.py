"""Which row holds for a checkpoint whose model type the table does not have: given or inferred.

A row that is not in the table is proven at toy width before it is used, with the class that
`transformers` has for the model type. It writes nothing and runs no code of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..errors import BlockExpandError, NoProofError, ProofError, RecipeError, UnsupportedModelError
from ..fs.paths import expand_home
from ..models.families import FAMILIES, MULTIMODAL
from ..models.families.form import FamilyForm, Row, parse_form, render_form
from ..models.families.refused import REFUSED
from ..models.inference import infer_forms
from ..planning.plan import make_plan
from ..planning.recipe import Recipe

_MOST_ROW_NBYTES = 1 << 20


def read_row(family: str) -> Row:
    """Return the row that `--family` names: a file's, or the family that a model is built like.

    Raises: RecipeError with the file and what is wrong in it.
    """
    if family in FAMILIES or family in MULTIMODAL:
        return family
    path = expand_home(family)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise RecipeError(
            f"--family {family}: is no family of the table (see `blockexpand families`) and no "
            ".yaml file with a row"
        )
    import yaml

    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_ROW_NBYTES + 1)
        if len(data) > _MOST_ROW_NBYTES:
            raise RecipeError(f"{family}: expected at most {_MOST_ROW_NBYTES} bytes, found more")
        return parse_form(yaml.safe_load(data), family)
    except OSError as error:
        raise RecipeError(f"{family}: cannot read: {error.strerror}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"{family}: this is no YAML: {reason}") from None


def infer_family(checkpoint: Checkpoint) -> tuple[FamilyForm, ...]:
    """Return the rows that may hold for a checkpoint, the likeliest first; none is proven.

    Raises: UnsupportedModelError where none can be told.
    """
    return infer_forms(checkpoint.config, checkpoint.specs, _effective(checkpoint))


def infer_folder(folder: str | Path) -> dict[str, Any]:
    """Return the likeliest row for a checkpoint folder as plain data. Raises: as `infer_family`."""
    return render_form(infer_family(open_checkpoint(expand_home(folder)))[0])


def choose_row(
    checkpoint: Checkpoint, recipe: Recipe, row: Row | None, *, needs_proof: bool
) -> Recipe:
    """Return the recipe with the row that holds for a checkpoint, proven for this very plan.

    A model type of the table needs none. Without `needs_proof` a row that is given is used as it
    is, and the recipe says so. Raises: UnsupportedModelError where no row holds, with the reason.
    """
    model_type = checkpoint.config.get("model_type")
    known = any(model_type == name for table in (FAMILIES, MULTIMODAL, REFUSED) for name in table)
    known = known or not isinstance(model_type, str)  # what a plan says of it
    if row is None and known:
        return recipe
    if row is not None and not needs_proof:
        return replace(recipe, row=row)
    try:
        make_plan(checkpoint, recipe)
    except UnsupportedModelError as error:
        refusal = str(error)
    else:
        refusal = ""
    try:
        candidates: tuple[Row, ...] = (row,) if row is not None else infer_family(checkpoint)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{refusal}; {error}") from None
    faults = []
    for candidate in candidates:
        attempt = replace(recipe, row=candidate)
        try:
            return replace(attempt, row_proof=_prove(checkpoint, attempt, given=row is not None))
        except BlockExpandError as error:
            faults.append(str(error))
    origin = "the row that was given" if row is not None else f"{refusal}; the row inferred for it"
    raise UnsupportedModelError(f"{origin} does not hold: {faults[0]}")


def _prove(checkpoint: Checkpoint, recipe: Recipe, *, given: bool) -> str:
    from importlib.metadata import version

    from ..verification.preflight import check_plan

    plan = make_plan(checkpoint, recipe)
    try:
        check_plan(checkpoint, plan, strict=True)
    except NoProofError as error:
        has_code = checkpoint.config.get("auto_map")
        custom = " and the checkpoint's own code is never run" if has_code else ""
        raise ProofError(
            f"nothing was proven{custom} ({str(error).removeprefix('--check proves nothing: ')}); "
            "a row of your own (--family FILE.yaml) can be used unproven with --no-proof"
        ) from None
    return (
        f"{'given' if given else 'inferred'} and proven with transformers {version('transformers')}"
    )


def _effective(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """Return the config with the defaults of transformers; None where it does not know it."""
    import json
    import tempfile

    try:
        from transformers import AutoConfig
    except ImportError:
        return None
    with tempfile.TemporaryDirectory(prefix="blockexpand-config-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(checkpoint.config)))
        try:
            found: dict[str, Any] = AutoConfig.from_pretrained(
                folder, trust_remote_code=False
            ).to_dict()
        except Exception:
            return None
    return found
