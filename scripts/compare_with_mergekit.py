"""Compare an expanded checkpoint with what mergekit makes of the same source.

    python -m blockexpand --src SRC --out OUT --new-layers 4 --position end
    python scripts/compare_with_mergekit.py SRC OUT --mergekit /path/to/mergekit-yaml

    python -m blockexpand --recipe FILE --out OUT
    python scripts/compare_with_mergekit.py SRC OUT --recipe FILE --mergekit /path/to/mergekit-yaml

mergekit is given the recipe; without one, the YAML of a block expansion: all layers, then the last
layer once more for each new one, with `o_proj` and `down_proj` scaled by zero. Names, dtypes,
shapes and bytes have to be the same. What is scaled by zero has to be equal by value only: a
negative number times 0.0 is -0.0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

ZEROED = ("self_attn.o_proj.", "mlp.down_proj.")


def count_layers(checkpoint: Path) -> int:
    """Return the number of layers that the config states."""
    return int(json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"])


def render_mergekit_yaml(source: Path, layers: int, new_layers: int) -> str:
    """Write the passthrough merge that appends `new_layers` zeroed clones of the last layer."""
    model = json.dumps(str(source.resolve()))
    new = f"""\
- sources:
  - model: {model}
    layer_range: [{layers - 1}, {layers}]
    parameters:
      scale:
      - filter: o_proj
        value: 0.0
      - filter: down_proj
        value: 0.0
      - value: 1.0
"""
    return f"""\
slices:
- sources:
  - model: {model}
    layer_range: [0, {layers}]
{new * new_layers}merge_method: passthrough
dtype: bfloat16
"""


def run_mergekit(mergekit: str, text: str, out: Path) -> None:
    """Let mergekit write into `out`. Raises: SystemExit with its last words when it fails."""
    recipe = out.with_suffix(".yml")
    recipe.write_text(text)
    done = subprocess.run(
        [mergekit, str(recipe), str(out)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-2000:]}\n{mergekit} failed with status {done.returncode}")


def compare(ours: Path, theirs: Path, first_new_layer: int | None) -> list[str]:
    """Return every difference between two checkpoints, a line each; none is what is hoped for.

    Only the tensors that are zeroed in the layers from `first_new_layer` on are compared by value;
    without it, those in which mergekit left no other number than zero.
    """
    import torch
    from safetensors import safe_open

    differences = []
    if count_layers(ours) != count_layers(theirs):
        differences.append(
            f"num_hidden_layers: {count_layers(ours)} against {count_layers(theirs)}"
        )
    with ExitStack() as stack:
        tensors = []
        for folder in (ours, theirs):
            shards = {}
            for file in sorted(folder.glob("*.safetensors")):
                shard = stack.enter_context(safe_open(file, "pt"))
                shards |= dict.fromkeys(shard.keys(), shard)
            tensors.append(shards)
        for name in sorted(tensors[0].keys() ^ tensors[1].keys()):
            differences.append(f"{name}: only in {ours if name in tensors[0] else theirs}")
        for name in sorted(tensors[0].keys() & tensors[1].keys()):
            a, b = (shards[name].get_tensor(name) for shards in tensors)
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                differences.append(
                    f"{name}: {a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}"
                )
            elif is_zeroed(name, first_new_layer) if first_new_layer is not None else not b.any():
                if a.view(torch.uint8).any():
                    differences.append(f"{name}: ours is not all +0")
                elif b.any():
                    differences.append(f"{name}: mergekit's is not zero")
            elif not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
                differences.append(f"{name}: the bytes differ")
    if not tensors[0]:
        differences.append(f"{ours}: no tensors")
    return differences


def is_zeroed(name: str, first_new_layer: int) -> bool:
    """Tell whether the tensor is an output projection of a new layer."""
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return layer.isdecimal() and int(layer) >= first_new_layer and rest.startswith(ZEROED)


def main() -> int:
    """Read the command line, run mergekit, compare and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("out", type=Path, metavar="OUT", help="what blockexpand made of SRC")
    parser.add_argument(
        "--mergekit", default=shutil.which("mergekit-yaml"), metavar="MERGEKIT_YAML"
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="what OUT was made from")
    options = parser.parse_args()
    if options.mergekit is None:
        parser.error("mergekit-yaml is not on the PATH: give --mergekit PATH")
    layers = count_layers(options.source)
    new_layers = count_layers(options.out) - layers
    if new_layers < 1 and options.recipe is None:
        parser.error(f"{options.out}: expected more than the {layers} layers of {options.source}")
    with tempfile.TemporaryDirectory(dir=options.out.resolve().parent) as work:
        theirs = Path(work) / "mergekit"
        if options.recipe is None:
            text = render_mergekit_yaml(options.source, layers, new_layers)
        else:
            text = options.recipe.read_text()
        run_mergekit(options.mergekit, text, theirs)
        differences = compare(options.out, theirs, None if options.recipe else layers)
    for line in differences[:20]:
        print(line)
    if differences:
        print(f"{options.out}: differs from mergekit's result in {len(differences)} places")
        return 1
    print(f"{options.out}: the same tensors as mergekit's, {new_layers:+} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
