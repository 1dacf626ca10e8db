"""What becomes of a quantised source's tensors, and of what its config says of them. Pure.

`keep` leaves every module quantised, `new-blocks-full` stores new layers unquantised, and
`dequantize` all of them. A part of a module that is replaced by its weight becomes no tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import QUANTIZATION_FILES
from ..errors import CheckpointError, RecipeError, UnsupportedModelError
from ..formats.codecs import Shape
from ..formats.json_object import REMOVE, JsonEdit, edit_json_object, parse_json_object
from ..formats.tensor_spec import TensorSpec, make_tensor_spec
from ..messages import either
from ..models.decoder import Decoder, module_suffix
from ..models.families import MULTIMODAL
from ..models.layer_map import LayerMap
from ..models.quantization.find import Quantization, QuantizedModule
from ..models.quantization.renumbering import Renumbering
from ..models.quantization.shapes import find_shape
from ..models.quantization.skip_lists import rewrite_settings
from .origins import Dequantize, Extent, Fill, Origin, Part, QuantizedPart, Zeros
from .tensor_map import SourceModel, TensorUse

MODES = ("keep", "new-blocks-full", "dequantize")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedTensors:
    """Makes the output's tensors of a quantised source; `target` is the dtype of weights."""

    source: SourceModel
    quantization: Quantization
    mode: str
    layer_map: LayerMap
    target: str
    extents: Mapping[str, tuple[TensorSpec, Extent]]

    def has(self, name: str) -> bool:
        """Tell whether a tensor is a part of a module, or stands beside one."""
        return name in self.quantization.members

    def make(self, use: TensorUse, constant: float | None) -> Part | None:
        """Return what a part becomes; `constant` is what its module is set to.

        Raises: UnsupportedModelError for a constant that a quantised module cannot be set to.
        """
        module, role = self.quantization.members[use.name]
        is_full = self.mode == "dequantize" or (
            self.mode == "new-blocks-full" and self._is_new(use.layer)
        )
        if module is None:
            is_dropped = self.mode == "dequantize"
            return None if is_dropped else Part(use.output, use.spec, use.copy)
        if constant:
            raise UnsupportedModelError(
                f"tensor {use.name!r} is quantized, and would have to be set to {constant:g}"
            )
        if not is_full:
            zero = module.scheme.zero.get(role) if constant is not None else None
            return Part(use.output, use.spec, _fill(zero, use))
        if role != "q":
            return None
        spec = self.weight_spec(module)
        origin: Origin = Zeros(nbytes=spec.nbytes)
        if constant is None:
            origin = self.dequantize(module, self.target)
        name = use.output.removesuffix(use.name.removeprefix(module.name))
        return Part(name + module.scheme.weight, spec, origin)

    def weight_spec(self, module: QuantizedModule) -> TensorSpec:
        """Return what a module's weight is unquantised.

        Raises: RecipeError where headers do not tell, and no more than those are here.
        """
        return make_tensor_spec(self.target, self._shape(module))

    def dequantize(self, module: QuantizedModule, to_dtype: str) -> Dequantize:
        """Return the origin of a module's weight in a dtype."""
        return Dequantize(
            codec=module.scheme.codec,
            parts=tuple(
                QuantizedPart(role, *self.extents[module.parts[role]])
                for role in ("q", *module.scheme.explains)
            ),
            shape=self._shape(module),
            to_dtype=to_dtype,
        )

    def _is_new(self, layer: int | None) -> bool:
        return layer is not None and self.layer_map[layer].is_new

    def _shape(self, module: QuantizedModule) -> Shape:
        q, _ = self.extents[module.parts["q"]]
        return find_shape(module, q, self.source.checkpoint.contents)


def make_quantized_tensors(
    source: SourceModel, mode: str, layer_map: LayerMap, target: str
) -> QuantizedTensors | None:
    """Return how a source's parts are made; None where it is not quantised.

    Raises: RecipeError for a mode that is none, or that the source does not have;
    UnsupportedModelError for one that its method cannot do.
    """
    if mode not in MODES:
        raise RecipeError(f"quantized {mode!r}: expected one of {', '.join(MODES)}")
    quantization = source.decoder.quantization
    if quantization is None:
        if mode != "keep":
            raise RecipeError(
                f"--quantized {mode}: the source is not quantized (config.json has no "
                "'quantization_config'); leave the option out"
            )
        return None
    if reason := find_refusal(quantization, mode):
        others = either([f"--quantized {m}" for m in MODES if not find_refusal(quantization, m)])
        raise UnsupportedModelError(f"--quantized {mode}: {reason}; use {others}")
    extents = {
        entry.name: (
            entry.spec,
            Extent(
                source.key(shard.file.name),
                shard.header.data_start + entry.data_offset,
                entry.spec.nbytes,
            ),
        )
        for shard in source.checkpoint.shards
        for entry in shard.header.entries
        if entry.name in quantization.members
    }
    return QuantizedTensors(
        source=source,
        quantization=quantization,
        mode=mode,
        layer_map=layer_map,
        target=target,
        extents=extents,
    )


def find_refusal(quantization: Quantization, mode: str) -> str | None:
    """Say why a checkpoint cannot be had in a mode."""
    is_packed = any(
        ".experts." in name and "shape" in module.parts
        for name, module in quantization.modules.items()
    )
    if mode == "new-blocks-full" and is_packed:
        return (
            "transformers cannot load packed experts in some layers and unquantized ones in others"
        )
    # Llama 4: its experts are one tensor, and a list of modules where they are quantised.
    is_listed = any(".feed_forward.experts.0." in name for name in quantization.modules)
    if mode == "dequantize" and is_listed:
        return "transformers loads experts one by one only where they are quantized"
    return None


def plan_settings(
    source: SourceModel, mode: str, layer_map: LayerMap
) -> tuple[tuple[JsonEdit, ...], dict[str, bytes | None]]:
    """Return the edits of config.json, and the files that repeat it: new bytes, None to drop.

    Raises: UnsupportedModelError where its lists of modules cannot say what is quantised.
    """
    quantization = source.decoder.quantization
    if quantization is None:
        return (), {}
    checkpoint = source.checkpoint
    names = {file.name for file in checkpoint.side_files}
    repeating = [name for name in QUANTIZATION_FILES if name in names]
    if mode == "dequantize":
        edits = tuple(JsonEdit(path=place, value=REMOVE) for place in quantization.places)
        return edits, dict.fromkeys(repeating)
    modules = _list_modules(checkpoint, quantization)
    renumbering = _renumber(source.decoder, mode, layer_map)
    changes = _change(quantization, quantization.config, modules, renumbering)
    edits = tuple(
        JsonEdit(path=(*place, *path), value=value)
        for place in quantization.places
        for path, value in changes.items()
    )
    files: dict[str, bytes | None] = {}
    for name in repeating:
        data = checkpoint.contents.get(name)
        if data is None:
            continue
        settings = parse_json_object(data, name)
        path: tuple[str, ...] = ("quantization",) if name == "hf_quant_config.json" else ()
        inner: Any = settings.get("quantization", settings) if path else settings
        own = _change(quantization, {**quantization.config, **inner}, modules, renumbering)
        if own:
            given = [JsonEdit(path=(*path, *key), value=value) for key, value in own.items()]
            files[name] = edit_json_object(data, given)
    return edits, files


def _change(
    quantization: Quantization,
    settings: Mapping[str, Any],
    modules: Mapping[str, bool],
    renumbering: Renumbering,
) -> dict[tuple[str, ...], Any]:
    """Return the new value of each list of a quantisation config that changes."""
    try:
        after = rewrite_settings(quantization, settings, modules, renumbering)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json: the quantization config's lists of modules cannot be read: {error}"
        ) from None
    changes = {}
    for entries in quantization.method.entries({**settings, **after}):
        before, value = _get(settings, entries.path), _get(after, entries.path)
        if value != before:
            changes[entries.path] = value
    return changes


def _get(settings: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = settings
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _list_modules(checkpoint: Checkpoint, quantization: Quantization) -> dict[str, bool]:
    """Return every module with a matrix, and whether it is quantised, in the order of files."""

    def walk() -> Iterator[tuple[str, bool]]:
        for name, spec in checkpoint.specs.items():
            member = quantization.members.get(name)
            if member is not None:
                if member.module is not None:
                    yield _container(member.module), True
            elif len(spec.shape) > 1 and not name.endswith("bias"):
                yield name.removesuffix(".weight"), False

    return dict(walk())


def _container(module: QuantizedModule) -> str:
    """Return what loaders call a module; of experts that are one tensor, what holds them."""
    head, found, tail = module.name.partition(".experts.")
    return f"{head}.experts" if found and not tail[:1].isdecimal() else module.name


def _renumber(decoder: Decoder, mode: str, layer_map: LayerMap) -> Renumbering:
    places: dict[int, list[int]] = {}
    for index, entry in enumerate(layer_map):
        places.setdefault(entry.source, []).append(index)
    for tail in range(decoder.tail_layers):
        places[decoder.layers + tail] = [len(layer_map) + tail]
    wrapper = MULTIMODAL.get(decoder.model_type)
    spelt = [decoder.prefix, *(wrapper.prefixes if wrapper else ()), *decoder.family.prefixes]
    spelt += [prefix.partition(".")[2] for prefix in spelt]
    is_full = mode == "new-blocks-full"
    others = wrapper.prefixes if wrapper else ()
    return Renumbering(
        prefix=decoder.prefix,
        others=tuple(prefix for prefix in others if prefix != decoder.prefix),
        spellings=tuple(dict.fromkeys(prefix for prefix in spelt if prefix)),
        places={source: tuple(indices) for source, indices in places.items()},
        full=frozenset(i for i, entry in enumerate(layer_map) if entry.is_new and is_full),
    )


def _fill(zero: bytes | None, use: TensorUse) -> Origin:
    if zero is None:
        return use.copy
    if not any(zero):
        return Zeros(nbytes=use.spec.nbytes)
    return Fill(element=zero, nbytes=use.spec.nbytes)


def find_constant(
    decoder: Decoder, neutral: Mapping[int, Mapping[str, float]], name: str
) -> float | None:
    """Return what a tensor of a layer, or the module that it is a part of, is set to in a clone."""
    layer = decoder.placed[name]
    return neutral.get(layer, {}).get(module_suffix(decoder, name))
