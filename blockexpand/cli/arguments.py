"""The options that several commands share, and their help texts, for argparse.

Nothing is done here, and nothing heavy is imported, so that `--help` answers as fast as Python
starts.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from .parsing import Parser

DTYPES = ("bfloat16", "float16", "float32", "source")

PROGRESS = ("auto", "bar", "plain", "json", "none")


def whole_number(text: str) -> int:
    # int() also takes 1_0 and digits of other scripts, which are slips here.
    if not re.fullmatch(r"[-+]?[0-9]+", text.strip()):
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def add_hub_options(parser: Parser, *, revision: bool = True) -> argparse._ArgumentGroup:
    """Add how a repository of the Hub is asked; returns the group, to which more may be added."""
    group = parser.add_argument_group("Hugging Face Hub")
    add = group.add_argument
    if revision:
        add("--revision", metavar="REV", help="branch, tag or commit of a Hub repository")
    add("--token", help="token for the Hub; HF_TOKEN and `hf auth login` work too")
    add("--cache-dir", metavar="DIR", help="the Hub's cache (default: as huggingface_hub)")
    return group


def add_writing_options(parser: Parser) -> None:
    """Add how the bytes of an output are moved."""
    add = parser.add_argument_group("how to write").add_argument
    add(
        "--max-shard-size",
        metavar="SIZE",
        help="repack into shards of at most SIZE (5GB, 800MB); default: mirror the source",
    )
    add(
        "--reflink",
        nargs="?",
        const="always",
        default="auto",
        choices=("auto", "always", "never"),
        metavar="WHEN",
        help="share unchanged blocks with the source where the file system can (auto, the "
        "default), fail where it cannot (always), or copy all (never)",
    )
    add(
        "--hardlink",
        action="store_true",
        help="link shards that do not change instead of copying them: the file is then shared "
        "with the source, and a change to one is a change to the other",
    )
    add_executor_option(add)
    add(
        "--overwrite",
        action="store_true",
        help="replace OUT once the new one is complete, if it is an output of blockexpand or "
        "plainly a checkpoint",
    )
    add(
        "--overwrite-anything",
        metavar="OUT",
        help="replace OUT, named here once more, whatever it holds but a home, the current folder "
        "or a mount",
    )


def add_proof_options(parser: Parser) -> None:
    """Add what is proven before and after an output is written."""
    add = parser.add_argument_group("look before, prove after").add_argument
    add(
        "--dry-run",
        action="store_true",
        help="print the plan and write nothing; what the run would refuse is refused",
    )
    add(
        "--check",
        action="store_true",
        help="before writing, test the plan on a tiny random model with the same layer structure",
    )
    add(
        "--verify",
        choices=("tensors", "logits"),
        metavar="WHAT",
        help="after writing, compare every byte with the plan (tensors), and also the logits of "
        "both models (logits)",
    )


def add_paranoid_option(parser: Parser) -> None:
    """Add that what two files share is read from both."""
    parser.add_argument(
        "--paranoid",
        action="store_true",
        help="also read what lies on the same blocks of the disk (reflinks, hard links), and so is "
        "the same",
    )


def add_upload_options(group: argparse._ArgumentGroup) -> None:
    """Add where a finished output is uploaded to."""
    group.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="upload OUT to the model repository REPO (or REPO@BRANCH), made if there is none, "
        "after any requested verification has passed",
    )
    add_commit_options(group)
    group.add_argument(
        "--base-model",
        metavar="REPO",
        help="the repository that a local source came from, for the model card",
    )


def add_commit_options(group: argparse._ArgumentGroup) -> None:
    """Add what is said of the commit of an upload."""
    group.add_argument(
        "--commit-message", metavar="TEXT", help="with --push-to-hub: what the commit says"
    )
    group.add_argument(
        "--create-pr", action="store_true", help="with --push-to-hub: open a pull request instead"
    )
    group.add_argument(
        "--private", action="store_true", help="with --push-to-hub: make a new REPO private"
    )


def check_upload_options(options: argparse.Namespace) -> None:
    """Refuse what only says how to upload where nothing is. Raises: UsageError."""
    for option in ("private", "commit_message", "create_pr"):
        if getattr(options, option, None) and options.push_to_hub is None:
            raise UsageError(f"--{option.replace('_', '-')} needs --push-to-hub REPO")


def add_executor_option(add: Callable[..., Any]) -> None:
    add(
        "--executor",
        type=_executor,
        metavar="WHO",
        help="write with worker processes or machines, one file per worker at a time: process:N "
        "starts N processes; dask://HOST:PORT asks a dask scheduler, whose workers have to see "
        "source and output under the same paths",
    )


def _executor(text: str) -> str:
    from ..writing.executors import parse_executor

    try:
        parse_executor(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_output_options(
    parser: Parser, *, verbose: str | None = None, progress: bool = False
) -> None:
    """Add how a result is told; `verbose` says what `-v` tells more of, None leaves it out."""
    add = parser.general.add_argument
    add("--json", action="store_true", help="print one JSON object on stdout")
    loudness = parser.general.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    if verbose is None:
        parser.set_defaults(verbose=False)
    else:
        loudness.add_argument("-v", "--verbose", action="store_true", help=verbose)
    if not progress:
        parser.set_defaults(progress="none")
        return
    add(
        "--progress",
        choices=PROGRESS,
        default="auto",
        metavar="HOW",
        help="bar, plain (a line for each finished file, and every 30 s), json (an object a "
        "line), none; auto (the default): bar on a terminal, plain elsewhere",
    )
    add(
        "--no-progress",
        dest="progress",
        action="store_const",
        const="none",
        help="the same as --progress none",
    )
