"""Measure the modes of --quantized on a checkpoint in FP8, each as a whole process, and print them.

    python scripts/benchmark_quantized.py --make-fs xfs --image /data/xfs.img --size 32
    python scripts/benchmark_quantized.py --layers 6 --with-transformers

`--quantized dequantize` stands beside the machine's limit, a program that reads as many bytes and
writes as many at the same time and does nothing else, and on demand beside what transformers takes
to load the same checkpoint, and to save it again. The commands take turns, each with a cold cache.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmark import (
    bring_source,
    count_nbytes,
    describe_machine,
    describe_source,
    render_tables,
    run_rounds,
)
from measuring import MKFS, count_free_nbytes, drop_cache, loop_mount

REPOSITORY = Path(__file__).resolve().parent.parent
PIECE_NBYTES = 8 << 20

LOAD = """
import os, sys, torch
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
if sys.argv[3] == "load":
    os.mkdir(sys.argv[2])
else:
    model.hf_quantizer = None
    model._weight_conversions = get_model_conversion_mapping(model)
    model.save_pretrained(sys.argv[2])
"""


def make_commands(source: Path, out: Path, *, with_transformers: bool) -> dict[str, list[str]]:
    """Return the commands that take turns; the first is the one that is judged against the rest."""
    expand = [sys.executable, "-m", "blockexpand", "--src", str(source), "--out", str(out)]
    expand += ["--quiet", "--quantized"]
    unpack = [*expand, "dequantize", "--new-layers", "0"]
    if with_transformers:
        load = [sys.executable, "-W", "ignore", "-c", LOAD, str(source), str(out)]
        return {
            "dequantize": unpack,
            "transformers, load": [*load, "load"],
            "transformers, load and save": [*load, "save"],
        }
    written = str(count_unpacked_nbytes(source))
    limit = [sys.executable, __file__, "--limit", str(source), str(out), written]
    return {
        "dequantize": unpack,
        "read and write as many bytes": limit,
        "keep, 4 layers at the end": [*expand, "keep", "--new-layers", "4"],
        "keep, 4 layers interleaved": [*expand, "keep", "--new-layers", "4", *INTERLEAVED],
        "new-blocks-full, 4 at the end": [*expand, "new-blocks-full", "--new-layers", "4"],
        "new-blocks-full, 4 interleaved": [
            *(*expand, "new-blocks-full", "--new-layers", "4"),
            *INTERLEAVED,
        ],
    }


INTERLEAVED = ("--position", "interleaved")


def count_unpacked_nbytes(source: Path) -> int:
    """Return the size of the source's weights in bfloat16."""
    from blockexpand.checkpoints.checkpoint import open_checkpoint
    from blockexpand.planning.plan import make_plan
    from blockexpand.planning.recipe import Recipe

    plan = make_plan(open_checkpoint(source), Recipe(new_layers=0, quantized="dequantize"))
    return sum(file.nbytes for file in plan.files)


def move_bytes(source: Path, out: Path, nbytes: int) -> None:
    """Read all weights and write `nbytes` at the same time, past the cache where that is possible.

    What is written is what a piece of the weights holds, as a disk may know zeros.
    """
    flags = getattr(os, "O_DIRECT", 0)
    files = sorted(source.glob("*.safetensors"))
    piece = mmap.mmap(-1, PIECE_NBYTES)
    with files[0].open("rb") as stream:
        stream.readinto(piece)

    def read() -> None:
        buffer = mmap.mmap(-1, PIECE_NBYTES)
        for file in files:
            fd = os.open(file, os.O_RDONLY | flags)
            position = 0
            while (count := os.preadv(fd, [buffer], position)) > 0:
                position += count
            os.close(fd)

    def write() -> None:
        out.mkdir()
        fd = os.open(out / "bytes", os.O_WRONLY | os.O_CREAT | flags, 0o644)
        for position in range(0, nbytes, PIECE_NBYTES):
            os.pwritev(fd, [piece], position)
        os.fsync(fd)
        os.close(fd)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(read), pool.submit(write)]:
            done.result()


def run(options: argparse.Namespace, work: Path) -> str:
    """Measure in the folder `work`, which must be empty, and return the report."""
    source = bring_source(options, work)
    needed = 2 * count_nbytes(source)
    if count_free_nbytes(work) < needed:
        raise SystemExit(f"{work}: an output may need {needed / 1e9:.3g} GB; the disk has less")
    with tempfile.TemporaryDirectory() as notes:
        out, log = work / "out", Path(notes) / "log.txt"
        commands = make_commands(source, out, with_transformers=options.with_transformers)
        results = run_rounds(commands, options.rounds, lambda: drop_cache(source), out, log)
    return (
        f"source: {describe_source(source)}\n{describe_machine(work)}; rounds: {options.rounds}\n"
        f"Disk blocks are those of the whole file system.\n\n{render_tables(results)}"
    )


def main() -> None:
    """Read the command line, measure and print."""
    if sys.argv[1:2] == ["--limit"]:
        move_bytes(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--src", type=Path, help="a checkpoint in FP8; without it one is built")
    parser.add_argument("--shape", default="qwen3-8b-fp8", help="what to build")
    parser.add_argument("--layers", type=int, help="how many layers of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--with-transformers", action="store_true", help="measure it instead")
    parser.add_argument("--work", type=Path, default=Path(), help="where outputs go")
    parser.add_argument("--make-fs", choices=MKFS, help="measure in a loop-mounted image (root)")
    parser.add_argument("--image", type=Path, help="the file to make for --make-fs")
    parser.add_argument("--size", type=float, default=32, metavar="GB", help="of the image")
    options = parser.parse_args()
    if bool(options.make_fs) != bool(options.image):
        parser.error("--make-fs and --image belong together")
    options.src = options.src and options.src.resolve()
    with ExitStack() as stack:
        folder = options.work.resolve()
        if options.make_fs:
            image = options.image.resolve()
            folder = stack.enter_context(
                loop_mount(options.make_fs, image, int(options.size * 1e9))
            )
        work = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="benchmark-"))
        os.chdir(REPOSITORY)
        os.environ["HF_HUB_OFFLINE"] = "1"
        print(run(options, Path(work)))


if __name__ == "__main__":
    main()
