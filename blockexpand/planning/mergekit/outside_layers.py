"""What a recipe of several models means outside of the layers: heads, configs, tokenizers. Pure.

It plans no tensors; of what was planned it tells whether it is a checkpoint of its config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ...checkpoints.checkpoint import Checkpoint
from ...checkpoints.files import CONFIG_FILE
from ...errors import BlockExpandError, RecipeError
from ...formats.json_object import JsonEdit, parse_json_object
from ...fs.reading import FileStat
from ...messages import and_more
from ...models.decoder import Decoder, find_decoder
from ...models.families import MULTIMODAL
from ..dtypes import MergeDtypes
from ..shards import PlannedFile
from ..tensor_map import SourceModel
from .recipe import MergeRecipe
from .vocabulary import is_embedding

# Final norms, beside the layers, and heads, at the top of the names.
_FINAL_NORMS = frozenset(
    {
        *("norm", "final_layernorm", "final_layer_norm", "final_norm", "layer_norm", "ln_f"),
        *("norm_f", "norm_out", "out_norm", "ln_final"),
    }
)

_HEADS = frozenset(
    {"lm_head", "embed_out", "output", "output_layer", "head", "score", "classifier"}
)

_TOKENIZER_FILES = re.compile(
    r"(?:tokenizer.*|tokenization_.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|"
    r"merges\.txt|chat_template.*|.*\.tiktoken|spiece\.model|sentencepiece.*\.model)"
)

# Fields in which models of one family may differ without computing otherwise.
_COSMETIC = frozenset(
    {
        *("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype"),
        *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"),
        *("initializer_range", "attention_dropout", "layer_types", "max_window_layers"),
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    }
)

_MOST_FIELDS_SHOWN = 6


def is_after_layers(decoder: Decoder, name: str) -> bool:
    """Tell whether a tensor outside of the layers is one that they lead to: a final norm, a head.

    Layers that are stored past the end count as such.
    """
    if name in decoder.placed:
        return True
    parent = decoder.prefix.removesuffix(".").rpartition(".")[0]
    if parent and name.startswith(f"{parent}."):
        return name[len(parent) + 1 :].partition(".")[0] in _FINAL_NORMS
    words = name.split(".")
    if words[0] in ("model", "language_model", "transformer") and len(words) > 2:
        words = words[1:]
    return words[0] in _HEADS or (not parent and words[0] in _FINAL_NORMS)


def is_scaled_outside(decoder: Decoder, name: str) -> bool:
    """Tell whether a tensor outside of the layers is one that a slice's scale can mean.

    A vision tower is none, though its tensors may have the names of the decoder's, and neither are
    layers stored past the end.
    """
    if name in decoder.placed:
        return False
    own = is_embedding(name) or is_after_layers(decoder, name)
    return own or decoder.model_type not in MULTIMODAL


def compare_models(merge: MergeRecipe, models: Mapping[str, SourceModel]) -> tuple[str, ...]:
    """Return what to know of models whose configs are not the same."""
    base = models[merge.base].checkpoint.config
    notes = []
    for name, source in models.items():
        other = source.checkpoint.config
        fields = [
            key
            for key in dict.fromkeys((*base, *other))
            if key not in _COSMETIC and base.get(key) != other.get(key)
        ]
        if fields:
            notes.append(
                f"the config is that of {merge.base}; in {name} these fields are others: "
                f"{and_more(fields, _MOST_FIELDS_SHOWN)}"
            )
    return tuple(notes)


def note_float32(models: Sequence[SourceModel], policy: MergeDtypes) -> tuple[str, ...]:
    """Say how many tensors are left float32 against the letter of the recipe."""
    count = sum(
        policy.stays_float32(source.decoder, name, spec)
        for source in models
        for name, spec in source.checkpoint.specs.items()
    )
    if not count:
        return ()
    return (
        f"{count} tensors stay float32, since the model computes with them in float32 whatever its "
        "dtype; mergekit would round them",
    )


def check_result(
    merge: MergeRecipe,
    base: SourceModel,
    files: Sequence[PlannedFile],
    config: bytes,
    rows: int | None,
) -> None:
    """Refuse an output that would be no checkpoint of its config. Raises: RecipeError."""
    specs = {tensor.name: tensor.spec for file in files for tensor in file.tensors}
    outside = {
        name: spec
        for name, spec in base.checkpoint.specs.items()
        if name not in base.decoder.placed and name not in base.decoder.tables
    }
    placed = base.decoder.prefix
    for name in sorted(outside.keys() | {name for name in specs if not name.startswith(placed)}):
        expected = list(outside[name].shape) if name in outside else None
        if expected and rows is not None and is_embedding(name):
            expected[0] = rows
        found = list(specs[name].shape) if name in specs else None
        if expected != found and name not in base.decoder.tables:
            raise RecipeError(
                f"{merge.file}: tensor {name!r} does not fit the config, which is that of "
                f"{merge.base}; expected {expected or 'none'}, found {found or 'none'}; name the "
                "model that it comes from as base_model, or take models of one vocabulary"
            )
    try:
        find_decoder(parse_json_object(config, CONFIG_FILE), specs)
    except BlockExpandError as error:
        raise RecipeError(f"{merge.file}: these layers are no whole model: {error}") from None


def cuts_rows(base: SourceModel, rows: int | None) -> bool:
    """Tell whether embeddings lose rows."""
    return rows is not None and any(
        is_embedding(name) and spec.shape[:1] != (rows,)
        for name, spec in base.checkpoint.specs.items()
        if name not in base.decoder.placed
    )


def vocabulary_edits(base: SourceModel, rows: int | None) -> tuple[JsonEdit, ...]:
    """Return the edit of the config that goes with it."""
    if not cuts_rows(base, rows):
        return ()
    return (JsonEdit(path=(*base.decoder.config_path, "vocab_size"), value=rows),)


def note_rows(base: SourceModel, rows: int | None) -> tuple[str, ...]:
    """Say that embeddings lose rows."""
    if not cuts_rows(base, rows):
        return ()
    return (
        f"the embeddings are cut to the {rows} rows of the tokenizer's tokens, as mergekit does "
        "with a tokenizer_source; leave it out to keep them all",
    )


def choose_side_files(
    merge: MergeRecipe, checkpoints: Mapping[str, Checkpoint]
) -> tuple[tuple[FileStat, ...], dict[str, Path]]:
    """Return the output's side files, and the paths of those that are not the base model's.

    The tokenizer is that of the recipe's `tokenizer_source`; all else comes with the config.
    """
    base = checkpoints[merge.base]
    source = checkpoints[merge.tokenizer_source or merge.base]
    if source is base:
        return base.side_files, {}
    kept = [file for file in base.side_files if not _is_tokenizer(file.name)]
    taken = [file for file in source.side_files if _is_tokenizer(file.name)]
    files = sorted([*kept, *taken], key=lambda file: file.name)
    return tuple(files), {file.name: source.root / file.name for file in taken}


def _is_tokenizer(name: str) -> bool:
    return _TOKENIZER_FILES.fullmatch(PurePosixPath(name).name) is not None
