"""Load source and output with `transformers` and compare their logits on real token ids, exactly.

It needs memory for one of the two models at a time. Custom code of a checkpoint is never run.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BlockExpandError, NoProofError, ProofError
from ..messages import one_line

if TYPE_CHECKING:
    import torch
from ..models.loading import load_model, quiet_transformers

_TEXT = (
    "Block expansion adds layers to a language model and leaves what it computes as it was. "
    "In 1854, on 3 of 12 evenings, the ship's cook wrote: «Il pleut, 雨が降る, идёт дождь.» "
    "def add(a, b): return a + b  # 40 + 2 == 42"
)

_MOST_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsProof:
    """Outputs that were found equal, bit for bit: `what` they are, logits [1, tokens, vocabulary]
    or, of a model without a language-model head, those of its own class."""

    tokens: int
    vocabulary: int
    dtype: str
    what: str = "logits"


def compare_logits(source: Path, out: Path, dtype: str) -> LogitsProof:
    """Compare the logits of two checkpoint folders, both loaded in `dtype` (`bfloat16`, …).

    Raises: ProofError where they differ anywhere; NoProofError where one cannot be loaded.
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
        raise NoProofError(f"{source}: its own logits are not finite in {dtype}: nothing is proven")
    if expected.shape != found.shape:
        raise ProofError(
            f"{out}: logits of shape {list(found.shape)}; expected {list(expected.shape)}"
        )
    if not torch.equal(expected, found):
        worst = (expected.double() - found.double()).abs().max().item()
        raise ProofError(f"{out}: the logits differ from the source's, by up to {worst:g}")
    return LogitsProof(tokens=ids.shape[1], vocabulary=expected.shape[-1], dtype=dtype)


def _run(folder: Path, dtype: str, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, list[str]]]:
    import torch

    try:
        model, report = load_model(folder, dtype)
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=ids).logits.clone()
    except BlockExpandError:
        raise
    except Exception as error:
        raise NoProofError(f"{folder}: {_reason(error)}") from error
    del model
    gc.collect()
    kept = ("missing_keys", "mismatched_keys", "error_msgs")
    return logits, {key: sorted(map(str, report.get(key, ()))) for key in kept}


def _reason(error: Exception) -> str:
    return f"transformers cannot run it: {one_line(error, 500)}"


def _token_ids(folder: Path) -> torch.Tensor:
    """Return token ids [1, tokens] of a fixed text; without a tokenizer, ids from all over.

    Raises: NoProofError where `transformers` cannot read the config.
    """
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise NoProofError(f"{folder}: {_reason(error)}") from error
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
