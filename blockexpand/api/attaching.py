"""`attach` and `detach`: a block adapter's layers in a loaded model, and out of it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..progress import SILENT
from .arguments import check_arguments
from .opening_adapters import check_adapters, open_adapters
from .options import make_hub_options

if TYPE_CHECKING:
    import torch


def attach(
    model: torch.nn.Module,
    adapter: str | Path,
    *,
    scale: float = 1.0,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[int, ...]:
    """Put an adapter's blocks into a loaded base model; return the numbers of the new layers.

    Compared are the config's type and the number of layers, not the base's weights: `apply` proves
    those. Static caches and compiled code that were made before have to be made anew.
    Raises: TrainingError where the model is not of the adapter's base; CheckpointError.
    """
    check_arguments(
        {
            "adapters": (adapter,),
            "scale": scale,
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
        }
    )
    from ..adapters.in_memory import attach_blocks

    (opened,) = open_adapters((adapter,), make_hub_options(revision, token, cache_dir))
    check_adapters((opened,), SILENT)
    return attach_blocks(model, opened, scale)


def detach(model: torch.nn.Module) -> None:
    """Take the blocks of `attach` out again: the model is the base, as it was.

    Raises: TrainingError where there are none.
    """
    from ..adapters.in_memory import detach_blocks

    detach_blocks(model)
