"""Make a real checkpoint with random weights: the architecture, the files and the tokenizer that
`transformers` writes.

    python scripts/make_checkpoint.py demo/source
    python scripts/make_checkpoint.py /data/7b --shape mistral-7b
    python scripts/make_checkpoint.py /data/fp8 --shape qwen3-8b-fp8

Small shapes are written by `transformers` itself. Shapes of more than 1 GB, and those in FP8, are
streamed in the same layout, so that memory stays flat. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

LICENSE = Path(__file__).resolve().parent.parent / "LICENSE"
STREAM_ABOVE_NBYTES = 1_000_000_000
SAFETENSORS_DTYPES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float8_e4m3fn": "F8_E4M3",
}
DTYPES = ("bfloat16", "float16", "float32")
FP8_BLOCK = 128
# Of values around 0 with a deviation of 1, which are seldom more than 4.
FP8_SCALE = 4 / 448


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model size; `config` holds the fields in which `transformers`' defaults differ.

    With `fp8` the projections are quantised in blocks of 128 x 128, with scales in bfloat16.
    """

    model_type: str
    shards: int
    config: Mapping[str, Any]
    fp8: bool = False


class Stored(NamedTuple):
    """A tensor as it is streamed: its dtype by torch's name, its shape, the mean of its values."""

    dtype: str
    shape: tuple[int, ...]
    mean: float

    @property
    def nbytes(self) -> int:
        """Its size."""
        import torch

        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


SHAPES = {
    "tiny": Shape(
        model_type="mistral",
        shards=3,
        config={
            "num_hidden_layers": 4,
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "sliding_window": None,
        },
    ),
    "demo": Shape(
        model_type="mistral",
        shards=4,
        config={
            "num_hidden_layers": 32,
            "hidden_size": 256,
            "intermediate_size": 896,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "sliding_window": None,
        },
    ),
    # openchat/openchat-3.5-0106
    "mistral-7b": Shape(
        model_type="mistral",
        shards=3,
        config={
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
            "vocab_size": 32002,
        },
    ),
    # Qwen/Qwen2.5-7B: biases, and tensor sizes that are no multiple of a disk block
    "qwen2.5-7b": Shape(
        model_type="qwen2",
        shards=4,
        config={
            "num_hidden_layers": 28,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131072,
            "max_window_layers": 28,
            "vocab_size": 152064,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    ),
    # Qwen/Qwen3-8B-FP8
    "qwen3-8b-fp8": Shape(
        model_type="qwen3",
        shards=2,
        fp8=True,
        config={
            "num_hidden_layers": 36,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "max_window_layers": 36,
            "vocab_size": 151936,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    ),
}

CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{{ message['role'] | capitalize }}: {{ message['content'] }}<|end_of_turn|>\
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""

CARD = """\
---
license: apache-2.0
language:
- en
library_name: transformers
pipeline_tag: text-generation
tags:
- random-weights
---

# {title}

A {model_type} model of {layers} layers with random weights, for trying tools on. It knows nothing.
"""


def make_checkpoint(
    out: Path,
    *,
    shape: str = "demo",
    dtype: str = "bfloat16",
    layers: int | None = None,
    shards: int | None = None,
    seed: int = 0,
) -> None:
    """Write a checkpoint into `out`, which must be empty or absent.

    `layers` and `shards` replace those of the shape; a tensor is never cut, so that there may be
    fewer shards.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from blockexpand.models.loading import dtype_argument

    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out}: the folder is not empty; expected an empty or a new one")
    out.mkdir(parents=True, exist_ok=True)
    row = SHAPES[shape]
    tokenizer = train_tokenizer()
    fields = {"vocab_size": len(tokenizer)} | dict(row.config)
    if layers is not None:
        fields["num_hidden_layers"] = layers
    config = AutoConfig.for_model(
        row.model_type,
        **fields,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        **dtype_argument(dtype),
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = store(shapes, dtype, fp8=row.fp8)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    parts = split_evenly(sizes, shards or row.shards)
    if shutil.disk_usage(out).free < sum(sizes.values()):
        raise SystemExit(f"{out}: the disk has no room for {sum(sizes.values()) / 1e9:.3g} GB")

    if row.fp8 or sum(sizes.values()) > STREAM_ABOVE_NBYTES:
        config.architectures = [type(model).__name__]
        config.save_pretrained(out)
        GenerationConfig.from_model_config(config).save_pretrained(out)
        stream_weights(out, tensors, parts, std=config.hidden_size**-0.5, seed=seed)
    else:
        model = AutoModelForCausalLM.from_config(config, **dtype_argument(dtype))
        randomise(model, std=config.hidden_size**-0.5, seed=seed)
        model.save_pretrained(
            out, max_shard_size=max(sum(sizes[name] for name in part) for part in parts)
        )
    if row.fp8:
        quantized = {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        }
        text = json.loads((out / "config.json").read_text())
        text["quantization_config"] = quantized
        (out / "config.json").write_text(json.dumps(text, indent=2) + "\n")
    tokenizer.save_pretrained(out)
    shutil.copyfile(LICENSE, out / "LICENSE")
    (out / "README.md").write_text(
        CARD.format(title=shape, model_type=row.model_type, layers=config.num_hidden_layers)
    )


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of about a thousand tokens on this repository's licence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<unk>", "<s>", "</s>", "<|end_of_turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(LICENSE.read_text().splitlines(), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|end_of_turn|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def randomise(model: torch.nn.Module, *, std: float, seed: int) -> None:
    """Fill every parameter, norms and biases too: a constant one would hide a mix-up."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=mean_of(name), std=std, generator=generator)


def mean_of(name: str) -> float:
    """Return what the values of a parameter lie around: norm weights scale, all others add up."""
    return 1.0 if name.endswith("norm.weight") else 0.0


def store(shapes: Mapping[str, tuple[int, ...]], dtype: str, *, fp8: bool) -> dict[str, Stored]:
    """Return how each tensor is stored; in FP8, with the scales of its blocks beside it."""
    tensors = {}
    for name, shape in shapes.items():
        if fp8 and name.endswith("_proj.weight"):
            grid = tuple(-(-length // FP8_BLOCK) for length in shape)
            tensors[name] = Stored("float8_e4m3fn", shape, 0.0)
            tensors[f"{name}_scale_inv"] = Stored("bfloat16", grid, FP8_SCALE)
        else:
            tensors[name] = Stored(dtype, shape, mean_of(name))
    return tensors


def split_evenly(sizes: Mapping[str, int], shards: int) -> list[list[str]]:
    """Pack the tensors in order into at most `shards` parts, the largest as small as possible."""
    low, high = max(sizes.values()), sum(sizes.values())
    while low < high:
        middle = (low + high) // 2
        if len(pack(sizes, middle)) <= shards:
            high = middle
        else:
            low = middle + 1
    return pack(sizes, low)


def pack(sizes: Mapping[str, int], max_nbytes: int) -> list[list[str]]:
    """Pack the tensors in order, as `save_pretrained(max_shard_size=max_nbytes)` does."""
    parts: list[list[str]] = []
    room = -1
    for name, nbytes in sizes.items():
        if nbytes > room:
            parts.append([])
            room = max_nbytes
        parts[-1].append(name)
        room -= nbytes
    return parts


def stream_weights(
    out: Path,
    tensors: Mapping[str, Stored],
    parts: list[list[str]],
    *,
    std: float,
    seed: int,
) -> None:
    """Write shards and index tensor by tensor, from one tile of random values used over and over.

    Source: the safetensors format; tensors of a shard lie in the order of their names, as its
    own writer has it.
    """
    import torch

    # A prime number of values: equal tensors do not repeat at the same place in the tile.
    tile = torch.empty(4_194_301).normal_(std=std, generator=torch.Generator().manual_seed(seed))
    tiles: dict[tuple[str, float], memoryview] = {}
    for stored in tensors.values():
        key = stored.dtype, stored.mean
        if key not in tiles:
            values = tile + stored.mean
            if stored.dtype == "float8_e4m3fn":
                values = tile / std / FP8_SCALE
            elif stored.mean == FP8_SCALE:
                values = FP8_SCALE * std * (1 + tile.abs())
            tiles[key] = as_bytes(values.to(getattr(torch, stored.dtype)))
    weight_map: dict[str, str] = {}
    total_nbytes = position = 0
    for number, part in enumerate(parts, 1):
        file = "model.safetensors"
        if len(parts) > 1:
            file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in sorted(part):
            start, end = end, end + tensors[name].nbytes
            header[name] = {
                "dtype": SAFETENSORS_DTYPES[tensors[name].dtype],
                "shape": tensors[name].shape,
                "data_offsets": [start, end],
            }
            weight_map[name] = file
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (out / file).open("wb", buffering=0) as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in sorted(part):
                stored = tensors[name]
                for piece in cut(tiles[stored.dtype, stored.mean], position, stored.nbytes):
                    stream.write(piece)
                position += stored.nbytes
        total_nbytes += end
    if len(parts) > 1:
        count = sum(math.prod(tensor.shape) for tensor in tensors.values())
        metadata = {"total_parameters": count, "total_size": total_nbytes}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the tensor's own memory as bytes."""
    import torch

    return memoryview(tensor.view(torch.uint8).numpy())


def cut(tile: memoryview, position: int, nbytes: int) -> Iterator[memoryview]:
    """Yield `nbytes` bytes of the endlessly repeated tile, from `position` on."""
    while nbytes:
        start = position % len(tile)
        piece = tile[start : start + nbytes]
        yield piece
        position += len(piece)
        nbytes -= len(piece)


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--shape", choices=SHAPES, default="demo", help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--layers", type=int, metavar="N", help="fewer (or more) layers")
    parser.add_argument("--shards", type=int, metavar="N", help="at most N files of weights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    from transformers.utils import logging

    logging.disable_progress_bar()
    make_checkpoint(**vars(options))
    nbytes = sum(file.stat().st_size for file in options.out.glob("*.safetensors"))
    kind = "FP8" if SHAPES[options.shape].fp8 else options.dtype
    print(f"{options.out}: {options.shape}, {nbytes / 1e9:.3g} GB of {kind} weights")


if __name__ == "__main__":
    main()
