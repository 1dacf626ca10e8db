"""The files that tell a tokenizer's tokens, as bytes. It runs no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..formats.json_object import MOST_JSON_NBYTES
from .checkpoint import Checkpoint

TOKENIZER_FILE = "tokenizer.json"

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def read_tokenizers(checkpoints: Mapping[str, Checkpoint]) -> dict[str, dict[Path, bytes]]:
    """Return each model's tokenizer files, by their paths, as far as they are on this machine."""
    return {name: _read_files(checkpoint) for name, checkpoint in checkpoints.items()}


def _read_files(checkpoint: Checkpoint) -> dict[Path, bytes]:
    if not checkpoint.root.is_dir():
        return {}
    sizes = {file.name: file.nbytes for file in checkpoint.side_files}
    return {
        checkpoint.root / name: (checkpoint.root / name).read_bytes()
        for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)
        if 0 < sizes.get(name, 0) <= MOST_JSON_NBYTES
    }
