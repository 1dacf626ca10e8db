"""Read a config's lists of modules as those do who load the checkpoint. Pure.

A loader makes of one module, by its full name, SKIPPED or a word of how it is quantised. Written
after the behaviour of transformers 5.23 (quantizers_utils.should_convert_module), vLLM 0.33
(quant_utils.is_layer_skipped and each method's own), SGLang 0.5.23 and compressed-tensors 0.20;
`pytest -m clients` compares with their own functions. Experts are asked for by their container.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .scheme import QuantConfig

SKIPPED = "left unquantized"

QUANTIZED = "quantized"

_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"


def transformers_skips(patterns: Iterable[str] | None, module: str) -> bool:
    """Match from the start up to a module's boundary, as a pattern too, or the end of the name."""
    return any(
        _match(rf"(?:{pattern}){_BOUNDARY}", module) or module.endswith(pattern)
        for pattern in patterns or ()
    )


def names_module(names: Iterable[str] | None, module: str) -> bool:
    """Match whole names, and experts by any entry that contains them (vLLM: fp8)."""
    entries = list(names or ())
    return _names_experts(entries, module) if "experts" in module else module in entries


def is_part(names: Iterable[str] | None, module: str) -> bool:
    """Match any part of a name (vLLM and SGLang: awq)."""
    return any(entry in module for entry in names or ())


def lies_below(names: Iterable[str] | None, module: str) -> bool:
    """Match whole components anywhere in the name, with `model.` before them or without, and
    experts by any entry that contains them (SGLang: fp8)."""
    bare = [entry.removeprefix("model.") for entry in names or ()]
    entries = [spelling for entry in bare for spelling in (entry, f"model.{entry}")]
    return any(f".{entry.rstrip('.')}." in f".{module}." for entry in entries) or (
        "experts" in module and _names_experts(entries, module)
    )


def _names_experts(entries: Iterable[str], module: str) -> bool:
    return any(module in entry for entry in entries if "experts" in entry)


def begins_or_is_in(names: Iterable[str] | None, module: str) -> bool:
    """Match one component, or the first ones (SGLang: bitsandbytes)."""
    return any(
        entry in module.split(".") or f"{module}.".startswith(f"{entry}.") for entry in names or ()
    )


def skip_if(is_skipped: bool) -> object:
    """Return what a list of unquantised modules makes of one."""
    return SKIPPED if is_skipped else QUANTIZED


def find_target(targets: Iterable[str] | None, module: str) -> bool:
    """Match a whole name, or a pattern after `re:` from the start (compressed-tensors).

    A target without a dot that starts with a capital is a class, which every weight's module has.
    """
    for target in targets or ():
        if target.startswith("re:"):
            if _match(target[3:], module):
                return True
        elif target == module or is_class(target):
            return True
    return False


def is_class(target: str) -> bool:
    """Tell whether a target is the name of a class (`Linear`)."""
    return target[:1].isupper() and "." not in target


def find_group_by_end(config: QuantConfig, module: str) -> object:
    """Return the group that a module is in; names in `ignore` match the end of its (SGLang)."""
    names = [entry for entry in config.get("ignore") or () if not entry.startswith("re:")]
    if any(f".{module}".endswith(f".{name}") for name in names):
        return SKIPPED
    return find_group(config, module)


def find_group(config: QuantConfig, module: str) -> object:
    """Return the group of compressed-tensors that a module is in; SKIPPED for one in none.

    A group that names modules comes before one that names classes.
    """
    if find_target(config.get("ignore"), module):
        return SKIPPED
    groups: Mapping[str, Any] = config.get("config_groups") or {}
    by_class: object = SKIPPED
    for name, group in groups.items():
        targets = group.get("targets") or ()
        if find_target([target for target in targets if not is_class(target)], module):
            return name
        if by_class is SKIPPED and any(map(is_class, targets)):
            by_class = name
    return by_class


def find_dynamic(config: QuantConfig, module: str) -> object:
    """Return what GPTQ's `dynamic` says of a module: SKIPPED, or its overrides spelt out."""
    for key, value in (config.get("dynamic") or {}).items():
        if key.startswith("-:"):
            if _match(key[2:], module):
                return SKIPPED
        elif _match(key.removeprefix("+:"), module):
            return repr(value)
    return QUANTIZED


def find_dynamic_in_blocks(config: QuantConfig, module: str) -> object:
    """Return what `dynamic` says of a module that is listed by a part of its name (vLLM: gptq)."""
    names = flatten(config.get("modules_in_block_to_quantize") or ())
    if names and not any(name in module for name in names):
        return SKIPPED
    return find_dynamic(config, module)


def in_blocks(config: QuantConfig, module: str) -> object:
    """Look a module up in `modules_in_block_to_quantize`, by the end of its name (optimum)."""
    groups = config.get("modules_in_block_to_quantize")
    is_listed = groups is None or any(module.endswith(name) for name in flatten(groups))
    return QUANTIZED if is_listed else SKIPPED


def flatten(groups: Any) -> list[str]:
    """Return the names of a list of names or of lists of names."""
    return [name for group in groups for name in ([group] if isinstance(group, str) else group)]


def _match(pattern: str, module: str) -> bool:
    try:
        return re.match(pattern, module) is not None
    except re.error:
        return False
