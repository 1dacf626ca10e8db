"""Rows for weights of one element per value, with scales by blocks or rows: FP8."""

from __future__ import annotations

from ...errors import CheckpointError, UnsupportedModelError
from ...formats.codecs import Blocks, Specs
from .matchers import lies_below, names_module, skip_if, transformers_skips
from .scheme import Entries, Method, QuantConfig, Scheme

_FLOAT8 = ("F8_E4M3", "F8_E5M2")


def _read(config: QuantConfig, module: str, specs: Specs) -> Scheme:
    size = config.get("weight_block_size")
    if size is None:
        return _make_scheme("FP8 by tensors", specs, (0, 0))
    if (
        not isinstance(size, (list, tuple))
        or len(size) != 2
        or any(type(side) is not int or side < 1 for side in size)
    ):
        raise ValueError(f"weight_block_size {size!r} is neither null nor two lengths")
    return _make_scheme("FP8 by blocks", specs, (size[0], size[1]))


def _read_rows(config: QuantConfig, module: str, specs: Specs) -> Scheme:
    return _make_scheme("FP8 by rows", specs, (1, 0))


def _make_scheme(name: str, specs: Specs, block: tuple[int, int]) -> Scheme:
    q = specs["q"]
    if q.dtype in ("I8", "U8", "F4"):
        raise UnsupportedModelError(f"four-bit floats ({q.dtype}, two to a byte) beside FP8")
    if q.dtype not in _FLOAT8:
        raise CheckpointError(f"dtype {q.dtype}; expected F8_E4M3")
    check_grid(q.shape, block, specs["scale"].shape)
    return Scheme(
        name=name,
        # No byte of a scale may be 0: as E8M0 that is 2 ** -127.
        zero={"q": b"\0"},
        codec=Blocks(block=block),
        shape=q.shape,
    )


def check_grid(shape: tuple[int, ...], block: tuple[int, int], scale: tuple[int, ...]) -> None:
    """Raise CheckpointError where there is not one scale for every block; 0 is a whole side."""
    *outer, rows, cols = shape
    expected = (
        *outer,
        -(-rows // (block[0] or rows or 1)),
        -(-cols // (block[1] or cols or 1)),
    )
    n_expected = n_found = 1
    for dim in expected:
        n_expected *= dim
    for dim in scale:
        n_found *= dim
    is_scalar = len(scale) < 2 and n_expected == n_found
    if scale != expected and not is_scalar:
        raise CheckpointError(
            f"scales of shape {list(scale)} for a weight of shape {list(shape)} in blocks of "
            f"{list(block)}; expected {list(expected)}"
        )


def _entries(config: QuantConfig) -> tuple[Entries, ...]:
    known = [key for key in ("modules_to_not_convert", "ignored_layers") if key in config]
    return tuple(Entries(path=(key,)) for key in known or ["modules_to_not_convert"])


def _vllm_skips(config: QuantConfig) -> list[str] | None:
    return config.get("ignored_layers") or config.get("modules_to_not_convert")


def _sglang_skips(config: QuantConfig) -> list[str] | None:
    key = "ignored_layers" if "ignored_layers" in config else "modules_to_not_convert"
    return config.get(key)


def _transformers_skips(config: QuantConfig) -> list[str] | None:
    found = config.get("modules_to_not_convert")
    return found if found is not None else config.get("ignored_layers")


FINE_GRAINED_FP8 = Method(
    name="fp8",
    title="FP8",
    parts={
        ".weight": "q",
        **dict.fromkeys(
            (".weight_scale_inv", ".weight_scale", ".scale", ".qscale_weight"), "scale"
        ),
        **dict.fromkeys((".activation_scale", ".input_scale", ".qscale_act"), "input"),
        # Experts in one tensor [experts, rows, columns], which has the module's own name.
        "": "q",
        "_scale_inv": "scale",
        "_activation_scale": "input",
    },
    extras=(".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".output_scale"),
    read=_read,
    entries=_entries,
    engines={
        "transformers": lambda config, module: skip_if(
            transformers_skips(_transformers_skips(config), module)
        ),
        "vLLM": lambda config, module: skip_if(names_module(_vllm_skips(config), module)),
        "SGLang": lambda config, module: skip_if(lies_below(_sglang_skips(config), module)),
    },
    null_skips=True,
    library="accelerate",
)


# Llama 3.1 405B, as Meta published it in FP8.
FBGEMM_FP8 = Method(
    name="fbgemm_fp8",
    title="FBGEMM's FP8",
    parts={".weight": "q", ".weight_scale": "scale", ".input_scale_ub": "input"},
    read=_read_rows,
    entries=lambda config: (Entries(path=("modules_to_not_convert",)),),
    engines={
        "transformers": lambda config, module: skip_if(
            transformers_skips(config.get("modules_to_not_convert"), module)
        ),
        "vLLM": lambda config, module: skip_if(
            names_module(config.get("modules_to_not_convert"), module)
        ),
    },
    null_skips=True,
    warnings={
        mode: "transformers trains nothing through FBGEMM's FP8: to train, make the model with "
        "--quantized dequantize"
        for mode in ("keep", "new-blocks-full")
    },
    library="fbgemm_gpu",
)
