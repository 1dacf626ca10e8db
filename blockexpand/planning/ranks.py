"""What `blockexpand rank --json` wrote → the layers that matter least. Pure.

A file of this kind may be a stranger's: what is used of it is checked, and nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..errors import RecipeError
from ..formats.json_object import parse_json_object
from ..messages import show

MARK = "@"
"""What stands before the file in a position: `@ranks.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The scores of a model's layers, in order, and what they were taken on.

    `scores` are block influence and the rise of the loss, in nats a token; `least` are the layers
    that were named as the least critical.
    """

    method: str
    text: str
    text_sha256: str
    tokens: int
    scores: tuple[tuple[float, float], ...]
    least: tuple[int, ...]

    def choose(self, count: int | None) -> tuple[int, ...]:
        """Return the layers of least influence, in order: as many as asked, or those named."""
        if count is None:
            return self.least
        if count > len(self.scores):
            raise RecipeError(f"{len(self.scores)} layers were ranked, found {count} new layers")
        by_influence = sorted(range(len(self.scores)), key=lambda layer: self.scores[layer][0])
        return tuple(sorted(by_influence[:count]))

    def as_json(self) -> dict[str, Any]:
        """Return what a manifest states of it."""
        return {
            "method": self.method,
            "text": {"name": self.text, "sha256": self.text_sha256, "tokens": self.tokens},
            "scores": [
                {"layer": layer, "influence": influence, "loss_rise": rise}
                for layer, (influence, rise) in enumerate(self.scores)
            ],
        }


def parse_ranks(data: bytes, file: str) -> Ranks:
    """Read the scores of a ranking. Raises: RecipeError."""
    content = parse_json_object(data, file)
    try:
        text, scores = content["text"], content["scores"]
        ranks = Ranks(
            method=content["method"],
            text=text["name"],
            text_sha256=text["sha256"],
            tokens=text["tokens"],
            scores=tuple((score["influence"], score["loss_rise"]) for score in scores),
            least=tuple(content["least_critical"]),
        )
    except (KeyError, TypeError) as error:
        raise RecipeError(
            f"{file}: is not what `blockexpand rank --json` prints: {error}"
        ) from None
    words = (ranks.method, ranks.text, ranks.text_sha256)
    numbers = [number for score in ranks.scores for number in score]
    if not (
        all(isinstance(word, str) and len(word) < 1000 for word in words)
        and all(type(number) in (int, float) and isfinite(number) for number in numbers)
        and type(ranks.tokens) is int
        and [score.get("layer") for score in scores if isinstance(score, Mapping)]
        == list(range(len(ranks.scores)))
        and ranks.least
        and all(type(layer) is int and 0 <= layer < len(ranks.scores) for layer in ranks.least)
    ):
        raise RecipeError(
            f"{file}: expected the scores of layers 0, 1, … and the least critical of them, as "
            f"`blockexpand rank --json` prints them; found {show(content.get('least_critical'))}"
        )
    return ranks
