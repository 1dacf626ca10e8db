"""Which rows of the embeddings a recipe's tokenizer needs, and that its tokens are their rows.

mergekit gives a named tokenizer's tokens their rows by name. What that can mean without moving
rows is done here: keep them, or cut those off that no token has. It runs no tokenizer.
Source: mergekit 0.1.5; the format of tokenizer.json of the tokenizers library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...checkpoints.checkpoint import Checkpoint
from ...checkpoints.tokenizer_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from ...errors import RecipeError
from ...formats.json_object import parse_json_object
from ...formats.tensor_spec import TensorSpec
from ..origins import Extent
from .recipe import MergeRecipe

_NUMBER = re.compile(r"[0-9]{1,9}")

_EMBEDDINGS = frozenset(
    {
        *("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embeddings"),
        *("lm_head", "embed_out", "output", "output_layer"),
    }
)

Vocabulary = Mapping[str, int]


def name_tokenizers(merge: MergeRecipe) -> frozenset[str]:
    """Return the models whose tokenizers have to be known; none where the recipe names none."""
    if merge.tokenizer_source is None:
        return frozenset()
    return frozenset((merge.tokenizer_source, merge.slices[0].model, merge.slices[-1].model))


def parse_vocabularies(files: Mapping[str, Mapping[Path, bytes]]) -> dict[str, Vocabulary]:
    """Return the tokens of models with their numbers, from the files of their tokenizers.

    A model without a tokenizer.json, or with one that has no vocabulary in a known form, is left
    out. Raises: CheckpointError for one that is no JSON.
    """
    found = {name: _parse_vocabulary(own) for name, own in files.items()}
    return {name: vocabulary for name, vocabulary in found.items() if vocabulary is not None}


def count_rows(
    merge: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    vocabularies: Mapping[str, Vocabulary],
) -> int | None:
    """Return how many rows of the embeddings stay; None for all of them.

    Raises: RecipeError where rows would have to be moved or made.
    """
    source = merge.tokenizer_source
    if source is None:
        return None
    models = [merge.slices[0].model, merge.slices[-1].model]
    tokens = vocabularies.get(source)
    for name in models:
        own = vocabularies.get(name)
        if tokens is None or own is None:
            if checkpoints[name] is checkpoints[source]:
                continue
            raise RecipeError(
                f"{merge.file}: tokenizer_source: whether the tokens of {source} have the same "
                f"numbers in {name} cannot be told without a {TOKENIZER_FILE} of both; leave "
                "tokenizer_source out, or make this merge with mergekit"
            )
        for token, number in tokens.items():
            if own.get(token) != number:
                raise RecipeError(
                    f"{merge.file}: tokenizer_source: token {token!r} is number {number} in "
                    f"{source}, expected the same in {name}, found {own.get(token, 'none')}: rows "
                    "of the embeddings would have to be moved; make this merge with mergekit"
                )
    if tokens is None:
        return None
    if set(tokens.values()) != set(range(len(tokens))):
        raise RecipeError(
            f"{merge.file}: tokenizer_source: the tokens of {source} are not numbered without "
            "gaps, which mergekit cannot follow either; leave tokenizer_source out"
        )
    return len(tokens)


def cut_rows(
    name: str, spec: TensorSpec, extent: Extent, rows: int | None
) -> tuple[TensorSpec, Extent]:
    """Return the first rows of a tensor outside of the layers, if it has one for each token.

    Raises: RecipeError where it has fewer rows.
    """
    if rows is None or not is_embedding(name) or not spec.shape or spec.shape[0] == rows:
        return spec, extent
    if spec.shape[0] < rows:
        raise RecipeError(
            f"tokenizer_source: tensor {name!r} has no row for some tokens; expected at least "
            f"{rows} rows, found {spec.shape[0]}; leave tokenizer_source out"
        )
    nbytes = spec.nbytes // spec.shape[0] * rows
    cut = TensorSpec(dtype=spec.dtype, shape=(rows, *spec.shape[1:]), nbytes=nbytes)
    return cut, Extent(file=extent.file, offset=extent.offset, nbytes=nbytes)


def is_embedding(name: str) -> bool:
    """Tell whether a tensor outside of the layers has a row for each token."""
    module = name.removesuffix(".weight").removesuffix(".bias")
    return module.rpartition(".")[2] in _EMBEDDINGS


def _parse_vocabulary(files: Mapping[Path, bytes]) -> Vocabulary | None:
    documents = {path.name: parse_json_object(data, str(path)) for path, data in files.items()}
    document = documents.get(TOKENIZER_FILE)
    if document is None:
        return None
    model = document.get("model")
    words: Any = model.get("vocab") if isinstance(model, dict) else None
    vocabulary: dict[str, int] = {}
    if isinstance(words, dict):
        vocabulary = {word: number for word, number in words.items() if type(number) is int}
    elif isinstance(words, list):  # of a unigram model: pairs of a token and its score
        vocabulary = {
            str(pair[0]): number
            for number, pair in enumerate(words)
            if isinstance(pair, list) and pair
        }
    if not vocabulary:
        return None  # of a form that is not known here: it says nothing of the embeddings' rows
    listed = document.get("added_tokens")
    for added in listed if isinstance(listed, list) else ():
        if isinstance(added, dict) and type(added.get("id")) is int:
            vocabulary[str(added.get("content"))] = added["id"]
    more = documents.get(TOKENIZER_CONFIG_FILE, {}).get("added_tokens_decoder")
    for number, added in (more if isinstance(more, dict) else {}).items():
        if _NUMBER.fullmatch(number) and isinstance(added, dict):
            vocabulary.setdefault(str(added.get("content")), int(number))
    return vocabulary
