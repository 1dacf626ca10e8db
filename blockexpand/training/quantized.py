"""How an expansion of a quantised source is loaded to be trained, and what can train in it.

From the manifest alone: which method it is, and whether new blocks are stored unquantised.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TrainingError
from ..planning.claims import parse_quantized
from ..planning.manifest import Manifest

# What loads a method unquantised. compressed-tensors imitates quantised activations without
# gradients, so that everything before them would learn from wrong ones, without a word.
_UNPACKING = {
    "compressed-tensors": (
        "CompressedTensorsConfig",
        "compressed-tensors imitates quantized activations without passing gradients through them: "
        "dequantize=True, or most of each gradient is silently wrong",
    ),
    "mxfp4": ("Mxfp4Config", "transformers trains nothing in MXFP4: dequantize=True"),
}

_CONVERSIONS = "from transformers.conversion_mapping import get_model_conversion_mapping\n"

# Loaded unpacked, these are packed again by transformers when it saves.
_SAVED_AGAIN = ("fp8", "mxfp4")

_REFUSED_BY_TRAINER = ("bitsandbytes", "gptq", "awq")

# Without it transformers 5 gives up where it saves the trained model.
_SAVES_AS_LOADED = "model._weight_conversions = []\n"

_SAVES_PLAINLY = (
    "model.hf_quantizer = None\nmodel._weight_conversions = get_model_conversion_mapping(model)\n"
)

_SAVING = (
    "a trainer may save the original layers in another form than they had: `blockexpand extract` "
    "takes the new blocks out of what it saved, and `blockexpand apply` puts them on the source"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLoading:
    """What a script needs besides `from_pretrained(out)`: imports, an argument, a line after.

    `imported` is a class of transformers, `imported_from` a whole line.
    """

    imported: str = ""
    imported_from: str = ""
    argument: str = ""
    after: str = ""
    notes: tuple[str, ...] = ()


def describe_loading(manifest: Manifest, *, is_adapter: bool) -> QuantizedLoading:
    """Return how to load an expansion for training; `is_adapter` if LoRA is what trains.

    Raises: TrainingError where its new blocks are quantised and would have to be trained in full,
    or nothing can be trained among such layers.
    """
    method, mode = parse_quantized(manifest.file, manifest.content)
    if method is None or mode == "dequantize":
        return QuantizedLoading()
    if mode == "keep" and not is_adapter:
        raise TrainingError(
            f"{manifest.file}: the new blocks are quantized ({method}), so that only LoRA can "
            "train them (--framework peft); to train them in full, make the expansion with "
            "--quantized new-blocks-full"
        )
    if method == "fbgemm_fp8":
        raise TrainingError(
            f"{manifest.file}: no gradient passes through the original layers, which are quantized "
            f"({method}); make the expansion with --quantized dequantize to train it"
        )
    notes: tuple[str, ...] = (f"the original layers stay quantized ({method}), frozen", _SAVING)
    imported = argument = after = imported_from = ""
    if method in _UNPACKING:
        imported, reason = _UNPACKING[method]
        argument = f", quantization_config={imported}(dequantize=True)"
        notes = (f"{reason} (quantization_config={imported}(dequantize=True))", *notes)
    if method in _SAVED_AGAIN and not is_adapter:
        imported_from, after = _CONVERSIONS, _SAVES_PLAINLY
        notes = (
            "transformers 5 undoes its unpacking when it saves: it quantizes the new blocks too, "
            "or gives them the names of quantized ones, and drops quantization_config. The line "
            "with _weight_conversions makes it save what was trained",
            *notes,
        )
    if method in _REFUSED_BY_TRAINER and not is_adapter:
        after = "model.is_quantized = False\n"
        notes = (
            "Trainer refuses a quantized model without an adapter, and does not see that the new "
            "blocks are none: model.is_quantized = False lets it train them",
            *notes,
        )
    if method == "bitsandbytes" and not is_adapter:
        after += _SAVES_AS_LOADED
        notes = (
            "transformers 5 cannot save a model that bitsandbytes quantized before it was loaded: "
            "the line with _weight_conversions makes it save what is there. Train on a GPU: on a "
            "CPU bitsandbytes rounds the scales of the original layers when it first computes",
            *notes,
        )
    return QuantizedLoading(
        imported=imported,
        imported_from=imported_from,
        argument=argument,
        after=after,
        notes=notes,
    )
