"""What people type by habit or by mistake, and the advice that they get for it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import mistral_tensors, write_checkpoint

import blockexpand
from blockexpand.cli.app import main

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Work in a folder with `model`, a Mistral of 36 layers, where no Hub can be reached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_checkpoint(tmp_path / "model", [mistral_tensors(36)])

    def run(words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main([*shlex.split(words)])
        return status, *capfd.readouterr()

    return run


def test_a_mistyped_folder_is_said_to_be_none(run: Run) -> None:
    for name in ("modle", "models/qwen3"):
        status, _, err = run(f"--src {name} --out x --new-layers 1")
        assert status == 3
        assert f"nor is there a folder {name} here" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "--src model --out x --new-layers 1 --revision v2",
        "--src model --out x --new-layers 1 --revision v2 --dry-run",
        "verify model model --revision v2",
        "diff model model --revision v2",
        "show model --revision v2",
        "suggest model --revision v2",
    ],
)
def test_a_revision_of_a_folder_is_refused(words: str, run: Run) -> None:
    status, out, err = run(words)
    assert (status, out) == (2, "") or "block_expansion.json" in err
    if words.startswith("verify"):
        return
    assert "--revision: v2 is for a repository of the Hub, and model is a folder here" in err


@pytest.mark.parametrize("words", ["show model", "suggest model", "diff model model"])
def test_options_without_effect_are_noted(words: str, run: Run) -> None:
    status, _, err = run(f"{words} --cache-dir x --token hf_secret")
    assert status == 0
    assert "note: --cache-dir has no effect: model is a folder here" in err
    assert "note: --token has no effect: model is a folder here" in err
    assert "secret" not in err
    assert "note:" not in run(f"{words} --cache-dir x -q")[2] + run(words)[2]


def test_recipes_jobs_files_and_dangling_links_are_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text("merge_method: passthrough\nslices: []\n")
    (tmp_path / "jobs.yml").write_text("jobs: [{src: model, new-layers: 1, out: x}]\n")
    (tmp_path / "link").symlink_to("gone")
    for words, said in (
        ("batch recipe.yml", "not a jobs file: `blockexpand merge recipe.yml --out OUT`"),
        ("merge jobs.yml --out x", "is a jobs file, not a recipe: `blockexpand batch jobs.yml`"),
        ("--src link --out x --new-layers 1", "link: is a link to gone, which is not there"),
        ("verify model link", "link: is a link to gone, which is not there"),
        ("show link", "link: is a link to gone, which is not there"),
    ):
        _, _, err = run(words)
        assert said in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["q", "v", "V", "h"])
def test_a_folder_may_be_called_as_an_option_without_its_hyphen(name: str, run: Run) -> None:
    assert run(f"--src model --out {name} --new-layers 1 --progress none")[0] == 0
    assert run(f"verify model {name} --progress none")[0] == 0


def test_gguf_files_are_named_with_the_way_to_go(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "config.json").write_text("{}")
    (tmp_path / "gguf" / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    for src in ("./gguf", "./gguf/model-Q4_K_M.gguf"):
        status, _, err = run(f"--src {src} --out x --new-layers 1")
        assert status == 3
        assert "GGUF files, which cannot be expanded" in err and "convert_hf_to_gguf.py" in err


@pytest.mark.parametrize(
    "words",
    [
        "--src odd --out x --new-layers 1",
        "suggest odd",
        "rank odd text.txt",
        "extract grown --base odd --out x",
        "extract odd --base model --out x",
        "apply odd blocks --out x",
    ],
)
def test_a_model_that_is_refused_is_named(words: str, run: Run, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "odd", [mistral_tensors(36)], {"head_counts": [4] * 36})
    (tmp_path / "text.txt").write_text("a text")
    assert run("--src model --out grown --new-layers 1")[0] == 0
    assert run("extract grown --base model --out blocks")[0] == 0
    status, _, err = run(f"{words} -q")
    assert status == 3 and err.count("\n") == 1
    assert "odd: " in err and "'head_counts' seems to hold one value per layer" in err


def test_uneven_groups_end_in_the_counts_that_make_equal_ones(run: Run) -> None:
    """Qwen3-8B has 36 layers, and the paper added 8 blocks."""
    said = "4, 6, 9 or 12 new layers make equal groups"
    assert said in run("--src model --out x --new-layers 8 --position interleaved")[1]
    status, _, err = run("train-config x --framework llamafactory")
    assert status == 3 and said in err


def test_a_batch_tells_notes_once_and_fits_into_80_columns(run: Run, tmp_path: Path) -> None:
    folder = "a-folder-with-quite-a-long-name/and-another-one"
    jobs = {
        "matrix": {
            "src": "model",
            "new-layers": [7, 8],
            "position": "interleaved",
            "out": f"{folder}/{{model}}-{{layers}}L-{{position}}",
        }
    }
    (tmp_path / "jobs.yaml").write_text(json.dumps(jobs))
    for option in ("--dry-run", ""):
        status, out, _ = run(f"batch jobs.yaml {option}")
        table = [line for line in out.splitlines() if "interleaved  " in line]
        assert status == 0 and len(table) == 2
        assert max(map(len, table)) <= 80
        assert out.count("make equal groups") >= 1


def test_json_says_which_release_made_it_and_how_long_it_took(run: Run) -> None:
    for words in ("--src model --out x --new-layers 1", "verify model x", "diff model x", "show x"):
        found = json.loads(run(f"{words} --json")[1])
        assert found["blockexpand"] == blockexpand.__version__
        assert 0 <= found["seconds"] < 120
        assert found["schema_version"] >= 1
