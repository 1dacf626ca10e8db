"""The pages under docs/ say nothing that is not so: keys, names and snippets are tried."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import blockexpand
from blockexpand.cli.app import main
from blockexpand.planning.mergekit import parsing

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"


def code_words(page: str) -> set[str]:
    """Return all that a page sets as code, words of one span one by one."""
    spans = re.findall(r"`([^`\n]+)`", (DOCS / page).read_text())
    return {word for span in spans for word in re.findall(r"[\w<>]+", span)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.timeout(300)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="its releases of today need Python 3.11")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    command += ["-f", str(DOCS / "site" / "mkdocs.yml"), "-d", str(tmp_path / "site")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    assert 'id="blockexpand.expand"' in page and "Raises: BlockExpandError" in page
    assert not (tmp_path / "site" / "site").exists()


def test_the_menu_has_every_page() -> None:
    menu = (DOCS / "site" / "mkdocs.yml").read_text()
    assert all(f"{page.name}\n" in menu for page in DOCS.glob("*.md"))


def test_every_public_name_is_on_the_page() -> None:
    text = (DOCS / "api.md").read_text()
    named = set(re.findall(r"blockexpand\.(\w+)|`(\w+)`", text))
    found = {name for pair in named for name in pair}
    assert set(blockexpand.__all__) - {"__version__"} <= found


def test_the_keys_of_recipes_are_those_that_are_read() -> None:
    text = (DOCS / "recipes.md").read_text()
    read, _, refused = text.partition("## What is refused")
    keys = set(re.findall(r"`(\w+)`", read.partition("## What is read")[2]))
    inner = {"sources", "model", "layer_range", "scale", "filter", "value"}
    assert set(parsing._RECIPE_KEYS) | inner <= keys
    assert set(parsing._REFUSED) <= set(re.findall(r"`(\w+)`", refused))
    (example,) = blocks(DOCS / "recipes.md", "yaml")
    recipe = parsing.parse_recipe(example.encode(), "example.yml")
    assert [(part.first, part.last) for part in recipe.slices] == [(0, 24), (8, 32)]
    for key in parsing._REFUSED:
        place = "slices" if key in ("lora", "override_architecture") else key
        spoilt = example + (f"{key}: x\n" if place == key else f"x:\n  {key}: y\n")
        with pytest.raises(blockexpand.RecipeError, match=key if place == key else "x"):
            parsing.parse_recipe(spoilt.encode(), "example.yml")


def keys_of(value: Any) -> set[str]:
    """Return the keys of objects in objects; those of maps by name are no keys of ours."""
    if isinstance(value, list):
        return {key for item in value for key in keys_of(item)}
    if not isinstance(value, dict):
        return set()
    maps = {"neutral", "settings", "set", "models"}
    inner = {key for name, item in value.items() if name not in maps for key in keys_of(item)}
    return set(value) | inner


def test_every_key_of_the_json_is_described(
    tiny_mistral: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jobs.yaml").write_text(f"jobs: [{{src: {tiny_mistral}, out: many, new-layers: 1}}]")
    source = str(tiny_mistral)
    plain = ["--src", source, "--out", "out", "--new-layers", "2"]
    known = code_words("json.md")
    for words in (
        [*plain, "--dry-run"],
        [*plain, "--verify", "tensors"],
        ["verify", source, "out"],
        ["diff", source, "out", "--stats"],
        ["diff", source, "out", "out"],
        ["batch", "jobs.yaml", "--dry-run"],
        ["batch", "jobs.yaml"],
        ["show", "out"],
        ["suggest", source],
        ["families", "qwen3"],
        ["train-config", "out", "--framework", "transformers"],
        ["verify", source, "nowhere"],
    ):
        main([*words, "--json"])
        found = keys_of(json.loads(capsys.readouterr().out))
        assert found <= known, (words, found - known)
        assert "schema_version" in found
    assert keys_of(json.loads(Path("out/block_expansion.json").read_text())) <= known


def test_snippets_of_python_run(
    tiny_mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    Path("mistral-7b").symlink_to(tiny_mistral)
    names: dict[str, Any] = {"blockexpand": blockexpand, "torch": torch}
    readme, api, training = (
        blocks(REPOSITORY / name, "python")
        for name in ("README.md", "docs/api.md", "docs/training.md")
    )
    for snippet in (*[s for s in readme if "expand(" in s], *api):
        exec(snippet, names)
        Path("expanded").rename(f"done-{len(list(Path().iterdir()))}")
    blockexpand.expand("mistral-7b", "expanded", new_layers=4)
    for snippet in (*[s for s in readme if "freeze" in s], *training):
        names["model"] = AutoModelForCausalLM.from_pretrained("expanded")
        exec(snippet, names)
        assert {
            parameter.dtype for parameter in names["model"].parameters() if parameter.requires_grad
        } == {torch.float32}


def test_bounds_are_those_of_the_package() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    said = (DOCS / "install.md").read_text()
    for name, least in (("transformers", "4.46"), ("huggingface_hub", "0.30"), ("torch", "2.2")):
        assert f'"{name}>={least}"' in text
        assert re.search(rf"{name}\s+from\s+{re.escape(least)}\b", said)
