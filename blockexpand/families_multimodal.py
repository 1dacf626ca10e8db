"""Rows of the multimodal models whose text decoder is a family of its own. Data only."""

from __future__ import annotations

from .family import Wrapper

WRAPPERS: tuple[Wrapper, ...] = (Wrapper(model_types=("gemma3",), text_type="gemma3_text"),)
