"""A quantised source by every way in which an output can be made: the same bytes each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import quantized_zoo as zoo
import torch
from hub_server import HubServer, read_folder

import blockexpand
from blockexpand.cli.app import main

REPO, OUT = "org/quantized", "user/grown"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
MODES = ("keep", "new-blocks-full", "dequantize")

# The client's own upload of large files passes `data=` where its HTTP library wants `content=`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def make_source(folder: Path, kind: str) -> Path:
    """Make a source whose modules lie each in one shard, with a file that repeats the config."""
    zoo.make_base(folder, "gpt_oss" if kind == "mxfp4" else "llama")
    plain = ("model.layers.1.self_attn.o_proj", "model.layers.2.mlp.up_proj")
    tensors = zoo.read_tensors(folder)
    if kind == "mxfp4":
        tensors, settings = zoo.mxfp4_experts(tensors), dict(zoo.MXFP4_SETTINGS)
    else:
        pack = zoo.nf4 if kind == "nf4" else zoo.fp8_blocks()
        tensors = zoo.quantize(
            tensors, pack, lambda name: zoo.is_linear(name) and not name.startswith(plain)
        )
        settings = zoo.fp8_settings(modules_to_not_convert=["lm_head", *plain])
        if kind == "nf4":
            settings = zoo.nf4_settings(["lm_head", *plain])
    (folder / "quant_config.json").write_text(json.dumps(settings))
    return zoo.write_quantized(folder, tensors, settings, shards=2, split=False)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("ways") / "source", "fp8")


@pytest.fixture(scope="module", params=["fp8", "nf4", "mxfp4"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("ways") / "source", request.param)


def made(folder: Path) -> dict[str, bytes]:
    """Return what does not name the source or tell how it was made."""
    return {n: d for n, d in read_folder(folder).items() if not n.startswith(("README", "block_"))}


def by_threads(source: Path, out: Path, **options: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        blockexpand.expand(source, out, executor=pool, **options)


def by_links(source: Path, out: Path, **options: Any) -> None:
    blockexpand.expand(source, out, hardlink=True, **options)


def by_jobs(source: Path, out: Path, **options: Any) -> None:
    options["position"] = list(options["position"])
    jobs = out.parent / "jobs.json"
    jobs.write_text(json.dumps({"jobs": [{"src": str(source), "out": str(out), **options}]}))
    (result,) = blockexpand.expand_batch(jobs)
    assert result.error is None, result.error


def by_command(source: Path, out: Path, **options: Any) -> None:
    position = ",".join(map(str, options["position"]))
    words = ["--src", str(source), "--out", str(out), "--position", position]
    assert (
        main([*words, "--quantized", options["quantized"], "--quiet", "--verify", "tensors"]) == 0
    )


@pytest.mark.parametrize(
    ("way", "position"),
    [
        *((way, (0, 2)) for way in (by_threads, by_links, by_jobs, by_command)),
        (by_links, (3, 3)),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_each_way_makes_the_same(
    mode: Any, way: Callable[..., None], position: tuple[int, ...], fp8: Path, tmp_path: Path
) -> None:
    options = {"position": position, "quantized": mode}
    blockexpand.expand(fp8, tmp_path / "plain", **options)
    way(fp8, tmp_path / "out", **options)
    assert made(tmp_path / "out") == made(tmp_path / "plain")
    # At the end nothing of the source changes, unless it is unpacked.
    linked = [p.name for p in (tmp_path / "out").glob("*.safetensors") if p.stat().st_nlink > 1]
    is_linked = way is by_links and position == (3, 3) and mode != "dequantize"
    assert len(linked) == (2 if is_linked else 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["stream", "hub"])
def test_the_hub_makes_the_same(
    way: str,
    mode: Any,
    source: Path,
    hub: HubServer,
    hub_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("blockexpand.checkpoints.hub.pieces._WORTH_A_REQUEST_NBYTES", 16)
    hub.allow(TOKEN)
    hub.add_repo(REPO, source)
    options: dict[str, Any] = {"position": (0, 2), "quantized": mode}
    blockexpand.expand(source, tmp_path / "plain", **options)
    expected = made(tmp_path / "plain")
    if way == "stream":
        blockexpand.expand(REPO, tmp_path / "out", stream=True, **options)
        assert made(tmp_path / "out") == expected
        return
    blockexpand.expand_on_hub(REPO, OUT, token=TOKEN, work=tmp_path / "work", **options)
    files = hub.files(OUT)
    found = {n: d for n, d in files.items() if not n.startswith(("README", "block_", ".git"))}
    assert found == expected
    assert blockexpand.verify(REPO, OUT).ok
    if mode != "new-blocks-full":
        return
    made_blocks = blockexpand.extract(tmp_path / "plain", tmp_path / "blocks", base=REPO)
    blockexpand.apply_on_hub(
        REPO, str(made_blocks.out), repo="user/applied", token=TOKEN, work=tmp_path / "work"
    )
    files = hub.files("user/applied")
    applied = {n: d for n, d in files.items() if not n.startswith(("README", "block_", ".git"))}
    assert applied.keys() == expected.keys()
    assert {n: d for n, d in applied.items() if n.endswith(".json")} == {
        n: d for n, d in expected.items() if n.endswith(".json")
    }


def test_modules_of_several_shards_are_not_streamed(
    hub: HubServer, hub_cache: Path, tmp_path: Path
) -> None:
    folder = zoo.make_base(tmp_path / "source", "llama")
    tensors = zoo.quantize(zoo.read_tensors(folder), zoo.fp8_blocks())
    hub.add_repo(REPO, zoo.write_quantized(folder, tensors, zoo.fp8_settings(), shards=3))
    # Kept, every part stays by itself.
    blockexpand.expand(REPO, tmp_path / "keep", new_layers=1, stream=True)
    assert torch.equal(
        zoo.read_tensors(tmp_path / "keep")["model.layers.4.mlp.up_proj.weight"].view(torch.uint8),
        tensors["model.layers.3.mlp.up_proj.weight"].view(torch.uint8),
    )
    with pytest.raises(blockexpand.RecipeError, match="made of several shards"):
        blockexpand.expand(
            REPO, tmp_path / "out", new_layers=1, stream=True, quantized="dequantize"
        )
    assert not (tmp_path / "out").exists()
