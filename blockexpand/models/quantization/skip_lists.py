"""Rewrite the lists of a quantisation config that name modules, for another sequence of layers.

Lists carry layer numbers: a number that stays behind leaves another module unquantised, and the
model loads all the same. So every rewriting is proven by reading it back with the matchers of those
who load the checkpoint: each module must be to each of them what its source is. Pure.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import UnsupportedModelError
from .find import Quantization
from .matchers import find_target, transformers_skips
from .renumbering import Renumbering, find_fault
from .scheme import Entries

# What SGLang makes of several modules, and looks for by the name of the whole.
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}

_NUMBER = re.compile(r"(?<=\.)([0-9]+)(?=\\?\.|$|\$)")

Settings = dict[str, Any]


def rewrite_settings(
    quantization: Quantization,
    settings: Mapping[str, Any],
    modules: Mapping[str, bool],
    renumbering: Renumbering,
) -> Settings:
    """Return a quantisation config for the output's layers.

    `modules` maps every module of the source that has a matrix to whether it is quantised.
    Raises: UnsupportedModelError where the lists cannot say it.
    """
    styles = {entries.style for entries in quantization.method.entries(settings)}
    asked = _find_asked(modules, one_by_one="names" not in styles)
    fault = ""
    for expands in (False, True):
        result = copy.deepcopy(dict(settings))
        for entries in quantization.method.entries(settings):
            _rewrite(result, entries, asked, renumbering, expands=expands)
        if renumbering.full:
            _add_full(result, quantization, modules, renumbering)
        fault = find_fault(quantization, settings, result, asked, renumbering)
        if not fault:
            return result
    lists = ", ".join(repr(".".join(e.path)) for e in quantization.method.entries(settings))
    raise UnsupportedModelError(
        f"config.json: {lists} of the quantization config cannot say which modules of these layers "
        f"are quantized: {fault}"
    )


def _find_asked(modules: Mapping[str, bool], *, one_by_one: bool) -> dict[str, bool]:
    """Return the modules that loaders ask for: of experts what holds them, else each of them."""
    result: dict[str, bool] = {}
    for name, is_quantized in modules.items():
        head, found, _ = name.partition(".experts.")
        asked = f"{head}.experts" if found and not one_by_one else name
        result[asked] = is_quantized or result.get(asked, False)
    return result


def _rewrite(
    settings: Settings,
    entries: Entries,
    modules: Mapping[str, bool],
    renumbering: Renumbering,
    *,
    expands: bool,
) -> None:
    """Renumber one list; with `expands`, write the names that its patterns stand for."""
    parent, key = _parent(settings, entries)
    value = parent.get(key)
    if not value:
        return
    if entries.style == "dynamic":
        parent[key] = {
            new: member
            for old, member in value.items()
            for new in _renumber_dynamic(old, modules, renumbering, expands=expands)
        }
    elif entries.style == "blocks":
        parent[key] = [
            _renumber_all(group, renumbering) if isinstance(group, list) else group
            for group in (value if isinstance(value[0], list) else [value])
        ]
    else:
        if not isinstance(value, list):
            raise TypeError(f"{'.'.join(entries.path)!r} is no list")
        parent[key] = list(
            dict.fromkeys(
                new
                for entry in value
                for new in _renumber_entry(entry, entries, modules, renumbering, expands=expands)
            )
        )


def _renumber_entry(
    entry: str,
    entries: Entries,
    modules: Mapping[str, bool],
    renumbering: Renumbering,
    *,
    expands: bool,
) -> list[str]:
    renumbered = _renumber(entry, renumbering)
    if renumbered is not None:
        return renumbered
    is_pattern = entry.startswith("re:") if entries.style == "targets" else _is_pattern(entry)
    if not expands or not is_pattern:
        return [entry]
    match: Callable[[Sequence[str], str], bool] = (
        find_target if entries.style == "targets" else transformers_skips
    )
    return _name_matches(lambda module: match([entry], module), modules, renumbering)


def _renumber_dynamic(
    key: str, modules: Mapping[str, bool], renumbering: Renumbering, *, expands: bool
) -> list[str]:
    sign = key[:2] if key[:2] in ("-:", "+:") else ""
    pattern = key.removeprefix(sign)
    renumbered = _renumber(pattern, renumbering)
    if renumbered is not None:
        return [sign + new for new in renumbered]
    if not expands:
        return [key]
    names = _name_matches(
        lambda module: re.match(pattern, module) is not None, modules, renumbering
    )
    return [f"{sign}^(?:{'|'.join(map(re.escape, names))})$"] if names else []


def _name_matches(
    matches: Callable[[str], bool], modules: Mapping[str, bool], renumbering: Renumbering
) -> list[str]:
    """Return the output's names of the source's modules that match."""
    names = []
    for module in filter(matches, modules):
        layer, rest = renumbering.split(module)
        if layer is None:
            names.append(module)
        else:
            names += [f"{renumbering.prefix}{j}.{rest}" for j in renumbering.places.get(layer, ())]
    return names


def _renumber_all(names: Sequence[str], renumbering: Renumbering) -> list[str]:
    new: list[str] = []
    for name in names:
        renumbered = _renumber(name, renumbering)
        new += [name] if renumbered is None else renumbered
    return new


def _renumber(entry: str, renumbering: Renumbering) -> list[str] | None:
    """Return an entry for each place of the layer that it names; None where it names none."""
    for found in _NUMBER.finditer(entry):
        head = re.sub(r"^(?:re:)?(?:\^|\.\*|\.\+|\(\.\*\))*", "", entry[: found.start()])
        head = head.replace("\\", "")
        if head and any(spelling.endswith(head) for spelling in renumbering.spellings):
            places = renumbering.places.get(int(found[1]), ())
            return [f"{entry[: found.start()]}{j}{entry[found.end() :]}" for j in places]
    return None


def _is_pattern(entry: str) -> bool:
    return re.search(r"[*\\(\[|?+^$]", entry) is not None


def _add_full(
    settings: Settings,
    quantization: Quantization,
    modules: Mapping[str, bool],
    renumbering: Renumbering,
) -> None:
    """Name the modules of the unquantised new layers, in the way that all loaders understand."""
    entries = quantization.method.entries(settings)
    styles = {e.style for e in entries}
    names = _full_names(modules, renumbering, fused=quantization.method.fused)
    if "dynamic" in styles:
        # vLLM and gptqmodel go by the one, transformers by the other.
        new: Settings = {
            f"-:^{re.escape(name)}": {}
            for j in sorted(renumbering.full)
            for name in renumbering.spell(j, "")
        }
        settings["dynamic"] = new | (settings.get("dynamic") or {})
        kept: list[str] = []
        for name in _name_matches(lambda module: modules[module], modules, renumbering):
            layer, rest = renumbering.split(name)
            if layer not in renumbering.full:
                kept += [name] if layer is None else renumbering.spell(layer, rest)
        settings["modules_in_block_to_quantize"] = [kept]
        return
    lists = [e for e in entries if e.is_skip]
    known = [e for e in lists if _parent(settings, e)[0].get(e.path[-1]) is not None]
    if "targets" in styles:
        names = [
            f"re:^{re.escape(name)}.*"
            for j in sorted(renumbering.full)
            for name in renumbering.spell(j, "")
        ]
    elif not known:
        # Without a list loaders leave out what they like: the head above all.
        plain = _name_matches(lambda module: not modules[module], modules, renumbering)
        names = ["lm_head", *plain, *names]
    # Of two keys that could hold the list some loaders take the first, even if it is null.
    listed = [entry for e in known for entry in _parent(settings, e)[0][e.path[-1]]]
    for e in lists:
        parent, key = _parent(settings, e)
        parent[key] = list(dict.fromkeys([*listed, *names]))


def _full_names(modules: Mapping[str, bool], renumbering: Renumbering, *, fused: bool) -> list[str]:
    """Return the quantised modules' names in layers stored unquantised; of experts the container.

    Whole names are what every loader matches alike: `model.layers.3` alone would also be part of
    `model.layers.30`.
    """
    names: list[str] = []
    for module, is_quantized in _find_asked(modules, one_by_one=False).items():
        layer, rest = renumbering.split(module)
        if layer is None or not is_quantized:
            continue
        for j in renumbering.places.get(layer, ()):
            if j in renumbering.full:
                names += renumbering.spell(j, rest)
    if fused:
        parts = set(names)
        for whole, pieces in _FUSED.items():
            heads = (name[: -len(pieces[0])] for name in names if name.endswith(f".{pieces[0]}"))
            names += [
                head + whole
                for head in list(heads)
                if all(head + piece in parts for piece in pieces)
            ]
    return names


def _parent(settings: Mapping[str, Any], entries: Entries) -> tuple[dict[str, Any], str]:
    value: Any = settings
    for key in entries.path[:-1]:
        value = value[key]
    return value, entries.path[-1]
