"""The comparison of logits itself: what it must not let pass, and what it must never run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import copy_tree, edit_json, read_file, read_tensors

import blockexpand
from blockexpand.errors import NoProofError, ProofError
from blockexpand.models.loading import load_model
from blockexpand.verification.logits import compare_logits


@pytest.fixture(scope="module")
def expanded(tiny_mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("logits") / "out"
    blockexpand.expand(tiny_mistral, out, new_layers=1)
    return out


def poke(folder: Path, name: str, data: bytes) -> None:
    """Overwrite the beginning of a tensor."""
    path = next(p for p in folder.glob("*.safetensors") if name in read_file(p))
    with path.open("r+b") as file:
        file.seek(read_file(path)[name].offset)
        file.write(data)


def test_equal_models_are_equal(tiny_mistral: Path, expanded: Path) -> None:
    proof = compare_logits(tiny_mistral, expanded, "bfloat16")
    vocabulary = json.loads((tiny_mistral / "config.json").read_text())["vocab_size"]
    assert (proof.vocabulary, proof.dtype) == (vocabulary, "bfloat16")
    # Real words: a tokenizer of a thousand tokens makes more than a hundred of the text.
    assert proof.tokens == 128


def test_a_block_that_adds_something_is_found(
    tiny_mistral: Path, expanded: Path, tmp_path: Path
) -> None:
    out = copy_tree(expanded, tmp_path / "out")
    poke(out, "model.layers.4.mlp.down_proj.weight", b"\x80\x3f" * 20)
    with pytest.raises(ProofError, match="the logits differ from the source's, by up to"):
        compare_logits(tiny_mistral, out, "bfloat16")


def test_a_tensor_that_does_not_load_is_found(
    tiny_mistral: Path, expanded: Path, tmp_path: Path
) -> None:
    """A missing tensor of a zeroed block changes no logits: it is filled at random."""
    out = copy_tree(expanded, tmp_path / "out")
    edit_json(out / "config.json", num_hidden_layers=6)
    with pytest.raises(ProofError, match="other missing or unexpected tensors"):
        compare_logits(tiny_mistral, out, "bfloat16")


def test_logits_that_are_not_finite_prove_nothing(tiny_mistral: Path, tmp_path: Path) -> None:
    source = copy_tree(tiny_mistral, tmp_path / "source")
    poke(source, "model.norm.weight", b"\xc0\x7f")
    with pytest.raises(ProofError, match="not finite"):
        compare_logits(source, source, "bfloat16")


def test_another_vocabulary_is_found(
    tiny_mistral: Path, tmp_path: Path, make_tiny: Callable[..., Path]
) -> None:
    other = copy_tree(tiny_mistral, tmp_path / "other")
    edit_json(other / "config.json", vocab_size=7)
    with pytest.raises(ProofError):
        compare_logits(tiny_mistral, other, "bfloat16")


def test_a_folder_that_transformers_cannot_read_is_told_on_one_line(
    tiny_mistral: Path, tmp_path: Path
) -> None:
    source = copy_tree(tiny_mistral, tmp_path / "source")
    edit_json(source / "config.json", hidden_size="many")
    with pytest.raises(ProofError, match="transformers cannot run it") as raised:
        compare_logits(source, tiny_mistral, "bfloat16")
    assert "\n" not in str(raised.value)


def test_without_a_tokenizer_tokens_are_made_up(
    tiny_mistral: Path, expanded: Path, tmp_path: Path
) -> None:
    source = copy_tree(tiny_mistral, tmp_path / "source")
    for path in source.glob("tokenizer*"):
        path.unlink()
    assert compare_logits(source, expanded, "bfloat16").tokens == 64


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def plant(folder: Path, trace: Path) -> None:
    """Put everything into a folder that could be executed, each leaving a trace."""
    code = f"open({str(trace)!r}, 'w')\n"
    for name in ("modeling_own", "configuration_own", "tokenization_own", "setup", "conftest"):
        (folder / f"{name}.py").write_text(code)
    auto_map = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModel": "modeling_own.OwnModel",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    # A config may also name any attribute of transformers as its class.
    edit_json(
        folder / "config.json",
        auto_map=auto_map,
        architectures=["pipeline", "AutoTokenizer", "MistralForCausalLM"],
    )
    edit_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    )
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    (folder / "README.md").write_text(
        f"---\nlicense: !!python/object/apply:os.mknod ['{trace}']\n---\n"
    )


def test_nothing_of_a_checkpoint_is_executed_or_unpickled(
    tiny_mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copy_tree(tiny_mistral, tmp_path / "source")
    trace = tmp_path / "trace"
    plant(source, trace)
    pickle.loads((source / "model.pkl").read_bytes())
    assert trace.exists(), "the bomb does not go off"
    trace.unlink()
    # Also not because the current folder is on the path.
    monkeypatch.chdir(source)
    monkeypatch.syspath_prepend(str(source))
    result = blockexpand.expand(source, tmp_path / "out", new_layers=1, verify_after="logits")
    assert not trace.exists()
    assert result.proof is not None
    assert any("custom code" in note for note in result.notes)
    assert (tmp_path / "out" / "modeling_own.py").exists()
    assert not list((tmp_path / "out").glob("*.bin"))


def test_weights_that_are_pickles_are_never_loaded(tiny_mistral: Path, tmp_path: Path) -> None:
    folder = copy_tree(tiny_mistral, tmp_path / "folder")
    plant(folder, tmp_path / "trace")
    for path in folder.glob("model*safetensors*"):
        path.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_model(folder, "bfloat16")
    assert not (tmp_path / "trace").exists()


def test_transformers_says_nothing_and_is_left_as_it_was(
    tiny_mistral: Path, expanded: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    compare_logits(tiny_mistral, expanded, "bfloat16")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def save(model: Any, folder: Path) -> Path:
    """Save a model of random values, norms and heads too."""
    import torch

    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def tiny_config(**fields: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 99}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    return sizes | heads | fields


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("embeddings", "hidden states"),
        ("scores", "scores"),
        ("untied without its head", "hidden states"),
    ],
)
def test_a_model_without_a_language_models_head_is_compared_as_what_it_is(
    kind: str, what: str, tmp_path: Path
) -> None:
    """Its head as a language model would be another one each time that it is loaded."""
    import transformers
    from safetensors.torch import load_file, save_file

    if kind == "embeddings":
        model = transformers.MistralModel(transformers.MistralConfig(**tiny_config()))
    elif kind == "scores":
        config = transformers.LlamaConfig(**tiny_config(num_labels=1, pad_token_id=0))
        model = transformers.LlamaForSequenceClassification(config)
    else:
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**tiny_config()))
    source = save(model, tmp_path / "source")
    if kind == "untied without its head":
        tensors = load_file(source / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    made = blockexpand.expand(source, out, new_layers=2, dtype="source", verify_after="logits")
    assert made.proof is not None and made.proof.what == what
    for _ in range(2):
        assert blockexpand.verify(source, out, logits=True).proof == made.proof
    name = next(n for n in read_tensors(out) if n.endswith("layers.4.mlp.down_proj.weight"))
    poke(out, name, b"\x80\x3f" * 20)
    with pytest.raises(ProofError, match=f"the {what} differ from the source's"):
        compare_logits(source, out, "bfloat16")


def test_a_source_that_lacks_a_tensor_proves_nothing(tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import load_file, save_file

    model = transformers.MistralForCausalLM(transformers.MistralConfig(**tiny_config()))
    source = save(model, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NoProofError, match=r"at random \(model\.norm\.weight\): nothing can be"):
        compare_logits(source, source, "bfloat16")
