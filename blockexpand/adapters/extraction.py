"""Base + trained model → a block adapter, and the plan that writes it. Reads nothing itself.

What a trainer saved is compared with the base by the digests of tensors: every original has to be
there bit for bit, or widened to another dtype, before a block may be called an adapter of the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoints.checkpoint import Checkpoint, Shard
from ..errors import CheckpointError, UnsupportedModelError
from ..formats.elements import is_widening
from ..formats.json_object import JsonObject
from ..formats.tensor_spec import TensorSpec
from ..messages import and_more
from ..models.decoder import Decoder, output_name
from ..models.layer_map import LayerMap
from ..planning.origins import Copy, Extent, Part
from ..planning.shards import PlannedFile, plan_blocks
from .format import DigestedTensor, name_blocks

# What DDP, torch.compile and PEFT put before every name, where the wrapper itself is saved.
_WRAPPERS = ("_orig_mod.module.", "module._orig_mod.", "_orig_mod.", "module.", "base_model.model.")

# Fields that say how a model is trained, run or labelled, not what it computes.
_NO_MEANING = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "output_router_logits",
        "pad_token_id",
        "router_aux_loss_coef",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """Names in the trained checkpoint by their names in the whole model: new blocks, and changes.

    `widened` are originals that were saved in a wider dtype, every value the same.
    """

    new: Mapping[str, str]
    changed: Mapping[str, str]
    widened: tuple[str, ...]


def without_wrapper(trained: Checkpoint) -> Checkpoint:
    """Return a checkpoint by the names that its tensors have without a trainer's wrapper.

    Only a lead that every tensor has is taken off: another is part of the model's own names.
    """
    for lead in _WRAPPERS:
        if trained.specs and all(name.startswith(lead) for name in trained.specs):
            return replace(
                trained,
                specs={name.removeprefix(lead): spec for name, spec in trained.specs.items()},
                shards=tuple(_unwrap(shard, lead) for shard in trained.shards),
            )
    return trained


def _unwrap(shard: Shard, lead: str) -> Shard:
    entries = tuple(
        entry._replace(name=entry.name.removeprefix(lead)) for entry in shard.header.entries
    )
    return replace(shard, header=replace(shard.header, entries=entries))


def refuse_unfit_base(decoder: Decoder, base: str) -> None:
    """Refuse a base with tables that have a part for every layer.

    New layers make them wider, and a block adapter holds whole tensors only.
    Raises: UnsupportedModelError.
    """
    if decoder.tables:
        raise UnsupportedModelError(
            f"{base}: {', '.join(map(repr, decoder.tables))} hold a part for every layer, which a "
            "block adapter cannot keep apart from the base; keep the whole expanded model"
        )


def expected_tensors(
    decoder: Decoder, base: Mapping[str, TensorSpec], layer_map: LayerMap
) -> dict[str, tuple[str, bool]]:
    """Return the whole model's tensors: each name with its source in the base, and if it is new."""
    by_layer: dict[int, list[str]] = {}
    result: dict[str, tuple[str, bool]] = {}
    for name in base:
        layer = decoder.placed.get(name)
        if layer is None:
            result[name] = name, False
        elif layer >= decoder.layers:
            tail = layer - decoder.layers + len(layer_map)
            result[output_name(decoder, name, tail)] = name, False
        else:
            by_layer.setdefault(layer, []).append(name)
    for index, entry in enumerate(layer_map):
        for name in by_layer.get(entry.source, ()):
            result[output_name(decoder, name, index)] = name, entry.is_new
    return result


def compare_with_base(
    expected: Mapping[str, tuple[str, bool]],
    base: Mapping[str, DigestedTensor],
    trained: Mapping[str, DigestedTensor],
    trained_names: Mapping[str, str],
    widened: Mapping[str, str],
    file: str,
) -> Extracted:
    """Find the new blocks' tensors, and what became of the originals.

    `trained_names` maps names in the whole model to names in the trained checkpoint, where they are
    known; `widened` has the digests of the base's tensors in the trained checkpoint's dtypes.
    Raises: CheckpointError where a tensor is missing, or there is one that no layer can hold.
    """
    known = {*trained_names.values()}
    left = dict.fromkeys(name for name in trained if name not in known)
    by_digest = {trained[name]: name for name in left}
    new: dict[str, str] = {}
    changed: dict[str, str] = {}
    missing: list[str] = []
    found_digests = set()
    wide: list[str] = []
    for name, (source, is_new) in expected.items():
        there = trained_names.get(name)
        if there is None and not is_new:
            # Trainers may save what stands outside of the layers under another name.
            there = by_digest.get(base[source])
            left.pop(there or "", None)
        if there is None:
            missing.append(name)
            continue
        before, after = base[source], trained[there]
        found_digests.add(before.sha256)
        if is_new:
            if after.spec.shape != before.spec.shape:
                raise CheckpointError(
                    f"{file}: tensor {there!r} of a new block: expected the shape "
                    f"{list(before.spec.shape)} as in layer it was cloned from, found "
                    f"{list(after.spec.shape)}"
                )
            new[name] = there
        elif before.sha256 == after.sha256 and before.spec == after.spec:
            continue
        elif (
            before.spec.shape == after.spec.shape
            and is_widening(before.spec.dtype, after.spec.dtype)
            and widened.get(source) == after.sha256
        ):
            wide.append(name)
        else:
            changed[name] = there
    # A head that is tied to the embeddings need not be stored, and may be stored all the same.
    digests = {trained[name].sha256 for name in trained if name not in left}
    missing = [name for name in missing if base[expected[name][0]].sha256 not in found_digests]
    if missing:
        raise CheckpointError(
            f"{file}: lacks {and_more([repr(name) for name in missing])}; is this a model that "
            "was expanded from the base, with all of its weights?"
        )
    extra = [name for name in left if trained[name].sha256 not in digests]
    if extra:
        raise CheckpointError(
            f"{file}: has {and_more([repr(name) for name in extra])}, which the base has not; "
            "merge LoRA weights into the model before you extract its blocks"
        )
    return Extracted(new=new, changed=changed, widened=tuple(wide))


def config_differences(expected: JsonObject, found: JsonObject) -> dict[tuple[str, ...], Any]:
    """Return the fields of a trained model's config that say another model, with their values.

    Both are compared as the class of `transformers` reads them, where it is installed: programs
    that save a config write defaults that were left out, and spell fields anew.
    """
    if expected == found:
        return {}
    one, other = _meaning(expected), _meaning(found)
    return {path: value for path, value in _differing(one, other, ())}


def _meaning(config: JsonObject) -> Mapping[str, Any]:
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return config
    try:
        config_class = CONFIG_MAPPING[config["model_type"]]
        read: Mapping[str, Any] = config_class.from_dict(dict(config)).to_dict()
    except Exception:
        # A config that transformers does not know is compared as it is written.
        return config
    return read


def _differing(
    one: Mapping[str, Any], other: Mapping[str, Any], path: tuple[str, ...]
) -> Sequence[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key in {**one, **other}:
        mine, theirs = one.get(key), other.get(key)
        if key in _NO_MEANING or str(key).endswith(("dropout", "_pdrop", "_dropout_prob")):
            continue
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += _differing(mine, theirs, (*path, key))
        elif mine != theirs:
            found.append(((*path, str(key)), theirs))
    return found


def plan_blocks_files(
    trained: Checkpoint, extracted: Extracted, block_nbytes: int
) -> tuple[PlannedFile, ...]:
    """Plan the adapter's files: the blocks' bytes as the trained checkpoint has them."""
    extents = {
        entry.name: Extent(
            shard.file.name, shard.header.data_start + entry.data_offset, entry.spec.nbytes
        )
        for shard in trained.shards
        for entry in shard.header.entries
    }
    parts = [
        Part(name, trained.specs[there], Copy(*extents[there]))
        for name, there in {**extracted.new, **extracted.changed}.items()
    ]
    return plan_blocks(parts, name_blocks, block_nbytes)


def fingerprint(document: bytes, files: Sequence[PlannedFile]) -> str:
    """Digest what decides an adapter's bytes."""
    digest = hashlib.sha256(document)
    for file in files:
        digest.update(file.header)
    return digest.hexdigest()
