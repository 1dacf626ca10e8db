"""The row of bitsandbytes: NF4 and FP4, nested or not, and int8."""

from __future__ import annotations

from ...errors import CheckpointError
from ...formats.codecs import RowMaximum, Specs, TableCoded
from .matchers import begins_or_is_in, skip_if, transformers_skips
from .scheme import Entries, Method, QuantConfig, Scheme

# The byte whose two codes both stand for 0.
_ZERO_CODES = {"nf4": b"\x77", "fp4": b"\0"}


def _read(config: QuantConfig, module: str, specs: Specs) -> Scheme:
    if "scale" in specs:
        if specs["q"].dtype != "I8" or len(specs["q"].shape) != 2:
            raise CheckpointError(f"int8 weights of dtype {specs['q'].dtype}; expected I8")
        return Scheme(name="int8", zero={"q": b"\0"}, codec=RowMaximum(), shape=specs["q"].shape)
    kind = next((kind for kind in _ZERO_CODES if f"state_{kind}" in specs), None)
    if kind is None or "absmax" not in specs or "map" not in specs:
        raise CheckpointError("the state of its quantization is incomplete")
    if specs["q"].dtype != "U8":
        raise CheckpointError(f"four-bit weights stored as {specs['q'].dtype}; expected U8")
    nested = ("nested_absmax", "nested_map") if "nested_absmax" in specs else ()
    return Scheme(
        name=f"{kind.upper()}{', nested' if nested else ''}",
        zero={"q": _ZERO_CODES[kind]},
        codec=TableCoded(),
        shape=None,
        explains=("absmax", "map", *nested, f"state_{kind}"),
    )


_STATE = ".weight.quant_state.bitsandbytes__"

BITSANDBYTES = Method(
    name="bitsandbytes",
    title="bitsandbytes",
    parts={
        ".weight": "q",
        ".weight.absmax": "absmax",
        ".weight.quant_map": "map",
        ".weight.nested_absmax": "nested_absmax",
        ".weight.nested_quant_map": "nested_map",
        f"{_STATE}nf4": "state_nf4",
        f"{_STATE}fp4": "state_fp4",
        ".SCB": "scale",
        ".weight_format": "format",
    },
    read=_read,
    entries=lambda config: (Entries(path=("llm_int8_skip_modules",)),),
    engines={
        "transformers": lambda config, module: skip_if(
            transformers_skips(config.get("llm_int8_skip_modules"), module)
        ),
        "SGLang": lambda config, module: skip_if(
            begins_or_is_in(config.get("llm_int8_skip_modules"), module)
        ),
    },
    fused=True,
    null_skips=True,
    library="bitsandbytes",
)
