"""Convert to CTranslate2 and let it continue a prompt greedily in float32: FOLDERS.

Prints tokens and their log-probabilities. A toy has no tokenizer: its tokens get names.
"""

import json
import sys
import tempfile
from pathlib import Path

import ctranslate2
import numpy as np
from ctranslate2.converters import TransformersConverter

PROMPT = [f"<{3 + 37 * place % 300}>" for place in range(48)]


def name_tokens(folder):
    size = json.loads(Path(folder, "config.json").read_text())["vocab_size"]
    model = {"type": "WordLevel", "vocab": {f"<{n}>": n for n in range(size)}, "unk_token": "<0>"}
    Path(folder, "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    )
    special = {"unk_token": "<0>", "bos_token": "<1>", "eos_token": "<2>", "pad_token": "<0>"}
    Path(folder, "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special})
    )


def run(folder):
    name_tokens(folder)
    with tempfile.TemporaryDirectory() as made:
        TransformersConverter(folder).convert(made, quantization="float32", force=True)
        generator = ctranslate2.Generator(made, intra_threads=1, compute_type="float32")
        (answer,) = generator.generate_batch(
            [PROMPT],
            max_length=16,
            sampling_topk=1,
            end_token=[],
            include_prompt_in_result=False,
            return_logits_vocab=True,
        )
        (tokens,) = answer.sequences_ids
        logits = np.array([np.array(step) for step in answer.logits[0]], dtype=np.float64)
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [tokens, [float(step[token]) for step, token in zip(chances, tokens, strict=True)]]


sys.stdout.write(json.dumps([run(folder) for folder in sys.argv[1:]]))
