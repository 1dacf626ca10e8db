"""Train the new blocks of an expansion on a text file, and prove that nothing else changed.

    python scripts/train_new_blocks.py demo/expanded tests/data/king_james.txt --out demo/trained

A run of `transformers.Trainer` as LLaMA Pro has it: everything but the new blocks is frozen. They
are trained in float32 whatever the model's dtype, and stored in that dtype again. It runs on the
GPU if there is one. Exit status 1 if the loss did not fall, or an original tensor is not there
bit for bit.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

import blockexpand
from blockexpand.cli.text_difference import describe_difference

MANIFEST = "block_expansion.json"
EVALUATED = 64  # examples at most, spread over the text


def cut_text(tokenizer: Any, text: str, length: int) -> list[dict[str, list[int]]]:
    """Return the text as examples of `length` tokens each; a shorter rest is left out."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not pieces:
        raise SystemExit(f"the text has {len(ids)} tokens; expected at least {length} (--length)")
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def upcast(model: torch.nn.Module, names: tuple[str, ...]) -> Mapping[str, torch.dtype]:
    """Make parameters float32, so that small steps are not rounded away; return what they were."""
    import torch

    chosen = {name: model.get_parameter(name) for name in names}
    before = {name: parameter.dtype for name, parameter in chosen.items()}
    for parameter in chosen.values():
        parameter.data = parameter.data.to(torch.float32)
    return before


def train(options: argparse.Namespace) -> tuple[float, float]:
    """Train and save; return the mean loss on the text before and after."""
    import torch
    from transformers import (
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    from blockexpand.models.loading import load_model

    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model, _ = load_model(options.model, stored_dtype(options.model))
    trainable = blockexpand.freeze_original_layers(model, options.model)
    count = sum(model.get_parameter(name).numel() for name in trainable)
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"training {len(trainable)} parameters of the new blocks: {count:,} of {total:,} values")
    on_gpu = torch.cuda.is_available()
    # A CPU is slow in 16 bits, so there the frozen layers are widened too; the way back is exact.
    dtypes = upcast(
        model, trainable if on_gpu else tuple(name for name, _ in model.named_parameters())
    )
    examples = cut_text(tokenizer, options.text.read_text(encoding="utf-8"), options.length)
    arguments = TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.06 * options.steps)),
        # Weight decay would open a closing norm that is -1 in a new block; the paper has 0.1.
        weight_decay=0.0,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        logging_steps=max(1, options.steps // 10),
        save_strategy="no",
        report_to="none",
        seed=options.seed,
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=examples[:: -(-len(examples) // EVALUATED)],
        data_collator=default_data_collator,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    model = trainer.accelerator.unwrap_model(trainer.model)
    for name, dtype in dtypes.items():
        model.get_parameter(name).data = model.get_parameter(name).data.to(dtype)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    # Later runs, and diff, learn from it which layers are new.
    shutil.copyfile(options.model / MANIFEST, options.out / MANIFEST)
    return before, after


def stored_dtype(folder: Path) -> str:
    """Return the dtype that the checkpoint's config names."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(folder).get_text_config().dtype
    return str(dtype or "float32").removeprefix("torch.")


def main() -> int:
    """Read the command line, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="an expansion's folder")
    parser.add_argument("text", type=Path, metavar="TEXT", help="a plain text file, UTF-8")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--base", type=Path, metavar="BASE_DIR", help="compare with this source too"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8, help="examples a step and device")
    parser.add_argument("--length", type=int, default=128, help="tokens an example")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="default: the paper's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty")

    from transformers.utils import logging

    logging.disable_progress_bar()
    before, after = train(options)
    print(f"mean loss on the text: {before:.4f} before, {after:.4f} after {options.steps} steps")
    failures = [] if after < before else ["the loss did not fall"]
    for base in filter(None, (options.model, options.base)):
        difference = blockexpand.diff(base, options.out)
        print(f"\nblockexpand diff {base} {options.out}")
        print(describe_difference(difference, verbose=False))
        if difference.lost:
            failures.append(f"{len(difference.lost)} original tensors are not as in {base}")
    if failures:
        print("; ".join(failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except blockexpand.BlockExpandError as error:
        sys.exit(str(error))
