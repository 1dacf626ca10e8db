"""Let an older release of transformers compute a prompt and continue it greedily: FOLDERS.

Prints the tokens, and a digest of the bytes of all log-probabilities, in float32.
"""

import hashlib
import json
import sys

import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
ids = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(1))


def run(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        chances = model(input_ids=ids).logits.log_softmax(-1)
        tokens = model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False)
    return [tokens.tolist(), hashlib.sha256(chances.numpy().tobytes()).hexdigest()]


sys.stdout.write("\n" + json.dumps([run(folder) for folder in sys.argv[1:]]) + "\n")
