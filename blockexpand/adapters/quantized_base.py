"""What a model trained from a quantised base has to hold: modules as stored, or their weights.

Trainers save an original layer in the form in which they loaded it: bitsandbytes' modules keep
their bytes, others are unpacked. Both are proven, module by module: stored parts by their digests,
unpacked weights by the digest of the values that the format defines. Only reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..checkpoints.checkpoint import Checkpoint
from ..errors import RecipeError, UnsupportedModelError
from ..formats.elements import is_widening
from ..formats.tensor_spec import FLOAT_DTYPES, TensorSpec
from ..fs.ranges import RangeReader
from ..fs.reading import Place, Reader, make_buffer
from ..fs.threads import THREADS
from ..messages import and_more
from ..models.decoder import Decoder, family_suffix, layer_suffix
from ..models.layer_map import LayerMap
from ..models.quantization.find import QuantizedModule
from ..models.quantization.scheme import Method
from ..models.quantization.shapes import find_shape
from ..planning.dtypes import make_dtype_policy
from ..planning.origins import Dequantize, dequantize_slice
from ..planning.quantizing import QuantizedTensors, find_refusal, make_quantized_tensors
from ..planning.tensor_map import SourceModel
from ..planning.unquantized import drop_quantization
from .extraction import Extracted, expected_tensors
from .format import DigestedTensor

_SLICE_NBYTES = 4 << 20

_INSTEAD = (
    "save the model as `blockexpand train-config` prints it for the expansion, or train its "
    "unquantized form (--quantized dequantize)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeModel:
    """The tensors that a trained model should have, by name.

    `expected` says which are new, `before` what the base has in the place of each; of a new block's
    weight only the shape is known. `modules` are the names that stand for a quantised module,
    `plain` has of all others what they are called in the base.
    """

    expected: Mapping[str, tuple[str, bool]]
    before: Mapping[str, DigestedTensor]
    modules: frozenset[str]
    plain: Mapping[str, str]


def expect_whole_model(
    base: Checkpoint,
    decoder: Decoder,
    layer_map: LayerMap,
    digests: Mapping[str, DigestedTensor],
    trained: Mapping[str, DigestedTensor],
    trained_prefix: str,
) -> WholeModel:
    """Return what a model trained from a quantised base should hold, in the form it was saved in.

    Raises: UnsupportedModelError where the new blocks were saved quantised.
    """
    refuse_mixing(decoder, str(base.root))
    source = SourceModel(model=0, checkpoint=base, decoder=decoder)
    dtype = make_dtype_policy(base, "source", decoder).weight_dtype
    tensors = make_quantized_tensors(source, "keep", layer_map, dtype)
    assert tensors is not None, "the base is quantised"
    expected: dict[str, tuple[str, bool]] = {}
    before: dict[str, DigestedTensor] = {}
    modules: set[str] = set()
    plain: dict[str, str] = {}
    unpacked: dict[str, QuantizedModule] = {}

    def there(name: str) -> DigestedTensor | None:
        """Return the trained model's tensor of that name."""
        if name.startswith(decoder.prefix):
            name = trained_prefix + name.removeprefix(decoder.prefix)
        return trained.get(name)

    for output, (name, is_new) in expected_tensors(decoder, base.specs, layer_map).items():
        module, role = tensors.quantization.members.get(name, (None, ""))
        if module is None:
            # What stands beside modules (scales of a cache) is the base's, and need not be saved.
            if name not in tensors.quantization.members or there(output) is not None:
                expected[output] = output, is_new
                before[output] = digests[name]
                plain[output] = name
            continue
        weight = output.removesuffix(name.removeprefix(module.name)) + module.scheme.weight
        saved = there(weight)
        is_full = saved is not None and saved.spec.dtype in FLOAT_DTYPES
        if is_new and saved is not None and not is_full:
            raise UnsupportedModelError(
                f"tensor {weight!r} of a new block was saved as {saved.spec.dtype}: the new blocks "
                f"are quantized, so that what was trained in them is rounded; {_INSTEAD}"
            )
        if is_new or is_full:
            if role == "q":
                expected[weight] = weight, is_new
                before[weight] = DigestedTensor(tensors.weight_spec(module), "")
                if not is_new:
                    unpacked[weight] = module
                    modules.add(weight)
        else:
            expected[output] = output, False
            before[output] = digests[name]
            modules.add(output)
    wanted = ((name, module, there(name)) for name, module in unpacked.items())
    before |= _digest_weights(base, tensors, wanted)
    return WholeModel(expected=expected, before=before, modules=frozenset(modules), plain=plain)


def refuse_changed_modules(whole: WholeModel, extracted: Extracted, trained: str) -> None:
    """Refuse other values where the base is quantised: its modules cannot be replaced by weights.

    Raises: UnsupportedModelError.
    """
    if changed := sorted(whole.modules & extracted.changed.keys()):
        raise UnsupportedModelError(
            f"{trained}: {and_more([repr(name) for name in changed])} have other values than the "
            "base, where they are quantized: they were trained too, or quantized anew when they "
            f"were saved; {_INSTEAD}"
        )


def refuse_requantized(method: Method, trained: Checkpoint, where: str) -> None:
    """Refuse a checkpoint with quantised tensors whose config does not say so.

    transformers 5 undoes its unpacking of FP8 and MXFP4 when it saves, and drops the config.
    Raises: UnsupportedModelError.
    """
    if drop_quantization(trained.config) != trained.config:
        return
    endings = tuple(suffix for suffix, role in method.parts.items() if role != "q")
    for name in trained.specs:
        if name.endswith(endings) or name.endswith("_blocks"):
            raise UnsupportedModelError(
                f"{where}: tensor {name!r} is quantized, and config.json does not say so: what was "
                f"unpacked to train was quantized anew, the new blocks too; {_INSTEAD}"
            )


def refuse_mixing(decoder: Decoder, base: str) -> None:
    """Refuse a base that no loader takes with unquantised layers in it.

    Raises: UnsupportedModelError.
    """
    if decoder.quantization and (reason := find_refusal(decoder.quantization, "new-blocks-full")):
        raise UnsupportedModelError(
            f"{base}: blocks of an adapter are unquantized, and {reason}. As the base give its "
            "unquantized form (--quantized dequantize --new-layers 0)"
        )


def stored_suffix(decoder: Decoder, name: str) -> str | None:
    """Return the suffix under which an adapter stores a layer's tensor; None for a mere part.

    The weight of a quantised module is stored whole.
    """
    if stands_beside(decoder, name):
        return layer_suffix(decoder, name)
    return family_suffix(decoder, name)


def stands_beside(decoder: Decoder, name: str) -> bool:
    """Tell whether a tensor stands beside quantised modules, as a cache's scales do."""
    member = decoder.quantization.members.get(name) if decoder.quantization else None
    return member is not None and member.module is None


def weight_shape(decoder: Decoder, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    """Return a tensor's shape, of a quantised module's values that of its weight."""
    spec = checkpoint.specs[name]
    member = decoder.quantization.members.get(name) if decoder.quantization else None
    if member is None or member.module is None:
        return spec.shape
    return find_shape(member.module, spec, checkpoint.contents)


def _digest_weights(
    base: Checkpoint,
    tensors: QuantizedTensors,
    wanted: Iterable[tuple[str, QuantizedModule, DigestedTensor | None]],
) -> Iterator[tuple[str, DigestedTensor]]:
    """Digest weights in the dtype in which each was saved, through the base's where that fits.

    A model is loaded in the base's dtype or in a wider one, and saved in it or in a wider one.
    """
    files = {shard.file.name: shard.file for shard in base.shards}
    with Reader(Place(base.root, files)) as reader, ThreadPoolExecutor(THREADS) as pool:
        ranges = RangeReader(reader)

        def digest(item: tuple[str, QuantizedModule, DigestedTensor | None]) -> DigestedTensor:
            name, module, saved = item
            assert saved is not None, name
            origin = tensors.dequantize(module, saved.spec.dtype)
            found = _digest_weight(origin, saved.spec, ranges, name)
            if found != saved.sha256 and is_widening(tensors.target, saved.spec.dtype):
                origin = replace(origin, via_dtype=tensors.target)
                found = _digest_weight(origin, saved.spec, ranges, name)
            return DigestedTensor(saved.spec, found)

        jobs = list(wanted)
        yield from zip((name for name, _, _ in jobs), pool.map(digest, jobs), strict=True)
        reader.check_unchanged()


def _digest_weight(origin: Dequantize, saved: TensorSpec, ranges: RangeReader, name: str) -> str:
    """Digest a weight slice by slice; one of another shape than the saved one has no digest."""
    if origin.shape != saved.shape:
        return ""
    buffer, values = make_buffer(_SLICE_NBYTES), memoryview(bytearray(_SLICE_NBYTES))
    digest = hashlib.sha256()
    for start in range(0, saved.nbytes, _SLICE_NBYTES):
        part = values[: min(_SLICE_NBYTES, saved.nbytes - start)]
        try:
            dequantize_slice(origin, start, part, ranges.fetch_into(buffer), name)
        except RecipeError:
            return ""  # a value that this dtype cannot hold was not saved in it
        digest.update(part)
    return digest.hexdigest()
