"""Let vLLM continue a prompt greedily in float32: FOLDER. Prints tokens and log-probabilities.

One folder at a time: an engine leaves its memory behind.
"""

import json
import sys

from vllm import LLM, SamplingParams

engine = LLM(
    sys.argv[1],
    skip_tokenizer_init=True,
    dtype="float32",
    enforce_eager=True,
    max_model_len=128,
    max_num_seqs=1,
    seed=0,
)
prompt = {"prompt_token_ids": [3 + 37 * place % 300 for place in range(48)]}
wanted = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=1, detokenize=False)
(answer,) = engine.generate([prompt], wanted, use_tqdm=False)
(made,) = answer.outputs
chosen = [step[token].logprob for token, step in zip(made.token_ids, made.logprobs, strict=True)]
sys.stdout.write("\n" + json.dumps([list(made.token_ids), chosen]) + "\n")
