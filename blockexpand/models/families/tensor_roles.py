"""What a tensor of a decoder layer is in its family: an output, a closing norm, or copied.

Works on the suffixes of tensor names only; it knows no config and no layer map.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from .family import Branch, Family, Form
from .layer_vocabulary import COPIED

# Routers add these to scores to choose experts; transformers keeps them in float32.
_FLOAT32_ENDINGS = ("e_score_correction_bias", "expert_bias")


def find_form(branch: Branch, suffixes: Iterable[str]) -> tuple[Form, ...]:
    """Return the forms of `branch` that a layer with these tensors has: one, if all is well."""
    present = tuple(suffixes)
    return tuple(form for form in branch if any(matches(s, form.outputs) for s in present))


def neutral_values(family: Family, suffixes: Collection[str]) -> dict[str, float]:
    """Return the constants that make a layer with these tensors add nothing to the stream."""
    values: dict[str, float] = {}
    for branch in family.branches:
        for form in find_form(branch, suffixes):
            norms = [suffix for suffix in suffixes if matches(suffix, form.norms)]
            if norms:
                values |= {s: 0.0 if s.endswith(".bias") else form.norm_value for s in norms}
            else:
                values |= {s: 0.0 for s in suffixes if matches(s, form.outputs)}
    for pattern, constant in family.constants:
        values |= {s: constant for s in suffixes if matches(s, (pattern,))}
    return values


def is_silenced(family: Family, suffixes: Collection[str], zeroed: Collection[str]) -> bool:
    """Tell whether a layer with these tensors adds nothing to the stream once some are zero."""
    for branch in family.branches:
        for form in find_form(branch, suffixes):
            outputs = {suffix for suffix in suffixes if matches(suffix, form.outputs)}
            norms = {suffix for suffix in suffixes if matches(suffix, form.norms)}
            by_norm = bool(norms) and form.norm_value == 0 and norms <= set(zeroed)
            if not by_norm and not outputs <= set(zeroed):
                return False
    # A factor on the stream itself is no branch, and zero is not its neutral value.
    return not any(matches(s, (pattern,)) for s in suffixes for pattern, _ in family.constants)


def is_known(family: Family, suffix: str) -> bool:
    """Tell whether the family's row, or the vocabulary of copied tensors, has this tensor."""
    copied = any(path in COPIED for path in module_paths(suffix))
    return copied or is_output(family, suffix) or matches(suffix, family.copied)


def is_output(family: Family, suffix: str) -> bool:
    """Tell whether the family's row names this tensor."""
    forms = [form for branch in family.branches for form in branch]
    named = [form.outputs for form in forms] + [form.norms for form in forms]
    return matches(suffix, tuple(pattern for pattern, _ in family.constants)) or any(
        matches(suffix, patterns) for patterns in named
    )


def is_float32(family: Family, suffix: str) -> bool:
    """Tell whether the model keeps this tensor in float32 whatever its dtype."""
    return suffix.endswith(_FLOAT32_ENDINGS) or matches(suffix, family.float32)


def matches(suffix: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether one of the module paths is this tensor's."""
    return any(path in patterns for path in module_paths(suffix))


@lru_cache(maxsize=65536)
def module_paths(suffix: str) -> tuple[str, ...]:
    """Return the paths that may stand for a tensor: with its own numbers, and with any."""
    module = re.sub(r"\.(?:weight|bias)$", "", suffix)
    exact = (suffix, module, module.removesuffix("_bias"))
    return exact + tuple(re.sub(r"(?<=\.)[0-9]+(?=\.|$)", "{e}", path) for path in exact)
