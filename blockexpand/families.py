"""The table of families: which row holds for a `model_type`.

A model type that is in none of the tables is unknown and is never guessed. Data only.
"""

from __future__ import annotations

from collections.abc import Mapping

from .families_dense import DENSE
from .families_mixture import MIXTURE
from .families_multimodal import WRAPPERS
from .families_recurrent import RECURRENT
from .family import Family, Wrapper

FAMILIES: Mapping[str, Family] = {
    model_type: family
    for family in (*DENSE, *MIXTURE, *RECURRENT)
    for model_type in family.model_types
}
MULTIMODAL: Mapping[str, Wrapper] = {
    model_type: wrapper for wrapper in WRAPPERS for model_type in wrapper.model_types
}
