"""What a manifest claims of its output's origin: checked where it can be, else said to be a claim.

Nothing here is believed: the source is the one that the user gave. It fetches nothing, and opens
the output's card alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath

from .._version import __version__
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CARD_FILE, MANIFEST_FILE
from ..checkpoints.sources import ModelRef
from ..checkpoints.tokenizer_files import read_tokenizers
from ..errors import CheckpointError, RecipeError
from ..messages import and_more, show
from ..models.decoder import find_decoder
from ..planning.card import without_proof
from ..planning.claims import Claims
from ..planning.manifest import Manifest
from ..planning.mergekit.parsing import parse_recipe
from ..planning.mergekit.plan import make_merge_plan
from ..planning.mergekit.recipe import MergeRecipe
from ..planning.mergekit.vocabulary import name_tokenizers, parse_vocabularies
from ..planning.plan import Plan, make_plan

# A plan of so many tensors takes seconds and 200 MB, whatever a stranger's manifest asks for.
_MOST_TENSORS = 200_000

# What `apply` adds to the manifest of an expansion.
_OF_APPLIED = frozenset({"adapters", "keeps_function"})


def check_models(manifest: Manifest, claims: Claims) -> None:
    """Raises: CheckpointError where the further models are not exactly those of the recipe.

    The recipe's own model is always the source as the user gave it: a manifest that names another
    for it would have the source compared with nothing.
    """
    stated = claims.models.keys() | claims.aliases
    if claims.recipe_text is None:
        if stated:
            raise CheckpointError(
                f"{manifest.file}: field 'models': expected none without a recipe, found "
                f"{and_more(sorted(map(show, stated)), 3)}"
            )
        return
    merge = _parse_stated(manifest, claims.recipe_text)
    if merge.base in stated:
        raise CheckpointError(
            f"{manifest.file}: field 'models' names {show(merge.base)}, the recipe's own model; "
            "that is the source as you give it, and no other"
        )
    named = set(merge.models) - {merge.base}
    # Older releases left out what is the source under another name.
    missing = named - stated if manifest.schema_version > 1 else set()
    if stated - named or missing:
        expected, found = (
            and_more(sorted(map(show, names)), 5) or "none" for names in (named, stated)
        )
        raise CheckpointError(
            f"{manifest.file}: field 'models': expected the recipe's further models ({expected}), "
            f"found {found}"
        )


def plan_again(
    manifest: Manifest,
    claims: Claims,
    checkpoint: Checkpoint,
    others: Mapping[str, Checkpoint],
) -> Plan:
    """Make the plan again from the recipe that the manifest states.

    Raises: CheckpointError for what is no recipe for the source; UnsupportedModelError.
    """
    row = claims.recipe.row if claims.recipe else None
    decoder = find_decoder(checkpoint.config, checkpoint.specs, row)
    per_layer = Counter(decoder.placed.values())
    tensors = max(per_layer.values()) * len(manifest.layer_map)
    if tensors > max(_MOST_TENSORS, 4 * len(checkpoint.specs)):
        raise CheckpointError(
            f"{manifest.file}: states {len(manifest.layer_map)} layers, which would be {tensors} "
            f"tensors of a source that has {len(checkpoint.specs)}; is it damaged?"
        )
    try:
        return _plan_as_stated(manifest, claims, checkpoint, others)
    except RecipeError as error:
        # Nobody has typed it: the file is at fault.
        raise CheckpointError(
            f"{manifest.file}: what it states is no plan for this source: {error}"
        ) from error


def _plan_as_stated(
    manifest: Manifest, claims: Claims, checkpoint: Checkpoint, others: Mapping[str, Checkpoint]
) -> Plan:
    if claims.recipe is not None:
        return make_plan(checkpoint, claims.recipe)
    assert claims.recipe_text is not None
    merge = _parse_stated(manifest, claims.recipe_text)
    checkpoints = {model: others.get(model, checkpoint) for model in merge.models}
    tokenizers = read_tokenizers({name: checkpoints[name] for name in name_tokenizers(merge)})
    return make_merge_plan(
        merge,
        checkpoints,
        vocabularies=parse_vocabularies(tokenizers),
        max_shard_nbytes=claims.max_shard_nbytes,
        block_nbytes=claims.block_nbytes,
    )


def _parse_stated(manifest: Manifest, recipe: str) -> MergeRecipe:
    try:
        return parse_recipe(recipe.encode(), MANIFEST_FILE)
    except RecipeError as error:
        raise CheckpointError(f"{manifest.file}: field 'recipe': {error}") from error


def find_wrong_source(
    manifest: Manifest, claims: Claims, checkpoint: Checkpoint, name: ModelRef
) -> str | None:
    """Say on one line that an output was made of another model, where types or depths show it.

    Raises: CheckpointError, UnsupportedModelError for a source that cannot be expanded.
    """
    stated, found = manifest.model_type, checkpoint.config.get("model_type")
    layers = None
    if stated in (None, found):
        row = claims.recipe.row if claims.recipe else None
        layers = find_decoder(checkpoint.config, checkpoint.specs, row).layers
        if claims.recipe_text is not None or layers == manifest.original_layers:
            return None
    depth = "" if layers is None else f", {layers} layers"
    return (
        f"was made from {show(claims.source.model)} ({show_name(stated or found)}, "
        f"{manifest.original_layers} layers), not from {name.model} ({show_name(found)}{depth})"
    )


def show_name(value: object) -> str:
    """Spell a model type without quotes where it is one."""
    return value if isinstance(value, str) and value.isidentifier() else show(value)


def compare_claims(claims: Claims, name: ModelRef) -> tuple[list[str], list[str]]:
    """Return what a manifest says falsely of its source, and what nothing here can confirm."""
    made = claims.source
    faults, stated = [], []
    where = f"{made.repo} at commit {made.commit}" if made.commit else str(made.repo)
    if name.repo is not None and made.repo not in (None, name.repo):
        faults.append(f"field 'source': says {where}, which is not the source, {name.repo}")
    elif made.repo is not None and name.repo is None:
        stated.append(f"made from {where}: not checked, the source given is a folder")
    elif made.commit and name.commit and made.commit != name.commit:
        stated.append(f"made from {where}: compared with commit {name.commit} instead")
    elif made.repo is None and PurePath(made.model).name != PurePath(name.model).name:
        stated.append(f"made from {made.model}: not checked")
    return faults, stated


def find_other_weights(
    different: int, originals: int, source: ModelRef, claims: Claims | None
) -> str | None:
    """Say on one line that an output has another model's weights, if most of them differ."""
    if 2 * different <= originals:
        return None
    made = f"was made from {show(claims.source.model)} (as it says)" if claims else "is of another"
    return (
        f"{different} of {originals} original tensors are not those of {source.model}: "
        f"it {made}, or all of it was trained"
    )


def note_claims(plan: Plan, claims: Claims, unknown: list[str], out: Path) -> list[str]:
    """Say what differs without making another model: the card, the release, unknown fields."""
    notes = []
    if plan.options.row is not None:
        notes.append(
            "the table of families has no row for this model: what its new layers set to a "
            "constant is as the output itself says, and only --logits tells whether that keeps the "
            "function"
        )
    is_applied = "adapters" in unknown
    if is_applied:
        notes.append(
            "it states that block adapters were put on; what it and its card say of them was not "
            "checked"
        )
        unknown = [field for field in unknown if field not in _OF_APPLIED]
    if "ranking" in unknown:
        notes.append(
            "it states the ranking of layers that its places were chosen by, which was not checked"
        )
        unknown = [field for field in unknown if field != "ranking"]
    card, path = next(d.data for d in plan.documents if d.name == CARD_FILE), out / CARD_FILE
    if not path.is_file():
        notes.append(f"{CARD_FILE} is missing")
    elif not is_applied:
        with path.open("rb") as stream:
            # What a run that verified adds to its card is left out.
            if without_proof(stream.read(2 * len(card) + 1)) != card:
                notes.append(
                    f"{CARD_FILE} is not the card that this release writes: it was edited, or "
                    "another release wrote it; what it says was not checked"
                )
    if claims.version != __version__:
        notes.append(f"made by blockexpand {claims.version}; this is {__version__}")
    elif claims.fingerprint != plan.fingerprint and not is_applied:
        notes.append(f"{MANIFEST_FILE}: field 'fingerprint' is not that of this plan")
    if unknown:
        fields = and_more(sorted(map(show, unknown)), 5)
        notes.append(f"{MANIFEST_FILE}: unknown fields were not checked: {fields}")
    if not claims.command.isprintable():
        notes.append(f"{MANIFEST_FILE}: field 'command' has control characters: do not paste it")
    return notes
