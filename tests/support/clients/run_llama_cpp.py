"""Let llama.cpp continue a prompt greedily: FOLDERS.gguf. Prints tokens and log-probabilities."""

import json
import sys

import xllamacpp


def run(path):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.cpuparams.n_threads = 1
    parameters.sampling.temp = 0.0
    server = xllamacpp.Server(parameters)
    prompt = [3 + 37 * place % 300 for place in range(48)]
    answer = server.handle_completions(
        {"prompt": prompt, "max_tokens": 16, "temperature": 0, "logprobs": 5, "ignore_eos": True}
    )
    steps = answer["choices"][0]["logprobs"]["content"]
    return [[step["id"] for step in steps], [step["logprob"] for step in steps]]


sys.stdout.write(json.dumps([run(path) for path in sys.argv[1:]]))
