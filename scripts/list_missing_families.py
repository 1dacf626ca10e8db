"""Which model types of the installed transformers have neither a row nor a reason?

    python scripts/list_missing_families.py

Takes every model type that transformers loads a language model for (causal, of images and text, or
multimodal) and prints those that the table of families neither expands nor refuses. Each needs a
row, or a reason in `models/families/refused.py`; until then its row is inferred and proven.
"""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Print the missing types, one to a line, and how many there are of how many."""
    argparse.ArgumentParser(description=__doc__.partition("\n\n")[0]).parse_args()
    import transformers

    types = find_types()
    missing = find_missing(types)
    for model_type in missing:
        print(f"{model_type}: {types[model_type]}")
    print(
        f"transformers {transformers.__version__}: {len(missing)} of {len(types)} model types have "
        "neither a row nor a reason"
    )
    return 0


def find_types() -> dict[str, str]:
    """Return every model type with the class that transformers loads for it."""
    from transformers.models.auto import modeling_auto

    types: dict[str, str] = {}
    for name in ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"):
        mapping = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {})
        types |= {model_type: str(classes) for model_type, classes in mapping.items()}
    return types


def find_missing(types: dict[str, str]) -> list[str]:
    """Return the types that the table of families neither expands nor refuses."""
    from blockexpand.models.families import FAMILIES, MULTIMODAL
    from blockexpand.models.families.refused import REFUSED

    return sorted(types.keys() - FAMILIES.keys() - MULTIMODAL.keys() - REFUSED.keys())


if __name__ == "__main__":
    sys.exit(main())
