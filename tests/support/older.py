"""Let tests that speak of `dtype` run with a transformers that called it `torch_dtype`.

The package itself takes either; tests and scripts are written as people write today.
"""

from __future__ import annotations

from functools import wraps
from importlib.metadata import version
from typing import Any

RENAMED = (4, 56)


def is_older(package: str, least: tuple[int, ...]) -> bool:
    """Tell whether an installed package is older than a release."""
    found = version(package).split(".")[: len(least)]
    return tuple(int(part) if part.isdecimal() else 0 for part in found) < least


def take_new_names() -> None:
    """Have `from_pretrained` take `dtype`; does nothing, and imports nothing, where it does."""
    if not is_older("transformers", RENAMED):
        return
    from transformers import PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    for owner in (PreTrainedModel, _BaseAutoModelClass):
        owner.from_pretrained = classmethod(_renaming(owner.from_pretrained.__func__))
    _BaseAutoModelClass.from_config = classmethod(
        _renaming(_BaseAutoModelClass.from_config.__func__)
    )


def _renaming(original: Any) -> Any:
    @wraps(original)
    def call(cls: type, *args: Any, **options: Any) -> Any:
        if "dtype" in options:
            options["torch_dtype"] = options.pop("dtype")
        return original(cls, *args, **options)

    return call
