"""Outputs in the readers that people run, each at a pinned version in an environment of its own.

`clients`: needs a package index, and takes minutes. The source is made by that version itself, so
that it reads its own source right; the output must compute the same there, bit for bit, wherever
the plan says that this reader sees the same function, and nothing else where it says that not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import blockexpand

pytestmark = pytest.mark.clients

MAKE = """
import sys, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, vocab_size=96, max_position_embeddings=128,
             sliding_window=6, pad_token_id=0, bos_token_id=1, eos_token_id=2)
extra = {"cohere2": {"sliding_window_pattern": 4}, "gemma3_text": {"sliding_window_pattern": 6}}
config = AutoConfig.for_model(sys.argv[1], **shape, **extra.get(sys.argv[1], {}))
model = AutoModelForCausalLM.from_config(config)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
model.to(torch.bfloat16).save_pretrained(sys.argv[2])
"""

COMPARE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
ids = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(1))
found = []
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        found.append(model(input_ids=ids).logits)
print(json.dumps([bool(torch.equal(found[0], other)) for other in found[1:]]))
"""


@pytest.fixture(scope="module", params=["4.51.3", "4.57.6"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with another release of transformers, and everything else as it is here."""
    folder = tmp_path_factory.mktemp("client") / request.param
    venv.create(folder, with_pip=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    here = [path for path in sys.path if path.endswith("site-packages")]
    (own / "here.pth").write_text("\n".join(here))
    program = folder / "bin" / "python"
    package = f"transformers=={request.param}"
    subprocess.run([program, "-m", "pip", "install", "-q", package], check=True)
    return program


def run(python: Path, script: str, *words: str) -> str:
    done = subprocess.run([python, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "cohere2"])
def test_an_older_transformers_sees_what_the_plan_says(
    model_type: str, python: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    run(python, MAKE, model_type, str(source))
    expected = []
    outs = []
    for position in ("end", "interleaved"):
        for phase in (None, "keep"):
            out = tmp_path / f"{position}-{phase}"
            made = blockexpand.expand(
                source, out, new_layers=2, position=position, phase=phase, dtype="source"
            )
            views = [view for view in made.plan.readers if view.reader == "transformers"]
            is_old = python.parent.parent.name < "4.53"
            expected.append(all(view.same_function for view in views) or not is_old)
            outs.append(str(out))
    assert json.loads(run(python, COMPARE, str(source), *outs).splitlines()[-1]) == expected
    assert expected[1] and expected[3]
