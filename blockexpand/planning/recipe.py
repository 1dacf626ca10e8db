"""What a user typed ⇄ a `Recipe`: positions, sizes, and the command line that says the same."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..errors import RecipeError
from ..models.families.form import Row
from ..models.layer_map import LayerMap, parse_layers, spell_layers
from .ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is asked for. `position` is a name, or the original layers that a clone follows.

    `dtype` is `bfloat16`, `float16`, `float32` or `source`, None what suits the source: `source`
    for a quantised one, else `bfloat16`. `quantized` is what becomes of a quantised source: `keep`,
    `new-blocks-full` or `dequantize`, which alone may have 0 new layers. `max_shard_nbytes` None
    mirrors the source's shards; `block_nbytes` is the file system's block, for alignment.
    `layers` says every layer of the output itself, whatever `position` and `new_layers` are.
    `keeps_phase` asks for layers that readers which go by a layer's number see as they were.
    `row` is that of a model type that the table does not have, `row_proof` says who proved it.
    `ranks` are the scores that `position` was chosen by, where it was.
    """

    new_layers: int | None = None
    position: str | tuple[int, ...] = "end"
    dtype: str | None = None
    max_shard_nbytes: int | None = None
    block_nbytes: int = 4096
    keeps_phase: bool = False
    layers: LayerMap | None = None
    quantized: str = "keep"
    row: Row | None = None
    row_proof: str = ""
    ranks: Ranks | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What was asked for besides the layers, as the manifest states it; units as in `Recipe`.

    `position` is its text, `recipe` for a mergekit recipe, whose layers the recipe itself says.
    """

    position: str
    dtype: str
    max_shard_nbytes: int | None
    block_nbytes: int
    keeps_phase: bool = False
    quantized: str = "keep"
    row: Row | None = None
    row_proof: str = ""
    ranks: Ranks | None = None


def parse_position(position: str | Sequence[int]) -> str | tuple[int, ...]:
    """Return a position's name, or the numbers of a comma list. Raises: RecipeError."""
    if not isinstance(position, str):
        return tuple(position)
    words = [word.strip() for word in position.split(",")]
    if all(word.isdecimal() and word.isascii() and len(word) < 10 for word in words):
        return tuple(int(word) for word in words)
    return position


def spell_position(position: str | Sequence[int], separator: str = ",") -> str:
    """Return a position as it is typed: its name, or the numbers of the layers."""
    return position if isinstance(position, str) else separator.join(map(str, position))


def spell_choice(recipe: Recipe) -> str:
    """Return which layers a recipe asks for, as a manifest states it; see `parse_choice`."""
    if recipe.layers is not None:
        return _LAYERS + spell_layers(recipe.layers)
    return spell_position(recipe.position)


def parse_choice(text: str) -> tuple[str | tuple[int, ...], LayerMap | None]:
    """Return the position and the layer map of a manifest's text. Raises: RecipeError."""
    if text.startswith(_LAYERS):
        return "end", parse_layers(text.removeprefix(_LAYERS))
    return parse_position(text), None


_LAYERS = "layers "


def parse_size(size: str | int | None) -> int | None:
    """Return bytes: of a text such as `5GB` or `800MB` (1 GB is 10⁹ bytes), or of a number.

    A text needs a unit: `5` would be bytes here and gigabytes to whoever typed it.
    Raises: RecipeError.
    """
    if size is None:
        return None
    text = f"{size}B" if isinstance(size, int) else size.strip()
    match = re.fullmatch(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([KMGT]?)(I?)(B?)", text.upper())
    if match and not match[2] and not match[4] and Fraction(match[1]):
        raise RecipeError(
            f"size {size!r} has no unit: expected something like {text}GB, {text}MB or {text}B"
        )
    power = " KMGT".index(match[2] or " ") if match else 0
    if match and match[3]:
        gigabytes = Fraction(match[1]) * 1024**power / 1000**power
        raise RecipeError(
            f"size {size!r}: sizes are decimal here (1 GB is 10⁹ bytes); expected "
            f"{float(gigabytes):.4g}{match[2]}B for this one"
        )
    nbytes = int(Fraction(match[1]) * 1000**power) if match else 0
    if not 0 < nbytes < 1 << 62:
        raise RecipeError(f"size {size!r}: expected something like 5GB or 800MB")
    return nbytes


def render_command(src: str, out: str, recipe: Recipe, max_shard_size: str | int | None) -> str:
    """Return the command line that makes the same output."""
    words = ["python", "-m", "blockexpand", "--src", src, "--out", out]
    if recipe.layers is not None:
        words += ["--layers", spell_layers(recipe.layers)]
    else:
        if recipe.new_layers is not None:
            words += ["--new-layers", str(recipe.new_layers)]
        words += ["--position", spell_position(recipe.position)]
    if isinstance(recipe.row, str):
        words += ["--family", recipe.row]
    if recipe.keeps_phase:
        words += ["--phase", "keep"]
    if recipe.dtype is not None:
        words += ["--dtype", recipe.dtype]
    if recipe.quantized != "keep":
        words += ["--quantized", recipe.quantized]
    if max_shard_size is not None:
        words += ["--max-shard-size", str(max_shard_size)]
    return shlex.join(words)
