"""`diff --stats`, `diff --html`: what is shown was measured, and the page stands alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import blockexpand
from blockexpand.cli.app import main
from blockexpand.cli.page_difference import render_page


@pytest.fixture(scope="module")
def folders(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its expansion, and two checkpoints of its training, the second twice as far."""
    root = tmp_path_factory.mktemp("folders")
    shutil.copytree(make_tiny(shards=1), root / "base")
    blockexpand.expand(
        root / "base", root / "out", new_layers=2, position="interleaved", max_shard_size="1GB"
    )
    for step in (1, 2):
        shutil.copytree(root / "out", root / f"checkpoint-{step}00")
        tensors = load_file(root / "out" / "model.safetensors")
        for name in tensors:
            if name.startswith(("model.layers.2.", "model.layers.5.")):
                tensors[name] = (tensors[name].float() + 0.1 * step).to(torch.bfloat16)
        file = root / f"checkpoint-{step}00" / "model.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
    return root


class Page(HTMLParser):
    """What a browser would fetch, and whether every element is closed."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.titles: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.fetched += [str(named[key]) for key in ("src", "href", "data") if key in named]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title":
            self.titles.append(data)


def test_the_page_stands_alone_and_shows_what_was_measured(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folders)
    words = ["diff", "base", "checkpoint-100", "checkpoint-200", "--html", "page.html", "--json"]
    assert main(words) == 0
    text = (folders / "page.html").read_text()
    page = Page(text)
    assert page.open == [] and page.fetched == []
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    found = json.loads(capsys.readouterr().out)["comparisons"][1]["tensors"]
    for tensor in found:
        layer = re.match(r"model\.layers\.(2|5)\.(.*)", tensor["name"])
        if layer is not None:
            said = f"layer {layer[1]}, {layer[2]}: {tensor['statistics']['distance']:.4g}, "
            assert any(title.startswith(said) for title in page.titles), said
    assert sum(title.startswith("layer 2: new, a clone of 1") for title in page.titles) == 1
    assert ">100</text>" in text and ">200</text>" in text
    assert "prefers-color-scheme:dark" in text


def test_one_checkpoint_has_no_curve_and_originals_that_changed_are_named(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["diff", str(folders / "out"), str(folders / "base"), "--html", str(tmp_path / "p")]
    assert main(words) == 0
    assert "<h2>Growth</h2>" not in (tmp_path / "p").read_text()
    other = tmp_path / "other"
    shutil.copytree(folders / "base", other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    words = ["diff", str(folders / "base"), str(other), "--stats", "--html", str(tmp_path / "p")]
    assert main(words) == 1
    text = (tmp_path / "p").read_text()
    assert re.search(r'class="bad">1 of \d+ original tensors are not as in the base', text)
    assert "<td>model.norm.weight</td><td>changed</td><td>1</td><td>100 %</td>" in text
    assert re.search(r"\n  model.norm.weight +1 +100 %\n", capsys.readouterr().out)


def test_names_are_text(folders: Path) -> None:
    from dataclasses import replace

    evil = '"><script>alert(1)</script>'
    difference = blockexpand.diff(folders / "base", folders / "checkpoint-100", stats=True)
    tensors = [
        replace(tensor, other_name=f"{tensor.other_name}{evil}") for tensor in difference.tensors
    ]
    named = replace(difference, base=evil, other=evil, matched_by=evil, tensors=tuple(tensors))
    page = Page(render_page([named, named]))
    assert page.open == [] and "script" not in page.tags


def test_text_tells_how_far_each_kind_has_come(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(folders / "base"), str(folders / "checkpoint-200"), "--stats"]) == 0
    shown = capsys.readouterr().out
    assert "distance from where it began" in shown
    assert re.search(r"new blocks: mlp\.down_proj\.weight +[\d.]+–[\d.]+ +100 %\n", shown)
    assert main(["diff", str(folders / "base"), str(folders / "out"), "--stats"]) == 0
    assert re.search(r"mlp\.down_proj\.weight +0 +0 %", capsys.readouterr().out)


@pytest.mark.parametrize("file", ["none/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["diff", "no-base", "no-other", "--html", file]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "give the name of a page" in error


def test_a_file_that_is_no_page_is_not_replaced(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard or a config of the models themselves, a text, another page."""
    base, page = folders / "base", tmp_path / "page.html"
    other = tmp_path / "index.html"
    other.write_text("<!doctype html><title>mine</title>")
    shard = next(base.glob("*.safetensors"))
    for file in (base / "config.json", shard, other):
        before = file.read_bytes()
        assert main(["diff", str(base), str(folders / "out"), "--html", str(file)]) == 3
        assert "is no page of `blockexpand diff`" in capsys.readouterr().err
        assert file.read_bytes() == before
    page.touch()
    for _ in range(2):
        assert main(["diff", str(base), str(folders / "out"), "--html", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
