"""`blockexpand expand`: add blocks to one model. Its parser and its run.

`--recipe` hands over to merge.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from . import merge as merge_command
from .arguments import (
    DTYPES,
    add_hub_options,
    add_output_options,
    add_proof_options,
    add_upload_options,
    add_writing_options,
    check_upload_options,
    whole_number,
)
from .console import note_unused_options
from .parsing import Parser, advise, did_you_mean
from .running import plan_or_make, target_arguments, writing_arguments

_USAGE = "blockexpand [expand] --src SRC --out OUT --new-layers N [options]"

_DESCRIPTION = """\
Add blocks to a safetensors language model without changing what the model computes."""

_EPILOG = """\
examples:
  blockexpand --src org/name --out bigger --new-layers 4 --dry-run
  blockexpand --src ./model --out bigger --new-layers 8 --position interleaved
  blockexpand --src ./model --out bigger --position 7,15,23,31
  blockexpand --src ./model --out bigger --layers 0-31,31*4

Blocks between the layers (--position interleaved) trained better than blocks at the end in the
paper that introduced them (LLaMA Pro, arXiv 2401.02415, table 5) and in our own measurement
(docs/training.md). Choose end to keep the original layers' numbers, or to link unchanged shards
with --hardlink."""


def make_parser(description: str = _DESCRIPTION) -> Parser:
    parser = Parser(
        prog="blockexpand expand", usage=_USAGE, description=description, epilog=_EPILOG
    )
    add = parser.add_argument_group("what to make").add_argument
    add(
        "--src",
        metavar="SRC",
        help="a folder, or a Hub repository org/name or org/name@revision",
    )
    add(
        "--out",
        metavar="OUT",
        help="folder to create; if it exists it must be empty (see --overwrite)",
    )
    add("--new-layers", type=whole_number, metavar="N", help="how many blocks to add")
    add(
        "--position",
        metavar="POS",
        help="end: after the last layer, clones of it (the default). interleaved: one after each "
        "of N even groups, a clone of the group's last layer. start: before the first. Or a comma "
        "list of original layers, each followed by a clone of itself: 7,15,23,31. Or @FILE: the "
        "layers of least influence in what `blockexpand rank --json` printed, which is recorded",
    )
    add(
        "--layers",
        metavar="MAP",
        help="instead of the two above, every layer of the output in order: 0-31,31*4 is layers "
        "0 to 31 and 4 new blocks, clones of 31; 0-33,26-59 repeats layers as they are, which "
        "changes what the model computes",
    )
    add(
        "--phase",
        choices=("keep",),
        help="keep: place blocks so that readers which tell a layer's kind from its number "
        "(llama.cpp, mlx-lm, … in some families) see every layer as it was; named positions then "
        "take whole periods of blocks",
    )
    add(
        "--family",
        metavar="ROW",
        help="for a model type that is not in the table (see `blockexpand families`): a .yaml "
        "file with its row, or the family that it is built like; without it a row is inferred. "
        "Either is proven first, with the class of transformers for the model type",
    )
    add(
        "--no-proof",
        action="store_true",
        help="with --family: use the row unproven, which the run, the card and the manifest say",
    )
    add(
        "--trust-remote-code",
        action="store_true",
        help="let the proof run the code that the checkpoint brings with it (auto_map), in a child "
        "process; without this it is never run. Read that code first: it may do what you may do",
    )
    add(
        "--recipe",
        metavar="FILE",
        help="a mergekit passthrough YAML instead of all that is above and --dtype; --src may then "
        "be left out, or say where the recipe's only model is",
    )
    add(
        "--dtype",
        choices=DTYPES,
        metavar="DTYPE",
        help="dtype of the output's floating-point weights: bfloat16 (the default), float16, "
        "float32, or source, which keeps every tensor's dtype (the default of a quantized SRC)",
    )
    add(
        "--quantized",
        choices=("keep", "new-blocks-full", "dequantize"),
        help="what becomes of a quantized SRC. keep: all stays as it is, new blocks are quantized "
        "clones (the default). new-blocks-full: new blocks are stored unquantized, to be trained. "
        "dequantize: everything is, also without a new block (--new-layers 0)",
    )
    add_writing_options(parser)
    hub = add_hub_options(parser)
    hub.add_argument(
        "--stream",
        action="store_true",
        help="Hub sources only: download, use and delete one shard at a time, so that the disk "
        "holds OUT and one shard",
    )
    add_upload_options(hub)
    hub.add_argument(
        "--on-hub",
        action="store_true",
        help="with --push-to-hub, for a SRC on the Hub: unchanged shards are copied on the Hub, "
        "the others are made here one at a time; nothing is kept here, and OUT is not needed",
    )
    add_proof_options(parser)
    add_output_options(
        parser, verbose="print every file, and log with times what was decided", progress=True
    )
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    if options.no_proof and options.family is None:
        raise UsageError("--no-proof needs --family: an inferred row is never used unproven")
    if options.no_proof and options.trust_remote_code:
        raise UsageError("--no-proof does not go with --trust-remote-code, which is for a proof")
    check_upload_options(options)
    if options.on_hub:
        return _run_on_hub(options)
    missing = [name for name in ("src", "out") if getattr(options, name) is None]
    if options.recipe is not None and "src" in missing:
        missing.remove("src")
    if missing:
        raise UsageError(
            advise(" and ".join(f"--{name}" for name in missing) + " missing", "blockexpand --help")
        )
    if options.recipe is not None:
        _refuse_beside_recipe(options)
        return merge_command.run(options, words)
    _check_layers(options)
    note_unused_options(options, options.src)
    from ..api.expansion import expand, preview_expansion

    arguments: dict[str, Any] = {
        "new_layers": options.new_layers,
        "position": options.position or "end",
        "layers": options.layers,
        "phase": options.phase,
        "family": options.family,
        "no_proof": options.no_proof,
        "trust_remote_code": options.trust_remote_code,
        "dtype": options.dtype,
        "quantized": options.quantized or "keep",
        "max_shard_size": options.max_shard_size,
        "revision": options.revision,
        "token": options.token,
        "cache_dir": options.cache_dir,
        "base_model": options.base_model,
        "check": options.check,
    }
    return plan_or_make(
        options,
        words,
        lambda command: preview_expansion(
            options.src,
            options.out,
            **arguments,
            stream=options.stream,
            **target_arguments(options),
            command=command,
        ),
        lambda executor, progress: expand(
            options.src,
            options.out,
            **arguments,
            stream=options.stream,
            executor=executor,
            progress=progress,
            **writing_arguments(options, words),
        ),
    )


def _run_on_hub(options: argparse.Namespace) -> int:
    for option in ("src", "push_to_hub"):
        if getattr(options, option) is None:
            raise UsageError(f"--on-hub needs --{option.replace('_', '-')}")
    for option in (
        *("out", "recipe", "stream", "hardlink", "verify", "executor", "check"),
        "trust_remote_code",
    ):
        if getattr(options, option):
            raise UsageError(
                f"--{option.replace('_', '-')} does not go with --on-hub, which keeps no output "
                "and no source here"
            )
    _check_layers(options)
    from ..api.on_hub import expand_on_hub
    from . import text_on_hub
    from .console import print_outcome
    from .reporting import reporting

    with reporting(options) as progress:
        result = expand_on_hub(
            options.src,
            options.push_to_hub,
            new_layers=options.new_layers,
            position=options.position or "end",
            layers=options.layers,
            phase=options.phase,
            family=options.family,
            no_proof=options.no_proof,
            dtype=options.dtype,
            quantized=options.quantized or "keep",
            max_shard_size=options.max_shard_size,
            revision=options.revision,
            token=options.token,
            cache_dir=options.cache_dir,
            overwrite=options.overwrite,
            private=options.private,
            commit_message=options.commit_message,
            create_pr=options.create_pr,
            dry_run=options.dry_run,
            progress=progress,
        )
    print_outcome(options, text_on_hub.as_json, text_on_hub.describe, result)
    return 0


def _check_layers(options: argparse.Namespace) -> None:
    """Refuse options that do not say which layers the output has. Raises: UsageError."""
    from ..models.layer_map import POSITIONS
    from ..planning.ranks import MARK
    from ..planning.recipe import parse_position

    if options.layers is not None:
        for option in ("new_layers", "position", "phase"):
            if getattr(options, option):
                raise UsageError(
                    f"--{option.replace('_', '-')} does not go with --layers, which says every "
                    "layer of the output"
                )
        return
    position = parse_position(options.position or "end")
    if isinstance(position, str) and not position.startswith(MARK):
        if position not in POSITIONS:
            raise UsageError(
                f"--position {position}: expected {', '.join(POSITIONS)}, or a comma list of "
                f"layers such as 7,15,23,31{did_you_mean(position, POSITIONS)}"
            )
        if options.new_layers is None:
            raise UsageError(
                f"--position {position} needs --new-layers N; `blockexpand suggest "
                f"{options.src}` lists the numbers that fit"
            )


def _refuse_beside_recipe(options: argparse.Namespace) -> None:
    for option in (
        "new_layers",
        "position",
        "layers",
        "phase",
        "family",
        "no_proof",
        "trust_remote_code",
        "dtype",
        "quantized",
        "stream",
    ):
        if getattr(options, option):
            raise UsageError(f"--{option.replace('_', '-')} does not go with --recipe")
