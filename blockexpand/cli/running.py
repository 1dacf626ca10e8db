"""What `expand` and `merge` do alike once their options are known: plan or make, and tell of it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from ..progress import Progress
from .console import print_outcome

if TYPE_CHECKING:
    from ..api.pipeline import Expansion
    from ..api.readiness import Preview


def plan_or_make(
    options: argparse.Namespace,
    preview: Callable[[], Preview],
    make: Callable[[Executor | None, Progress], Expansion],
) -> int:
    """Plan where `--dry-run` was given, else make the output; print the result."""
    from ..writing.executors import open_executor
    from . import text
    from .reporting import reporting

    if options.dry_run:
        print_outcome(options, text.preview_as_json, text.describe_preview, preview(), options.out)
        return 0
    with open_executor(options.executor) as executor, reporting(options) as progress:
        result = make(executor, progress)
    print_outcome(options, text.expansion_as_json, text.describe_expansion, result)
    return 0


def writing_arguments(options: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Return what an expansion and a merge are told alike about writing their output."""
    return {
        **target_arguments(options),
        "verify_after": options.verify,
        "push_to_hub": options.push_to_hub,
        "private": options.private,
        "commit_message": options.commit_message,
        "create_pr": options.create_pr,
        "command": shown_command(words),
    }


def target_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is said of the output's place, which a dry run checks too."""
    return {
        "reflink": options.reflink,
        "hardlink": options.hardlink,
        "overwrite": options.overwrite,
        "overwrite_anything": options.overwrite_anything,
    }


def shown_command(words: Sequence[str]) -> str:
    """Return the command as typed, but for a token."""
    shown: list[str] = []
    skip = False
    for word in words:
        if not skip and word != "--token" and not word.startswith("--token="):
            shown.append(word)
        skip = word == "--token"
    return shlex.join(["python", "-m", "blockexpand", *shown])
