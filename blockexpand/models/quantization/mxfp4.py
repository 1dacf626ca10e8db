"""The row of gpt-oss: experts of four-bit floats, everything else unquantised."""

from __future__ import annotations

from ...errors import CheckpointError
from ...formats.codecs import Specs, TransposedE2M1
from .matchers import skip_if, transformers_skips
from .scheme import Entries, Method, QuantConfig, Scheme


def _read(config: QuantConfig, module: str, specs: Specs) -> Scheme:
    q, scale = specs["q"], specs["scale"]
    is_packed = q.dtype == "U8" and len(q.shape) == 4 and q.shape[3] == 16
    if not is_packed or scale.dtype != "U8" or scale.shape != q.shape[:3]:
        raise CheckpointError(
            f"blocks {q.dtype} {list(q.shape)} with scales {scale.dtype} {list(scale.shape)}; "
            "expected U8 [experts, out, in / 32, 16] and U8 [experts, out, in / 32]"
        )
    experts, out, groups, _ = q.shape
    return Scheme(
        name="MXFP4",
        zero={"q": b"\0"},
        codec=TransposedE2M1(),
        shape=(experts, groups * 32, out),
        weight="",
    )


MXFP4 = Method(
    name="mxfp4",
    title="MXFP4",
    parts={"_blocks": "q", "_scales": "scale"},
    read=_read,
    entries=lambda config: (Entries(path=("modules_to_not_convert",)),),
    engines={
        "transformers": lambda config, module: skip_if(
            transformers_skips(config.get("modules_to_not_convert"), module)
        )
    },
    null_skips=True,
    warnings={
        "keep": "transformers trains nothing in MXFP4: to train, load the model with "
        "Mxfp4Config(dequantize=True), or make it with --quantized dequantize",
        "new-blocks-full": "vLLM and SGLang ignore MXFP4's list of unquantised modules and cannot "
        "serve this model; transformers loads it with Mxfp4Config(dequantize=True). To serve, use "
        "--quantized keep; to train, --quantized dequantize",
    },
    library="accelerate",
    loading="Mxfp4Config",
)
