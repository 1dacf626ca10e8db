"""The commands' arguments and help texts, for argparse. Nothing is done here.

It imports nothing heavy, so that `--help` answers as fast as Python starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ._version import __version__

_DESCRIPTION = """\
Add blocks to a safetensors language model without changing what the model computes.

commands:
  blockexpand --src SRC --out OUT --new-layers N   expand (the default)
  blockexpand batch JOBS.yaml                      many expansions from one file
  blockexpand verify SRC OUT                       prove an output against its source
  blockexpand diff BASE OTHER                      list which tensors are the same, changed, new
  blockexpand train-config OUT --framework NAME    print a trainer's settings for the new blocks

"blockexpand COMMAND --help" tells more of a command."""

_EPILOG = """\
Blocks between the layers (--position interleaved) trained better than blocks at the end in the
paper that introduced them (LLaMA Pro, arXiv 2401.02415, table 5). Choose end to keep the
original layers' numbers, or to link unchanged shards with --hardlink."""


def _not_empty(text: str) -> str:
    # To Python an empty path is the current folder; to the user it is a variable left unset.
    if not text:
        raise argparse.ArgumentTypeError("expected a name, found an empty text")
    return text


def make_expand_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockexpand",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="blockexpand --src SRC --out OUT [--new-layers N] [--position POS] [options]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--src",
        type=_not_empty,
        help="a folder, or a Hub repository org/name or org/name@revision",
    )
    add(
        "--out",
        type=_not_empty,
        required=True,
        help="the folder to make; must not exist or be empty",
    )
    add("--new-layers", type=int, metavar="N", help="how many blocks to add")
    add(
        "--position",
        metavar="POS",
        help="end: after the last layer, clones of it (the default). interleaved: one after each "
        "of N even groups, a clone of the group's last layer. start: before the first. Or a comma "
        "list of original layers, each followed by a clone of itself: 7,15,23,31",
    )
    add(
        "--recipe",
        type=_not_empty,
        metavar="FILE",
        help="a mergekit passthrough YAML instead of --new-layers, --position and --dtype; --src "
        "may then be left out, or say where the recipe's only model is",
    )
    add(
        "--dtype",
        choices=("bfloat16", "float16", "float32", "source"),
        help="of the output's floating-point weights (default: bfloat16); source keeps each "
        "tensor as it is",
    )
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
        help="share unchanged blocks with the source where the file system can (auto), fail where "
        "it cannot (always), or copy all (never)",
    )
    add(
        "--hardlink",
        action="store_true",
        help="link shards that do not change instead of copying them: the file is then shared "
        "with the source, and a change to one is a change to the other",
    )
    _add_hub_options(add)
    add(
        "--stream",
        action="store_true",
        help="of a Hub source fetch one shard at a time and delete it again: the disk then holds "
        "OUT and one shard",
    )
    add(
        "--check",
        action="store_true",
        help="before writing, prove the plan on models of toy width with the same layers",
    )
    add(
        "--verify",
        choices=("tensors", "logits"),
        help="after writing, compare every byte with the plan (tensors), and also the logits of "
        "both models (logits)",
    )
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    add("--overwrite", action="store_true", help="replace OUT once the new one is complete")
    add(
        "--push-to-hub",
        metavar="REPO",
        help="upload OUT, once it is complete and verified as wished, to the model repository "
        "REPO, made if there is none",
    )
    add("--private", action="store_true", help="with --push-to-hub: make a new REPO private")
    _add_executor_option(add)
    _add_output_options(add)
    add("--version", action="version", version=f"blockexpand {__version__}")
    return parser


def make_verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockexpand verify",
        description="Compare every byte of an expansion with what its source and its recipe say "
        "it must be. Exit status 1 if anything differs.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("src", type=_not_empty, metavar="SRC", help="the source: a folder or a Hub repository")
    add("out", type=_not_empty, metavar="OUT", help="the folder that blockexpand made")
    add(
        "--logits",
        action="store_true",
        help="also load both with transformers and compare their logits, bit for bit",
    )
    _add_hub_options(add)
    _add_output_options(add)
    return parser


_BATCH_DESCRIPTION = """\
Make many expansions. All are planned and checked before the first byte is written; what an
earlier run has finished is skipped. JOBS.yaml holds options as they are on the command line,
without the hyphens before them:

  defaults: {src: org/name, dtype: bfloat16}
  jobs:
    - {new-layers: 4, out: models/first}
    - {position: "7,15,23,31", out: models/second, verify: tensors}
  matrix:
    new-layers: [4, 8]
    position: [end, interleaved]
    out: "models/{model}-{layers}L-{position}"

A matrix makes a job of each combination of src, new-layers and position; there may be a list of
them. In out and push-to-hub stand {model}, {layers}, {new-layers}, {position} and {dtype}. Paths
are relative to the current folder. Exit status 1 if any job failed."""


def make_batch_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockexpand batch",
        description=_BATCH_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("jobs_file", metavar="JOBS.yaml", help="the expansions to make")
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument(
        "--keep-going",
        action="store_true",
        help="go on with the other jobs after one has failed (the default)",
    )
    policy.add_argument("--fail-fast", action="store_true", help="begin no job after a failure")
    add(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="how many expansions are written at the same time (default: 1)",
    )
    add("--dry-run", action="store_true", help="plan and check all jobs, and write nothing")
    _add_executor_option(add)
    add("--token", help="token for the Hub; HF_TOKEN and `hf auth login` work too")
    add("--cache-dir", metavar="DIR", help="the Hub's cache (default: as huggingface_hub)")
    _add_output_options(add)
    return parser


def make_diff_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockexpand diff",
        description="List which tensors of two checkpoints are the same bit for bit, changed, new "
        "or missing. Where one is an expansion of the other, each original layer is compared with "
        "the layer that it was taken from. Exit status 1 if a tensor of BASE, but for those of new "
        "blocks, is changed or missing in OTHER.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("base", metavar="BASE", help="a folder or a Hub repository")
    add("other", metavar="OTHER", help="a folder: BASE expanded, trained, or both")
    _add_hub_options(add)
    _add_output_options(add)
    return parser


def make_train_config_parser() -> argparse.ArgumentParser:
    from .trainer_settings import FRAMEWORKS, PLACES

    parser = argparse.ArgumentParser(
        prog="blockexpand train-config",
        description="Print the settings with which a trainer trains the new blocks of an expansion "
        "and nothing else.",
        epilog=PLACES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("out", metavar="OUT", help="the folder that blockexpand made")
    add("--framework", required=True, choices=tuple(FRAMEWORKS), help="the trainer")
    _add_output_options(add)
    return parser


def _add_hub_options(add: Callable[..., Any]) -> None:
    add("--revision", help="branch, tag or commit of a Hub repository")
    add("--token", help="token for the Hub; HF_TOKEN and `hf auth login` work too")
    add("--cache-dir", metavar="DIR", help="the Hub's cache (default: as huggingface_hub)")


def _add_executor_option(add: Callable[..., Any]) -> None:
    add(
        "--executor",
        type=_executor,
        metavar="EXECUTOR",
        help="let others write, a file each at a time: process:N starts N processes; "
        "dask://HOST:PORT asks a dask scheduler, whose workers have to see source and output under "
        "the same paths",
    )


def _executor(text: str) -> str:
    from .executors import parse_executor

    try:
        parse_executor(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _add_output_options(add: Callable[..., Any]) -> None:
    add("--json", action="store_true", help="print one JSON object on stdout")
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="store_true", help="print every file")
    add("--no-progress", action="store_true", help="show no progress bar")
