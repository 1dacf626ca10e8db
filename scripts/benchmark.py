"""Measure blockexpand beside the limit of the disk and what a user would run instead.

    python scripts/benchmark.py --src /data/7b --rounds 5 --mergekit /path/to/mergekit-yaml
    python scripts/benchmark.py --src /data/7b --case verify diff --against HEAD~20 --json runs.json
    python scripts/benchmark.py --shape mistral-7b --make-fs xfs --image /data/xfs.img --size 40

Each command is a whole process. The commands of a case take turns in every round. Before each,
dirty pages are flushed and, where that is permitted, the page cache is dropped: programs then start
from the disk too. Outputs, and a checkpoint or a file system that was made for the run, are removed
again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmark_cases import CASES, OURS, Case, find_dtypes, make_case, weigh, weights
from compare_with_mergekit import count_layers
from disk_limit import Limit, measure_limit
from measuring import (
    MAXRSS_UNIT,
    MKFS,
    Measurement,
    count_free_nbytes,
    drop_cache,
    find_file_system,
    loop_mount,
    measure,
)

REPOSITORY = Path(__file__).resolve().parent.parent
MOST_NEW_LAYERS = 8
README = REPOSITORY / "README.md"
SERVE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from hub_server import HubServer
with HubServer() as hub:
    hub.tells_xet = False
    hub.add_repo("user/model", pathlib.Path(sys.argv[2]))
    print(hub.url, flush=True)
    sys.stdin.read()
"""
BEGIN, END = "<!-- benchmark -->\n", "<!-- /benchmark -->\n"


def run_rounds(
    commands: Mapping[str, Sequence[str]],
    rounds: int,
    prepare: Callable[[], object],
    out: Path,
    log: Path,
    judge: Callable[[], object] | None = None,
) -> dict[str, list[Measurement]]:
    """Run all commands in every round, each round starting with another one.

    `judge` is called while what the first command made is there.
    """
    results: dict[str, list[Measurement]] = {name: [] for name in commands}
    names = list(commands)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            prepare()
            results[name].append(measure(commands[name], out.parent, log))
            if judge is not None and name == names[0]:
                judge()
            if out.exists():
                shutil.rmtree(out)
            print(f"round {number + 1}: {name}: {results[name][-1].wall_s:.2f} s", file=sys.stderr)
    return results


def render_tables(results: Mapping[str, Sequence[Measurement]]) -> str:
    """Render the figures of each command, then the first one's ratios to the others, as Markdown.

    A ratio is that of two runs of the same round.
    """
    figures: dict[str, Callable[[Measurement], float]] = {
        "wall, s": lambda run: run.wall_s,
        "flush after it, s": lambda run: run.flush_s,
        "CPU, s": lambda run: run.cpu_s,
        "peak memory, MB": lambda run: run.peak_nbytes / 1e6,
        "new disk blocks, MB": lambda run: run.disk_nbytes / 1e6,
    }
    ratios: dict[str, Callable[[Measurement], float]] = {
        "wall": lambda run: run.wall_s,
        "wall and flush": lambda run: run.wall_s + run.flush_s,
        "CPU": lambda run: run.cpu_s,
    }
    rows = [["median (min–max)", *figures], ["---", *["---:"] * len(figures)]]
    for name, runs in results.items():
        rows.append([name, *(render_spread(map(get, runs)) for get in figures.values())])
    lines = [render_row(row) for row in rows]
    judged, *others = results
    rows = [["ratio", *ratios], ["---", *["---:"] * len(ratios)]]
    for other in others:
        pairs = list(zip(results[judged], results[other], strict=True))
        spreads = (render_spread(get(a) / get(b) for a, b in pairs) for get in ratios.values())
        rows.append([f"{judged} ÷ {other}", *spreads])
    return "\n".join([*lines, "", *(render_row(row) for row in rows)])


def render_row(cells: Iterable[str]) -> str:
    """Render one row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def render_spread(values: Iterable[float]) -> str:
    """Render median, smallest and largest value, to three digits."""
    ordered = sorted(values)
    median, low, high = (
        f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
        for value in (statistics.median(ordered), ordered[0], ordered[-1])
    )
    return f"{median} ({low}–{high})"


def describe_source(source: Path) -> str:
    """Describe a checkpoint in a few words, from its headers."""
    return (
        f"{count_nbytes(source) / 1e9:.3g} GB of {'/'.join(sorted(find_dtypes(source)))}, "
        f"{count_layers(source)} layers, {len(weights(source))} file(s)"
    )


def count_nbytes(source: Path) -> int:
    """Return the size of a checkpoint's weights."""
    return weigh(source)


def describe_machine(folder: Path) -> str:
    """Describe file system, processors, memory and system in a few words."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"{find_file_system(folder)}; {os.cpu_count()} CPUs, {memory / 1e9:.0f} GB of memory, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def bring_source(options: argparse.Namespace, work: Path) -> Path:
    """Return a source on the file system of `work`: the given one, a copy of it or a new one."""
    if options.src and not options.make_fs:
        return options.src
    source = work / "source"
    if options.src:
        if count_free_nbytes(work) < count_nbytes(options.src):
            raise SystemExit(f"{options.image}: no room for {options.src}; give --size")
        shutil.copytree(options.src, source)
        return source
    command = [sys.executable, str(REPOSITORY / "scripts" / "make_checkpoint.py"), str(source)]
    command += ["--shape", options.shape]
    if options.layers:
        command += ["--layers", str(options.layers)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit("the checkpoint could not be built")
    return source


def serve(source: Path, stack: ExitStack) -> str:
    """Serve a checkpoint as user/model of a Hub on this machine; returns its address."""
    # In a process of its own, since it holds the checkpoint and commands inherit peak memory.
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(REPOSITORY / "tests" / "support"), str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.communicate)
    assert process.stdout is not None
    return process.stdout.readline().strip()


def with_commit(case: Case, root: Path | None, commit: str | None) -> dict[str, Sequence[str]]:
    """Return a case's commands, and blockexpand's once more as it was at a commit."""
    commands = dict(case.commands)
    if root is not None:
        here, there = str(REPOSITORY), str(root)
        ours = [there if word == here else word for word in commands[OURS]]
        commands[f"{OURS} at {commit}"] = ours
    return commands


def run_case(
    options: argparse.Namespace, name: str, source: Path, work: Path, stack: ExitStack
) -> Result:
    """Measure one case in the folder `work`, and the disk's limit in the same minutes."""
    needed = weigh(source) * (count_layers(source) + MOST_NEW_LAYERS) // count_layers(source)
    needed *= 2 if name in ("verify", "diff", "convert") else 1
    if count_free_nbytes(work) < needed:
        raise SystemExit(f"{work}: {name} may need {needed / 1e9:.3g} GB; the disk has less")
    hub = serve(source, stack) if name == "stream" else None
    case = make_case(name, source, work / name, mergekit=options.mergekit, hub=hub)
    moved: list[tuple[int, int]] = []

    def judge() -> None:
        if case.moves is not None:
            moved.append(case.moves())

    prepare = (lambda: "warm cache") if options.warm else (lambda: drop_cache(source))
    with tempfile.TemporaryDirectory() as notes:
        cache = prepare()
        commands = with_commit(case, options.old, options.against)
        log = Path(notes) / "log.txt"
        runs = run_rounds(commands, options.rounds, prepare, case.out, log, judge)
    limit = measure_limit(case.source, work) if moved else None
    shutil.rmtree(work / name)
    return Result(name=name, cache=cache, runs=runs, limit=limit, moved=moved[0] if moved else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The runs of a case's commands, the bytes that it has to read and write, and the limit."""

    name: str
    cache: str
    runs: Mapping[str, Sequence[Measurement]]
    limit: Limit | None
    moved: tuple[int, int] | None

    @property
    def limit_s(self) -> float | None:
        return self.limit.seconds(*self.moved) if self.limit and self.moved else None

    def as_json(self) -> dict[str, object]:
        return {
            "case": self.name,
            "about": CASES[self.name],
            "cache": self.cache,
            "read_nbytes": self.moved and self.moved[0],
            "written_nbytes": self.moved and self.moved[1],
            "limit": self.limit and asdict(self.limit),
            "limit_s": self.limit_s,
            "runs": {name: [asdict(run) for run in runs] for name, runs in self.runs.items()},
        }


def render_result(result: Result) -> str:
    """Render one case: its commands, their ratios and that to the limit of the disk."""
    text = (
        f"## {result.name}: {CASES[result.name]} ({result.cache})\n\n{render_tables(result.runs)}"
    )
    if result.limit is None or result.limit_s is None or result.moved is None:
        return text
    read, written = (nbytes / 1e9 for nbytes in result.moved)
    walls = [run.wall_s / result.limit_s for run in result.runs[OURS]]
    return (
        f"{text}\n\nIt takes {render_spread(walls)} times what the disk needs, "
        f"{result.limit_s:.3g} s to read {read:.3g} GB and to write {written:.3g} GB: "
        f"{result.limit.read / 1e9:.3g} GB/s are read, {result.limit.copied / 1e9:.3g} GB/s read "
        "and written at once."
    )


def render_summary(results: Sequence[Result]) -> str:
    """Render all cases as one table, that of the README."""
    head = ["case", "wall, s", "÷ limit of the disk", "÷ what else does it", "CPU, s"]
    rows = [head, ["---", *["---:"] * 4]]
    for result in results:
        ours, *others = result.runs
        runs = result.runs[ours]
        limit = "–"
        if result.limit_s:
            limit = render_spread(run.wall_s / result.limit_s for run in runs)
        ratios = []
        for other in others:
            pairs = zip(runs, result.runs[other], strict=True)
            # What one program leaves to the system to write, another has waited for.
            shares = [_until_stored(one) / _until_stored(two) for one, two in pairs]
            ratios.append(f"{render_spread(shares)} × `{other}`")
        rows.append(
            [
                f"{result.name}: {CASES[result.name]}",
                render_spread(run.wall_s for run in runs),
                limit,
                ", ".join(ratios),
                f"{statistics.median(run.cpu_s for run in runs):.2g}",
            ]
        )
    return "\n".join(map(render_row, rows))


def _until_stored(run: Measurement) -> float:
    return run.wall_s + run.flush_s


def write_readme(text: str, readme: Path = README) -> None:
    """Put a table between the two marks of the README."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme}: expected {BEGIN.strip()} and {END.strip()}")
    readme.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def check_out(commit: str, work: Path, stack: ExitStack) -> Path:
    """Check a commit out beside the outputs, for the time being."""
    root = work / "commit"
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    if subprocess.run([*git, "add", "--detach", str(root), commit], stdout=sys.stderr).returncode:
        raise SystemExit(f"{commit}: git has no such commit here")
    remove = [*git, "remove", "--force", str(root)]
    stack.callback(subprocess.run, remove, check=True, stdout=sys.stderr)
    return root


def compile_modules(root: Path) -> None:
    """Compile a checkout's modules, as pip does when it installs them."""
    command = [sys.executable, "-m", "compileall", "-q", str(root / "blockexpand")]
    subprocess.run(command, check=True, stdout=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--src", type=Path, help="a checkpoint; without it one is built")
    parser.add_argument("--shape", default="demo", help="what to build (see make_checkpoint.py)")
    parser.add_argument("--layers", type=int, help="how many layers of it")
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="leave the page cache as it is")
    parser.add_argument("--mergekit", metavar="MERGEKIT_YAML", help="default: on the PATH")
    parser.add_argument("--against", metavar="COMMIT", help="also measure this commit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE too")
    parser.add_argument("--write-readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--work", type=Path, help="where outputs go; default: beside the source")
    parser.add_argument("--make-fs", choices=MKFS, help="measure in a loop-mounted image (root)")
    parser.add_argument("--image", type=Path, help="the file to make for --make-fs")
    parser.add_argument("--size", type=float, default=40, metavar="GB", help="of the image")
    return parser


def main() -> None:
    """Read the command line, measure and print."""
    parser = make_parser()
    options = parser.parse_args()
    if bool(options.make_fs) != bool(options.image):
        parser.error("--make-fs and --image belong together")
    options.mergekit = shutil.which(options.mergekit or "mergekit-yaml")
    if options.src:
        options.src = options.src.resolve()
    with ExitStack() as stack:
        if options.make_fs:
            image = options.image.resolve()
            folder = stack.enter_context(
                loop_mount(options.make_fs, image, int(options.size * 1e9))
            )
        else:
            folder = (options.work or (options.src.parent if options.src else Path())).resolve()
        work = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="benchmark-"))
        )
        os.chdir(REPOSITORY)
        os.environ["HF_HUB_OFFLINE"] = "1"
        source = bring_source(options, work)
        options.old = check_out(options.against, work, stack) if options.against else None
        for root in (REPOSITORY, options.old):
            if root is not None:
                compile_modules(root)
        about = f"source: {describe_source(source)}\n{describe_machine(work)}"
        print(about)
        results = []
        for name in options.case:
            results.append(run_case(options, name, source, work, stack))
            print(f"\n{render_result(results[-1])}", flush=True)
        least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT / 1e6
        summary = render_summary(results)
        print(f"\n{summary}\n\nA memory of {least:.0f} MB or less is this script's own.")
        if options.json:
            found = {"about": about, "cases": [result.as_json() for result in results]}
            options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        if options.write_readme:
            write_readme(summary)


if __name__ == "__main__":
    main()
