"""Which row holds for a checkpoint whose model type the table does not have: given or inferred.

A row that is not in the table is proven at toy width before it is used: with the class that
`transformers` has for the model type, or in a child process with the checkpoint's own code where
the user has allowed it. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.sources import HubOptions, OpenedSource, fetch_side_files
from ..errors import ArgumentError, NoProofError, RecipeError, UnsupportedModelError
from ..formats.yaml_nodes import MOST_YAML_NBYTES
from ..fs.paths import expand_home
from ..models.decoder import find_text_model
from ..models.families import FAMILIES, MULTIMODAL
from ..models.families.form import Row, render_form
from ..models.families.refused import REFUSED
from ..models.families.row_file import check_row_file, parse_row
from ..models.inference import infer_forms
from ..planning.plan import Plan, make_plan
from ..planning.recipe import Recipe
from ..verification.named_class import find_named_class, toys_of
from ..verification.own_code import (
    check_plan_with_own_code,
    find_row_with_own_code,
    has_own_code,
    prove_row_with_own_code,
)
from ..verification.preflight import check_plan
from ..verification.row_proof import find_row
from ..verification.toy_model import TRANSFORMERS, Toys, read_effective


def read_row(family: str) -> Row:
    """Return the row that `--family` names: a file's, or the family that a model is built like.

    Raises: ArgumentError for what is neither; RecipeError with the file and what is wrong in it.
    """
    if family in FAMILIES or family in MULTIMODAL:
        return family
    path = expand_home(family)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ArgumentError(
            "family",
            f"{family} is no family of the table (see `blockexpand families`) and no .yaml file "
            "with a row",
        )
    return parse_row(_read_file(family), family)


def _read_file(family: str) -> bytes:
    try:
        with expand_home(family).open("rb") as stream:
            return stream.read(MOST_YAML_NBYTES + 1)
    except OSError as error:
        raise RecipeError(f"{family}: cannot read: {error.strerror}") from error


def infer_folder(folder: str | Path) -> dict[str, Any]:
    """Return the likeliest row for a checkpoint folder as plain data; it is not proven.

    Raises: UnsupportedModelError where none can be told.
    """
    checkpoint = open_checkpoint(expand_home(folder))
    forms = infer_forms(checkpoint.config, checkpoint.specs, read_effective(checkpoint))
    return render_form(forms[0])


def choose_row(
    checkpoint: Checkpoint,
    recipe: Recipe,
    row: Row | None,
    *,
    needs_proof: bool,
    own_code: bool = False,
) -> Recipe:
    """Return the recipe with the row that holds for a checkpoint, proven for this very plan.

    A model type of the table needs none, unless the checkpoint's `own_code` is what says how it is
    computed. Without `needs_proof` a row that is given is used as it is, and the recipe says so.
    Raises: UnsupportedModelError where no row holds, with the reason.
    """
    own_code = own_code and has_own_code(checkpoint.config)
    if row is None and is_known(checkpoint):
        if not own_code:
            return recipe
        prove_row_with_own_code(checkpoint, recipe)
        return replace(recipe, row_proof=f"proven with {OWN_CODE} and {_transformers()}")
    if row is not None and not needs_proof:
        return replace(recipe, row=row)
    refusal = "" if row is not None else f"{_why_unknown(checkpoint, recipe)}; "
    try:
        if own_code:
            found = find_row_with_own_code(checkpoint, recipe, row)
        else:
            found = find_row(checkpoint, recipe, row, _choose_toys(checkpoint.config, row))
    except NoProofError as error:
        reason = _explain_no_proof(checkpoint, own_code, str(error))
        raise UnsupportedModelError(refusal + reason) from None
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{refusal}{error}") from None
    origin = "given" if row is not None else "inferred"
    code = f"{OWN_CODE} and " if own_code else ""
    proof = f"{origin} and proven with {code}{_transformers()}"
    named = None if own_code else find_named_class(checkpoint.config)
    if named is not None and named[1] == found:
        proof += f" for {named[0]}, which config.json names"
        if checkpoint.config.get("auto_map"):
            proof += "; its custom code (auto_map) was not run"
    return replace(recipe, row=found, row_proof=proof)


def _choose_toys(config: Mapping[str, Any], row: Row | None) -> Toys:
    """Return what a row is proven with: the class that config.json names, if the row is its."""
    named = find_named_class(config)
    return toys_of(named[1]) if named is not None and named[1] == row else TRANSFORMERS


def _why_unknown(checkpoint: Checkpoint, recipe: Recipe) -> str:
    try:
        make_plan(checkpoint, recipe)
    except UnsupportedModelError as error:
        return str(error)
    return ""


def _explain_no_proof(checkpoint: Checkpoint, own_code: bool, reason: str) -> str:
    for prefix in ("--check proves nothing: ", "nothing was proven: "):
        reason = reason.removeprefix(prefix)
    named = find_named_class(checkpoint.config)
    if named is not None and not own_code and named[1] in FAMILIES:
        return (
            f"nothing was proven: {_transformers()} does not know the model type; config.json "
            f"names {named[0]}, the class of {named[1]!r}: if it is built like that, "
            f"--family {named[1]} proves it with that class"
        )
    if not own_code and has_own_code(checkpoint.config) and read_effective(checkpoint) is None:
        return (
            f"nothing was proven: {_transformers()} has no class for it, and {OWN_CODE} is run "
            "only if --trust-remote-code is given (read it first); a row of your own "
            "(--family FILE.yaml) can be used unproven with --no-proof"
        )
    return (
        f"nothing was proven: {reason}; a row of your own (--family FILE.yaml) can be used "
        "unproven with --no-proof"
    )


def _transformers() -> str:
    from importlib.metadata import version

    return f"transformers {version('transformers')}"


INFERRED = (
    "the model type is not in the table of families: this is with a row that was inferred, which "
    "a run proves before it writes"
)

OWN_CODE = "the checkpoint's own code"


def choose_source_row(
    source: OpenedSource,
    hub: HubOptions,
    recipe: Recipe,
    family: str | None,
    *,
    needs_proof: bool,
    own_code: bool = False,
) -> Recipe:
    """Do `choose_row` with the row that `--family` names, for a folder or a repository.

    A repository's code is fetched if it is to be run. Raises: as `choose_row`; RecipeError.
    """
    checkpoint = source.checkpoint
    row = None if family is None else read_row(family)
    if family is not None and not isinstance(row, str):
        check_row_file(_read_file(family), family, checkpoint.config, checkpoint.specs)
    if own_code and source.snapshot is not None and has_own_code(checkpoint.config):
        checkpoint = fetch_side_files(source, hub)
    return choose_row(checkpoint, recipe, row, needs_proof=needs_proof, own_code=own_code)


def guess_row(checkpoint: Checkpoint, *, with_defaults: bool = False) -> Row | None:
    """Return the row that a run would try first to prove, None for a type of the table.

    `with_defaults` asks `transformers` for what the config leaves out, which takes seconds.
    Raises: UnsupportedModelError where none can be told.
    """
    if is_known(checkpoint):
        return None
    effective = read_effective(checkpoint) if with_defaults else None
    return infer_forms(checkpoint.config, checkpoint.specs, effective)[0]


def is_known(checkpoint: Checkpoint) -> bool:
    """Tell whether a plan needs no further row, or says itself what is wrong with the type."""
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type in REFUSED:
        return True
    _, text_type, _ = find_text_model(checkpoint.config, model_type)
    return text_type in FAMILIES or text_type in REFUSED


def check_row(checkpoint: Checkpoint, plan: Plan) -> str:
    """Do `check_plan` with whichever code proved the plan's row, if any did. Raises: as it does."""
    if OWN_CODE in plan.options.row_proof:
        return check_plan_with_own_code(checkpoint, plan)
    return check_plan(checkpoint, plan, toys=_choose_toys(checkpoint.config, plan.options.row))
