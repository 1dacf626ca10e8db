"""Which files of a checkpoint folder or repository are weights, and which come along. Names only.

The one place that tells them apart, so that a local folder and a Hub repository select the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
MANIFEST_FILE = "block_expansion.json"

# Written anew for the output, never copied.
REWRITTEN_FILES = frozenset({WEIGHTS_FILE, INDEX_FILE, CONFIG_FILE, CARD_FILE, MANIFEST_FILE})

# Weights (or training state) in a form that is not this checkpoint's. They would describe the
# model before the expansion, so they stay behind and the run says so.
_FOREIGN_WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.pkl",
    "*.pickle",
    "*.gguf",
    "*.ggml",
    "*.onnx",
    "*.onnx_data",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.tflite",
    "*.mlmodel",
    "*.mlpackage",
    "*.npz",
    "*.nemo",
    "*.engine",
    "*.distcp",
    "*.index.json",
    "consolidated*",
)
# The voices of Qwen2.5-Omni's talker, without which transformers does not load the model.
_NO_WEIGHTS = frozenset({"spk_dict.pt"})
_FOREIGN_FOLDERS = frozenset({"original", "onnx", "coreml", "gguf", "openvino", "metal"})


def is_foreign_weights(name: str) -> bool:
    """Tell whether a file (`/`-separated, relative) holds weights in another form or is part of
    them. The checkpoint's own shards match too: take those out first."""
    path = PurePosixPath(name.lower())
    if any(part in _FOREIGN_FOLDERS or part.startswith("global_step") for part in path.parts[:-1]):
        return True
    if path.name in _NO_WEIGHTS:
        return False
    return any(fnmatchcase(path.name, pattern) for pattern in _FOREIGN_WEIGHTS)


def is_hidden(name: str) -> bool:
    """Tell whether a file belongs to version control or a cache (`.git/`, `.cache/`, …)."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def split_side_files(
    names: Iterable[str], shards: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the side files that come along and the weights that are left behind, each sorted."""
    own = REWRITTEN_FILES.union(shards)
    side: list[str] = []
    left: list[str] = []
    for name in names:
        if name in own or is_hidden(name):
            continue
        (left if is_foreign_weights(name) else side).append(name)
    return tuple(sorted(side)), tuple(sorted(left))
