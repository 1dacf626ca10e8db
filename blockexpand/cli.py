"""The command line: arguments, progress, printing and exit codes. Nothing that the library lacks.

Results go to stdout, progress and messages to stderr. 0 done, 1 failed, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import BlockExpandError, OutputError

if TYPE_CHECKING:
    from .progress import Progress

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A plan of 100,000 tensors is a million objects without a cycle: collecting among them again
    # and again takes longer than making them.
    gc.set_threshold(200_000, 10, 10)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(words)
        _print_result("")
        return status
    except _StdoutClosedError:
        return 1
    except BlockExpandError as error:
        return _fail(str(error))
    except KeyboardInterrupt as interrupt:
        remark = str(interrupt) or "the output was not made or changed"
        print(f"blockexpand: interrupted; {remark}", file=sys.stderr)
        return 130
    except OSError as error:
        from .copying import explain

        return _fail(str(explain("use", Path(error.filename or "."), error)))
    except MemoryError:
        return _fail("not enough memory")


def _run(words: list[str]) -> int:
    try:
        if words[:1] == ["verify"]:
            return _verify(_verify_parser().parse_args(words[1:]))
        if words[:1] == ["batch"]:
            parser = _batch_parser()
            return _batch(parser.parse_args(words[1:]), parser)
        if words[:1] == ["diff"]:
            return _diff(_diff_parser().parse_args(words[1:]))
        if words[:1] == ["train-config"]:
            return _train_config(_train_config_parser().parse_args(words[1:]))
        parser = _expand_parser()
        options = parser.parse_args(words)
        return _expand(options, parser, words)
    except SystemExit as end:
        # How argparse ends after --help, --version and wrong usage.
        return int(end.code or 0)


class _StdoutClosedError(Exception):
    """The reader of a pipe has gone, which is nothing to report."""


def _print_result(text: str) -> None:
    """Write to stdout at once, while a failure can still be told."""
    try:
        print(text, end="\n" if text else "", flush=True)
    except OSError as error:
        # Python would try to write the rest when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise _StdoutClosedError from error
        raise OutputError(f"standard output: cannot write: {error.strerror}") from error


def _fail(message: str) -> int:
    print(f"blockexpand: {_printable(message)}", file=sys.stderr)
    return 1


def _printable(text: str, keep: str = "") -> str:
    """Spell control characters out: names in a stranger's checkpoint reach the terminal."""
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def _not_empty(text: str) -> str:
    # To Python an empty path is the current folder; to the user it is a variable left unset.
    if not text:
        raise argparse.ArgumentTypeError("expected a name, found an empty text")
    return text


def _expand_parser() -> argparse.ArgumentParser:
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


def _verify_parser() -> argparse.ArgumentParser:
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


def _batch_parser() -> argparse.ArgumentParser:
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


def _diff_parser() -> argparse.ArgumentParser:
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


def _train_config_parser() -> argparse.ArgumentParser:
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


def _expand(
    options: argparse.Namespace, parser: argparse.ArgumentParser, words: Sequence[str]
) -> int:
    from . import report
    from .executors import open_executor
    from .expansion import expand, parse_position, plan_only
    from .layer_map import POSITIONS

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
            reflink=options.reflink,
            hardlink=options.hardlink,
            stream=options.stream,
            overwrite=options.overwrite,
            check=options.check,
            verify_after=options.verify,
            push_to_hub=options.push_to_hub,
            private=options.private,
            executor=executor,
            progress=progress,
            command=_shown_command(words),
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
            reflink=options.reflink,
            hardlink=options.hardlink,
            overwrite=options.overwrite,
            verify_after=options.verify,
            push_to_hub=options.push_to_hub,
            private=options.private,
            executor=executor,
            progress=progress,
            command=_shown_command(words),
        )
    _print(options, report.expansion_as_json, report.describe_expansion, result)
    return 0


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
    return _fail(
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
    return _fail(
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
    return _fail(
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

        _print_result(json.dumps(as_json(*values)))
    elif not options.quiet:
        _print_result(_printable(describe(*values, verbose=options.verbose), keep="\n"))


def _progress(options: argparse.Namespace) -> _Bars:
    shown = sys.stderr.isatty() and not (options.no_progress or options.quiet)
    return _Bars(shown=shown)


def _shown_command(words: Sequence[str]) -> str:
    """Return the command as typed, but for a token."""
    shown: list[str] = []
    skip = False
    for word in words:
        if not skip and word != "--token" and not word.startswith("--token="):
            shown.append(word)
        skip = word == "--token"
    return shlex.join(["python", "-m", "blockexpand", *shown])


class _Bars:
    """Progress bars on stderr, one after the other."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        from .progress import SILENT, Progress

        if not self._shown:
            return SILENT
        return Progress(total=self._begin, done=self._advance, is_shown=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _begin(self, what: str, nbytes: int) -> None:
        from tqdm import tqdm

        if self._bar is not None:
            self._bar.close()
        self._bar = tqdm(desc=what, total=nbytes, unit="B", unit_scale=True, file=sys.stderr)

    def _advance(self, nbytes: int) -> None:
        with self._lock:
            self._bar.update(nbytes)
