"""Every recipe of a tiny checkpoint, of all families together."""

from __future__ import annotations

from zoo_dense import DENSE
from zoo_further import FURTHER
from zoo_mixture import MIXTURE
from zoo_multimodal import MULTIMODAL
from zoo_recurrent import RECURRENT
from zoo_wrappers import WRAPPERS

ZOO = (*DENSE, *MIXTURE, *RECURRENT, *MULTIMODAL, *WRAPPERS, *FURTHER)
