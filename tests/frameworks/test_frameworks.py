"""The trainers that people run, at pinned versions, with exactly the settings that are printed.

`frameworks`: needs a package index, and takes minutes. Each trains three steps on the CPU with what
`train-config` prints; a test adds only what that leaves open (data, length, output). Afterwards
every original tensor has its value, every trained one of the new blocks another, and the trained
model comes back from its extracted blocks. What was run is in docs/training.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from environments import make_python
from safetensors.torch import load_file

import blockexpand
from blockexpand.training.settings import make_settings

pytestmark = pytest.mark.frameworks

SCRIPTS = Path(__file__).parents[1] / "support" / "frameworks"

# What axolotl needs of its requirements to train on text; the others bring a torch with CUDA.
AXOLOTL = """
axolotl==0.19.0 transformers==5.16.1 huggingface_hub==1.17.0 tokenizers==0.23.1 peft==0.20.0
accelerate==1.13.0 trl==1.9.0 datasets==4.8.4 packaging==26.0 bitsandbytes==0.50.2
axolotl-contribs-lgpl==0.0.7 python-dotenv httpx httpcore fire termcolor addict multiprocess pandas
pyarrow dill xxhash posthog distro numba llvmlite fastcore triton evaluate wandb protobuf
opentelemetry-api pillow
"""

WIDTHS: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "vocab_size": 1024},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# A plain model in several files, one with a tied head, one whose experts transformers renames,
# and one whose blocks are closed by norms.
KINDS: dict[str, dict[str, Any]] = {
    "mistral": {},
    "llama": {"tie_word_embeddings": True},
    "qwen3_moe": {"norm_topk_prob": True, **EXPERTS},
    "gemma3_text": {"sliding_window": 16},
}
NEW = (3, 7)  # of 8, interleaved


class Case:
    """A source, its expansion, and data of both kinds that trainers read."""

    def __init__(self, kind: str, tokenizer: Path, folder: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self.kind, self.folder = kind, folder
        self.source, self.expanded = folder / "source", folder / "expanded"
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **WIDTHS | KINDS[kind])
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.to(torch.bfloat16).save_pretrained(self.source, max_shard_size="60KB")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tokenizer / name, self.source)
        blockexpand.expand(self.source, self.expanded, new_layers=2, position="interleaved")
        self.rows = folder / "rows.jsonl"
        talks = [
            [
                {"role": "user", "content": f"How deep is the sea at {number}?"},
                {"role": "assistant", "content": f"As deep as {number} towers, and dark."},
            ]
            for number in range(16)
        ]
        self.rows.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))

    def printed(self, framework: str) -> str:
        return make_settings(self.expanded, framework).text

    def run(self, *command: object) -> None:
        environment = {
            **os.environ,
            **{"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "WANDB_MODE": "disabled"},
            **{"HF_HOME": str(self.folder / "home"), "MODELSCOPE_OFFLINE": "1"},
            "MODELSCOPE_CACHE": str(self.folder / "home"),
            "PYTHONPATH": str(Path(blockexpand.__file__).parents[1]),
        }
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=environment,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def make_case(tiny_mistral: Path, tmp_path: Path) -> Callable[[str], Case]:
    return lambda kind: Case(kind, tiny_mistral, tmp_path)


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's values, whatever its dtype and files."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= {name: tensor.float() for name, tensor in load_file(file).items()}
    return tensors


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def rename(name: str) -> str:
    """Return the name in the expansion of a tensor of the source: two new layers among eight."""
    if (layer := layer_of(name)) is None:
        return name
    return name.replace(f".layers.{layer}.", f".layers.{layer + layer // 3}.", 1)


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        answer: torch.Tensor = model(torch.arange(3, 23).unsqueeze(0)).logits
    return answer


def check(case: Case, trained: Path, is_moved: Callable[[str], bool]) -> None:
    """The originals have their values, the new blocks others, and the blocks bring all back."""
    source, expanded, found = load(case.source), load(case.expanded), load(trained)
    originals = {rename(name): tensor for name, tensor in source.items()}
    assert not [name for name in originals if not torch.equal(originals[name], found[name])]
    blocks = [name for name in expanded if layer_of(name) in NEW]
    assert blocks and all(name in found for name in blocks)
    unmoved = [name for name in blocks if torch.equal(expanded[name], found[name])]
    assert not [name for name in unmoved if is_moved(name)]

    for base in (case.expanded, case.source):
        difference = blockexpand.diff(base, trained)
        assert not difference.lost
        others = [one.name for one in difference.tensors if one.status != "same"]
        assert {layer_of(name) for name in others} == set(NEW)

    blockexpand.extract(trained, case.folder / "blocks", base=case.source)
    blockexpand.apply(case.source, case.folder / "blocks", out=case.folder / "applied")
    applied = load(case.folder / "applied")
    kept = {name: tensor for name, tensor in found.items() if name in applied}
    assert kept.keys() == applied.keys() and found.keys() - kept.keys() <= {"lm_head.weight"}
    assert not [name for name in applied if not torch.equal(applied[name], found[name])]
    assert torch.equal(logits(case.folder / "applied"), logits(trained))


def environment(*packages: str) -> Any:
    @pytest.fixture(scope="module")
    def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_python(tmp_path_factory.mktemp("environment") / "python", *packages)

    return python


transformers_python = environment("transformers==5.23.0", "accelerate==1.15.0")
peft_python = environment("transformers==5.23.0", "accelerate==1.15.0", "peft==0.21.2")
trl_python = environment("transformers==5.23.0", "accelerate==1.15.0", "trl==1.16.0")
ms_swift_python = environment("ms-swift==4.6.0")


def run_printed(case: Case, framework: str, python: Path) -> Path:
    (case.folder / "printed.py").write_text(case.printed(framework))
    case.run(python, SCRIPTS / "run_printed.py", "printed.py", case.rows, case.expanded)
    return case.folder / "trained"


@pytest.mark.parametrize("kind", KINDS)
def test_transformers(
    kind: str, transformers_python: Path, make_case: Callable[[str], Case]
) -> None:
    case = make_case(kind)
    check(case, run_printed(case, "transformers", transformers_python), is_trained(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_trl(kind: str, trl_python: Path, make_case: Callable[[str], Case]) -> None:
    case = make_case(kind)
    check(case, run_printed(case, "trl", trl_python), is_trained(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_peft(kind: str, peft_python: Path, make_case: Callable[[str], Case]) -> None:
    case = make_case(kind)
    check(case, run_printed(case, "peft", peft_python), is_closing(kind))


@pytest.fixture(scope="module")
def llamafactory_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment") / "python"
    python = make_python(folder, "llamafactory==0.9.5", f"torch=={torch.__version__.split('+')[0]}")
    # Pictures need the first. The second is imported by all, and its libraries want CUDA: without
    # them it is what it is in Python, and no text needs more.
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "torchvision"], check=True)
    for library in folder.glob("lib/*/site-packages/torchaudio/lib/*.so"):
        library.unlink()
    return python


@pytest.mark.parametrize("kind", KINDS)
def test_llamafactory(
    kind: str, llamafactory_python: Path, make_case: Callable[[str], Case]
) -> None:
    case = make_case(kind)
    columns = {"formatting": "sharegpt", "columns": {"messages": "messages"}}
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {"user_tag": "user", "assistant_tag": "assistant"}
    described = {"rows": {"file_name": case.rows.name, "tags": tags, **columns}}
    (case.folder / "dataset_info.json").write_text(json.dumps(described))
    added = {
        **{"stage": "sft", "do_train": True, "dataset": "rows", "dataset_dir": "."},
        **{"template": "default", "output_dir": "trained", "max_steps": 3, "report_to": "none"},
        **{"per_device_train_batch_size": 2, "use_cpu": True},
    }
    path = case.folder / "settings.yaml"
    path.write_text(case.printed("llamafactory") + "\n" + yaml.safe_dump(added))
    case.run(llamafactory_python, "-m", "llamafactory.cli", "train", path)
    check(case, case.folder / "trained", is_trained(kind))


@pytest.fixture(scope="module")
def axolotl_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment") / "python"
    return make_python(folder, *AXOLOTL.split(), alone=True)


@pytest.mark.parametrize("kind", KINDS)
def test_axolotl(kind: str, axolotl_python: Path, make_case: Callable[[str], Case]) -> None:
    case = make_case(kind)
    data = {"path": case.rows.name, "ds_type": "json", "type": "chat_template"}
    added = {
        **{"datasets": [data], "output_dir": "trained", "max_steps": 3, "sequence_len": 64},
        **{"micro_batch_size": 2, "gradient_accumulation_steps": 1},
    }
    path = case.folder / "settings.yaml"
    path.write_text(case.printed("axolotl") + "\n" + yaml.safe_dump(added))
    case.run(axolotl_python, "-m", "axolotl.cli.train", path)
    check(case, case.folder / "trained", is_trained(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_ms_swift(kind: str, ms_swift_python: Path, make_case: Callable[[str], Case]) -> None:
    case = make_case(kind)
    added = (
        f" --dataset {case.rows} --output_dir trained --max_steps 3 --report_to none --use_cpu true"
        f" --per_device_train_batch_size 2 --max_length 64 --template dummy --model_type {kind}"
    )
    path = case.folder / "train.sh"
    path.write_text(
        f"export PATH={ms_swift_python.parent}:$PATH\n{case.printed('ms-swift')}{added}"
    )
    case.run("bash", "-e", path)
    (trained,) = (case.folder / "trained").glob("*/checkpoint-3")
    check(case, trained, is_trained(kind))


def is_trained(kind: str) -> Callable[[str], bool]:
    """Tell what moves within three steps: of experts only those that a token was sent to."""
    return lambda name: kind != "qwen3_moe" or ".experts." not in name


def is_closing(kind: str) -> Callable[[str], bool]:
    """Tell what closes a new block: of LoRA that moves first."""
    ends = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    if kind == "gemma3_text":
        ends = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    return lambda name: name.endswith(ends)
