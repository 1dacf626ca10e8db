"""Expand a tiny checkpoint of every family at every named position and print what came of it.

    python scripts/family_table.py            print the table
    python scripts/family_table.py --write    write it to docs/families.md

Every checkpoint of the tests' zoo is expanded by two layers as a user would; source and output
are loaded with `transformers`, and logits and generated tokens are compared exactly.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "families.md"
POSITIONS = ("end", "interleaved", "start")
EXACT = "exact"
LIBRARIES = ("transformers", "torch", "safetensors")

# What flagship checkpoints of a family are published in, where that is not bfloat16 alone.
PUBLISHED = {
    "deepseek_v3": "FP8 (V3, R1, V3.1)",
    "deepseek_v32": "FP8 (V3.2)",
    "glm4_moe": "bfloat16, FP8",
    "gpt_oss": "MXFP4",
    "kimi_k25": "compressed-tensors INT4 (K2.5)",
    "llama4": "bfloat16, compressed-tensors FP8",
    "minimax_m2": "FP8",
    "ministral3": "FP8",
    "mistral4": "FP8",
    "qwen3": "bfloat16, FP8",
    "qwen3_5": "bfloat16, FP8",
    "qwen3_5_moe": "bfloat16, FP8",
    "qwen3_moe": "bfloat16, FP8",
    "qwen3_next": "bfloat16, FP8",
    "qwen3_vl": "bfloat16, FP8",
    "qwen3_vl_moe": "bfloat16, FP8",
}

INTRODUCTION = """\
# What was found for every family

Made by `python scripts/family_table.py --write`; do not edit by hand.

Each row is a tiny checkpoint with random weights ({layers}), as `transformers` or the Hub spells
it. `blockexpand` added two layers at each position. **{exact}** means that `transformers` loads
source and output without a missing or unexpected tensor, that all logits are equal bit for bit in
bfloat16 and in float32, that greedy generation with the cache gives the same tokens, and that
`--check` found the same at toy width beforehand. A refusal comes before anything is written; the
number leads to its reason below.

The last column says in what flagship checkpoints are published, where that is not bfloat16 alone;
[quantized.md](quantized.md) says what `--quantized` makes of each.

Versions: {versions}.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one checkpoint, by position: `exact`, or `refused: …`."""

    model_type: str
    name: str
    results: tuple[str, ...]


def main() -> int:
    """Read the command line, make the table and print it; 1 if anything is neither."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {TARGET.relative_to(ROOT)}")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="checkpoints of these names")
    options = parser.parse_args()
    names = [recipe.name for recipe in zoo() if not options.only or recipe.name in options.only]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        rows = []
        for row in pool.map(measure, names):
            print(row.name, *row.results, sep=" | ", file=sys.stderr, flush=True)
            rows.append(row)
    text = render(rows)
    if options.write:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(text, encoding="utf-8")
    else:
        print(text)
    failed = [r for row in rows for r in row.results if not r.startswith((EXACT, "refused"))]
    return 1 if failed else 0


def zoo() -> tuple[object, ...]:
    """Return the recipes of the tests' checkpoints, one or more for every family."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    from zoo_dense import DENSE
    from zoo_further import FURTHER
    from zoo_mixture import MIXTURE
    from zoo_multimodal import MULTIMODAL
    from zoo_recurrent import RECURRENT
    from zoo_wrappers import WRAPPERS

    return (*DENSE, *MIXTURE, *RECURRENT, *MULTIMODAL, *WRAPPERS, *FURTHER)


def measure(name: str) -> Row:
    """Make one checkpoint and expand it at every position."""
    recipe = next(recipe for recipe in zoo() if recipe.name == name)
    import torch
    from family_check import run
    from family_zoo import make_checkpoint
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        make_checkpoint(recipe, source)
        expected = run(source, recipe.depth)
        results = []
        for position in POSITIONS:
            out = Path(folder) / position
            try:
                results.append(try_position(source, out, position, expected))
            except Exception as error:
                reason = " ".join(str(error).split())
                results.append(f"FAILED: {type(error).__name__}: {reason[:200]}")
    return Row(model_type=recipe.model_type, name=name, results=tuple(results))


def try_position(source: Path, out: Path, position: str, expected: object) -> str:
    """Expand as a user would, and compare what the two models compute."""
    import torch
    from family_check import run

    import blockexpand
    from blockexpand.errors import NoProofError, UnsupportedModelError

    try:
        made = blockexpand.expand(
            source, out, new_layers=2, position=position, dtype="source", check=True
        )
    except UnsupportedModelError as error:
        return f"refused: {str(error).partition(': ')[2]}"
    except NoProofError as error:
        return f"FAILED: {error}"
    found = run(out, len(made.plan.layer_map))
    for dtype, logits in expected.logits.items():
        if not torch.equal(logits, found.logits[dtype]):
            return f"DIFFERS: logits in {dtype}"
    if not torch.equal(expected.tokens, found.tokens):
        return "DIFFERS: generated tokens"
    return EXACT


def render(rows: Sequence[Row]) -> str:
    """Return the page."""
    from blockexpand import __version__

    versions = [f"blockexpand {__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in LIBRARIES]
    lines = [
        INTRODUCTION.format(layers="6 to 8 layers", exact=EXACT, versions=", ".join(versions)),
        "| model_type | checkpoint | " + " | ".join(POSITIONS) + " | published in |",
        "|---|---|" + "---|" * len(POSITIONS) + "---|",
    ]
    reasons: dict[str, int] = {}
    for row in rows:
        cells = []
        for result in row.results:
            if result.startswith("refused: "):
                reason = result.removeprefix("refused: ")
                number = reasons.setdefault(reason, len(reasons) + 1)
                cells.append(f"refused [{number}](#reasons)")
            else:
                cells.append(result)
        variant = "" if row.name == row.model_type else row.name
        cells.append(PUBLISHED.get(row.model_type, ""))
        lines.append(f"| `{row.model_type}` | {variant} | " + " | ".join(cells) + " |")
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    built = {row.model_type for row in rows}
    lines += ["", "## Multimodal models without a row", "", *same_decoders(built)]
    lines += ["", "## Never possible", "", *never_possible()]
    lines += ["", "## Readers that tell what a layer is from its number", "", *by_number(), ""]
    return "\n".join(lines)


def same_decoders(built: Collection[str]) -> Iterable[str]:
    """Yield a line for each decoder of multimodal models of which no checkpoint is in the table."""
    from blockexpand.models.families import MULTIMODAL

    by_decoder: dict[str, list[str]] = {}
    for model_type, wrapper in MULTIMODAL.items():
        if model_type not in built:
            said = f" (published in {PUBLISHED[model_type]})" if model_type in PUBLISHED else ""
            by_decoder.setdefault(wrapper.text_type, []).append(f"`{model_type}`{said}")
    for decoder, names in by_decoder.items():
        yield f"- decoder `{decoder}`, if the config names no other: {', '.join(names)}"


def by_number() -> Iterable[str]:
    """Yield the table of readers that go by a layer's number."""
    from blockexpand.models.readers import NUMBER_RULES

    yield (
        "Layers count from 0; layer i is of the first kind where i + 1 is a multiple of the "
        "period. `--phase keep` makes outputs that these readers read alike; without it the run "
        "says what they would make of the output."
    )
    yield ""
    yield "| model_type | reader | period | kinds |"
    yield "|---|---|---|---|"
    for model_type, rules in NUMBER_RULES.items():
        for rule in rules:
            named = f"`{rule.period}`, else {rule.default}"
            period = named if isinstance(rule.period, str) else rule.period
            kinds = ", else ".join(rule.kinds)
            yield f"| `{model_type}` | {rule.reader} {rule.versions} | {period} | {kinds} |"


def never_possible() -> Iterable[str]:
    """Yield a line for each reason why families are refused whatever the position."""
    from blockexpand.models.families.refused import REFUSED

    by_reason: dict[str, list[str]] = {}
    for model_type, reason in REFUSED.items():
        by_reason.setdefault(reason, []).append(f"`{model_type}`")
    for reason, names in by_reason.items():
        yield f"- {', '.join(names)}: {reason}."


if __name__ == "__main__":
    sys.exit(main())
