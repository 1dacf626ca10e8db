"""What `expand` and `merge` do alike once their options are known: plan or make, and tell of it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..progress import Progress
from .console import print_outcome

if TYPE_CHECKING:
    from ..api.pipeline import Expansion
    from ..api.readiness import Preview


def plan_or_make(
    options: argparse.Namespace,
    words: Sequence[str],
    preview: Callable[[str], Preview],
    make: Callable[[Executor | None, Progress], Expansion],
) -> int:
    """Plan where `--dry-run` was given, else make the output; print the result.

    Both are told the command that the card shows.
    """
    from ..api.expansion import check_stream
    from ..api.pipeline import CHECKING
    from ..writing.executors import open_executor
    from . import text
    from .reporting import reporting

    if options.dry_run:
        with reporting(options) as progress:
            if getattr(options, "stream", False):
                check_stream(options.verify, options.reflink, options.hardlink, options.executor)
            if options.check:
                progress.stage(CHECKING)
            found = preview(shown_command(words))
        _check_after(options, found)
        print_outcome(options, text.preview_as_json, text.describe_preview, found, options.out)
        return 0
    with open_executor(options.executor) as executor, reporting(options) as progress:
        result = make(executor, progress)
    print_outcome(options, text.expansion_as_json, text.describe_expansion, result)
    return 0


def _check_after(options: argparse.Namespace, found: Preview) -> None:
    """Refuse what would fail after the writing. Raises: RecipeError, HubError, UsageError."""
    if options.verify == "logits" and not found.plan.keeps_function:
        raise RecipeError(
            "these layers change what the model computes, so there is nothing for --verify logits "
            "to prove; leave it out"
        )
    if options.push_to_hub is not None:
        from ..publishing.target import check_push, refuse_secrets

        check_push(options.push_to_hub, token=options.token)
        refuse_secrets((file.name for file in found.plan.side_files), found.source.model)


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
    """Return the command as typed, but for a token; a dry run is of the command without it."""
    shown: list[str] = []
    skip = False
    for word in words:
        is_token = skip or word == "--token" or word.startswith("--token=")
        if not is_token and word != "--dry-run":
            shown.append(word)
        skip = word == "--token"
    return shlex.join(["python", "-m", "blockexpand", *shown])
