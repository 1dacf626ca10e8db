"""`blockexpand train` from end to end, its claims judged with `safetensors`, torch and bytes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from checkpoints import copy_tree, edit_json
from safetensors.torch import load_file, save_file

import blockexpand
from blockexpand import expand
from blockexpand.api.training import train
from blockexpand.api.training_plan import plan_training
from blockexpand.cli.app import main
from blockexpand.errors import ArgumentError, HubError, OutputError, TrainingError

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "tests" / "data" / "king_james.txt"
SMALL: dict[str, Any] = {
    "steps": 6,
    "length": 32,
    "batch_size": 4,
    "learning_rate": 5e-3,
    "evaluate_every": 2,
    "save_every": 2,
}
WORDS = ["--steps", "6", "--length", "32", "--batch-size", "4", "--learning-rate", "5e-3"]
WORDS += ["--evaluate-every", "2", "--save-every", "2"]


@pytest.fixture(scope="module", autouse=True)
def accelerate_of_its_own() -> Iterator[None]:
    """Its settings are one for a process: other tests' trainers have theirs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def expanded(tiny_mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("training") / "source"
    copy_tree(tiny_mistral, source)
    (source / "LICENSE").write_text("Do what you like.\n")
    out = source.with_name("expanded")
    expand(source, out, new_layers=2, position="interleaved")
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.read_text()[:6000])
    return path


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "replay.txt"
    path.write_text(TEXT.read_text()[9000:12000])
    return path


@pytest.fixture(scope="module")
def trained(
    expanded: Path, text: Path, replay: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("trained") / "trained"
    train(expanded, out, texts=[text], replay=replay, replay_share=0.25, **SMALL)
    return out


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def is_new(name: str) -> bool:
    return re.match(r"model\.layers\.(2|5)\.", name) is not None


def command(*words: str | Path, processes: int = 0) -> list[str]:
    launch = [sys.executable, "-W", "error"]
    if processes:
        launch += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launch += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        return [*launch, "-m", "blockexpand", "train", *map(str, words)]
    return [*launch, "-m", "blockexpand", "train", *map(str, words)]


def environment() -> dict[str, str]:
    # One thread: many would only wait for each other over matrices this small.
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}


def run(*words: str | Path, processes: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words, processes=processes),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_only_the_new_blocks_change_and_all_else_comes_along(expanded: Path, trained: Path) -> None:
    before, after = load(expanded), load(trained)
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, after[name]) != is_new(name), name
    names = {path.name for path in expanded.iterdir()}
    assert {path.name for path in trained.iterdir()} == names and "LICENSE" in names
    for name in names - {"README.md", "block_expansion.json"}:
        if not name.endswith(".safetensors"):
            assert (trained / name).read_bytes() == (expanded / name).read_bytes(), name
    manifest = json.loads((trained / "block_expansion.json").read_text())
    (record,) = manifest.pop("training")
    assert manifest == json.loads((expanded / "block_expansion.json").read_text())
    assert [told["is_replay"] for told in record["texts"]] == [False, True]
    assert [evaluation["step"] for evaluation in record["evaluations"]] == [0, 2, 4, 6]


def test_what_is_said_of_the_loss_and_the_growth_is_so(
    expanded: Path, trained: Path, text: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    manifest = json.loads((trained / "block_expansion.json").read_text())
    evaluations = manifest["training"][0]["evaluations"]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] - 0.02
    tokenizer = AutoTokenizer.from_pretrained(trained)
    ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    ids.append(tokenizer.eos_token_id)
    rows = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    held_out = rows[-max(1, round(0.05 * len(rows))) :]
    tensors = load(trained)
    for folder, evaluation in ((expanded, evaluations[0]), (trained, evaluations[-1])):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            loss = model(input_ids=held_out, labels=held_out).loss.item()
        assert math.isclose(loss, evaluation["loss"], abs_tol=0.02)
    for layer in (2, 5):
        closing = ["self_attn.o_proj.weight", "mlp.down_proj.weight"]
        norm = math.sqrt(
            sum(
                tensors[f"model.layers.{layer}.{suffix}"].double().square().sum().item()
                for suffix in closing
            )
        )
        assert math.isclose(evaluations[-1]["growth"][str(layer)], norm, rel_tol=1e-6)
    assert evaluations[0]["growth"] == {"2": 0.0, "5": 0.0}


def test_norms_move(expanded: Path, trained: Path) -> None:
    name = "model.layers.2.input_layernorm.weight"
    moved = load(trained)[name] != load(expanded)[name]
    assert moved.float().mean() > 0.1


def test_the_other_commands_know_the_output(
    trained: Path, expanded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = expanded.with_name("source")
    assert main(["verify", str(source), str(trained)]) == 0
    said = capsys.readouterr().out
    assert "trained: 18 tensors" in said and "unknown" not in said, said
    assert not blockexpand.diff(source, trained).lost
    extraction = blockexpand.extract(trained, tmp_path / "blocks", base=source)
    again = blockexpand.apply(source, extraction.out, out=tmp_path / "again")
    one, other = load(trained), load(again.out)
    assert all(torch.equal(one[name], other[name]) for name in one)
    card = (trained / "README.md").read_text()
    assert "are untrained" not in card and "were trained, for 6 steps" in card
    assert "text.txt" in card and str(tmp_path.parent) not in card and "verify" not in card


def test_a_killed_run_ends_as_one_that_was_not(
    expanded: Path, trained: Path, text: Path, replay: Path, tmp_path: Path
) -> None:
    words = [expanded, "--text", text, "--replay", replay, "--replay-share", "0.25", *WORDS]
    out = tmp_path / "killed"
    process = subprocess.Popen(
        command(*words, "--out", out),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    work = tmp_path / "killed.training"
    deadline = time.monotonic() + 120
    while not list(work.glob("step-*/state.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and list(work.glob("step-*"))
    plan = plan_training(expanded, out, texts=[text], replay=replay, replay_share=0.25, **SMALL)
    assert plan.resumed_step in (2, 4)
    result = run(*words, "--out", out)
    assert result.returncode == 0, result.stderr
    one, other = load(trained), load(out)
    assert all(torch.equal(one[name], other[name]) for name in one)
    manifests = [json.loads((d / "block_expansion.json").read_text()) for d in (trained, out)]
    losses = [[e["loss"] for e in m["training"][0]["evaluations"]] for m in manifests]
    assert losses[0] == losses[1]
    assert not work.exists()


def check_alike(expanded: Path, one: Path, other: Path) -> None:
    """The same training but for rounding: Adam's first steps make much of small differences."""
    before, first, second = load(expanded), load(one), load(other)
    for name, tensor in before.items():
        if is_new(name):
            step = (first[name].float() - tensor.float()).norm()
            apart = (first[name].float() - second[name].float()).norm()
            assert step > 0 and apart < 0.3 * step, name
        else:
            assert torch.equal(tensor, second[name]), name
    losses = [
        [evaluation["loss"] for evaluation in json.loads(text)["training"][0]["evaluations"]]
        for text in ((d / "block_expansion.json").read_text() for d in (one, other))
    ]
    assert losses[0][-1] < losses[0][0] - 0.02
    assert all(math.isclose(a, b, abs_tol=0.005) for a, b in zip(*losses, strict=True)), losses


@pytest.mark.parametrize("sharing", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_two_processes_train_the_same(
    sharing: list[str], expanded: Path, trained: Path, text: Path, replay: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trained"
    words = [expanded, "--text", text, "--replay", replay, "--replay-share", "0.25", *WORDS]
    result = run(*words, "--out", out, *sharing, "--json", processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line)["out"] == str(out)
    check_alike(expanded, trained, out)


@pytest.mark.parametrize("joined_before", [False, True])
def test_processes_part_from_a_group_of_their_own(joined_before: bool, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch.distributed as dist\n"
        "from blockexpand.training.loop import join_processes\n"
        + ('dist.init_process_group("gloo")\n' if joined_before else "")
        + "with join_processes() as accelerator:\n"
        "    assert accelerator.num_processes == 2 and dist.is_initialized()\n"
        f"assert dist.is_initialized() is {joined_before}\n"
        + ("dist.destroy_process_group()\n" if joined_before else "")
    )
    words = command("", processes=2)
    launch = words[: words.index("blockexpand") - 1]
    result = subprocess.run(
        [*launch, script], env=environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_what_ends_one_process_is_said_in_a_line(
    expanded: Path, text: Path, tmp_path: Path
) -> None:
    words = [expanded, "--text", text, *WORDS[:-4], "--out", tmp_path / "trained"]
    sabotage = tmp_path / "sitecustomize.py"
    sabotage.write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from blockexpand.training import loop\n"
        "    def fail(*a, **k): raise loop.TrainingError('step 1: not enough memory')\n"
        "    loop.run_steps = fail\n"
    )
    result = subprocess.run(
        command(*words, processes=2),
        env=environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "blockexpand: process 2 of 2: step 1: not enough memory" in result.stderr
    assert "[rank" not in result.stderr and not (tmp_path / "trained").exists()


def test_parts_of_a_batch_and_checkpointing_change_only_the_rounding(
    expanded: Path, trained: Path, text: Path, replay: Path, tmp_path: Path
) -> None:
    train(
        expanded,
        tmp_path / "out",
        texts=[text],
        replay=replay,
        replay_share=0.25,
        micro_batch=1,
        gradient_checkpointing=True,
        **SMALL,
    )
    check_alike(expanded, trained, tmp_path / "out")


def test_a_finished_run_is_not_done_again(
    expanded: Path, trained: Path, text: Path, replay: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trained"
    shutil.copytree(trained, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    options: dict[str, Any] = {"texts": [text], "replay": replay, "replay_share": 0.25, **SMALL}
    again = train(expanded, out, **options)
    assert again.was_there and again.evaluations[-1]["step"] == 6
    with pytest.raises(blockexpand.OutputError, match="exists and is not empty"):
        train(expanded, out, **{**options, "steps": 7})
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_state_of_other_settings_is_not_gone_on_with(
    expanded: Path, text: Path, tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(evaluation: dict[str, Any]) -> None:
        if evaluation["step"] == 4:
            raise Stopped

    out = tmp_path / "out"
    with pytest.raises(Stopped):
        train(expanded, out, texts=[text], told=stop, **SMALL)
    with pytest.raises(blockexpand.OutputError, match="holds step 2 of a run with another"):
        train(expanded, out, texts=[text], **{**SMALL, "learning_rate": 1e-3})
    assert (tmp_path / "out.training" / "step-00000002").is_dir() and not out.exists()


def test_a_further_training_keeps_the_record_of_the_first(
    trained: Path, text: Path, tmp_path: Path
) -> None:
    train(trained, tmp_path / "out", texts=[text], **{**SMALL, "seed": 1})
    manifest = json.loads((tmp_path / "out" / "block_expansion.json").read_text())
    assert [record["seed"] for record in manifest["training"]] == [0, 1]
    assert not blockexpand.diff(trained, tmp_path / "out").lost


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    expanded: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["train", str(expanded), "--text", str(text), "--out", str(out), *WORDS]
    assert main([*words, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    tensors = load(expanded)
    new = sum(tensor.numel() for name, tensor in tensors.items() if is_new(name))
    rest = sum(tensor.numel() for name, tensor in tensors.items() if not is_new(name))
    assert told["memory_nbytes"] == 16 * new + 2 * rest
    assert told["steps"] == 6 and told["resumed_step"] is None
    assert main([*words, "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "no expansion": (["{source}", "--text", "{text}", "--out", "{out}"], 3, "no block_expansion"),
    "no text": (["{model}", "--out", "{out}"], 2, "--text missing"),
    "a missing text": (["{model}", "--text", "{out}.txt", "--out", "{out}"], 3, "cannot be read"),
    "a device": (["{model}", "--text", "/dev/zero", "--out", "{out}"], 3, "is a device"),
    "no UTF-8": (["{model}", "--text", "{latin}", "--out", "{out}"], 3, "is no UTF-8 text"),
    "a short text": (
        ["{model}", "--text", "{short}", "--out", "{out}", "--length", "64"],
        3,
        r"has \d+ tokens; expected at least 128",
    ),
    "too long": (
        ["{model}", "--text", "{text}", "--out", "{out}", "--length", "99999"],
        2,
        r"--length: the model reads at most \d+ tokens",
    ),
    "into the source": (
        ["{model}", "--text", "{text}", "--out", "{model}/out", "--length", "32"],
        3,
        "lies in",
    ),
    "an output in the way": (
        ["{model}", "--text", "{text}", "--out", "{source}", "--length", "32"],
        3,
        "exists and is not empty",
    ),
    "extract without a base": (
        ["{model}", "--text", "{text}", "--out", "{out}", "--length", "32", "--extract", "{out}b"],
        2,
        "--extract needs --base",
    ),
    "a share of all": (
        ["{model}", "--text", "{text}", "--out", "{out}", "--replay", "{text}"],
        2,
        "--replay-share: expected 0 or more and below 1",
    ),
    "zero steps": (
        ["{model}", "--text", "{text}", "--out", "{out}", "--steps", "0"],
        2,
        "--steps: expected 1 or more",
    ),
    "a huge rate": (
        ["{model}", "--text", "{text}", "--out", "{out}", "--learning-rate", "nan"],
        2,
        "--learning-rate: expected above 0 and below 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry"])
def test_refusals_are_one_line(
    case: str,
    dry: bool,
    expanded: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, status, expected = REFUSED[case]
    words = [*words, *(["--replay-share", "1"] if case == "a share of all" else [])]
    (tmp_path / "short.txt").write_text("Vanity of vanities")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9 " * 500)
    places = {
        "source": expanded.with_name("source"),
        "model": expanded,
        "text": text,
        "short": tmp_path / "short.txt",
        "latin": tmp_path / "latin.txt",
        "out": tmp_path / "out",
    }
    filled = [word.format(**places) for word in words] + ["--dry-run"] * dry
    assert main(["train", "--progress", "none", *filled]) == status
    said = capsys.readouterr()
    assert re.search(expected, said.err), said.err
    assert said.err.count("\n") == 1 and "Traceback" not in said.err and said.out == ""
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.training").exists()


def test_a_model_that_does_not_fit_the_memory(
    expanded: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    class Memory:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with pytest.raises(blockexpand.TrainingError, match=r"takes .* GB of memory.* has 0\.0 GB"):
        train(expanded, tmp_path / "out", texts=[text], **SMALL)


@pytest.mark.parametrize(("found", "is_enough"), [("2.5.1+cu121", False), ("2.6.0", True)])
def test_sharing_a_model_out_needs_a_torch_that_can(
    found: str,
    is_enough: bool,
    expanded: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blockexpand.api.training_checks.version", lambda package: found)
    arguments: Any = {"texts": [text], "fsdp": True, **SMALL}
    if is_enough:
        assert plan_training(expanded, tmp_path / "out", **arguments)
        return
    with pytest.raises(ArgumentError, match=r"^fsdp: needs torch 2\.6 or newer, found 2\.5\.1"):
        plan_training(expanded, tmp_path / "out", **arguments)


def test_quantized_new_blocks_are_refused(expanded: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "quantized"
    copy_tree(expanded, out)
    edit_json(out / "block_expansion.json", quantized={"method": "fp8", "mode": "keep"})
    with pytest.raises(blockexpand.TrainingError, match="only LoRA can train them"):
        train(out, tmp_path / "out", texts=[text], **SMALL)


def test_a_process_whose_accelerate_is_set_up_otherwise_is_told(
    expanded: Path, text: Path, tmp_path: Path
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        Accelerator(mixed_precision="bf16")
        with pytest.raises(TrainingError, match="in a process of its own"):
            train(expanded, tmp_path / "trained", texts=[text], **SMALL)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_users_own_beside_the_output_is_left_alone(
    expanded: Path, text: Path, tmp_path: Path
) -> None:
    own = tmp_path / "trained.training"
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'notes\.txt', which is none of them"):
        train(expanded, tmp_path / "trained", texts=[text], **SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["trained.training", "notes.txt"]


def test_what_is_put_beside_the_states_meanwhile_stays(
    expanded: Path, text: Path, tmp_path: Path
) -> None:
    note = tmp_path / "trained.training" / "notes.txt"

    def put(evaluation: dict[str, Any]) -> None:
        if evaluation["step"] == 4:
            note.write_text("mine")

    train(expanded, tmp_path / "trained", texts=[text], told=put, **SMALL)
    assert note.read_text() == "mine"
    assert [path.name for path in note.parent.iterdir()] == ["notes.txt"]


def test_states_that_others_have_put_there_are_not_gone_on_with(
    expanded: Path, text: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    work = tmp_path / "trained.training"
    work.symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is another user's, or no folder"):
        train(expanded, tmp_path / "trained", texts=[text], **SMALL)
    work.unlink()
    if os.name == "nt" or os.geteuid() != 0:
        return
    work.mkdir()
    os.chown(work, 12345, -1)
    with pytest.raises(OutputError, match="is another user's"):
        train(expanded, tmp_path / "trained", texts=[text], **SMALL)


def test_an_output_that_was_trained_further_is_not_called_that_of_the_run(
    expanded: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trained"
    train(expanded, out, texts=[text], **SMALL)
    assert train(expanded, out, texts=[text], **SMALL).was_there
    name = f"model.layers.{blockexpand.open_manifest(out).new_layers[0]}.mlp.down_proj.weight"
    for path in out.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name] += 1
            save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(OutputError, match="exists and is not empty"):
        train(expanded, out, texts=[text], **SMALL)


def test_a_secret_beside_the_model_is_told_before_the_training(
    expanded: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    copy_tree(expanded, out)
    (out / "id_rsa").write_text("a key")
    with pytest.raises(HubError, match=r"'id_rsa' would be published and looks like a secret"):
        train(out, tmp_path / "trained", texts=[text], push_to_hub="me/model", **SMALL)
    assert not (tmp_path / "trained").exists()


def test_a_manifest_tells_some_of_very_many_evaluations(expanded: Path, text: Path) -> None:
    plan = plan_training(expanded, expanded.with_name("trained"), texts=[text], **SMALL)
    for count in (1, 2, 99, 100, 101, 150, 5000):
        evaluations = [{"step": step} for step in range(count)]
        told = [evaluation["step"] for evaluation in plan.record(evaluations)["evaluations"]]
        assert told[0] == 0 and told[-1] == count - 1
        assert told == sorted(set(told)) and len(told) <= 101
        assert count > 100 or len(told) == count
