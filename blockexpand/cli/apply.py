"""`blockexpand apply`: a base with the blocks of adapters in it. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .arguments import (
    add_commit_options,
    add_executor_option,
    add_hub_options,
    add_output_options,
    check_upload_options,
)
from .console import print_outcome
from .parsing import Parser, advise
from .reporting import reporting


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand apply",
        usage="blockexpand apply BASE BLOCKS [BLOCKS ...] --out OUT [options]",
        description="Put block adapters on their base: every tensor as it was trained. The base "
        "is proven first to be the one that the blocks were trained in.",
        epilog="examples:\n\n"
        "  blockexpand apply org/name me/my-blocks --out ./model\n"
        "  blockexpand apply ./base ./my-blocks --out ./half --scale 0.5\n"
        "  blockexpand apply ./base ./one ./other --out ./both\n"
        "  blockexpand apply org/name me/my-blocks --push-to-hub me/model --on-hub",
    )
    add = parser.add_argument
    add("base", metavar="BASE", help="a folder or a Hub repository")
    add(
        "adapters",
        nargs="+",
        metavar="BLOCKS",
        help="folders that `blockexpand extract` made, or Hub repositories of them",
    )
    add("--out", help="folder to create for the whole model")
    add(
        "--scale",
        type=float,
        default=1.0,
        metavar="S",
        help="scale what the blocks add: 1 is the trained model (the default), 0 the base, exactly",
    )
    add(
        "--trust-base",
        action="store_true",
        help="do not read the base to prove it; config and headers are still compared",
    )
    add(
        "--force-base",
        action="store_true",
        help="take another base of the same shape, and say in the card what differs",
    )
    add(
        "--reflink",
        nargs="?",
        const="always",
        default="auto",
        choices=("auto", "always", "never"),
        metavar="WHEN",
        help="share unchanged blocks with the base: auto (the default), always or never",
    )
    add("--hardlink", action="store_true", help="link shards of the base that do not change")
    add(
        "--max-shard-size",
        metavar="SIZE",
        help="repack into shards of at most SIZE (5GB, 800MB); default: mirror the base",
    )
    add_executor_option(add)
    add("--overwrite", action="store_true", help="replace OUT once the new one is complete")
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    hub = add_hub_options(parser)
    hub.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="upload OUT to the model repository REPO (or REPO@BRANCH), made if there is none",
    )
    add_commit_options(hub)
    hub.add_argument(
        "--on-hub",
        action="store_true",
        help="with --push-to-hub, for a BASE on the Hub: unchanged shards are copied on the Hub, "
        "the others are made here one at a time; nothing is kept here, and OUT is not needed",
    )
    add_output_options(parser, verbose="print every file", progress=True)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    check_upload_options(options)
    if options.on_hub:
        return _run_on_hub(options)
    if options.out is None:
        raise UsageError(advise("--out missing", "blockexpand apply --help"))
    from ..api.application import apply, plan_apply
    from ..writing.executors import open_executor
    from . import text

    common: dict[str, Any] = {
        "out": options.out,
        "overwrite": options.overwrite,
        **_shared_arguments(options),
    }
    if options.dry_run:
        plan, name = plan_apply(options.base, *options.adapters, **common)
        if options.push_to_hub is not None:
            from ..publishing.target import check_push, refuse_secrets

            check_push(options.push_to_hub, token=options.token)
            refuse_secrets((file.name for file in plan.side_files), name.model)
        print_outcome(options, text.plan_as_json, text.describe_plan, plan, name, Path(options.out))
        return 0
    with open_executor(options.executor) as executor, reporting(options) as progress:
        result = apply(
            options.base,
            *options.adapters,
            **common,
            trust_base=options.trust_base,
            reflink=options.reflink,
            hardlink=options.hardlink,
            push_to_hub=options.push_to_hub,
            private=options.private,
            commit_message=options.commit_message,
            create_pr=options.create_pr,
            executor=executor,
            progress=progress,
        )
    print_outcome(options, text.expansion_as_json, text.describe_expansion, result)
    return 0


def _run_on_hub(options: argparse.Namespace) -> int:
    if options.push_to_hub is None:
        raise UsageError("--on-hub needs --push-to-hub")
    for option in ("out", "hardlink", "executor"):
        if getattr(options, option):
            raise UsageError(
                f"--{option} does not go with --on-hub, which keeps no output and no base here"
            )
    from ..api.application import apply_on_hub
    from . import text_on_hub

    with reporting(options) as progress:
        result = apply_on_hub(
            options.base,
            *options.adapters,
            repo=options.push_to_hub,
            **_shared_arguments(options),
            trust_base=options.trust_base,
            overwrite=options.overwrite,
            private=options.private,
            commit_message=options.commit_message,
            create_pr=options.create_pr,
            dry_run=options.dry_run,
            progress=progress,
        )
    print_outcome(options, text_on_hub.as_json, text_on_hub.describe, result)
    return 0


def _shared_arguments(options: argparse.Namespace) -> dict[str, Any]:
    names = ("scale", "force_base", "max_shard_size", "revision", "token", "cache_dir")
    return {name: getattr(options, name) for name in names}
