"""The table of families: which row holds for a `model_type`.

A model type that is in none of the tables is unknown and is never guessed. Data only.
"""

from __future__ import annotations

from collections.abc import Mapping

from .dense import DENSE
from .family import Family, Wrapper
from .mixture import MIXTURE
from .multimodal import WRAPPERS
from .recent import RECENT
from .recurrent import RECURRENT

FAMILIES: Mapping[str, Family] = {
    model_type: family
    for family in (*DENSE, *MIXTURE, *RECURRENT, *RECENT)
    for model_type in family.model_types
}

MULTIMODAL: Mapping[str, Wrapper] = {
    model_type: wrapper for wrapper in WRAPPERS for model_type in wrapper.model_types
}
