"""Generate greedily, with the cache, from two checkpoints, and fail unless the tokens are the same.

python scripts/compare_generation.py demo/source demo/expanded
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def generate(checkpoint: Path, prompt: str, new_tokens: int) -> tuple[str, list[int], int]:
    """Answer the prompt; return the answer's text and token ids, and the number of layers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, use_cache=True)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    return tokenizer.decode(ids), ids, model.config.num_hidden_layers


def main() -> int:
    """Read the command line, generate twice, print and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("expanded", type=Path)
    parser.add_argument("--prompt", default="What is the capital of France?")
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args()

    from transformers.utils import logging

    logging.disable_progress_bar()
    answers = []
    for checkpoint in (options.source, options.expanded):
        text, ids, layers = generate(checkpoint, options.prompt, options.new_tokens)
        print(f"{checkpoint} ({layers} layers): {text!r}")
        answers.append(ids)
    if answers[0] != answers[1]:
        print("the generated tokens differ", file=sys.stderr)
        return 1
    print(f"the same {len(answers[0])} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
