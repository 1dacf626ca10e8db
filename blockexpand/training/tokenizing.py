"""Plain texts → examples, with a model's own tokenizer and as long as it can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, TrainingError
from ..fs.paths import expand_home
from ..messages import one_line
from ..models.loading import quiet_transformers
from .texts import Text, read_text

_LENGTH = 512
"""Tokens an example where nothing is said, and the model can read as many."""


def read_texts(
    root: Path,
    texts: Sequence[str | Path],
    replay: str | Path | None,
    length: int | None,
) -> tuple[tuple[Text, ...], Text | None, int]:
    """Cut the texts, and the replayed one, for the model in `root`; return an example's length too.

    Raises: TrainingError, InputError, ArgumentError.
    """
    tokenizer, config = load_tokenizer(root)
    most = getattr(config, "max_position_embeddings", None)
    most = most if isinstance(most, int) else None
    if length is not None and most is not None and length > most:
        raise ArgumentError("length", f"the model reads at most {most} tokens, found {length}")
    length = length or min(_LENGTH, most or _LENGTH)
    read = tuple(read_text(expand_home(path), tokenizer, length) for path in texts)
    again = None if replay is None else read_text(expand_home(replay), tokenizer, length)
    for text in (*read, *([again] if again else ())):
        check_vocabulary(root, text, config.vocab_size)
    return read, again, length


def load_tokenizer(root: Path) -> tuple[Any, Any]:
    """Return the tokenizer of a model, and the config of its text part. Raises: TrainingError."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(root, trust_remote_code=False)
            config = AutoConfig.from_pretrained(root, trust_remote_code=False).get_text_config()
    except Exception as error:  # whatever is wrong with its files
        raise TrainingError(
            f"{root}: its tokenizer or config cannot be loaded: {one_line(error, 300)}"
        ) from error
    return tokenizer, config


def check_vocabulary(root: Path, text: Text, vocabulary: int) -> None:
    """Refuse a text with tokens that the model does not know. Raises: TrainingError."""
    highest = int(max(text.trained.max(), text.held_out.max()))
    if highest >= vocabulary:
        raise TrainingError(
            f"{root}: its tokenizer makes token {highest} of {text.name}, its model knows "
            f"{vocabulary}"
        )
