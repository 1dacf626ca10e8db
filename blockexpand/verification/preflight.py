"""Prove a plan before it is written, on a model of toy width with the same layers.

The source's toy has random weights under the checkpoint's own tensor names; the output's toy is
made of them by the plan's own origins and has the plan's own config. Both are loaded as the real
ones will be, so that a wrong row of the table of families shows before anything is written. It
reads no weights, decides nothing, and runs no custom code of a checkpoint unless it is handed toys
that do.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CONFIG_FILE
from ..errors import NoProofError, ProofError
from ..messages import one_line
from ..models.decoder import split_name
from ..models.families import FAMILIES
from ..models.loading import quiet_transformers
from ..planning.origins import Fill, Gather, Scale, Zeros, source_of
from ..planning.plan import Plan, make_plan
from ..planning.recipe import Recipe
from ..planning.shards import PlannedTensor
from ..planning.unquantized import drop_quantization, unquantized
from .layer_traits import find_odd_layer, find_other_factor
from .toy_config import Narrowing, apply_toy_fields, make_toy_fields
from .toy_model import TOKENS, TRANSFORMERS, NoToyError, Outcome, Toys, one_thread, token_ids

if TYPE_CHECKING:
    import torch


# Tried in turn: some models want a multiple of four heads, or heads as large as they are, and
# some are small enough to be proven at their own width.
_TOYS = (
    Narrowing(heads=2, head_dim=16),
    Narrowing(heads=4, head_dim=16),
    Narrowing(heads=2, head_dim=64),
    Narrowing(heads=2, head_dim=256),
    Narrowing(heads=0),
)


def check_plan(
    checkpoint: Checkpoint, plan: Plan, *, strict: bool = False, toys: Toys = TRANSFORMERS
) -> str:
    """Compare source and output at toy width, exactly; return in one line what was proven.

    `strict` asks more, for a row that is a guess: that every layer is built like its source, and
    that all that is set to a constant in a new layer can learn. `toys` is how toys are made.
    Raises: ProofError where the output's toy does not load or computes anything else; NoProofError
    where no toy can be made of the source, which is no failure of the plan.
    """
    if not plan.keeps_function and strict:
        raise NoProofError(
            "these layers change what the model computes, and a row is proven by layers that "
            "keep it"
        )
    if not plan.keeps_function:
        raise NoProofError(
            "--check proves nothing: this recipe does not keep what its source computes; leave "
            "--check out"
        )
    if plan.quantization is not None:
        if not plan.new_layers:
            return "--check has nothing to prove: no layer is new"
        checkpoint, plan = _unquantized_twin(checkpoint, plan)
    sources = _sources(checkpoint, plan)
    reasons = []
    for width in _TOYS:
        with (
            quiet_transformers(),
            one_thread(),
            tempfile.TemporaryDirectory(prefix="blockexpand-check-") as folder,
        ):
            try:
                return _prove(checkpoint, plan, sources, Path(folder), width, toys, strict=strict)
            except NoToyError as error:
                reasons.append(one_line(error))
    reason = f"no toy model could be made of this source: {reasons[0]}"
    if strict:
        raise NoProofError(reason)
    raise NoProofError(
        f"--check proves nothing: {reason}; leave --check out, and prove the output with "
        "--verify logits"
    )


def _unquantized_twin(checkpoint: Checkpoint, plan: Plan) -> tuple[Checkpoint, Plan]:
    """Return the same source and the same expansion as they would be unquantised.

    At toy width no scheme would have a whole block: what each makes of its bytes has tests of its
    own. Raises: ProofError where the config is not edited as that of the unquantised source.
    """
    twin = unquantized(checkpoint)
    twin_plan = make_plan(twin, Recipe(layers=plan.layer_map, dtype="source"))
    real, expected = (_plain_config(own) for own in (plan, twin_plan))
    if real != expected:
        raise ProofError(
            "config.json: a quantized source would get other edits than an unquantized one; "
            "nothing was written, please report it"
        )
    return twin, twin_plan


def _plain_config(plan: Plan) -> dict[str, Any]:
    document = next(doc for doc in plan.documents if doc.name == CONFIG_FILE)
    return drop_quantization(json.loads(document.data))


def _prove(
    checkpoint: Checkpoint,
    plan: Plan,
    sources: Mapping[str, str],
    folder: Path,
    width: Narrowing,
    toys: Toys,
    *,
    strict: bool,
) -> str:
    effective = toys.write_config(checkpoint, checkpoint.config, folder / "real")
    fields = make_toy_fields(checkpoint.config, effective, width)
    config = apply_toy_fields(checkpoint.config, fields)
    toys.write_config(checkpoint, config, folder / "source")
    weights = toys.make_weights(folder / "source", tuple(checkpoint.specs))
    ids = token_ids(config)
    try:
        expected = toys.run(folder / "source", weights, ids)
    except ProofError as error:
        raise NoToyError(str(error)) from None
    if expected.missing:
        raise NoToyError(f"transformers misses {expected.missing[0]!r} in the source itself")
    if not expected.logits.isfinite().all():
        raise NoToyError("its logits are not finite")

    document = next(doc for doc in plan.documents if doc.name == CONFIG_FILE)
    out = folder / "out"
    try:
        toys.write_config(checkpoint, apply_toy_fields(json.loads(document.data), fields), out)
    except NoToyError as error:
        raise NoProofError(f"transformers cannot run the output: {one_line(error)}") from None
    tensors = [tensor for file in plan.files for tensor in file.tensors]

    by_number = _differ_by_number(checkpoint, plan)
    rounds = [] if by_number else _swaps(plan)
    at_work = {index for roles in rounds for index, is_silent in roles.items() if not is_silent}

    def compare(what: str, roles: Mapping[int, bool]) -> None:
        made = dict(_output_weights(plan, tensors, sources, weights, roles))
        found = toys.run(out, made, ids)
        fault = _find_fault(expected, found)
        if strict and not fault and not roles:
            fault = find_odd_layer(expected.model, found.model, plan, ids, at_work)
        if fault and strict:
            if roles and (factor := find_other_factor(expected.model, found.model, plan)):
                fault += f": it {factor}"
            raise ProofError(f"{what} {fault}")
        if fault:
            raise ProofError(
                f"{what} {fault}: blockexpand is wrong about {plan.model_type!r} in this release "
                "of transformers; nothing was written, please report it"
            )

    depth = f"the same {len(plan.layer_map)} layers"
    compare(f"the toy model of {depth}", {})
    proven = f"toy model of {depth}: logits of {TOKENS} tokens bit-identical"
    if by_number:
        return f"{proven}; the new layers are no true clones, so they were not compared"
    for roles in rounds:
        compare("a toy model with new layers in the place of the layers that they clone", roles)
    proven += ", also with each new layer in the place of its source" if rounds else ""
    return proven


def _find_fault(expected: Outcome, found: Outcome) -> str:
    """Say in what an output's toy differs from its source's; nothing if in nothing."""
    if found.missing:
        return f"lacks {len(found.missing)} tensor(s), the first {found.missing[0]!r}"
    if found.unexpected != expected.unexpected:
        name = min(found.unexpected ^ expected.unexpected)
        return f"has or lacks a tensor that transformers does not know, {name!r}"
    if not found.logits.equal(expected.logits):
        worst = (found.logits.double() - expected.logits.double()).abs().max().item()
        return f"computes something else (logits differ by up to {worst:g}, expected 0)"
    return ""


def _sources(checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    """Return for each planned tensor the source tensor that gives its shape, and its values.

    That of a copy is where its bytes are; that of a constant is its namesake in the source layer.
    Raises: ProofError where there is none, or one of another shape.
    """
    by_place = {
        (shard.file.name, shard.header.data_start + entry.data_offset): entry.name
        for shard in checkpoint.shards
        for entry in shard.header.entries
        if entry.spec.nbytes
    }
    sources = {}
    for file in plan.files:
        for tensor in file.tensors:
            name: str | None
            extent = source_of(tensor.origin)
            if extent is not None and tensor.spec.nbytes:
                name = by_place.get((extent.file, extent.offset))
            else:
                name = _namesake(plan, tensor.name)
            spec = checkpoint.specs.get(name or "")
            if name is None or spec is None or _source_shape(tensor) != spec.shape:
                raise ProofError(
                    f"{file.name}: tensor {tensor.name!r}: the plan takes it from no source "
                    f"tensor of its shape; expected {list(_source_shape(tensor))}, found "
                    f"{list(spec.shape) if spec else 'none'}"
                )
            sources[tensor.name] = name
    return sources


def _source_shape(tensor: PlannedTensor) -> tuple[int, ...]:
    """Return the shape of what a tensor is made of: its own, unless parts are put together anew."""
    shape, origin = tensor.spec.shape, tensor.origin
    if not isinstance(origin, Gather):
        return shape
    axis = 0 if origin.rows == 1 else 1
    before = shape[axis] // len(origin.parts) * origin.of
    return (*shape[:axis], before, *shape[axis + 1 :])


def _namesake(plan: Plan, name: str) -> str:
    layer, suffix = _split(plan, name)
    if layer is None or layer >= len(plan.layer_map):
        return name
    return f"{plan.layer_prefix}{plan.layer_map[layer].source}.{suffix}"


def _split(plan: Plan, name: str) -> tuple[int | None, str]:
    """Return the layer of an output tensor, None if it is outside of the layers, and its suffix."""
    return split_name(name, plan.layer_prefix) or (None, name)


def _output_weights(
    plan: Plan,
    tensors: list[PlannedTensor],
    sources: Mapping[str, str],
    weights: Mapping[str, torch.Tensor],
    roles: Mapping[int, bool],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the output's tensors as the plan makes them.

    `roles` turns layers of the output into what they are not: into the identity (True), by the
    constants of their new clones, or from the identity into their source layer (False).
    """
    import torch

    constants: dict[int, dict[str, float]] = {}
    for tensor in tensors:
        layer, suffix = _split(plan, tensor.name)
        if layer is not None and isinstance(tensor.origin, Zeros | Fill):
            source = plan.layer_map[layer].source
            constants.setdefault(source, {})[suffix] = _constant(tensor)
    for tensor in tensors:
        value = weights.get(sources[tensor.name])
        if value is None:  # an expert that the toy has not
            continue
        layer, suffix = _split(plan, tensor.name)
        constant = _constant(tensor) if isinstance(tensor.origin, Zeros | Fill) else None
        if layer is not None and layer in roles:
            silenced = constants.get(plan.layer_map[layer].source, {}) if roles[layer] else {}
            constant = silenced.get(suffix)
        origin = tensor.origin
        if isinstance(origin, Gather):
            axis = 0 if origin.rows == 1 else 1
            whole = torch.unflatten(value, axis, (origin.of, -1))
            value = whole.index_select(axis, torch.tensor(origin.parts)).flatten(axis, axis + 1)
            origin = origin.values
        if isinstance(origin, Scale):
            value = value * origin.factor
        yield (
            tensor.name,
            value.clone() if constant is None else torch.full_like(value, constant),
        )


def _constant(tensor: PlannedTensor) -> float:
    import torch

    if not isinstance(tensor.origin, Fill):
        return 0.0
    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    dtype = dtypes.get(tensor.spec.dtype, torch.float32)
    return float(torch.frombuffer(bytearray(tensor.origin.element), dtype=dtype)[0])


def _swaps(plan: Plan) -> list[dict[int, bool]]:
    """Return rounds in which new layers do the work of the layers that they clone.

    An identity's own kind shows in no logits; a layer at work next to its silenced source, which
    it clones, must compute what the source does. Each round swaps one clone of every source.
    """
    homes = {entry.source: i for i, entry in enumerate(plan.layer_map) if not entry.is_new}
    clones: dict[int, list[int]] = {}
    for index in plan.new_layers:
        clones.setdefault(plan.layer_map[index].source, []).append(index)
    rounds: list[dict[int, bool]] = []
    for turn in count():
        swapped = {source: layers[turn] for source, layers in clones.items() if turn < len(layers)}
        if not swapped:
            return rounds
        # Layers at work must stay in order: clones of a whole run of layers change places with it
        # at once, and of what stands elsewhere only a clone beside its source can.
        at_work = sorted({**homes, **swapped}.items(), key=lambda item: item[1])
        if [source for source, _ in at_work] != sorted(homes):
            swapped = {
                source: index
                for source, index in swapped.items()
                if _are_alike(plan, source, *sorted((homes[source], index)))
            }
        if swapped:
            roles = {homes[source]: True for source in swapped}
            rounds.append(roles | {index: False for index in swapped.values()})
    raise AssertionError


def _are_alike(plan: Plan, source: int, first: int, last: int) -> bool:
    return all(entry.source == source for entry in plan.layer_map[first:last])


def _differ_by_number(checkpoint: Checkpoint, plan: Plan) -> bool:
    """Tell whether the family says that a layer's number is part of what it computes."""
    family = FAMILIES.get(plan.model_type)
    depends = family.index_scaled if family else None
    return depends is not None and depends(checkpoint.config) is not None
