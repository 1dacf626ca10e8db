"""What a row of the table of quantisation schemes says. Data only: it reads no checkpoint.

A module is what has one weight: `model.layers.0.self_attn.o_proj`. Quantised, it is stored as
several tensors, its parts, each with a role. The role `q` holds the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...formats.codecs import Codec, Shape, Specs

QuantConfig = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How one module is stored.

    `zero` maps the roles whose bytes are replaced to make the weight exactly 0, to the bytes that
    are repeated; all other parts are copied. `weight` is the suffix of the tensor that the module
    has when it is not quantised. `explains` are the roles that `codec` needs besides `q`;
    `optional` those that a module may lack. `shape` is None where headers do not tell it.
    """

    name: str
    zero: Mapping[str, bytes]
    codec: Codec
    shape: Shape | None
    weight: str = ".weight"
    explains: tuple[str, ...] = ("scale",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """One place of the quantisation config that names modules.

    `path` leads there within the config. `is_skip` tells names of what is not quantised from names
    of what is. `style` says how entries match and how an edit spells them: `names` (the matcher of
    transformers: a name, a prefix, a suffix or a pattern), `targets` (a name, a class or `re:`),
    `dynamic` (an object keyed by `-:` or `+:` and a pattern) or `blocks` (a list of lists).
    """

    path: tuple[str, ...]
    style: str = "names"
    is_skip: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One quantisation method: a row of the table.

    `parts` maps the suffixes of a module's tensors to roles, "" the tensor that has the module's
    own name; `extras` are further suffixes that are no part of a module and are copied with their
    layer. `read(config, module, specs)` returns the scheme of a module from the specs of its parts
    by role, or raises. `entries` are the places that name modules, the first of them a list that
    new modules are added to; `fused` says that SGLang wants the fused names too. `warnings` maps a
    mode to what to know of it. `engines` maps an engine to its matcher (see matchers.py).
    transformers needs `library` to load it, and is given `loading`, a class of its own that is told
    to dequantize, where the plain way does not work for every checkpoint.
    """

    name: str
    title: str
    parts: Mapping[str, str]
    read: Callable[[QuantConfig, str, Specs], Scheme]
    entries: Callable[[QuantConfig], tuple[Entries, ...]]
    engines: Mapping[str, Callable[[QuantConfig, str], object]]
    check: Callable[[QuantConfig], str | None] = lambda config: None
    extras: tuple[str, ...] = ()
    fused: bool = False
    null_skips: bool = False
    warnings: Mapping[str, str] = field(default_factory=dict)
    library: str | None = None
    loading: str | None = None
