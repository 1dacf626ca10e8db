"""Add blocks to a safetensors language model without changing what it computes.

Block expansion as in LLaMA Pro (arXiv 2401.02415). The command line is `python -m blockexpand`.
Importing this package imports neither torch nor transformers.
"""

from ._version import __version__
from .errors import BlockExpandError

__all__ = [
    "BlockExpandError",
    "Expansion",
    "Plan",
    "Recipe",
    "__version__",
    "diff",
    "expand",
    "expand_batch",
    "freeze_original_layers",
    "make_plan",
    "merge",
    "open_checkpoint",
    "verify",
]

_PLACES = {
    "Expansion": "api.pipeline",
    "Plan": "planning.plan",
    "Recipe": "planning.recipe",
    "diff": "api.comparing",
    "expand": "api.expansion",
    "expand_batch": "api.batch",
    "freeze_original_layers": "training.freezing",
    "make_plan": "planning.plan",
    "merge": "api.merging",
    "open_checkpoint": "checkpoints.checkpoint",
    "verify": "api.comparing",
}


def __getattr__(name: str) -> object:
    # Loaded when asked for, so that `--help` and `--version` start as fast as Python does.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
