"""`blockexpand env`: the versions that a bug report needs. Its parser and its run.

It imports none of the libraries, and shows no path, no name and no token of the user.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from .._version import __version__
from .arguments import add_output_options
from .console import print_outcome
from .parsing import Parser

_LIBRARIES = (
    *("torch", "transformers", "safetensors", "huggingface_hub", "PyYAML", "tqdm"),
    *("accelerate", "peft", "distributed", "mergekit"),
)

# Whether these are set decides what the Hub's client does.
_VARIABLES = (
    *("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN"),
    *("HF_XET_HIGH_PERFORMANCE", "HF_HUB_DISABLE_XET"),
)


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand env",
        usage="blockexpand env [--json]",
        description="Print the versions that a bug report needs: no paths, names or tokens.",
    )
    add_output_options(parser)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    print_outcome(options, _as_json, _describe, _find_versions())
    return 0


def _find_versions() -> dict[str, str]:
    found = {
        "blockexpand": __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "encoding": sys.getfilesystemencoding(),
    }
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "not installed"
    found["environment"] = ", ".join(v for v in _VARIABLES if os.environ.get(v)) or "nothing set"
    return found


def _as_json(found: dict[str, str]) -> dict[str, Any]:
    return dict(found)


def _describe(found: dict[str, str], *, verbose: bool) -> str:
    width = max(map(len, found)) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in found.items())
