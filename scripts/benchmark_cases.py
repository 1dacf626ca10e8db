"""What `benchmark.py` measures: for each case the commands that take turns, and what they move.

The first command of a case is blockexpand's; the others are what a user would run in its place.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compare_with_mergekit import count_layers, render_mergekit_yaml

REPOSITORY = Path(__file__).resolve().parent.parent

CASES = {
    "expand": "4 layers after the last one",
    "interleaved": "8 layers, spread evenly or after the last one; both outputs are equally large",
    "hardlink": "4 layers after the last one, unchanged shards linked or copied",
    "repack": "4 layers after the last one, all in shards of 1 GB",
    "convert": "4 layers after the last one, bfloat16 to float32 or float32 to bfloat16",
    "dequantize": "FP8 with scales by blocks to bfloat16",
    "verify": "an output against its source, every byte",
    "diff": "an output against its source, tensor by tensor",
    "stream": "4 layers after the last one, from a Hub on this machine",
    "plan": "the dry run of a checkpoint of 100,000 tensors",
    "batch": "the dry run of 400 jobs on a checkpoint of 1,000 tensors",
}

OURS = "blockexpand"

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
snapshot_download("user/model", local_dir=sys.argv[1])
"""

READ_HEADERS = """
import pathlib, sys
from safetensors import safe_open
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(file, "numpy") as opened:
        for name in opened.keys():
            opened.get_slice(name).get_shape()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Commands by name; `moves` tells the bytes that have to be read and written, None where a
    disk is no limit. They read `source`. Each may make `out`, which is removed after it."""

    name: str
    commands: Mapping[str, Sequence[str]]
    source: Path
    out: Path
    moves: Callable[[], tuple[int, int]] | None = None


def run_blockexpand(*words: object, root: Path = REPOSITORY) -> list[str]:
    """Return the command that runs the blockexpand of a checkout."""
    return ["env", "-C", str(root), sys.executable, "-m", "blockexpand", *map(str, words)]


def make_case(
    name: str, source: Path, work: Path, *, mergekit: str | None = None, hub: str | None = None
) -> Case:
    """Return a case on a checkpoint; what it needs is made in `work`, which is empty or does not
    exist. `hub` is the address of a Hub that has the checkpoint as user/model."""
    out, made, quantized = work / "out", work / "made", work / "quantized"
    work.mkdir(exist_ok=True)
    expand = ("--src", source, "--out", out, "--quiet", "--new-layers")
    ours = run_blockexpand(*expand, 4)
    copy = {"cp -r": ["cp", "-r", str(source), str(out)]}

    def case(
        commands: Mapping[str, Sequence[str]], moves: Callable[[], tuple[int, int]] | None
    ) -> Case:
        read = quantized if name == "dequantize" else source
        return Case(name=name, commands=commands, source=read, out=out, moves=moves)

    def moved() -> tuple[int, int]:
        # What is not on the disk, or another's, was not written; each byte written was read.
        written = sum(held(path) for path in weights(out) if path.stat().st_nlink == 1)
        return written, written

    match name:
        case "expand":
            return case({OURS: ours, **copy, **_merge(mergekit, source, work)}, moved)
        case "interleaved":
            spread = run_blockexpand(*expand, 8, "--position", "interleaved")
            return case({OURS: spread, "at the end": run_blockexpand(*expand, 8)}, moved)
        case "hardlink":
            return case({OURS: [*ours, "--hardlink"], "without --hardlink": ours, **copy}, moved)
        case "repack":
            return case({OURS: [*ours, "--max-shard-size", "1GB"], **copy}, moved)
        case "convert":
            dtype = "bfloat16" if "F32" in find_dtypes(source) else "float32"
            converting = [*ours, "--dtype", dtype]
            merge = _merge(mergekit, source, work, dtype)
            return case({OURS: converting, **copy, **merge}, lambda: (weigh(source), moved()[1]))
        case "dequantize":
            _build(quantized, "--shape", "qwen3-8b-fp8", "--layers", "6")
            unpack = ("--src", quantized, "--out", out, "-q", "--quantized", "dequantize")
            commands = {OURS: run_blockexpand(*unpack, "--new-layers", 0)}
            commands["cp -r"] = ["cp", "-r", str(quantized), str(out)]
            return case(commands, lambda: (weigh(quantized), moved()[1]))
        case "verify" | "diff":
            # `diff` compares values of one dtype only.
            same = ("--src", source, "--out", made, "-q", "--new-layers", 4, "--dtype", "source")
            subprocess.run(run_blockexpand(*same), check=True)
            files = [str(path) for path in (*weights(source), *weights(made))]
            quiet = ["sh", "-c", 'cat "$@" > /dev/null', "cat", *files]
            commands = {OURS: run_blockexpand(name, source, made, "--quiet"), "cat": quiet}
            return case(commands, lambda: (sum(map(held, map(Path, files))), 0))
        case "stream":
            return case(_stream(source, out, work, hub), moved)
        case "plan":
            many = work / "many"
            make_sparse(many, tensors=100_000, shards=10, nbytes=10**9)
            read = [sys.executable, "-c", READ_HEADERS, str(many)]
            planning = ("--src", many, "--out", out, "--new-layers", 4, "--dry-run", "--quiet")
            return case({OURS: run_blockexpand(*planning), "read the headers": read}, None)
        case "batch":
            jobs, small = work / "jobs.yaml", work / "small"
            make_sparse(small, tensors=1000, shards=3, nbytes=10**7)
            # JSON is YAML too.
            wishes = [
                {"src": str(small), "out": str(work / f"out-{number}"), "new-layers": 1}
                for number in range(400)
            ]
            jobs.write_text(json.dumps({"jobs": wishes}))
            one = ("--src", small, "--out", out, "--new-layers", 1, "--dry-run", "--quiet")
            batch = run_blockexpand("batch", jobs, "--dry-run", "--quiet")
            return case({OURS: batch, "one dry run": run_blockexpand(*one)}, None)
    raise ValueError(name)


def _merge(
    mergekit: str | None, source: Path, work: Path, dtype: str | None = None
) -> dict[str, list[str]]:
    if not mergekit:
        return {}
    recipe = work / "recipe.yml"
    text = render_mergekit_yaml(source, count_layers(source), 4)
    recipe.write_text(text + (f"dtype: {dtype}\n" if dtype and "dtype:" not in text else ""))
    return {"mergekit": [mergekit, str(recipe), str(work / "out")]}


def _stream(source: Path, out: Path, work: Path, hub: str | None) -> dict[str, list[str]]:
    settings = ["env", f"HF_ENDPOINT={hub}", "HF_HUB_OFFLINE=0", "HF_HUB_DISABLE_XET=1"]
    settings.append(f"HF_HOME={work / 'home'}")
    words = ("--src", "user/model", "--stream", "--out", out, "--quiet", "--new-layers", 4)
    fetch = [sys.executable, "-c", DOWNLOAD, str(out)]
    return {OURS: [*settings, *run_blockexpand(*words)], "download": [*settings, *fetch]}


def _build(folder: Path, *words: str) -> None:
    script = REPOSITORY / "scripts" / "make_checkpoint.py"
    command = [sys.executable, str(script), str(folder), *words]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit("the checkpoint could not be built")


def make_sparse(folder: Path, *, tensors: int, shards: int, nbytes: int) -> None:
    """Write a mixture of experts of about so many tensors and bytes; all weights are holes."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    layers = max(2, min(64, tensors // 30))
    experts = max(2, (tensors // layers - 9) // 3)
    hidden = 64
    inner = max(8, nbytes // (2 * hidden * 3 * experts * layers) // 8 * 8)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "moe_intermediate_size": inner,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 256,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (256, hidden),
        "model.embed_tokens.weight": (256, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        for expert in range(experts):
            for part, shape in (
                ("down", (hidden, inner)),
                ("gate", (inner, hidden)),
                ("up", (inner, hidden)),
            ):
                shapes[f"{prefix}mlp.experts.{expert}.{part}_proj.weight"] = shape
        shapes |= {
            prefix + "mlp.gate.weight": (experts, hidden),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.k_norm.weight": (16,),
            prefix + "self_attn.k_proj.weight": (32, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "self_attn.q_norm.weight": (16,),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.v_proj.weight": (32, hidden),
        }
    names = list(shapes)
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in part:
            begin, end = end, end + 2 * _product(shapes[name])
            entry = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, end]}
            header[name] = entry
        text = json.dumps(header, separators=(",", ":")).encode()
        with (folder / file).open("xb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def find_dtypes(source: Path) -> set[str]:
    """Return the dtypes of a checkpoint's tensors."""
    dtypes = set()
    for shard in weights(source):
        with shard.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        dtypes |= {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}
    return dtypes


def weights(folder: Path) -> list[Path]:
    """Return the files of a checkpoint's weights."""
    return sorted(folder.glob("*.safetensors"))


def weigh(folder: Path) -> int:
    """Return the size of a checkpoint's weights."""
    return sum(path.stat().st_size for path in weights(folder))


def held(path: Path) -> int:
    """Return how many bytes of a file are on the disk, holes left out."""
    status = path.stat()
    return min(status.st_size, 512 * status.st_blocks)
