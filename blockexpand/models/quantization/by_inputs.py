"""The rows of GPTQ and AWQ: integers packed as [in, out], in groups along the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ...formats.codecs import Awq, Gptq, Specs
from .matchers import (
    find_dynamic,
    find_dynamic_in_blocks,
    in_blocks,
    is_part,
    skip_if,
    transformers_skips,
)
from .scheme import Entries, Method, QuantConfig, Scheme


def _read_gptq(config: QuantConfig, module: str, specs: Specs) -> Scheme:
    own = {**config, **_overrides(config, module)}
    bits, group = int(own.get("bits") or 0), int(own.get("group_size") or 0)
    if bits not in (2, 4, 8):
        raise UnsupportedModelError(f"GPTQ of {bits} bits; known are 2, 4 and 8")
    q, scale = specs["q"], specs["scale"]
    if q.dtype != "I32" or len(q.shape) != 2 or len(scale.shape) != 2:
        raise CheckpointError(f"qweight {q.dtype} {list(q.shape)}; expected I32 [in, out]")
    width, height = q.shape[0] * 32 // bits, q.shape[1]
    _check_groups(width, height, group, specs, height * bits // 32)
    return Scheme(
        name=f"GPTQ, {bits} bits",
        zero={"scale": b"\0"},
        codec=Gptq(
            bits=bits,
            group=max(group, 0),
            zero_offset=0 if own.get("checkpoint_format") == "gptq_v2" else 1,
        ),
        shape=(height, width),
        explains=("scale", "zero", *(["order"] if "order" in specs else [])),
    )


def _overrides(config: QuantConfig, module: str) -> Mapping[str, Any]:
    found = find_dynamic(config, module)
    for value in (config.get("dynamic") or {}).values():
        if repr(value) == found:
            return dict(value)
    return {}


def _read_awq(config: QuantConfig, module: str, specs: Specs) -> Scheme:
    group = int(config.get("group_size") or config.get("q_group_size") or 0)
    q, scale = specs["q"], specs["scale"]
    if q.dtype != "I32" or len(q.shape) != 2 or len(scale.shape) != 2:
        raise CheckpointError(f"qweight {q.dtype} {list(q.shape)}; expected I32 [in, out / 8]")
    width, height = q.shape[0], q.shape[1] * 8
    _check_groups(width, height, group, specs, height // 8)
    return Scheme(
        name="AWQ, 4 bits",
        zero={"scale": b"\0"},
        codec=Awq(group=max(group, 0)),
        shape=(height, width),
        explains=("scale", "zero"),
    )


def _check_groups(width: int, height: int, group: int, specs: Specs, zero_width: int) -> None:
    groups = -(-width // group) if group > 0 else 1
    expected = {"scale": (groups, height), "zero": (groups, zero_width)}
    for role, shape in expected.items():
        if role not in specs or specs[role].shape != shape:
            found = list(specs[role].shape) if role in specs else "none"
            raise CheckpointError(
                f"{'scales' if role == 'scale' else 'qzeros'} of shape {found}; expected "
                f"{list(shape)} for groups of {group if group > 0 else 'all inputs'}"
            )


def _check_awq(config: QuantConfig) -> str | None:
    version = str(config.get("version") or config.get("format") or "gemm").lower()
    bits = config.get("bits", config.get("w_bit", 4))
    if version != "gemm":
        return f"AWQ in version {version!r}, of which only 'gemm' is known"
    return None if bits == 4 else f"AWQ of {bits} bits, of which only 4 is known"


def _check_gptq(config: QuantConfig) -> str | None:
    known = config.get("checkpoint_format") or "gptq"
    return None if known in ("gptq", "gptq_v2") else f"GPTQ in checkpoint_format {known!r}"


def _entries_gptq(config: QuantConfig) -> tuple[Entries, ...]:
    return (
        Entries(path=("dynamic",), style="dynamic"),
        Entries(path=("modules_in_block_to_quantize",), style="blocks", is_skip=False),
    )


_PARTS = {".qweight": "q", ".qzeros": "zero", ".scales": "scale", ".g_idx": "order"}

GPTQ = Method(
    name="gptq",
    title="GPTQ",
    parts=_PARTS,
    read=_read_gptq,
    entries=_entries_gptq,
    engines={
        "transformers": in_blocks,
        "vLLM": find_dynamic_in_blocks,
        "SGLang": find_dynamic,
    },
    check=_check_gptq,
    library="gptqmodel",
)

AWQ = Method(
    name="awq",
    title="AWQ",
    parts=_PARTS,
    read=_read_awq,
    entries=lambda config: (Entries(path=("modules_to_not_convert",)),),
    engines={
        "transformers": lambda config, module: skip_if(
            transformers_skips(config.get("modules_to_not_convert"), module)
        ),
        "vLLM": lambda config, module: skip_if(
            is_part(config.get("modules_to_not_convert"), module)
        ),
        "SGLang": lambda config, module: skip_if(
            is_part(config.get("modules_to_not_convert"), module)
        ),
    },
    check=_check_awq,
    library="gptqmodel",
)
