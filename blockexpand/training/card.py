"""The card of an expansion, made to say that its new blocks were trained, and how. Pure.

An edited card keeps what its author wrote: only the sentences that are no longer true are replaced,
where they are still there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..planning.card import without_proof
from ..planning.markdown import block, code

_UNTRAINED = re.compile(r"\*\*The new (blocks?) (?:is|are) untrained\.\*\*")

_UNTIL = re.compile(
    r"Until (?:it is|they are) trained, it computes exactly what its source computes"
)

_BEFORE = "Before that, it computed exactly what its source computes"

_PROOF = re.compile(r"\n## Proof\n\n.*?(?=\n## |\Z)", re.DOTALL)

_SOURCE = re.compile(r"blockexpand verify (\S+) \.")

_TRAINED_BEFORE = "\n## How the new blocks were trained\n"


def tell_training(card: bytes, record: Mapping[str, Any]) -> bytes:
    """Return an expansion's card that says how its new blocks were trained (`record`)."""
    text = without_proof(card).decode("utf-8", "surrogateescape")
    last = record["evaluations"][-1]
    text = _UNTIL.sub(_BEFORE, text)
    text = _UNTRAINED.sub(
        lambda match: (
            f"**The new {match[1]} {'was' if match[1] == 'block' else 'were'} trained, for "
            f"{record['steps']} steps; every other tensor is the source's.**"
        ),
        text,
    )
    source = _SOURCE.search(text)
    if source is not None:
        text = _PROOF.sub(
            lambda _: (
                "\n## Proof\n\nWhoever has the source can see that nothing but the new blocks "
                "changed, in the folder of this model:\n\n"
                f"{block(f'blockexpand diff {source[1]} .')}\n"
            ),
            text,
        )
    first = record["evaluations"][0]
    lines = [
        f"- {record['steps']} steps of {record['batch_size']} × {record['length']} tokens, "
        f"learning rate {record['learning_rate']:g}, weight decay {record['weight_decay']:g}, the "
        "new blocks in float32",
        *(
            f"- {code(told['name'])} ({told['tokens']:,} tokens, SHA-256 {told['sha256'][:16]}…)"
            + (f", replayed, {100 * record['replay_share']:g} %" if told["is_replay"] else "")
            for told in record["texts"]
        ),
        f"- loss on a part that was held out: {first['loss']:.3f} before, {last['loss']:.3f} after",
    ]
    if last.get("replay_loss") is not None:
        lines.append(
            f"- loss on a held-out part of the replayed text: {first['replay_loss']:.3f} before, "
            f"{last['replay_loss']:.3f} after"
        )
    return (f"{text.rstrip()}\n{_TRAINED_BEFORE}\n" + "\n".join(lines) + "\n").encode(
        "utf-8", "surrogateescape"
    )
