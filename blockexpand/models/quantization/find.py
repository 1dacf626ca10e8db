"""Find how a checkpoint is quantised: its method, its modules, and what each of its tensors is.

Sees names, shapes and the config, never tensor data. What no row covers is refused by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ...errors import CheckpointError, UnsupportedModelError
from ...formats.codecs import Blocks
from ...formats.tensor_spec import TensorSpec, make_tensor_spec
from ...messages import show
from .bitsandbytes import BITSANDBYTES
from .blocks import FBGEMM_FP8, FINE_GRAINED_FP8
from .by_inputs import AWQ, GPTQ
from .compressed_tensors import COMPRESSED_TENSORS
from .mxfp4 import MXFP4
from .scheme import Method, Scheme

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        *(FINE_GRAINED_FP8, FBGEMM_FP8, MXFP4, COMPRESSED_TENSORS, BITSANDBYTES, GPTQ, AWQ),
    )
}

_PLACES = (
    ("quantization_config",),
    ("compression_config",),
    ("text_config", "quantization_config"),
    ("text_config", "compression_config"),
)

_WAY_OUT = "use the unquantized checkpoint, or one quantized as " + ", ".join(
    method.title for method in METHODS.values()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModule:
    """A module by its full name, and the names of its tensors by role."""

    name: str
    scheme: Scheme
    parts: Mapping[str, str]

    @property
    def weight(self) -> str:
        """The name of the tensor that it has when it is not quantised."""
        return self.name + self.scheme.weight


class Member(NamedTuple):
    """What a tensor is to a quantised module; without one it is an extra of its layer."""

    module: QuantizedModule | None
    role: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantization:
    """How one checkpoint is quantised. `places` lead to the objects of config.json that say so."""

    method: Method
    config: Mapping[str, Any]
    places: tuple[tuple[str, ...], ...]
    modules: Mapping[str, QuantizedModule]
    members: Mapping[str, Member]

    def weight_spec(self, name: str, spec: TensorSpec) -> TensorSpec:
        """Return what a tensor with a module's values would be unquantised, in bfloat16."""
        member = self.members.get(name)
        if member is None or member.module is None:
            return spec
        return make_tensor_spec("BF16", member.module.scheme.shape or spec.shape)


def find_quantization(
    config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]
) -> Quantization | None:
    """Return how a checkpoint is quantised; None where its config does not say that it is.

    Raises: UnsupportedModelError for a method that no row covers; CheckpointError for a module of
    which a part is missing or does not fit.
    """
    places = {path: found for path in _PLACES if (found := _descend(config, path))}
    # mlx-lm writes the same under both names, and no method into either.
    if config.get("quantization") and not any("quant_method" in found for found in places.values()):
        raise _refusal("config.json: 'quantization' is that of MLX")
    if not places:
        _refuse_unexplained(tensors)
        return None
    objects = list(places.values())
    where = f"config.json: {'.'.join(next(iter(places)))!r}"
    if any(other != objects[0] for other in objects):
        raise CheckpointError(f"{where}: differs from {'.'.join(list(places)[1])!r}; expected one")
    settings = objects[0]
    method = _find_method(settings, where, is_older=next(iter(places))[-1] == "compression_config")
    if reason := method.check(settings):
        raise _refusal(f"{where}: {reason}")
    modules = _find_modules(method, settings, tensors)
    if not modules:
        raise CheckpointError(
            f"{where}: says that the weights are {method.title}, and no tensor is; remove it from "
            "config.json, or fetch the weights that it belongs to"
        )
    members = {
        tensor: Member(module, role)
        for module in modules.values()
        for role, tensor in module.parts.items()
    }
    members |= {
        name: Member(None, "extra")
        for name in tensors
        if method.extras and name.endswith(method.extras)
    }
    return Quantization(
        method=method,
        config=settings,
        places=tuple(places),
        modules=modules,
        members=members,
    )


def find_misread(quantization: Quantization) -> str | None:
    """Say what transformers unpacks otherwise than the format defines it; None for nothing.

    It takes the size of an FP8 block from the number of scales, so a last block that is not whole
    for another; and experts in one tensor it takes without their scales.
    """
    if quantization.method is not FINE_GRAINED_FP8:
        return None
    for module in quantization.modules.values():
        codec, shape = module.scheme.codec, module.scheme.shape
        assert isinstance(codec, Blocks) and shape is not None
        if not module.scheme.weight:
            return f"experts in one tensor ({module.name})"
        sides = zip(codec.block, shape[-2:], strict=True)
        if any(block and length % block for block, length in sides):
            return f"blocks that are not whole ({module.name})"
    return None


def _refuse_unexplained(tensors: Mapping[str, TensorSpec]) -> None:
    """Refuse quantised weights of which the config says nothing, as older ModelOpt writes them."""
    for name, spec in tensors.items():
        if spec.dtype.startswith("F8") and name.endswith(".weight"):
            raise _refusal(
                f"tensor {name!r} has dtype {spec.dtype}, and config.json has no "
                "'quantization_config' that says how it is quantized (ModelOpt says it in "
                "hf_quant_config.json)"
            )


def _descend(config: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any] | None:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) and value else None


def _find_method(settings: Mapping[str, Any], where: str, *, is_older: bool) -> Method:
    name = settings.get("quant_method")
    if name is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        name = "bitsandbytes"
    if name is None and is_older:
        name = "compressed-tensors"
    method = METHODS.get("fp8" if name == "mxfp8" else str(name))
    if method is None:
        said = "names no 'quant_method'" if name is None else f"quantized as {show(name)}"
        raise _refusal(f"{where}: {said}")
    return method


def _refusal(fact: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{fact}, which cannot be expanded; {_WAY_OUT}")


def _find_modules(
    method: Method, settings: Mapping[str, Any], tensors: Mapping[str, TensorSpec]
) -> dict[str, QuantizedModule]:
    """Group tensors by module; a module without values of its own is none."""
    suffixes = sorted(method.parts, key=len, reverse=True)
    endings = tuple(suffixes)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        if not name.endswith(endings):
            continue
        suffix = next(suffix for suffix in suffixes if name.endswith(suffix))
        role, module = method.parts[suffix], name.removesuffix(suffix)
        if role in found[module]:
            raise CheckpointError(
                f"tensor {name!r}: its module also has {found[module][role]!r}; expected one"
            )
        found[module][role] = name
    modules: dict[str, QuantizedModule] = {}
    for module, parts in found.items():
        if "q" not in parts:
            continue
        specs = {role: tensors[name] for role, name in parts.items()}
        packed = specs["q"].dtype not in ("F64", "F32", "F16", "BF16")
        if not packed and len(parts) == 1:
            continue
        if not packed or not {"scale", "absmax"} & parts.keys():
            raise CheckpointError(
                f"tensor {parts['q']!r} has dtype {specs['q'].dtype} and "
                f"{_others(parts)}; expected a quantized weight with all its parts"
            )
        try:
            scheme = method.read(settings, module, specs)
        except (CheckpointError, UnsupportedModelError) as error:
            raise type(error)(f"tensor {parts['q']!r}: {error}; {_WAY_OUT}") from None
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise CheckpointError(
                f"config.json: the quantization config cannot be read for {module!r}: {error}"
            ) from None
        if parts["q"] == module:
            scheme = replace(scheme, weight="")
        modules[module] = QuantizedModule(name=module, scheme=scheme, parts=parts)
    return modules


def _others(parts: Mapping[str, str]) -> str:
    others = [name for role, name in parts.items() if role != "q"]
    return f"beside it {', '.join(map(repr, others))}" if others else "no scale beside it"
