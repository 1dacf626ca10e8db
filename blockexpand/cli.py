"""The command line: arguments, progress, printing and exit codes. Nothing that the library lacks.

Results go to stdout, progress and messages to stderr. 0 done, 1 failed, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .arguments import (
    make_batch_parser,
    make_diff_parser,
    make_expand_parser,
    make_train_config_parser,
    make_verify_parser,
)
from .bars import Bars
from .console import StdoutClosedError, fail, open_closed_streams, print_result, printable
from .errors import BlockExpandError


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    # A plan of 100,000 tensors is a million objects without a cycle: collecting among them again
    # and again takes longer than making them.
    gc.set_threshold(1_000_000, 10, 10)
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(words)
        print_result("")
        return status
    except StdoutClosedError:
        return 1
    except BlockExpandError as error:
        return fail(str(error))
    except KeyboardInterrupt as interrupt:
        remark = str(interrupt) or "the output was not made or changed"
        print(f"blockexpand: interrupted; {remark}", file=sys.stderr)
        return 130
    except OSError as error:
        from .copying import explain

        return fail(str(explain("use", Path(error.filename or "."), error)))
    except MemoryError:
        return fail(
            "not enough memory: copying takes about 100 MB, converting dtypes 500 MB; raise the "
            "limit and run the same command again"
        )
    except ImportError as error:
        # torch and transformers are only loaded where they are needed.
        said = " ".join(str(error).split())[:200]
        return fail(
            f"cannot load what this needs: {said}; install it, or, if it is installed, see that it "
            "suits this machine and that there is memory enough"
        )


def _run(words: list[str]) -> int:
    try:
        if words[:1] == ["verify"]:
            return _verify(make_verify_parser().parse_args(words[1:]))
        if words[:1] == ["batch"]:
            parser = make_batch_parser()
            return _batch(parser.parse_args(words[1:]), parser)
        if words[:1] == ["diff"]:
            return _diff(make_diff_parser().parse_args(words[1:]))
        if words[:1] == ["train-config"]:
            return _train_config(make_train_config_parser().parse_args(words[1:]))
        parser = make_expand_parser()
        options = parser.parse_args(words)
        return _expand(options, parser, words)
    except SystemExit as end:
        # How argparse ends after --help, --version and wrong usage.
        return int(end.code or 0)


def _expand(
    options: argparse.Namespace, parser: argparse.ArgumentParser, words: Sequence[str]
) -> int:
    from . import report
    from .executors import open_executor
    from .expansion import expand, plan_only
    from .layer_map import POSITIONS
    from .wishes import parse_position

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
        "dtype": options.dtype or "bfloat16",
        "max_shard_size": options.max_shard_size,
        "revision": options.revision,
        "token": options.token,
        "cache_dir": options.cache_dir,
    }
    if options.dry_run:
        plan, name = plan_only(options.src, options.out, **arguments, check=options.check)
        _print(options, report.plan_as_json, report.describe_plan, plan, name, Path(options.out))
        return 0
    with open_executor(options.executor) as executor, _progress(options) as progress:
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
    _print(options, report.expansion_as_json, report.describe_expansion, result)
    return 0


def _merge(
    options: argparse.Namespace, parser: argparse.ArgumentParser, words: Sequence[str]
) -> int:
    from . import report
    from .executors import open_executor
    from .merging import merge, plan_merge

    for option in ("new_layers", "position", "dtype", "stream"):
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
        _print(options, report.plan_as_json, report.describe_plan, plan, name, Path(options.out))
        return 0
    with open_executor(options.executor) as executor, _progress(options) as progress:
        result = merge(
            options.recipe,
            options.out,
            **arguments,
            executor=executor,
            progress=progress,
            **_writing_arguments(options, words),
        )
    _print(options, report.expansion_as_json, report.describe_expansion, result)
    return 0


def _writing_arguments(options: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Return what an expansion and a merge are told alike about writing their output."""
    return {
        "reflink": options.reflink,
        "hardlink": options.hardlink,
        "overwrite": options.overwrite,
        "verify_after": options.verify,
        "push_to_hub": options.push_to_hub,
        "private": options.private,
        "command": _shown_command(words),
    }


def _batch(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from . import report_batch
    from .batch import run_batch
    from .batch_plan import plan_batch
    from .executors import open_executor
    from .jobs_file import open_jobs

    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: expected at least 1")
    jobs = open_jobs(Path(options.jobs_file))
    batch = plan_batch(jobs, token=options.token, cache_dir=options.cache_dir)
    if options.dry_run:
        _print(options, report_batch.batch_as_json, report_batch.describe_batch, batch)
        return 0
    with open_executor(options.executor) as executor, _progress(options) as progress:
        results = run_batch(
            batch,
            fail_fast=options.fail_fast,
            parallel=options.jobs,
            executor=executor,
            progress=progress,
        )
    _print(options, report_batch.results_as_json, report_batch.describe_results, results)
    failed = [result for result in results if result.error is not None]
    if not failed:
        return 0
    assert failed[0].error is not None
    return fail(
        f"{options.jobs_file}: {len(failed)} of {len(results)} jobs failed, the first: "
        f"{failed[0].planned.out}: {report_batch.explain_error(failed[0].error)}"
    )


def _verify(options: argparse.Namespace) -> int:
    from . import report
    from .expansion import verify

    with _progress(options) as progress:
        verification, proof = verify(
            options.src,
            options.out,
            logits=options.logits,
            revision=options.revision,
            token=options.token,
            cache_dir=options.cache_dir,
            progress=progress,
        )
    _print(
        options,
        report.verification_as_json,
        report.describe_verification,
        verification,
        proof,
        Path(options.out),
    )
    if not verification.findings:
        return 0
    count = len(verification.findings)
    return fail(
        f"{options.out}: {count} difference{'s' if count > 1 else ''} from what its source and "
        f"recipe say, the first: {verification.findings[0]}; make it again"
    )


def _diff(options: argparse.Namespace) -> int:
    from . import report_difference
    from .difference import diff

    with _progress(options) as progress:
        difference = diff(
            options.base,
            options.other,
            revision=options.revision,
            token=options.token,
            cache_dir=options.cache_dir,
            progress=progress,
        )
    _print(
        options,
        report_difference.difference_as_json,
        report_difference.describe_difference,
        difference,
    )
    if not difference.lost:
        return 0
    first = difference.lost[0]
    return fail(
        f"{options.other}: {len(difference.lost)} original tensors are changed or missing, the "
        f"first: {first.name!r} is {first.status}"
    )


def _train_config(options: argparse.Namespace) -> int:
    from . import trainer_settings

    settings = trainer_settings.make_settings(options.out, options.framework)
    _print(options, trainer_settings.settings_as_json, trainer_settings.describe_settings, settings)
    return 0


def _print(
    options: argparse.Namespace,
    as_json: Callable[..., dict[str, Any]],
    describe: Callable[..., str],
    *values: object,
) -> None:
    if options.json:
        import json

        print_result(json.dumps(as_json(*values)))
    elif not options.quiet:
        print_result(printable(describe(*values, verbose=options.verbose), keep="\n"))


def _progress(options: argparse.Namespace) -> Bars:
    shown = sys.stderr.isatty() and not (options.no_progress or options.quiet)
    return Bars(shown=shown)


def _shown_command(words: Sequence[str]) -> str:
    """Return the command as typed, but for a token."""
    shown: list[str] = []
    skip = False
    for word in words:
        if not skip and word != "--token" and not word.startswith("--token="):
            shown.append(word)
        skip = word == "--token"
    return shlex.join(["python", "-m", "blockexpand", *shown])
