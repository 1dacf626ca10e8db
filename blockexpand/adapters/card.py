"""The model cards of an adapter, and of a model that adapters were applied to. Text only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._version import __version__
from ..checkpoints.sources import ModelRef
from ..planning.front_matter import KEPT_FIELDS, read_front_matter, render_front_matter
from ..planning.markdown import code, escape
from ..planning.plan import Plan
from .format import BlockAdapter
from .opening import OpenedAdapter


def render_adapter_card(adapter: BlockAdapter, base_card: bytes | None, nbytes: int) -> bytes:
    """Return the README.md of an adapter's folder; the base's licence is carried over."""
    base = adapter.base.name
    called = escape(base.public)
    layers = len(adapter.layer_map)
    new = ", ".join(map(str, adapter.new_layers))
    name = base.repo or "BASE"
    changed = (
        f"\n\n**{len(adapter.changed)} tensors of the base were trained too** and are in this "
        "adapter: without them its blocks do not do what they were trained to do."
        if adapter.changed
        else ""
    )
    body = f"""\
# Blocks for {called}

These are {len(adapter.new_layers)} decoder layers that were added to {called} and trained
there (block expansion, LLaMA Pro, arXiv 2401.02415): layers {new} of a model of {layers}. They
take {nbytes / 1e6:,.1f} MB; the base is not in here and does not change.{changed}

Put them on the base again:

```
blockexpand apply {name} THIS_REPOSITORY --out ./model
```

In memory, in a loaded base model: `blockexpand.attach(model, "THIS_REPOSITORY")`, and
`blockexpand.detach(model)` gives the base back exactly.

Extracted with blockexpand {__version__}. `block_adapter.json` has the layers, and the digests of
the base and of every tensor."""
    known = read_front_matter(base_card)
    return _render(
        {key: known[key] for key in KEPT_FIELDS if key in known},
        base.repo,
        "adapter",
        body,
    )


def render_applied_card(
    plan: Plan, base: ModelRef, adapters: Sequence[OpenedAdapter], scale: float, proof: str
) -> bytes:
    """Return the README.md of a model with blocks in it, saying what it is and what was proven."""
    count = len(plan.new_layers)
    parts = [f"# {escape(base.public)} with {count} added blocks"]
    if len(adapters) > 1:
        parts.append(
            f"**A composition of {len(adapters)} block adapters, untested:** the blocks of each "
            "were trained for another stream of activations than they now receive."
        )
    if scale != 1:
        parts.append(
            f"What closes the new layers' residual branches is scaled by {scale:g}"
            + (
                ": the model computes exactly what its base computes."
                if plan.keeps_function
                else ", so this is not the model that was trained."
            )
        )
    numbers = ", ".join(map(str, plan.new_layers))
    names = " and ".join(code(name) for name in plan.adapters)
    parts.append(
        f"Layers {numbers} come from {names} (block expansion, LLaMA Pro, arXiv "
        f"2401.02415); every other layer is the base's. {proof}"
    )
    parts.append(f"Made with blockexpand {__version__}.")
    known = read_front_matter(plan.source_card)
    return _render(
        {key: known[key] for key in KEPT_FIELDS if key in known},
        base.repo,
        "finetune",
        "\n\n".join(parts),
    )


def _render(carried: dict[str, Any], base: str | None, relation: str, body: str) -> bytes:
    fields = {
        **carried,
        "library_name": "transformers" if relation == "finetune" else "blockexpand",
        "tags": ["block-expansion", "llama-pro", "blockexpand"],
        "base_model": base,
        "base_model_relation": None if base is None else relation,
    }
    return f"{render_front_matter(fields)}\n{body}\n".encode("utf-8", "backslashreplace")
