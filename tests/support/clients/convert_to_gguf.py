"""Run llama.cpp's converter as it is, but for the vocabulary: FOLDER OUT.gguf, in float32.

A toy has no tokenizer: its tokens get names. Tensors and hyperparameters are the converter's own.
"""

import json
import sys
from pathlib import Path

import convert_hf_to_gguf as converter


def name_tokens(model, *arguments, **options):
    size = model.hparams["vocab_size"]
    writer = model.gguf_writer
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{number}>".encode() for number in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([3, 3, 3] + [1] * (size - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


folder, out = sys.argv[1:]
sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", out, "--outtype", "f32"]
find_class = converter.get_model_class


def find_and_name(*arguments, **options):
    found = find_class(*arguments, **options)
    found.set_vocab = name_tokens
    return found


# Gemma's rows beyond the tokenizer's vocabulary are cut off.
vocabulary = json.loads(Path(folder, "config.json").read_text())["vocab_size"]
named = {"model": {"vocab": {f"<{n}>": n for n in range(vocabulary)}}, "added_tokens": []}
Path(folder, "tokenizer.json").write_text(json.dumps(named))
converter.get_model_class = find_and_name
converter.main()
assert Path(out).is_file()
