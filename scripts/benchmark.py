"""Measure blockexpand beside `cp -r` and mergekit, each as a whole process, and print a table.

    python scripts/benchmark.py --src /data/7b --rounds 5 --mergekit /path/to/mergekit-yaml
    python scripts/benchmark.py --shape mistral-7b --make-fs xfs --image /data/xfs.img --size 40

The commands of a case take turns in every round. Before each, dirty pages are flushed and, where
that is permitted, the page cache is dropped: programs then start from the disk too. Outputs, and
a checkpoint or a file system that was made for the run, are removed again.
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
from pathlib import Path

from compare_with_mergekit import count_layers, render_mergekit_yaml
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
CASES = {
    "end": "4 layers after the last one",
    "convert": "4 layers after the last one, from a float32 source to bfloat16",
    "hardlink": "4 layers after the last one, unchanged shards linked or copied",
    "interleaved": "8 layers, spread evenly or after the last one; both outputs are equally large",
}
MOST_NEW_LAYERS = 8


def make_commands(
    case: str, source: Path, out: Path, recipe: Path, mergekit: str | None
) -> dict[str, list[str]]:
    """Return the commands that compete; the first is the one that is judged against the others.

    Where mergekit takes part, `recipe` is written for it.
    """
    expand = [sys.executable, "-m", "blockexpand", "--src", str(source), "--out", str(out)]
    expand += ["--quiet", "--new-layers"]
    match case:
        case "hardlink":
            return {
                "blockexpand --hardlink": [*expand, "4", "--hardlink"],
                "blockexpand": [*expand, "4"],
            }
        case "interleaved":
            return {
                "--position interleaved": [*expand, "8", "--position", "interleaved"],
                "--position end": [*expand, "8", "--position", "end"],
            }
    commands = {"blockexpand": [*expand, "4"], "cp -r": ["cp", "-r", str(source), str(out)]}
    if mergekit:
        recipe.write_text(render_mergekit_yaml(source, count_layers(source), 4))
        commands["mergekit"] = [mergekit, str(recipe), str(out)]
    return commands


def run_rounds(
    commands: Mapping[str, Sequence[str]],
    rounds: int,
    prepare: Callable[[], object],
    out: Path,
    log: Path,
) -> dict[str, list[Measurement]]:
    """Run all commands in every round, each round starting with another one."""
    results: dict[str, list[Measurement]] = {name: [] for name in commands}
    names = list(commands)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            prepare()
            results[name].append(measure(commands[name], out.parent, log))
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
    shards = sorted(source.glob("*.safetensors"))
    dtypes = set()
    for shard in shards:
        with shard.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        dtypes |= {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}
    return (
        f"{count_nbytes(source) / 1e9:.3g} GB of {'/'.join(sorted(dtypes))}, "
        f"{count_layers(source)} layers, {len(shards)} file(s)"
    )


def count_nbytes(source: Path) -> int:
    """Return the size of a checkpoint's weights."""
    return sum(shard.stat().st_size for shard in source.glob("*.safetensors"))


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
    dtype = "float32" if options.case == "convert" else "bfloat16"
    command = [sys.executable, str(REPOSITORY / "scripts" / "make_checkpoint.py"), str(source)]
    command += ["--shape", options.shape, "--dtype", dtype]
    if options.layers:
        command += ["--layers", str(options.layers)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit("the checkpoint could not be built")
    return source


def run_case(options: argparse.Namespace, work: Path) -> str:
    """Measure one case in the folder `work`, which must be empty, and return the report."""
    source = bring_source(options, work)
    layers = count_layers(source)
    needed = count_nbytes(source) * (layers + MOST_NEW_LAYERS) // layers
    if count_free_nbytes(work) < needed:
        raise SystemExit(f"{work}: an output may need {needed / 1e9:.3g} GB; the disk has less")
    with tempfile.TemporaryDirectory() as notes:
        out, log, recipe = work / "out", Path(notes) / "log.txt", Path(notes) / "recipe.yml"
        commands = make_commands(options.case, source, out, recipe, options.mergekit)
        prepare = (lambda: "warm cache") if options.warm else (lambda: drop_cache(source))
        cache = prepare()
        results = run_rounds(commands, options.rounds, prepare, out, log)
    least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT / 1e6
    return (
        f"{CASES[options.case]}; source: {describe_source(source)}\n"
        f"{describe_machine(work)}; {cache}; rounds: {options.rounds}\n"
        f"A peak memory of {least:.0f} MB or less is this script's own. "
        f"Disk blocks are those of the whole file system.\n\n{render_tables(results)}"
    )


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--src", type=Path, help="a checkpoint; without it one is built")
    parser.add_argument("--shape", default="demo", help="what to build (see make_checkpoint.py)")
    parser.add_argument("--layers", type=int, help="how many layers of it")
    parser.add_argument("--case", choices=CASES, default="end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="leave the page cache as it is")
    parser.add_argument("--mergekit", metavar="MERGEKIT_YAML", help="default: on the PATH")
    parser.add_argument("--work", type=Path, help="where outputs go; default: beside the source")
    parser.add_argument("--make-fs", choices=MKFS, help="measure in a loop-mounted image (root)")
    parser.add_argument("--image", type=Path, help="the file to make for --make-fs")
    parser.add_argument("--size", type=float, default=40, metavar="GB", help="of the image")
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
        work = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="benchmark-"))
        os.chdir(REPOSITORY)
        os.environ["HF_HUB_OFFLINE"] = "1"
        print(run_case(options, Path(work)))


if __name__ == "__main__":
    main()
