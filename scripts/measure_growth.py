"""Measure how the costs of blockexpand grow with a model, and draw it.

    python scripts/measure_growth.py --work /data --svg docs/growth.svg

Three rows of checkpoints, each larger than the one before: in bytes, in tensors and in shards. All
their weights are holes of files, so that 60 GB need no disk; what is written is the same as of any
other checkpoint, and so is what is read and compared. Drawn is the CPU time of the whole process,
that of starting it included, on axes on which what grows as the model does is a straight line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmark_cases import make_sparse, run_blockexpand, weigh
from measuring import measure

NBYTES = (300_000_000, 3_000_000_000, 15_000_000_000, 60_000_000_000)
TENSORS = (1_000, 10_000, 100_000, 1_000_000)
SHARDS = (1, 10, 100, 1_000)

WIDTH, HEIGHT, MARGIN = 300, 240, 52

Points = list[tuple[float, float]]


def measure_rows(work: Path, rounds: int, log: Path) -> dict[str, dict[str, Points]]:
    """Return, for each row of checkpoints, the seconds of each command by the size."""
    rows: dict[str, dict[str, Points]] = {
        "gigabytes (100 tensors a GB)": {},
        "tensors (0.1 GB, 10 shards)": {},
        "shards (2,000 tensors)": {},
    }
    by_nbytes, by_tensors, by_shards = rows.values()
    for nbytes in NBYTES:
        shards = max(1, round(nbytes / 5e9))
        source = _make(work, tensors=max(100, nbytes // 10**7), shards=shards, nbytes=nbytes)
        where = weigh(source) / 1e9
        _run(by_nbytes, where, source, work, rounds, log, ("dry run", "expand", "verify"))
    for tensors in TENSORS:
        source = _make(work, tensors=tensors, shards=10, nbytes=10**8)
        _run(by_tensors, tensors, source, work, rounds, log, ("dry run",))
    for shards in SHARDS:
        source = _make(work, tensors=2000, shards=shards, nbytes=10**8)
        _run(by_shards, shards, source, work, rounds, log, ("dry run", "expand"))
    return rows


def _make(work: Path, *, tensors: int, shards: int, nbytes: int) -> Path:
    source = work / "source"
    make_sparse(source, tensors=tensors, shards=shards, nbytes=nbytes)
    return source


def _run(
    row: dict[str, Points],
    size: float,
    source: Path,
    work: Path,
    rounds: int,
    log: Path,
    names: Sequence[str],
) -> None:
    out = work / "out"
    # Holes are read from, and so are cheap; hard links leave what only depends on the shards.
    expand = ["--src", str(source), "--out", str(out), "--new-layers", "1", "--quiet", "--hardlink"]
    commands = {
        "dry run": [*expand, "--dry-run"],
        "expand": expand,
        "verify": ["verify", str(source), str(out), "--paranoid", "--quiet"],
    }
    for name in names:
        if name == "expand":
            seconds = _time(expand, rounds, work, log, out)
        elif name == "verify":
            _time(expand, 1, work, log)
            seconds = _time(commands[name], 1, work, log)
        else:
            seconds = _time(commands[name], rounds, work, log)
        row.setdefault(name, []).append((size, seconds))
        print(f"{name} at {size:g}: {seconds:.2f} s of CPU", file=sys.stderr)
    if out.exists():
        shutil.rmtree(out)


def _time(
    words: Sequence[str], rounds: int, work: Path, log: Path, out: Path | None = None
) -> float:
    times = []
    for _ in range(rounds):
        times.append(measure(run_blockexpand(*words), work, log).cpu_s)
        if out is not None:
            shutil.rmtree(out)
    return statistics.median(times)


def draw(rows: Mapping[str, Mapping[str, Points]]) -> str:
    """Draw each row as a panel with logarithmic axes; dashed is what grows as the size does."""
    colors = {"dry run": "#0072b2", "expand": "#d55e00", "verify": "#009e73"}
    panels = []
    for number, (title, lines) in enumerate(rows.items()):
        panels.append(_draw_panel(title, lines, number * WIDTH, colors))
    keys = [
        f'<text x="{MARGIN + 90 * number}" y="{HEIGHT + 14}" fill="{color}">{name}</text>'
        for number, (name, color) in enumerate(colors.items())
    ]
    width, height = WIDTH * len(rows), HEIGHT + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join([*panels, *keys])
        + "\n</svg>\n"
    )


def _draw_panel(
    title: str, lines: Mapping[str, Points], left: int, colors: Mapping[str, str]
) -> str:
    every = [point for points in lines.values() for point in points]
    low_x, high_x = _decades(x for x, _ in every)
    low_y, high_y = _decades(y for _, y in every)

    def x_of(value: float) -> float:
        share = (math.log10(value) - low_x) / (high_x - low_x)
        return round(left + MARGIN + share * (WIDTH - MARGIN - 12), 1)

    def y_of(value: float) -> float:
        share = (math.log10(value) - low_y) / (high_y - low_y)
        return round(HEIGHT - 40 - share * (HEIGHT - 64), 1)

    parts = [f'<text x="{left + MARGIN}" y="14">{title}</text>']
    for power in range(low_x, high_x + 1):
        x, top, bottom = x_of(10.0**power), y_of(10.0**high_y), y_of(10.0**low_y)
        parts.append(f'<path d="M{x} {top}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(low_y, high_y + 1):
        y, begin, end = y_of(10.0**power), x_of(10.0**low_x), x_of(10.0**high_x)
        parts.append(f'<path d="M{begin} {y}H{end}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{begin - 5}" y="{y + 4}" text-anchor="end">{10.0**power:g} s</text>'
        )
    for name, points in lines.items():
        path = " ".join(f"{x_of(x)},{y_of(y)}" for x, y in points)
        color = colors[name]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for x, y in points:
            parts.append(f'<circle cx="{x_of(x)}" cy="{y_of(y)}" r="3" fill="{color}"/>')
    # The slope of what is linear, through the last and largest of the points.
    x, y = max(every, key=lambda point: point[1])
    first = max(10.0**low_x, x * 10.0**low_y / y)
    parts.append(
        f'<path d="M{x_of(first)} {y_of(y * first / x)}L{x_of(x)} {y_of(y)}" stroke="#888" '
        'stroke-dasharray="4 3"/>'
    )
    return "\n".join(parts)


def _decades(values: Iterable[float]) -> tuple[int, int]:
    found = sorted(values)
    low, high = math.floor(math.log10(found[0])), math.ceil(math.log10(found[-1]))
    return low, max(high, low + 1)


def main() -> None:
    """Read the command line, measure, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path(), help="where checkpoints are made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where the figure goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the points go")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = options.work.resolve()
    with tempfile.TemporaryDirectory(dir=folder, prefix="growth-") as name:
        work = Path(name)
        rows = measure_rows(work, options.rounds, work / "log.txt")
    print(json.dumps(rows, indent=1))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.svg:
        options.svg.write_text(draw(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
