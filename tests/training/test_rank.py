"""`blockexpand rank`: its scores against those that `transformers` gives by other means."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trained import make_base
from transformers import AutoModelForCausalLM, AutoTokenizer

import blockexpand
from blockexpand.cli.app import main
from blockexpand.errors import ArgumentError, InputError, RecipeError, TrainingError

TEXT = Path(__file__).resolve().parents[1] / "data" / "king_james.txt"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.read_text()[:4000])
    return path


def test_the_scores_are_those_of_hidden_states_and_of_models_without_a_layer(
    tiny_mistral_f32: Path, text: Path
) -> None:
    found = blockexpand.rank(tiny_mistral_f32, text, new_layers=2, tokens=512)
    assert (len(found.scores), found.tokens, found.dtype) == (4, 512, "float32")

    model = AutoModelForCausalLM.from_pretrained(tiny_mistral_f32, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(tiny_mistral_f32)(
        text.read_text(), add_special_tokens=False
    )["input_ids"]
    examples = torch.tensor(ids[:512]).view(2, 256)
    with torch.no_grad():
        states = model(input_ids=examples, output_hidden_states=True).hidden_states
        whole = model(input_ids=examples, labels=examples).loss.item()
        # The last of the states is behind the final norm, so the last layer has no pair there.
        for layer in range(3):
            cosine = torch.cosine_similarity(states[layer], states[layer + 1], dim=-1)
            expected = (1 - cosine).mean().item()
            assert found.scores[layer].influence == pytest.approx(expected, abs=1e-5)
        for layer in range(4):
            shorter = copy.deepcopy(model)
            del shorter.model.layers[layer]
            for number, kept in enumerate(shorter.model.layers):
                kept.self_attn.layer_idx = number
            shorter.config.num_hidden_layers = 3
            without = shorter(input_ids=examples, labels=examples, use_cache=False).loss.item()
            assert found.scores[layer].loss_rise == pytest.approx(without - whole, abs=1e-4)
    assert found.loss == pytest.approx(whole, abs=1e-4)
    by_influence = sorted(range(4), key=lambda layer: found.scores[layer].influence)
    assert found.least == tuple(sorted(by_influence[:2]))


def leave_out(model: Any, left_out: int, examples: torch.Tensor) -> float:
    """Return the loss without a layer: a hook gives its input in place of its output."""

    def hook(_: Any, arguments: Any, named: Any, output: Any) -> Any:
        before = arguments[0] if arguments else named["hidden_states"]
        return (before, *output[1:]) if isinstance(output, tuple) else before

    layers = model.get_decoder().layers
    handle = layers[left_out].register_forward_hook(hook, with_kwargs=True)
    try:
        loss = model(input_ids=examples, labels=examples, use_cache=False).loss
    finally:
        handle.remove()
    return float(loss)


@pytest.mark.parametrize(
    ("kind", "changes", "is_read_by_layers"),
    [
        ("llama", {"tie_word_embeddings": True}, True),
        ("gemma3_text", {"sliding_window": 16}, True),
        ("olmo2", {}, True),
        ("qwen3_next", {}, False),
        ("gpt_oss", {"sliding_window": 16}, True),
        ("qwen3_moe", {}, False),
    ],
)
def test_one_layer_at_a_time_gives_what_the_whole_model_gives(
    kind: str,
    changes: dict[str, Any],
    is_read_by_layers: bool,
    tiny_mistral_f32: Path,
    text: Path,
    tmp_path: Path,
) -> None:
    source = make_base(tmp_path / "source", kind, vocab_size=1024, **changes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_mistral_f32 / name, source)
    found = blockexpand.rank(source, text, tokens=512)

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    whole_nbytes = sum(parameter.nbytes for parameter in model.parameters())
    assert (found.memory_nbytes < whole_nbytes) == is_read_by_layers
    ids = AutoTokenizer.from_pretrained(source)(text.read_text(), add_special_tokens=False)
    examples = torch.tensor(ids["input_ids"][:512]).view(2, 256)
    with torch.no_grad():
        whole = float(model(input_ids=examples, labels=examples, use_cache=False).loss)
        rises = [
            leave_out(model, number, examples) - whole
            for number in range(model.config.num_hidden_layers)
        ]
    assert found.loss == pytest.approx(whole, abs=1e-4)
    assert [score.loss_rise for score in found.scores] == pytest.approx(rises, abs=2e-4)


def test_the_command_that_is_printed_runs(
    tiny_mistral_f32: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["rank", str(tiny_mistral_f32), str(text), "--tokens", "256"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["least_critical"]) == 1 and len(found["scores"]) == 4
    assert main(words) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert " ".join(last) == found["command"]
    monkeypatch.chdir(tmp_path)
    assert main(last[1:]) == 0
    manifest = json.loads((tmp_path / "OUT" / "block_expansion.json").read_text())
    assert manifest["new_layers"] == [found["least_critical"][0] + 1]


def test_what_cannot_be_ranked_is_told(tiny_mistral_f32: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"^new_layers: .* has 4 layers, found 5"):
        blockexpand.rank(tiny_mistral_f32, text, new_layers=5)
    with pytest.raises(ArgumentError, match=r"^tokens: expected a whole number from 1, found 0"):
        blockexpand.rank(tiny_mistral_f32, text, tokens=0)
    with pytest.raises(InputError, match="nowhere"):
        blockexpand.rank(tiny_mistral_f32, tmp_path / "nowhere.txt")
    short = tmp_path / "short.txt"
    short.write_text("A few words.")
    with pytest.raises(TrainingError, match="tokens"):
        blockexpand.rank(tiny_mistral_f32, short)


def test_a_checkpoint_that_cannot_be_run_is_told_in_one_line(
    tiny_mistral_f32: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(name: str) -> Path:
        return Path(shutil.copytree(tiny_mistral_f32, tmp_path / name))

    def edit(folder: Path, **change: object) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    no_tokenizer = spoil("no-tokenizer")
    for path in no_tokenizer.glob("token*"):
        path.unlink()
    few_words = spoil("few-words")
    edit(few_words, vocab_size=20)
    broken = spoil("broken")
    edit(broken, hidden_act="no such function")
    bare = spoil("bare")
    for path in bare.glob("*.safetensors"):
        tensors = load_file(path)
        tensors.pop("lm_head.weight", None)
        save_file(tensors, path, metadata={"format": "pt"})
    index = json.loads((bare / "model.safetensors.index.json").read_text())
    index["weight_map"].pop("lm_head.weight")
    (bare / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder, said in {
        no_tokenizer: "its tokenizer or config cannot be loaded",
        few_words: "its tokenizer makes token",
        broken: "transformers cannot load it",
        bare: "would fill them at random (lm_head.weight)",
    }.items():
        assert main(["rank", str(folder), str(text), "--tokens", "256", "-q"]) == 3
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and said in lines[0] and str(folder) in lines[0]


def test_the_scores_that_chose_the_places_are_in_the_manifest(
    tiny_mistral_f32: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, saved = str(tiny_mistral_f32), tmp_path / "out", tmp_path / "ranks.json"
    words = ["rank", source, str(text), "--tokens", "256", "--new-layers", "2"]
    assert main([*words, "--save", str(saved)]) == 0
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert command[-2:] == ["--position", f"@{saved}"]
    ranks = json.loads(saved.read_text())
    command[command.index("OUT")] = str(out)
    assert main([*command[1:], "--dry-run"]) == 0
    assert "the places are those of least influence on 'text.txt'" in capsys.readouterr().out
    assert main(command[1:]) == 0
    manifest = json.loads((out / "block_expansion.json").read_text())
    assert manifest["position"] == ",".join(map(str, ranks["least_critical"]))
    assert manifest["ranking"] == {key: ranks[key] for key in ("method", "text", "scores")}
    assert len(manifest["ranking"]["text"]["sha256"]) == 64

    capsys.readouterr()
    assert main(["verify", source, str(out)]) == 0
    assert "the ranking of layers that its places were chosen by, which was not" in (
        "".join(capsys.readouterr())
    )
    by_influence = sorted(ranks["scores"], key=lambda score: score["influence"])
    made = blockexpand.expand(source, tmp_path / "one", new_layers=1, position=f"@{saved}")
    assert made.plan.options.position == str(by_influence[0]["layer"])
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text(
        f"jobs:\n- {{src: {source}, position: '@{saved}', out: '{tmp_path}/{{position}}'}}\n"
    )
    assert main(["batch", str(jobs)]) == 0
    assert json.loads((tmp_path / "ranks" / "block_expansion.json").read_text())["ranking"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "JSON"),
        ("{}", "is not what `blockexpand rank --json` prints"),
        ('{"method": "m", "text": 3, "scores": [], "least_critical": [0]}', "is not what"),
        ({"least_critical": [9]}, "expected the scores of layers"),
        ({"scores": [{"layer": 0, "influence": 0.5, "loss_rise": 1}]}, "of a model of 1 layers"),
        ({"scores": [{"layer": 1, "influence": 0.5, "loss_rise": 1}]}, "expected the scores"),
        ({"scores": [{"layer": 0, "influence": "x", "loss_rise": 1}]}, "expected the scores"),
    ],
)
def test_a_ranking_that_cannot_be_used_is_refused(
    content: Any, message: str, tiny_mistral_f32: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ranks.json"
    if isinstance(content, dict):
        text = {"name": "a", "sha256": "b", "tokens": 3}
        scores = [{"layer": layer, "influence": 0.1, "loss_rise": 0.1} for layer in range(4)]
        whole = {"method": "m", "text": text, "scores": scores, "least_critical": [0]}
        content = json.dumps(whole | content)
    if content is not None:
        file.write_text(content)
    with pytest.raises(RecipeError, match=message):
        blockexpand.expand(tiny_mistral_f32, tmp_path / "out", position=f"@{file}")
    assert not (tmp_path / "out").exists()


def test_scores_replace_no_file_but_scores(
    tiny_mistral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    for name in ("config.json", "nowhere/ranks.json", "."):
        # Before the text is read, which is not there.
        words = ["rank", str(tiny_mistral), "no-text.txt", "--save", str(tmp_path / name)]
        assert main(words) == 3
        assert re.search("is no ranking|there is no folder", capsys.readouterr().err)
    assert config.read_text() == '{"model_type": "llama"}'
