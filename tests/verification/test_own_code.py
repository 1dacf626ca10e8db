"""Checkpoints that bring their own code: when it runs, where, and what its proof is worth."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import own_code_zoo
import pytest
import torch
from checkpoints import edit_json
from own_code_forks import Forks
from own_code_zoo import OWN_CODE, compute, make_own_code
from safetensors.torch import load_file, save_file

import blockexpand
from blockexpand.cli.app import main
from blockexpand.errors import UnsupportedModelError
from blockexpand.verification import own_code

MODELING = "modeling_internlm2.py"


@pytest.fixture
def internlm2(tmp_path: Path) -> Path:
    make_own_code("internlm2", tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture
def quick(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let own code run in a fork, for tests that are of what it computes."""
    monkeypatch.setattr(own_code, "_run_child", forks.run)


def add_code(folder: Path, text: str, file: str = MODELING) -> None:
    path = folder / file
    path.write_text(f"{text}\n{path.read_text() if path.exists() else ''}")


def trust(folder: Path, **options: object) -> blockexpand.Expansion:
    out = folder.parent / "out"
    return blockexpand.expand(folder, out, new_layers=2, trust_remote_code=True, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "position"),
    [
        *(("internlm2", "interleaved"), ("baichuan", "end"), ("minicpm", "interleaved")),
        *(("chatglm", "interleaved"), ("phi", "end")),
    ],
)
def test_a_model_of_its_own_code_is_inferred_and_proven_with_it(
    name: str, position: str, tmp_path: Path
) -> None:
    make_own_code(name, tmp_path / "source")
    made = trust(tmp_path / "source", position=position, dtype="source")
    assert "inferred and proven with the checkpoint's own code and transformers" in made.notes[0]
    assert torch.equal(compute(tmp_path / "source"), compute(tmp_path / "out"))
    assert len(made.plan.neutral) == (4 if name == "phi" else 2)  # weights, with biases
    proof = json.loads((tmp_path / "out" / "block_expansion.json").read_text())["family_proof"]
    assert "own code" in proof
    assert not blockexpand.verify(tmp_path / "source", tmp_path / "out").findings
    for file in (tmp_path / "source").glob("*.py"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.usefixtures("quick")
def test_own_code_of_a_known_type_is_what_the_row_is_proven_with(
    tmp_path: Path,
) -> None:
    """A checkpoint may say `llama` and compute something else, which only its own code shows."""
    make_own_code("minicpm", tmp_path / "source")
    edit_json(tmp_path / "source" / "config.json", model_type="mistral", scale_depth=1.4)
    with pytest.raises(blockexpand.ProofError, match="computes something else"):
        trust(tmp_path / "source")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick")
def test_a_wrong_row_does_not_hold_in_the_child_either(internlm2: Path, tmp_path: Path) -> None:
    (tmp_path / "row.yaml").write_text(
        "model_type: internlm2\nprefix: model.layers.\ncount: num_hidden_layers\n"
        "branches: [{outputs: [attention.wo]}]\n"
        "copied: [feed_forward.w2, attention.wqkv, attention_norm]\n"
    )
    with pytest.raises(UnsupportedModelError, match="computes something else"):
        trust(internlm2, family=str(tmp_path / "row.yaml"))


@pytest.mark.usefixtures("quick")
def test_check_is_done_with_own_code_too(internlm2: Path) -> None:
    made = trust(internlm2, check=True)
    assert any("logits of 48 tokens bit-identical" in note for note in made.notes)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "renamed", [{"wo": "final"}, {"w2": "down"}, {"wo": "proj", "w2": "out"}], ids=str
)
def test_outputs_of_no_known_name_are_found_by_their_shape(
    renamed: dict[str, str], internlm2: Path, tmp_path: Path
) -> None:
    code = (internlm2 / MODELING).read_text()
    tensors = load_file(internlm2 / "model.safetensors")
    for old, new in renamed.items():
        code = code.replace(f"self.{old}", f"self.{new}")
        tensors = {name.replace(f".{old}.", f".{new}."): t for name, t in tensors.items()}
    (internlm2 / MODELING).write_text(code)
    save_file(tensors, internlm2 / "model.safetensors", metadata={"format": "pt"})
    for position in ("end", "interleaved"):
        out = tmp_path / position
        blockexpand.expand(
            internlm2, out, new_layers=2, position=position, dtype="source", trust_remote_code=True
        )
        assert torch.equal(compute(internlm2), compute(out))


CHANGES = {
    "a constant that is added": (
        ("ffn_norm(x))", "ffn_norm(x)) + self.extra"),
        (
            "self.attention = ",
            "self.extra = nn.Parameter(torch.randn(64))\n        self.attention = ",
        ),
    ),
    "a stream that is scaled": (("return x +", "return 0.9 * x +"),),
    "the layer before": (
        ("x = layer(x)", "x, p = layer(x) + 0.1 * p, x"),
        ("(ids)\n", "(ids)\n        p = 0\n"),
    ),
    "norms behind the sum": (
        (
            "x = x + self.attention(self.attention_norm(x))",
            "x = self.attention_norm(x + self.attention(x))",
        ),
        (
            "return x + self.feed_forward(self.ffn_norm(x))",
            "return self.ffn_norm(x + self.feed_forward(x))",
        ),
    ),
    "the sum of all layers": (
        ("            x = layer(x)\n", "            x = layer(x)\n            s = s + x\n"),
        ("(ids)\n", "(ids)\n        s = 0\n"),
        ("self.norm(x)", "self.norm(s)"),
    ),
    "a scale by depth": (
        (
            "self.output(self.model(input_ids))",
            "self.output(self.model(input_ids)) / len(self.model.layers)",
        ),
    ),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("position", ["end", "interleaved"])
def test_own_code_that_no_zero_silences_is_refused(
    change: str, position: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "code"
    shutil.copytree(Path(own_code_zoo.__file__).parent / "own_code", folder)
    path = folder / "internlm2" / MODELING
    code = path.read_text()
    for old, new in CHANGES[change]:
        assert old in code
        code = code.replace(old, new)
    path.write_text(code)
    monkeypatch.setattr(own_code_zoo, "_HERE", folder)
    make_own_code("internlm2", tmp_path / "source")
    with pytest.raises(UnsupportedModelError, match="computes something else"):
        trust(tmp_path / "source", position=position, dtype="source")


CANARY = "import pathlib; pathlib.Path({path!r}).touch()"


def test_without_permission_own_code_never_runs(internlm2: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = CANARY.format(path=str(canary))
    for file in (MODELING, "configuration_internlm2.py", "tokenization_internlm2.py"):
        add_code(internlm2, code, file)
    add_code(internlm2, code, "safetensors.py")
    own = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    (internlm2 / "tokenizer_config.json").write_text(json.dumps({"auto_map": own}))
    source, out = str(internlm2), str(tmp_path / "out")
    row = tmp_path / "row.yaml"
    row.write_text(
        "model_type: internlm2\nprefix: model.layers.\ncount: num_hidden_layers\n"
        "branches: [{outputs: [attention.wo]}, {outputs: [feed_forward.w2]}]\n"
        "copied: [attention.wqkv, attention_norm]\n"
    )
    more = ("--src", source, "--out", out, "--new-layers", "2")
    unproven = (*more, "--family", str(row), "--no-proof")
    refused = [
        more,
        (*more, "--check"),
        (*more, "--family", str(row)),
        (*unproven, "--check"),
    ]
    for words in refused:
        assert main(list(words)) != 0, words
        assert not canary.exists(), words
    made = [
        unproven,
        *(("verify", source, out), ("show", source), ("show", out), ("diff", source, out)),
        *(
            ("families", "--infer", source),
            ("suggest", source),
            ("train-config", out, "--framework", "trl"),
        ),
        ("verify", source, out, "--logits"),
        ("extract", out, "--base", source, "--out", str(tmp_path / "blocks")),
    ]
    for words in made:
        main(list(words))
        assert not canary.exists(), words
    assert (tmp_path / "out" / MODELING).is_file()
    # The canary does sing.
    trust(internlm2, overwrite=True)
    assert canary.exists()


def test_the_child_has_no_tokens_no_network_and_folders_of_its_own(
    internlm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "secret")
    told = tmp_path / "told.json"
    add_code(
        internlm2,
        f"""
import json, os, socket, sys
try:
    socket.create_connection(("127.0.0.1", 9), 1)
except OSError as error:
    reason = error.errno
print("noise"); print("more noise", file=sys.stderr)
json.dump([dict(os.environ), os.getpid(), reason, os.listdir("/proc/self/net/dev_snmp6")
           if os.path.isdir("/proc/self/net/dev_snmp6") else None], open({str(told)!r}, "w"))
""",
    )
    trust(internlm2)
    environment, process, reason, devices = json.loads(told.read_text())
    assert "secret" not in environment.values()
    assert process != os.getpid()
    assert environment["HOME"] != os.environ.get("HOME")
    assert not Path(environment["HF_MODULES_CACHE"]).exists()
    assert "own_code_child" not in sys.modules
    if sys.platform == "linux" and devices is not None:
        assert set(devices) <= {"lo"} and reason is not None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('this needs a GPU')", "RuntimeError: this needs a GPU"),
        ("raise SystemExit(0)", "own code failed: SystemExit"),
        pytest.param("import os; os._exit(0)", "ended without an answer", marks=pytest.mark.long),
        ("import os; os.kill(os.getpid(), 9)", "ended without an answer"),
        pytest.param(
            "import flash_attn_of_another_world",
            "flash_attn_of_another_world",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "import time; time.sleep(1000)", "ran for 12 s and was ended", marks=pytest.mark.long
        ),
    ],
)
def test_own_code_that_fails_is_told_in_one_line(
    code: str,
    reason: str,
    internlm2: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if code.startswith("raise"):
        request.getfixturevalue("quick")
    monkeypatch.setattr(own_code, "_LIMIT_S", 12 if "sleep" in code else 100)
    add_code(internlm2, code)
    with pytest.raises(UnsupportedModelError, match=reason) as raised:
        trust(internlm2)
    assert "\n" not in str(raised.value) and "--no-proof" in str(raised.value)
    assert not (internlm2.parent / "out").exists()


def test_code_of_another_repository_is_not_fetched(internlm2: Path) -> None:
    edit_json(
        internlm2 / "config.json",
        auto_map={"AutoModelForCausalLM": "org/other--modeling_internlm2.InternLM2ForCausalLM"},
    )
    with pytest.raises(UnsupportedModelError, match="'org/other', which is not fetched"):
        trust(internlm2)


def test_every_style_is_one_that_no_table_knows() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from blockexpand.models.families import FAMILIES

    for one in OWN_CODE.values():
        assert one.fields["model_type"] not in FAMILIES
        assert one.fields["model_type"] not in CONFIG_MAPPING
