"""`blockexpand merge`: make the model of a passthrough recipe. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from .arguments import (
    add_hub_options,
    add_output_options,
    add_proof_options,
    add_upload_options,
    add_writing_options,
    check_upload_options,
)
from .parsing import Parser
from .running import plan_or_make, target_arguments, writing_arguments

_DESCRIPTION = """\
Make the model of a mergekit passthrough recipe, tensor for tensor what mergekit makes: repeated
and dropped layers, several models, scales. The run says whether the result computes what its
source does."""

_EPILOG = """\
examples:
  blockexpand merge franken.yml --out franken --dry-run
  blockexpand merge seed.yml --src ./model --out bigger"""


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand merge",
        usage="blockexpand merge FILE --out OUT [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("recipe", metavar="FILE", help="the recipe, a YAML file")
    add = parser.add_argument_group("what to make").add_argument
    add(
        "--out",
        required=True,
        metavar="OUT",
        help="folder to create; if it exists it must be empty (see --overwrite)",
    )
    add(
        "--src",
        metavar="SRC",
        help="where the recipe's only model is, if not where the recipe says",
    )
    add_writing_options(parser)
    add_upload_options(add_hub_options(parser))
    add_proof_options(parser)
    add_output_options(parser, verbose="print every file", progress=True)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    from ..api.merging import merge, preview_merge

    check_upload_options(options)
    if options.revision is not None and options.src is None:
        raise UsageError("--revision needs --src; in a recipe write org/name@revision")
    arguments: dict[str, Any] = {
        "src": options.src,
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
        lambda command: preview_merge(
            options.recipe,
            options.out,
            **arguments,
            **target_arguments(options),
            command=command,
        ),
        lambda executor, progress: merge(
            options.recipe,
            options.out,
            **arguments,
            executor=executor,
            progress=progress,
            **writing_arguments(options, words),
        ),
    )
