"""Which tensors of a layer end its residual branches, from their names and shapes: a guess.

What it knows of names it takes from the table of families. Pure: names and shapes, no data.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from ..errors import UnsupportedModelError
from .families import FAMILIES
from .families.family import Branch, Form
from .families.layer_vocabulary import COPIED
from .families.tensor_roles import module_paths

# What the last projection of a branch is called, where no known family has its whole name.
_ENDINGS = frozenset(
    {
        *("o_proj", "out_proj", "wo", "dense", "c_proj", "output", "out_lin", "proj_out", "to_out"),
        *("down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h", "lin2", "linear_2", "output_linear"),
    }
)

_MLP = re.compile(r"mlp|ffn|feed_?forward|ff\b|moe|expert|fc[_0-9]|dense_4h|channel", re.IGNORECASE)

_CLOSE_ATTENTION = (
    *("post_self_attn_layernorm", "post_attn_norm", "post_norm1", "post_operator_norm"),
)

_CLOSE_MLP = ("post_mlp_layernorm", "post_feedforward_layernorm", "post_ffn_norm", "post_norm2")

_BEFORE_MLP = ("pre_feedforward_layernorm", "pre_mlp_layernorm", "pre_ff_layernorm")

_OUTPUTS: Mapping[str, bool] = {
    # Whether it ends an MLP: the first branch of a row is attention or what stands for it.
    output: index > 0 or bool(_MLP.search(output))
    for family in FAMILIES.values()
    for index, branch in enumerate(family.branches)
    for form in branch
    for output in form.outputs
}

CONSTANTS: Mapping[str, float] = {
    name: value for family in FAMILIES.values() for name, value in family.constants
}

Shapes = Mapping[int, Mapping[str, tuple[int, ...]]]


def find_branches(
    layers: Shapes, hidden: int, further: frozenset[str]
) -> tuple[tuple[Branch, ...], tuple[tuple[str, float], ...]]:
    """Return what ends the branches of the layers, and constants that are no part of a branch."""
    groups: dict[bool, list[set[str]]] = {False: [], True: []}
    constants: dict[str, float] = {}
    for number, shapes in layers.items():
        present: dict[bool, set[str]] = {False: set(), True: set()}
        for suffix, shape in shapes.items():
            paths = module_paths(suffix)
            constants |= {path: CONSTANTS[path] for path in paths if path in CONSTANTS}
            output = _as_output(suffix, shape, hidden)
            if output is None and paths[4] in further:
                output = paths[4]
            if output is not None:
                present[_OUTPUTS.get(output, bool(_MLP.search(output)))].add(output)
        if not present[False] and not present[True]:
            raise UnsupportedModelError(
                f"no row could be inferred: no tensor of layer {number} looks like the last "
                "projection of a residual branch"
            )
        for is_mlp, outputs in present.items():
            if outputs:
                _join(groups[is_mlp], outputs)
    norms = {suffix.removesuffix(".weight") for shapes in layers.values() for suffix in shapes}
    closing = {False: _closing_attention(norms), True: [n for n in _CLOSE_MLP if n in norms]}
    branches = []
    for is_mlp, forms in groups.items():
        if forms:
            branches.append(
                tuple(
                    Form(outputs=tuple(sorted(outputs)), norms=tuple(closing[is_mlp]))
                    for outputs in forms
                )
            )
    return tuple(branches), tuple(sorted(constants.items()))


def _as_output(suffix: str, shape: tuple[int, ...], hidden: int) -> str | None:
    """Return the name by which a tensor ends a branch, None if it seems to end none."""
    paths = module_paths(suffix)
    exact = next((path for path in paths if path in _OUTPUTS), None)
    if exact is not None:
        return exact
    if any(path in COPIED for path in paths) or not suffix.endswith(".weight") or len(shape) < 2:
        return None
    module = paths[4]
    ends = module.rpartition(".")[2] in _ENDINGS
    return module if ends and hidden in shape[-2:] else None


def find_by_shape(layers: Shapes, hidden: int) -> frozenset[str]:
    """Return modules that could end a branch by their shape [hidden, n], whatever they are called.

    They are sought in the parts of a layer that have no output known by its name; of projections
    and square matrices in one part it is the projections.
    """
    parts: defaultdict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    ended = set()
    for shapes in layers.values():
        for suffix, shape in shapes.items():
            part = suffix.partition(".")[0]
            if _as_output(suffix, shape, hidden) is not None:
                ended.add(part)
            elif (
                len(shape) == 2
                and shape[0] == hidden
                and suffix.endswith(".weight")
                and not any(path in COPIED for path in module_paths(suffix))
            ):
                parts[part][module_paths(suffix)[4]] = shape
    found: set[str] = set()
    for part, modules in parts.items():
        if part not in ended:
            found |= {name for name, shape in modules.items() if shape[1] != hidden} or set(modules)
    return frozenset(found)


def _closing_attention(norms: Iterable[str]) -> list[str]:
    names = set(norms)
    closing = [name for name in _CLOSE_ATTENTION if name in names]
    sandwich = any(name in names for name in _BEFORE_MLP)
    after_only = "input_layernorm" not in names and "post_feedforward_layernorm" in names
    if "post_attention_layernorm" in names and not closing and (sandwich or after_only):
        closing.append("post_attention_layernorm")
    return closing


def _join(groups: list[set[str]], outputs: set[str]) -> None:
    """Add outputs of one layer to the group that has any of them: they are one form."""
    touching = [group for group in groups if group & outputs]
    for group in touching:
        groups.remove(group)
    groups.append(outputs.union(*touching))
