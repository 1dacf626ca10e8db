"""Where a decoder's layers are in a model as `transformers` holds it. Names only."""

from __future__ import annotations

from .families import FAMILIES, MULTIMODAL


def runtime_prefixes(model_type: str | None, layer_prefix: str) -> tuple[str, ...]:
    """Return the paths that a decoder's layers may have in a model, the likeliest first.

    They differ from `layer_prefix`, that of the files, where a multimodal model's parts were
    regrouped, where only its text model is loaded, and in the bare model without a head.
    """
    spellings = [layer_prefix]
    wrapper = MULTIMODAL.get(model_type or "")
    if wrapper is not None:
        spellings = [*wrapper.prefixes, layer_prefix]
    family = FAMILIES.get(wrapper.text_type if wrapper else model_type or "")
    if family is not None:
        spellings += family.prefixes
    spellings.append("model.layers.")
    bare = [prefix.partition(".")[2] for prefix in spellings]
    return tuple(dict.fromkeys(prefix for prefix in [*spellings, *bare] if prefix))
