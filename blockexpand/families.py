"""The table of families: which row holds for a `model_type`. Pure lookup; unknown is never guessed."""

from __future__ import annotations

from collections.abc import Mapping

from .families_dense import DENSE
from .families_multimodal import WRAPPERS
from .family import Family, Wrapper

FAMILIES: Mapping[str, Family] = {
    model_type: family for family in DENSE for model_type in family.model_types
}
MULTIMODAL: Mapping[str, Wrapper] = {
    model_type: wrapper for wrapper in WRAPPERS for model_type in wrapper.model_types
}
REFUSED: Mapping[str, str] = {}
