"""A config.json that another program wrote against the one that an expansion has: by what it means.

Programs spell the same config anew: fields move, defaults appear, dtypes get another name. Where
spellings differ `transformers` tells what both mean, if it is there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.files import CONFIG_FILE
from ..messages import and_more
from ..models.loading import quiet_transformers
from .findings import Finding
from .folder import json_differences

# What says nothing of what a model computes, or of the class that runs it.
_IGNORED = frozenset(
    {
        *("_name_or_path", "transformers_version", "use_cache", "torch_dtype", "dtype"),
        *("architectures", "unsloth_version", "_attn_implementation", "_commit_hash"),
        *("return_dict", "output_hidden_states", "output_attentions", "torchscript"),
        # Which tokens begin, end and fill a text: trainers set them for their tokenizer.
        *("pad_token_id", "bos_token_id", "eos_token_id", "model_max_length"),
    }
)


def compare_configs(
    expected: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[list[Finding], list[str]]:
    """Return in what two configs mean different models, and notes of what could not be compared."""
    if not json_differences(_bare(expected), _bare(found)):
        return [], []
    meanings = _ask_transformers(expected), _ask_transformers(found)
    if meanings[0] is not None and meanings[1] is not None:
        differences = json_differences(meanings[0], meanings[1])
        return [Finding(file=CONFIG_FILE, message=text) for text in differences], []
    shared = [key for key in _bare(expected) if key in found]
    differences = json_differences(
        {key: expected[key] for key in shared}, {key: found[key] for key in shared}
    )
    apart = sorted(_bare(expected).keys() ^ _bare(found).keys())
    notes = []
    if apart:
        notes.append(
            f"{CONFIG_FILE} is spelt anew, and transformers could not be asked what "
            f"{and_more(apart, 3)} mean: compare them with the source's"
        )
    return [Finding(file=CONFIG_FILE, message=text) for text in differences], notes


def _bare(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _bare(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _IGNORED
    }


def _ask_transformers(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a config with the defaults of `transformers` filled in; None where it cannot."""
    try:
        from transformers import AutoConfig
    except ImportError:
        return None
    with quiet_transformers(), tempfile.TemporaryDirectory(prefix="blockexpand-config-") as folder:
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(config))
        try:
            loaded = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            return _bare(json.loads(json.dumps(loaded.to_dict(), default=str)))
        except Exception:
            return None
