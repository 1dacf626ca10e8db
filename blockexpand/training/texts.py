"""Plain text → examples of equal length, a part held out, and which of them each step takes. Pure.

What a step takes follows from its number alone, so that a run that is resumed, or shared out over
other processes, sees the same examples in the same order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, TrainingError

if TYPE_CHECKING:
    import numpy as np

    Examples = np.ndarray[tuple[int, int], np.dtype[np.int32]]

HELD_OUT_SHARE = 0.05

MOST_EVALUATED = 64
"""Held-out examples at most, spread over what is held out."""

# A tokenizer's memory is many times the text that it is given at once.
_PIECE_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A file's examples, int32 `[examples, length]`: those to train on, and those held out.

    `sha256` is the digest of the file; `name` is its name without the folder.
    """

    name: str
    sha256: str
    tokens: int
    trained: Examples
    held_out: Examples


def read_text(path: Path, tokenizer: Any, length: int) -> Text:
    """Cut a UTF-8 file into examples of `length` tokens; its last 5 % are held out.

    Raises: InputError where it cannot be read as text; TrainingError where it is too short.
    """
    import numpy as np

    if path.is_char_device() or path.is_block_device():
        raise InputError(f"{path}: is a device, which has no end; give a file of plain text")
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is no UTF-8 text (byte {error.start}); give plain text"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    ids: list[int] = []
    for piece in _split(text):
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    count = len(ids) // length
    if count < 2:
        raise TrainingError(
            f"{path}: has {len(ids):,} tokens; expected at least {2 * length}, an example of "
            f"{length} to train on and one to hold out; give more text or a smaller --length"
        )
    examples = np.array(ids[: count * length], dtype=np.int32).reshape(count, length)
    held_out = max(1, round(HELD_OUT_SHARE * count))
    return Text(
        name=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        tokens=len(ids),
        trained=examples[:-held_out],
        held_out=examples[-held_out:],
    )


def _split(text: str) -> Iterator[str]:
    """Cut a text after lines, into pieces that a tokenizer can bear."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _PIECE_CHARACTERS) + 1 or len(text)
        yield text[start:end]
        start = end


def join_examples(parts: Sequence[Examples]) -> Examples:
    """Return the examples of several texts as one, in order."""
    import numpy as np

    return np.concatenate(parts)


def pick_evaluated(parts: Sequence[Examples]) -> Examples:
    """Return at most 64 held-out examples, spread evenly over all of them."""
    examples = join_examples(parts)
    step = -(-len(examples) // MOST_EVALUATED)
    return examples[::step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Which examples each step trains on: `batch_size` of them, a share of which is replayed.

    Every example is taken once before any is taken again, each time in another order.
    """

    examples: int
    replayed: int
    batch_size: int
    replay_share: float
    seed: int

    @property
    def steps_per_pass(self) -> int:
        """The steps after which every example of the new text was taken at least once."""
        return math.ceil(round(self.examples / (self.batch_size * (1 - self.replay_share)), 6))

    def batch(self, step: int) -> tuple[list[int], list[int]]:
        """Return the numbers of the examples of a step: of the new text, and of the replayed."""
        first = step * self.batch_size
        before = self._count_replayed(first)
        replayed = self._count_replayed(first + self.batch_size) - before
        fresh = self.batch_size - replayed
        return (
            [self._pick(self.examples, first - before + i, 0) for i in range(fresh)],
            [self._pick(self.replayed, before + i, 1) for i in range(replayed)],
        )

    def _count_replayed(self, taken: int) -> int:
        # Rounded first: 0.1 * 30 is a little more than 3.
        return int(round(self.replay_share * taken, 6))

    def _pick(self, count: int, number: int, stream: int) -> int:
        times, place = divmod(number, count)
        return int(_order(count, self.seed, stream, times)[place])


@lru_cache(maxsize=4)
def _order(count: int, seed: int, stream: int, times: int) -> Any:
    """Return the order in which a pass takes its examples."""
    import numpy as np

    return np.random.default_rng([seed, stream, times]).permutation(count)
