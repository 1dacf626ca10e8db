"""For how many checkpoints of the tests' zoo is the inferred row the one of the table?

    python scripts/infer_families.py [--only NAME ...]

Each checkpoint's row is inferred from its headers and its config as if its model type were unknown.
A row counts as the same where, at the end and interleaved, the same tensors are set to the same
values and config.json gets the same edits; lists that the inferred row writes out besides are not
counted against it, as they say what the model derives. Prints what differs, and the numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from family_table import zoo


def main() -> int:
    """Read the command line, compare, and print a line for each row that differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", nargs="*", metavar="NAME", help="checkpoints of these names")
    options = parser.parse_args()
    names = [recipe.name for recipe in zoo() if not options.only or recipe.name in options.only]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        found = dict(zip(names, pool.map(compare, names), strict=True))
    for name, difference in found.items():
        if difference not in ("same", "second"):
            print(f"{name}: {difference}")
    same, second = (list(found.values()).count(word) for word in ("same", "second"))
    print(f"{same} of {len(found)} rows inferred as in the table, {second} more as a further guess")
    return 0


def compare(name: str) -> str:
    """Return `same`, `second` (a further guess is), or in what the first guess differs."""
    from family_zoo import make_checkpoint
    from transformers import AutoConfig
    from transformers.utils import logging

    from blockexpand.checkpoints.checkpoint import open_checkpoint
    from blockexpand.errors import BlockExpandError
    from blockexpand.models.decoder import find_decoder
    from blockexpand.models.inference import infer_forms

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    recipe = next(recipe for recipe in zoo() if recipe.name == name)
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(recipe, Path(folder) / "source")
        effective = AutoConfig.from_pretrained(Path(folder) / "source").to_dict()
        source = open_checkpoint(Path(folder) / "source")
    try:
        forms = infer_forms(source.config, source.specs, effective)
        expected = plan(find_decoder(source.config, source.specs), source.config)
        first = ""
        for number, form in enumerate(forms):
            guess = plan(find_decoder(source.config, source.specs, form), source.config)
            difference = find_difference(expected, guess, dict(form.derived))
            if not difference:
                return "second" if number else "same"
            first = first or difference
    except BlockExpandError as error:
        return f"{type(error).__name__}: {error}"
    return first


def plan(decoder: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row does at two positions."""
    from blockexpand.errors import UnsupportedModelError
    from blockexpand.models.layer_map import map_position
    from blockexpand.models.surgery import plan_surgery

    result: dict[str, Any] = {"prefix": decoder.prefix}
    for position in ("end", "interleaved"):
        try:
            surgery = plan_surgery(decoder, config, map_position(decoder.layers, position, 2))
        except UnsupportedModelError as error:
            result[position] = f"refused: {error}"
            continue
        result[position] = surgery.neutral
        result |= {f"{position} {'.'.join(edit.path)}": edit.value for edit in surgery.config_edits}
    return result


def find_difference(
    expected: Mapping[str, Any], found: Mapping[str, Any], derived: Mapping[str, Any]
) -> str:
    """Say in what two results of `plan` differ; nothing if in nothing that counts."""
    for key in expected.keys() | found.keys():
        if key not in expected and key.rpartition(".")[2].rpartition(" ")[2] in derived:
            continue
        if expected.get(key) != found.get(key):
            return (
                f"{key}: expected {str(expected.get(key))[:150]}, found {str(found.get(key))[:150]}"
            )
    return ""


if __name__ == "__main__":
    sys.exit(main())
