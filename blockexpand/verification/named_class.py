"""A model type that `transformers` does not know, with a class that it knows named in config.json.

Kimi K2 says `kimi_k2`, and that it is a DeepseekV3ForCausalLM. That is what a row can be proven
with where the user says that the model is built like that class's type (`--family`); it is never
taken for granted. No code of a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import Checkpoint
from .toy_model import TRANSFORMERS, Toys


def find_named_class(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the class that `architectures` names and its model type, if they are not its own.

    None where `transformers` knows the model type itself, or no language model of that name, or
    where the checkpoint's own code has a class of another name.
    """
    try:
        import transformers
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        return None
    named = config.get("architectures")
    if config.get("model_type") in CONFIG_MAPPING or not isinstance(named, list) or len(named) != 1:
        return None
    own_code = config.get("auto_map")
    own_class = own_code.get("AutoModelForCausalLM") if isinstance(own_code, Mapping) else None
    if isinstance(own_class, str) and own_class.rpartition(".")[2] != named[0]:
        return None
    types = [kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == named[0]]
    if len(types) > 1:  # later types share a class: its own config says which it was written for
        own = getattr(transformers, named[0]).config_class.model_type
        types = [kind for kind in types if kind == own]
    return (named[0], types[0]) if types else None


def toys_of(model_type: str) -> Toys:
    """Return toys that are made with the classes of `transformers` for this type."""

    def read(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
        config = {**checkpoint.config, "model_type": model_type}
        return TRANSFORMERS.read_config(replace(checkpoint, config=config))

    def write(checkpoint: Checkpoint, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        return TRANSFORMERS.write_config(checkpoint, {**config, "model_type": model_type}, folder)

    return replace(TRANSFORMERS, read_config=read, write_config=write)
