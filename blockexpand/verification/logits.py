"""Load source and output with `transformers` and compare their logits on real token ids, exactly.

It needs memory for one of the two models at a time. It runs no custom code of a checkpoint unless
it is handed what does.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BlockExpandError, NoProofError, ProofError
from ..messages import and_more, one_line

if TYPE_CHECKING:
    import torch
from ..models.loading import find_absent, load_model, quiet_transformers

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


class Outcome(NamedTuple):
    """What a model computes, which tensors did not load, what was computed (`logits`), and whether
    all that it was computed with was in the checkpoint."""

    computed: torch.Tensor
    report: dict[str, list[str]]
    what: str
    is_complete: bool


Run = Callable[[Path, str, "torch.Tensor"], Outcome]


def compare_logits(
    source: Path, out: Path, dtype: str, run: Run | None = None, ids: torch.Tensor | None = None
) -> LogitsProof:
    """Compare the logits of two checkpoint folders, both loaded in `dtype` (`bfloat16`, …).

    `run` is another way to run one than with `transformers`, on the token `ids` [1, tokens].
    Raises: ProofError where they differ anywhere; NoProofError where one cannot be loaded.
    """
    import torch

    with quiet_transformers():
        run = _run if run is None else run
        ids = _token_ids(source) if ids is None else ids
        expected, source_report, what, is_complete = run(source, dtype, ids)
        found, out_report, other_what, _ = run(out, dtype, ids)
    if (out_report, other_what) != (source_report, what):
        raise ProofError(
            f"{out}: transformers loads it with other missing or unexpected tensors than its "
            f"source: expected {source_report}, found {out_report}"
        )
    if not is_complete:
        raise NoProofError(
            f"{source}: transformers misses tensors of it and fills them at random "
            f"({and_more(source_report['missing_keys'], 3)}): nothing can be proven with it"
        )
    if not expected.isfinite().all():
        raise NoProofError(f"{source}: its own {what} are not finite in {dtype}: nothing is proven")
    if expected.shape != found.shape:
        raise ProofError(
            f"{out}: {what} of shape {list(found.shape)}; expected {list(expected.shape)}"
        )
    if not torch.equal(expected, found):
        worst = (expected.double() - found.double()).abs().max().item()
        raise ProofError(f"{out}: the {what} differ from the source's, by up to {worst:g}")
    return LogitsProof(tokens=ids.shape[1], vocabulary=expected.shape[-1], dtype=dtype, what=what)


def _run(folder: Path, dtype: str, ids: torch.Tensor) -> Outcome:
    """Run a checkpoint's model; of one without its head, what lies below the head."""
    import torch

    try:
        model, report = load_model(folder, dtype, needs_head=False)
        absent = find_absent(model, report)
        inner = getattr(model, "base_model", model)
        own = {id(parameter) for parameter in inner.parameters()}
        is_complete = not any(id(parameter) in own for parameter in absent)
        if absent and is_complete:
            # A head that the checkpoint does not have gets other values each time it is loaded.
            model = inner
        with torch.no_grad():
            outputs = model(input_ids=ids)
        what, computed = "logits", getattr(outputs, "logits", None)
        if computed is None:
            what, computed = "hidden states", outputs.last_hidden_state
        elif model.get_output_embeddings() is None:
            what = "scores"
        computed = computed.clone()
    except BlockExpandError:
        raise
    except Exception as error:
        raise NoProofError(f"{folder}: {_reason(error)}") from error
    del model
    gc.collect()
    kept = ("missing_keys", "mismatched_keys", "error_msgs")
    missing = {key: sorted(map(str, report.get(key, ()))) for key in kept}
    return Outcome(computed, missing, what, is_complete)


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
    return torch.tensor([ids[:most]]) if ids else plain_token_ids(vocabulary, most)


def plain_token_ids(vocabulary: int, most: int = _MOST_TOKENS) -> torch.Tensor:
    """Return token ids [1, tokens] from all over a vocabulary."""
    import torch

    ids = [(number * 7919 + 1) % vocabulary for number in range(64)]
    return torch.tensor([ids[:most]])
