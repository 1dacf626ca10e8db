"""How an expansion of a quantised source is loaded to be trained, and what can train in it.

From the manifest alone: which method it is, and whether new blocks are stored unquantised.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TrainingError
from ..planning.manifest import Manifest, parse_quantized

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

_SAVING = (
    "a trainer saves the original layers in another form than they had: keep the new blocks' own "
    "tensors of what it saves, and the expansion's files for the rest"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLoading:
    """What a script needs besides `from_pretrained(out)`: an import, an argument, a line after."""

    imported: str = ""
    argument: str = ""
    after: str = ""
    notes: tuple[str, ...] = ()


def describe_loading(manifest: Manifest, *, is_adapter: bool) -> QuantizedLoading:
    """Return how to load an expansion for training; `is_adapter` if LoRA is what trains.

    Raises: TrainingError where its new blocks are quantised and would have to be trained in full.
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
    notes = (f"the original layers stay quantized ({method}), frozen", _SAVING)
    if method in _UNPACKING:
        name, reason = _UNPACKING[method]
        return QuantizedLoading(
            imported=name,
            argument=f", quantization_config={name}(dequantize=True)",
            notes=(f"{reason} (quantization_config={name}(dequantize=True))", *notes),
        )
    if method in ("bitsandbytes", "gptq", "awq") and not is_adapter:
        return QuantizedLoading(
            after="model.is_quantized = False\n",
            notes=(
                "Trainer refuses a quantized model without an adapter, and does not see that the "
                "new blocks are none: model.is_quantized = False lets it train them",
                *notes,
            ),
        )
    return QuantizedLoading(notes=notes)
