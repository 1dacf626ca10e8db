"""`blockexpand batch`: make many expansions from one file. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from .arguments import (
    add_executor_option,
    add_hub_options,
    add_output_options,
    whole_number,
)
from .console import print_outcome, tell_difference
from .parsing import Parser

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
them. out and push-to-hub may use the placeholders {model}, {layers}, {new-layers}, {position} and
{dtype}. Paths are relative to the current folder. Exit status 1 if any job failed."""


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand batch",
        usage="blockexpand batch JOBS.yaml [options]",
        description=_BATCH_DESCRIPTION,
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
        type=whole_number,
        default=1,
        metavar="N",
        help="how many expansions are written at the same time (default: 1)",
    )
    add("--dry-run", action="store_true", help="plan and check all jobs, and write nothing")
    add_executor_option(add)
    add_hub_options(parser, revision=False)
    add_output_options(
        parser, verbose="print every note, and log with times what was decided", progress=True
    )
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    from ..api.batch import run_batch
    from ..api.batch_plan import plan_batch
    from ..api.jobs_file import open_jobs
    from ..fs.paths import expand_home
    from ..writing.executors import open_executor
    from . import text_batch as report_batch
    from .reporting import reporting

    if options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: expected at least 1")
    jobs = open_jobs(Path(options.jobs_file))
    batch = plan_batch(
        jobs,
        token=options.token,
        cache_dir=options.cache_dir,
        kept=(expand_home(options.jobs_file),),
    )
    if options.dry_run:
        print_outcome(options, report_batch.batch_as_json, report_batch.describe_batch, batch)
        return 0
    with open_executor(options.executor) as executor, reporting(options) as progress:
        results = run_batch(
            batch,
            fail_fast=options.fail_fast,
            parallel=options.jobs,
            executor=executor,
            progress=progress,
        )
    print_outcome(options, report_batch.results_as_json, report_batch.describe_results, results)
    failed = [result for result in results if result.error is not None]
    if not failed:
        return 0
    assert failed[0].error is not None
    return tell_difference(
        f"{options.jobs_file}: {len(failed)} of {len(results)} jobs failed, the first: "
        f"{failed[0].planned.out}: {report_batch.explain_error(failed[0].error)}"
    )
