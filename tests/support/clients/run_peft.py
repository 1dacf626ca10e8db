"""Run the program that train-config printed, train with it, merge: PROGRAM.py SOURCE TRAINED.

The program is run as printed, in float32. Prints whether the adapted model computes what the source
does before a step is made, the first and last loss, and how far the merged model's logits are from
the adapted one's.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

program, source, trained = sys.argv[1:]
ids = torch.tensor([[3 + 37 * place % 300 for place in range(48)]])


def compute(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


expected = compute(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32))
names = {}
exec(Path(program).read_text().replace('dtype="auto"', "dtype='float32'"), names)
model = names["model"]
same = torch.equal(compute(model), expected)
wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(wanted, lr=0.01)
losses = []
model.train()
for _step in range(8):
    loss = model(input_ids=ids, labels=ids).loss
    losses.append(float(loss.detach()))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
adapted = compute(model)
merged = model.merge_and_unload()
apart = float((compute(merged) - adapted).abs().max())
merged.save_pretrained(trained)
sys.stdout.write("\n" + json.dumps([same, losses[0], losses[-1], apart]) + "\n")
