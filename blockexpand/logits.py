"""Load source and output with `transformers` and compare their logits on real token ids, exactly.

It needs memory for one of the two models at a time. Custom code of a checkpoint is never run.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BlockExpandError, ProofError

if TYPE_CHECKING:
    import torch

_TEXT = (
    "Block expansion adds layers to a language model and leaves what it computes as it was. "
    "In 1854, on 3 of 12 evenings, the ship's cook wrote: «Il pleut, 雨が降る, идёт дождь.» "
    "def add(a, b): return a + b  # 40 + 2 == 42"
)
_MOST_TOKENS = 128
_CRITICAL = 50  # as in Python's logging


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsProof:
    """Logits [1, tokens, vocabulary] that were found equal, bit for bit."""

    tokens: int
    vocabulary: int
    dtype: str


def compare_logits(source: Path, out: Path, dtype: str) -> LogitsProof:
    """Compare the logits of two checkpoint folders, both loaded in `dtype` (`bfloat16`, …).

    Raises: ProofError where they differ anywhere, or where either does not load completely.
    """
    import torch

    with quiet_transformers():
        ids = _token_ids(source)
        expected, source_report = _run(source, dtype, ids)
        found, out_report = _run(out, dtype, ids)
    if out_report != source_report:
        raise ProofError(
            f"{out}: transformers loads it with other missing or unexpected tensors than its "
            f"source: expected {source_report}, found {out_report}"
        )
    if not expected.isfinite().all():
        raise ProofError(f"{source}: its own logits are not finite in {dtype}: nothing is proven")
    if expected.shape != found.shape:
        raise ProofError(
            f"{out}: logits of shape {list(found.shape)}; expected {list(expected.shape)}"
        )
    if not torch.equal(expected, found):
        worst = (expected.double() - found.double()).abs().max().item()
        raise ProofError(f"{out}: the logits differ from the source's, by up to {worst:g}")
    return LogitsProof(tokens=ids.shape[1], vocabulary=expected.shape[-1], dtype=dtype)


def load_model(folder: Path, dtype: str) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint's language model with `transformers`, and the report of its loading.

    Raises: ProofError where `transformers` cannot.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for loader in language_model_classes(config):
        model, report = loader.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        if model.get_output_embeddings() is not None:
            # Loaded weights can be views of the mapped file, and CPU kernels may round otherwise
            # where memory is aligned otherwise: give every tensor memory of its own.
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.data.clone()
            return model.eval(), report
    raise ProofError(f"{folder}: transformers knows no language model for {config.model_type!r}")


def language_model_classes(config: Any) -> tuple[Any, ...]:
    """Return the classes that may load a config's language model, the likeliest first."""
    import transformers

    # Checkpoints name their own class, which also covers the multimodal ones.
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    known = [
        model_class
        for model_class in named
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    ]
    return (*known, transformers.AutoModelForCausalLM)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the bars and remarks of `transformers` off the terminal for a while."""
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(_CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _run(folder: Path, dtype: str, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, list[str]]]:
    import torch

    try:
        model, report = load_model(folder, dtype)
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=ids).logits.clone()
    except BlockExpandError:
        raise
    except Exception as error:
        raise ProofError(f"{folder}: {_reason(error)}") from error
    del model
    gc.collect()
    kept = ("missing_keys", "mismatched_keys", "error_msgs")
    return logits, {key: sorted(map(str, report.get(key, ()))) for key in kept}


def _reason(error: Exception) -> str:
    return f"transformers cannot run it: {' '.join(str(error).split())[:500]}"


def _token_ids(folder: Path) -> torch.Tensor:
    """Return token ids [1, tokens] of a fixed text; without a tokenizer, ids from all over.

    Raises: ProofError where `transformers` cannot read the config.
    """
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ProofError(f"{folder}: {_reason(error)}") from error
    text_config = config.get_text_config()
    most = min(_MOST_TOKENS, getattr(text_config, "max_position_embeddings", None) or _MOST_TOKENS)
    vocabulary = text_config.vocab_size
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        ids = [number for number in tokenizer(_TEXT)["input_ids"] if number < vocabulary]
    except Exception:
        ids = []
    if not ids:
        ids = [(number * 7919 + 1) % vocabulary for number in range(64)]
    return torch.tensor([ids[:most]])
