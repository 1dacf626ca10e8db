"""`blockexpand expand`: add blocks to one model, or make that of a recipe."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from .arguments import add_executor_option, add_hub_options, add_output_options, not_empty
from .console import make_bars, print_outcome
from .parsing import Parser

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


def make_expand_parser() -> Parser:
    parser = Parser(
        prog="blockexpand",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "--src",
        type=not_empty,
        help="a folder, or a Hub repository org/name or org/name@revision",
    )
    add(
        "--out",
        type=not_empty,
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
        "--phase",
        choices=("keep",),
        help="keep: place blocks so that readers which tell a layer's kind from its number "
        "(llama.cpp, mlx-lm, … in some families) see every layer as it was; named positions then "
        "take whole periods of blocks",
    )
    add(
        "--recipe",
        type=not_empty,
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
    add_hub_options(add)
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
        help="upload OUT, once it is complete and verified as asked for, to the model repository "
        "REPO, made if there is none",
    )
    add("--private", action="store_true", help="with --push-to-hub: make a new REPO private")
    add_executor_option(add)
    add_output_options(add)
    add("--version", action="version", version=f"blockexpand {__version__}")
    return parser


def run_expand(options: argparse.Namespace, parser: Parser, words: Sequence[str]) -> int:
    from ..api.expansion import expand, plan_expansion
    from ..models.layer_map import POSITIONS
    from ..planning.recipe import parse_position
    from ..writing.executors import open_executor
    from . import text as report

    if options.private and options.push_to_hub is None:
        parser.error("--private needs --push-to-hub REPO")
    if options.recipe is not None:
        return _merge(options, parser, words)
    if options.src is None:
        parser.error("the following arguments are required: --src")
    position = parse_position(options.position or "end")
    if isinstance(position, str):
        if position not in POSITIONS:
            parser.error(
                f"--position {position}: expected {', '.join(POSITIONS)}, or a comma list of "
                "layers such as 7,15,23,31"
            )
        if options.new_layers is None:
            parser.error(f"--position {position} needs --new-layers N")
    arguments = {
        "new_layers": options.new_layers,
        "position": options.position or "end",
        "phase": options.phase,
        "dtype": options.dtype or "bfloat16",
        "max_shard_size": options.max_shard_size,
        "revision": options.revision,
        "token": options.token,
        "cache_dir": options.cache_dir,
    }
    if options.dry_run:
        plan, name = plan_expansion(options.src, options.out, **arguments, check=options.check)
        print_outcome(
            options, report.plan_as_json, report.describe_plan, plan, name, Path(options.out)
        )
        return 0
    with open_executor(options.executor) as executor, make_bars(options) as progress:
        result = expand(
            options.src,
            options.out,
            **arguments,
            stream=options.stream,
            check=options.check,
            executor=executor,
            progress=progress,
            **_writing_arguments(options, words),
        )
    print_outcome(options, report.expansion_as_json, report.describe_expansion, result)
    return 0


def _merge(options: argparse.Namespace, parser: Parser, words: Sequence[str]) -> int:
    from ..api.merging import merge, plan_merge
    from ..writing.executors import open_executor
    from . import text as report

    for option in ("new_layers", "position", "phase", "dtype", "stream"):
        if getattr(options, option, None):
            parser.error(f"--{option.replace('_', '-')} does not go with --recipe")
    if options.revision is not None and options.src is None:
        parser.error("--revision needs --src; in a recipe write org/name@revision")
    arguments = {
        "src": options.src,
        "max_shard_size": options.max_shard_size,
        "revision": options.revision,
        "token": options.token,
        "cache_dir": options.cache_dir,
        "check": options.check,
    }
    if options.dry_run:
        plan, name = plan_merge(options.recipe, options.out, **arguments)
        print_outcome(
            options, report.plan_as_json, report.describe_plan, plan, name, Path(options.out)
        )
        return 0
    with open_executor(options.executor) as executor, make_bars(options) as progress:
        result = merge(
            options.recipe,
            options.out,
            **arguments,
            executor=executor,
            progress=progress,
            **_writing_arguments(options, words),
        )
    print_outcome(options, report.expansion_as_json, report.describe_expansion, result)
    return 0


def _writing_arguments(options: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments about writing that an expansion and a merge share."""
    return {
        "reflink": options.reflink,
        "hardlink": options.hardlink,
        "overwrite": options.overwrite,
        "verify_after": options.verify,
        "push_to_hub": options.push_to_hub,
        "private": options.private,
        "command": _shown_command(words),
    }


def _shown_command(words: Sequence[str]) -> str:
    """Return the command as typed, but for a token."""
    shown: list[str] = []
    skip = False
    for word in words:
        if not skip and word != "--token" and not word.startswith("--token="):
            shown.append(word)
        skip = word == "--token"
    return shlex.join(["python", "-m", "blockexpand", *shown])
