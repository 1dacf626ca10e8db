"""What a manifest says of how its output was made, read and checked. Nothing of it is known to be
true: `verify` says what it could confirm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoints.sources import ModelRef
from ..errors import CheckpointError, RecipeError
from ..messages import show
from ..models.families.form import Row, parse_form
from .manifest import Manifest, refuse_field
from .recipe import Recipe, parse_choice

_MOST_TEXT_CHARACTERS = 1 << 16

_BLOCKS = tuple(1 << power for power in range(12, 17))

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a manifest says of how its output was made. Nothing of it is known to be true.

    `recipe` is that of an expansion; else `recipe_text` is a mergekit recipe, `models` the further
    models that it takes from, by the names that it gives them; one that is the source under another
    name is in `aliases`.
    """

    recipe: Recipe | None
    max_shard_nbytes: int | None
    block_nbytes: int
    source: ModelRef
    command: str
    version: str
    fingerprint: str
    recipe_text: str | None
    models: Mapping[str, ModelRef]
    aliases: frozenset[str]


def parse_claims(manifest: Manifest) -> Claims:
    """Read what an output needs to be planned again, and where it says that it came from.

    Raises: CheckpointError naming the first bad field.
    """
    file, content = manifest.file, manifest.content
    stated = content.get("models", {})
    if not isinstance(stated, Mapping):
        refuse_field(file, "models", "an object of model to where it came from", stated)
    aliases = {name for name, fields in stated.items() if fields == {"same_as_source": True}}
    text = content.get("recipe")
    if text is not None and not isinstance(text, str):
        refuse_field(file, "recipe", "a mergekit recipe as text", text)
    nbytes, block = content.get("max_shard_nbytes"), content.get("block_nbytes")
    if nbytes is not None and (type(nbytes) is not int or not 0 < nbytes < 1 << 62):
        refuse_field(file, "max_shard_nbytes", "a size in bytes, or null", nbytes)
    # The block is padding of headers: a stranger's number may not fill the memory.
    if type(block) is not int or block not in _BLOCKS:
        refuse_field(file, "block_nbytes", f"one of {', '.join(map(str, _BLOCKS))}", block)
    return Claims(
        recipe=None if text is not None else _parse_recipe(manifest, nbytes, block),
        max_shard_nbytes=nbytes,
        block_nbytes=block,
        source=_parse_source(file, "source", content.get("source")),
        command=_parse_text(file, "command", content.get("command")),
        version=_parse_text(file, "blockexpand", content.get("blockexpand")),
        fingerprint=_parse_text(file, "fingerprint", content.get("fingerprint")),
        recipe_text=text,
        models={
            name: _parse_source(file, f"models.{show(name)}", fields)
            for name, fields in stated.items()
            if name not in aliases
        },
        aliases=frozenset(aliases),
    )


def _parse_recipe(manifest: Manifest, max_shard_nbytes: int | None, block_nbytes: int) -> Recipe:
    file, content = manifest.file, manifest.content
    position = content.get("position")
    if not isinstance(position, str) or len(position) > _MOST_TEXT_CHARACTERS:
        refuse_field(file, "position", "a position's name, or layers such as 7,15", position)
    try:
        chosen, layers = parse_choice(position)
    except RecipeError:
        refuse_field(file, "position", "a position's name, or layers such as 7,15", position)
    return Recipe(
        new_layers=len(manifest.new_layers),
        position=chosen,
        layers=layers,
        dtype=_parse_text(file, "dtype", content.get("dtype")),
        max_shard_nbytes=max_shard_nbytes,
        block_nbytes=block_nbytes,
        keeps_phase=content.get("phase") == "keep",
        quantized=parse_quantized(file, content)[1],
        row=_parse_row(file, content.get("family")),
        row_proof=_parse_text(file, "family_proof", content.get("family_proof", "")),
    )


def _parse_row(file: str, stated: object) -> Row | None:
    if stated is None:
        return None
    if isinstance(stated, str):
        return _parse_text(file, "family", stated)
    try:
        return parse_form(stated, f"{file}: family")
    except RecipeError as error:
        raise CheckpointError(str(error)) from None


def parse_quantized(file: str, content: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the method by which the source is quantised, None if by none, and the mode."""
    stated = content.get("quantized")
    if stated is None:
        return None, "keep"
    method = stated.get("method") if isinstance(stated, Mapping) else None
    mode = stated.get("mode") if isinstance(stated, Mapping) else None
    if not isinstance(method, str) or not isinstance(mode, str) or len(method + mode) > 99:
        refuse_field(file, "quantized", "an object with a method and a mode", stated)
    return method, mode


def _parse_source(file: str, field: str, fields: object) -> ModelRef:
    if not isinstance(fields, Mapping):
        refuse_field(file, field, "an object with the name of a model", fields)
    commit = fields.get("commit")
    if commit is not None and not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
        refuse_field(file, f"{field}.commit", "a commit of 40 hexadecimal digits", commit)
    repo, revision = fields.get("repo"), fields.get("revision")
    base = fields.get("base_model")
    return ModelRef(
        model=_parse_text(file, f"{field}.model", fields.get("model")),
        repo=None if repo is None else _parse_text(file, f"{field}.repo", repo),
        revision=None if revision is None else _parse_text(file, f"{field}.revision", revision),
        commit=commit,
        base_model=None if base is None else _parse_text(file, f"{field}.base_model", base),
    )


def _parse_text(file: str, field: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MOST_TEXT_CHARACTERS:
        refuse_field(file, field, f"a text of at most {_MOST_TEXT_CHARACTERS} characters", value)
    return value
