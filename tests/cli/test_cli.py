"""The command line: exit codes, streams, one line for each thing that can be wrong."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from checkpoints import (
    copy_tree,
    edit_json,
    mistral_tensors,
    read_file,
    render_file,
    snapshot,
    write_checkpoint,
)

import blockexpand
from blockexpand.cli.app import main

SHARD = "model-00001-of-00002.safetensors"
OTHER = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
TOKEN = "hf_" + "aBcDeFgHiJ" * 3


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return a function that runs the command line in this process.

    Lines of progress, which test_progress.py looks at, are left out of what it returns.
    """

    def run(*words: object) -> Result:
        status = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Result(status, out, without_progress(err))

    return run


def without_progress(err: str) -> str:
    return re.sub(r"^\d\d:\d\d:\d\d .*\n", "", err, flags=re.MULTILINE)


def run_process(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blockexpand", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A made-up Mistral of 2 layers in 2 shards."""
    tensors = mistral_tensors()
    first = {n: t for n, t in tensors.items() if "layers.0" in n or "embed" in n}
    rest = {n: t for n, t in tensors.items() if n not in first}
    (tmp_path / "work").mkdir()
    return write_checkpoint(tmp_path / "work" / "source", [first, rest])


# help, usage, exit codes


def test_help_and_version(run: Callable[..., Result]) -> None:
    for words in (["--help"], ["-h"], ["verify", "--help"]):
        result = run(*words)
        assert (result.status, result.err) == (0, "")
        assert result.out.startswith("usage: blockexpand")
    for option in ("--src", "--out", "--new-layers", "--position", "--dtype", "--max-shard-size",
                   "--reflink", "--hardlink", "--revision", "--token", "--cache-dir", "--check",
                   "--verify", "--dry-run", "--overwrite", "--json", "-q", "-v", "--no-progress",
                   "--version"):  # fmt: skip
        assert option in run("--help").out
    assert run("--version") == Result(0, f"blockexpand {blockexpand.__version__}\n", "")


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--src SRC --new-layers 1",
        "--src SRC --out OUT",
        "--src SRC --out OUT --position interleaved",
        "--src SRC --out OUT --position middle --new-layers 1",
        "--src SRC --out OUT --position 1,-2",
        "--src SRC --out OUT --position -1",
        "--src SRC --out OUT --new-layers two",
        "--src SRC --out OUT --new-layers 1.5",
        "--src SRC --out OUT --new-layers 1 --dtype int8",
        "--src SRC --out OUT --new-layers 1 --reflink=maybe",
        "--src SRC --out OUT --new-layers 1 --verify everything",
        "--src SRC --out OUT --new-layers 1 --unknown",
        "--src SRC --out OUT --new-layers 1 --tok x",
        "--src SRC --out '' --new-layers 1",
        "--src '' --out OUT --new-layers 1",
        "verify SRC ''",
        "verify SRC",
        "verify SRC OUT more",
    ],
)
def test_wrong_usage_is_2_and_makes_nothing(
    words: str, source: Path, run: Callable[..., Result]
) -> None:
    before = snapshot(source.parent)
    out = source.parent / "out"
    result = run(*shlex.split(words.replace("SRC", str(source)).replace("OUT", str(out))))
    assert_refused(result, "", 2)
    assert snapshot(source.parent) == before


# bad input


def replace_all(folder: Path, old: str, new: str) -> None:
    """Change the names of tensors, in the shards and in the index."""
    for path in folder.glob("*.safetensors"):
        tensors = {name.replace(old, new): t for name, t in read_file(path).items()}
        path.write_bytes(render_file(tensors))
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {n.replace(old, new): f for n, f in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


def only_pickles(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def cut(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:-1])


def edit_weight_map(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] |= changes
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v is not ...}
        (folder / INDEX).write_text(json.dumps(index))

    return edit


def set_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def write_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def link_outside(folder: Path) -> None:
    (folder / SHARD).rename(folder.parent / "elsewhere")
    (folder / SHARD).symlink_to(folder.parent / "elsewhere")


def nan_in_float16(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = {
            name: ("F32", t.shape, b"\0\0\x80\x7e" * (len(t.data) // 2))
            for name, t in read_file(path).items()
        }
        path.write_bytes(render_file(tensors))


BAD = {
    "no such folder": (lambda f: f.rename(f.parent / "gone"), "no such folder"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("")), "is a file, not a folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "only pickles": (only_pickles, "convert them with transformers"),
    "no weights": (lambda f: [p.unlink() for p in f.glob("model*")], "no safetensors weights"),
    "missing shard": (lambda f: (f / OTHER).unlink(), f"names '{OTHER}', which is missing"),
    "short shard": (cut, f"{SHARD}: the tensors do not fill the file"),
    "empty shard": (lambda f: (f / SHARD).write_bytes(b""), f"{SHARD}: the file is too short"),
    "no header": (lambda f: (f / SHARD).write_bytes(b"x" * 99), f"{SHARD}: the header is too long"),
    "no file": (write_text(SHARD, "version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "unsupported": (set_config(model_type="bert"), "model_type 'bert'"),
    "unknown": (set_config(model_type="nonesuch"), "is not in the table of families"),
    "no type": (set_config(model_type=...), "'model_type' is missing"),
    "quantized": (set_config(quantization_config={"a": 1}), "quantized"),
    "index leaves": (edit_weight_map(x="../x.safetensors"), "expected the plain name"),
    "absolute": (edit_weight_map(x="/x.safetensors"), "expected the plain name"),
    "link leaves": (link_outside, "is a symbolic link that leaves the folder"),
    "a list": (write_text(INDEX, '{"weight_map": ["a"]}'), "expected an object"),
    "count is text": (set_config(num_hidden_layers="2"), "found '2'"),
    "count is negative": (set_config(num_hidden_layers=-2), "found -2"),
    "count is huge": (set_config(num_hidden_layers=10**9), "found 1000000000"),
    "count is another": (set_config(num_hidden_layers=3), "'num_hidden_layers' is 3, but"),
    "no step": (set_config(model_type="qwen2", max_window_layers=[]), "'max_window_layers' is []"),
    "gap": (lambda f: replace_all(f, "layers.1.", "layers.2."), "layers"),
    "byte order mark": (write_text("config.json", "\ufeff{}"), "a byte order mark"),
    "doubled": (write_text("config.json", '{"a": 1, "a": 2}'), "'a' occurs twice"),
    "comment": (write_text("config.json", '{"a": 1} // b'), "config.json: line 1"),
    "deep": (write_text("config.json", '{"a":' + "[" * 10**5), "config.json: "),
    "array": (write_text("config.json", "[]"), "expected a JSON object"),
}  # fmt: skip


def assert_refused(result: Result, message: str, status: int = 3) -> None:
    assert result.status == status, result
    assert result.out == ""
    assert result.err.startswith("blockexpand: ")
    assert result.err.count("\n") == 1
    assert result.err.removesuffix("\n").isprintable()
    assert message in result.err
    assert "Traceback" not in result.err
    assert len(result.err) < 5000


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    name: str, dry: bool, source: Path, run: Callable[..., Result]
) -> None:
    harm, message = BAD[name]
    harm(source)
    before = snapshot(source.parent)
    words = ["--src", source, "--out", source.parent / "out", "--new-layers", 1]
    assert_refused(run(*words, *(["--dry-run"] if dry else [])), message)
    assert snapshot(source.parent) == before


@pytest.mark.parametrize(
    "words",
    [
        ("--src", "~no-such-user/x", "--out", "out", "--new-layers", 1),
        ("--recipe", "~no-such-user", "--out", "out"),
        ("batch", "~no-such-user"),
        ("verify", "~no-such-user", "~no-such-user"),
        ("diff", "source", "~no-such-user"),
        ("train-config", "~no-such-user", "--framework", "peft"),
    ],
    ids=lambda words: words[0],
)
def test_the_home_of_a_user_that_is_none_is_a_name_like_others(
    words: tuple[object, ...],
    source: Path,
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(source.parent)
    assert_refused(run(*words), "~no-such-user")
    assert run("--src", "source", "--out", "~no-such-user", "--new-layers", 1, "-q").status == 0
    assert (source.parent / "~no-such-user" / "config.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--new-layers", "0"], "--new-layers: expected a whole number from 1, found 0"),
        (["--new-layers", "-3"], "--new-layers: expected a whole number from 1, found -3"),
        (["--new-layers", "1000000000"], "expected at most 10000 layers"),
        (["--new-layers", "9" * 4000], "expected at most 10000 layers"),
        (["--position", "2"], "position 2: the model has layers 0 to 1"),
        (["--position", "0,1,7"], "position 7: the model has layers 0 to 1"),
        (["--position", "0,1", "--new-layers", "3"], "contradict a list of 2"),
        (["--new-layers", "1", "--max-shard-size", "0"], "expected something like 5GB"),
        (["--new-layers", "1", "--max-shard-size", "5GiB"], "sizes are decimal here"),
        (["--new-layers", "1", "--max-shard-size", "9" * 400 + "GB"], "expected something like"),
    ],
)
def test_requests_that_cannot_be_met_are_one_line_and_leave_nothing(
    options: list[str], message: str, source: Path, run: Callable[..., Result]
) -> None:
    before = snapshot(source.parent)
    start = time.perf_counter()
    assert_refused(run("--src", source, "--out", source.parent / "out", *options), message, 2)
    assert time.perf_counter() - start < 5
    assert snapshot(source.parent) == before


def test_an_overflow_is_one_line_and_leaves_nothing(
    source: Path, run: Callable[..., Result]
) -> None:
    nan_in_float16(source)
    before = snapshot(source.parent)
    words = ["--src", source, "--out", source.parent / "out", "--new-layers", 1]
    assert_refused(run(*words, "--dtype", "float16"), "is too large for F16", 2)
    assert snapshot(source.parent) == before


def test_a_full_disk_is_told_before_a_byte_is_written(
    source: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(source)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    before = snapshot(source.parent)
    words = ["--src", source, "--out", source.parent / "out", "--new-layers", 1]
    assert_refused(run(*words), "not enough disk")
    assert snapshot(source.parent) == before


def test_outputs_that_may_not_be_made(
    source: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = source.parent
    monkeypatch.chdir(work)
    (work / "file").write_text("mine")
    (work / "full").mkdir()
    (work / "full" / "mine").write_text("mine")
    (work / "link to source").symlink_to("source")
    before = snapshot(work)
    for out in (
        "source",
        "source/",
        "./source/../source",
        "link to source",
        "source/out",
        "link to source/out",
        ".",
        "..",
        "file",
        "file/out",
        "full",
        "n" * 300,
        "d/" * 2100 + "out",
        "/proc/out",
        "/dev/null",
        "/dev/null/out",
    ):
        result = run("--src", source, "--out", out, "--new-layers", 1)
        assert_refused(result, "")
        assert snapshot(work) == before, out


def test_a_name_of_a_source_that_is_too_long(run: Callable[..., Result], tmp_path: Path) -> None:
    assert_refused(run("--src", "./" + "n" * 4000, "--out", tmp_path / "o", "--new-layers", 1), "")


def test_an_output_of_a_long_name_is_made(source: Path, run: Callable[..., Result]) -> None:
    for name in ("n" * 200, "n" * 255, "é" * 100):
        out = source.parent / name
        assert run("--src", source, "--out", out, "--new-layers", 1, "-q") == Result(0, "", "")
        assert run("verify", source, out, "-q") == Result(0, "", "")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_may_not_be_written(source: Path, run: Callable[..., Result]) -> None:
    locked = source.parent / "locked"
    locked.mkdir(mode=0o500)
    out = locked / "out"
    assert_refused(run("--src", source, "--out", out, "--new-layers", 1), "check the permissions")


def test_control_characters_of_a_stranger_do_not_reach_the_terminal(
    source: Path, run: Callable[..., Result]
) -> None:
    replace_all(source, "lm_head", "evil\n\x1b[2J")
    result = run("--src", source, "--out", source.parent / "out", "--new-layers", 1, "-v")
    assert "\x1b" not in result.out + result.err
    (source / "evil\x1b[2J\n.bin").write_bytes(b"x")
    result = run("--src", source, "--out", source.parent / "other", "--new-layers", 1)
    assert_refused(result, "evil\\x1b[2J")


# results


def test_an_expansion_says_what_it_made(source: Path, run: Callable[..., Result]) -> None:
    (source / "old.bin").write_bytes(b"x")
    out = source.parent / "out"
    result = run("--src", source, "--out", out, "--new-layers", 1, "--verify", "tensors")
    assert (result.status, result.err) == (0, "")
    for text in ("(mistral): 2 layers + 1 new = 3, bfloat16", str(out), "verified: 2 layers",
                 "note: left behind, other weights and what belongs to them: old.bin"):  # fmt: skip
        assert text in result.out


def test_json_is_one_object_and_nothing_else(source: Path, run: Callable[..., Result]) -> None:
    out = source.parent / "out"
    words = ["--src", source, "--out", out, "--new-layers", 1, "--json"]
    planned = run(*words, "--dry-run")
    made = run(*words)
    verified = run("verify", source, out, "--json")
    documents = []
    for result in (planned, made, verified):
        assert (result.status, result.err) == (0, "")
        assert result.out.count("\n") == 1
        documents.append(json.loads(result.out))
    plan, expansion, verification = documents
    files = [path for path in out.rglob("*") if path.is_file()]
    sizes = {path.name: path.stat().st_size for path in files}
    assert plan["dry_run"] is True
    assert plan["layer_map"] == expansion["layer_map"] == [0, 1, 1]
    assert plan["new_layers"] == expansion["new_layers"] == [2]
    for document in (plan, expansion):
        shards = {file["name"]: file["nbytes"] for file in document["files"]}
        assert shards == {name: n for name, n in sizes.items() if name.endswith(".safetensors")}
    assert plan["fingerprint"] == expansion["fingerprint"]
    assert expansion["nbytes"] == sum(sizes.values())
    assert expansion["out"] == str(out)
    assert expansion["verified"] is None
    proven = run(*words, "--overwrite", "--verify", "tensors")
    assert json.loads(proven.out)["verified"]["ok"] is True
    assert verification["ok"] is True
    assert verification["findings"] == []
    zeroed = sum(file["zeroed"] for file in plan["files"])
    assert zeroed == 2 * 8


def test_json_of_differences(source: Path, run: Callable[..., Result]) -> None:
    out = source.parent / "out"
    run("--src", source, "--out", out, "--new-layers", 1)
    path = out / "model-00003-of-00003.safetensors"
    name = "model.layers.2.self_attn.o_proj.weight"
    with path.open("r+b") as file:
        file.seek(read_file(path)[name].offset + 3)
        file.write(b"\x80")
    result = run("verify", source, out, "--json", "--untrained")
    assert result.status == 1
    (finding,) = json.loads(result.out)["findings"]
    assert (finding["file"], finding["tensor"], finding["offset"]) == (path.name, name, 3)
    assert result.err.count("\n") == 1
    assert (
        f"1 difference from what its source and recipe say, the first: {path.name}: " in result.err
    )
    plain = run("verify", source, out, "--untrained")
    assert plain.status == 1
    assert plain.out == f"{path.name}: tensor '{name}': {finding['message']}\n"
    assert run("verify", source, out, "-q").out == ""
    # As a whole it may be one that was trained.
    assert run("verify", source, out).status == 0


def test_a_dry_run_writes_nothing_and_says_everything(
    source: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    before = snapshot(source.parent)
    result = run(
        "--src", "source", "--out", "a/b/out", "--position", "0, 1", "--dtype", "float32",
        "--dry-run", "-v",
    )  # fmt: skip
    assert snapshot(source.parent) == before
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[:6] == [
        "source (mistral): 2 layers + 2 new = 4, float32",
        "  layer  0       from 0",
        "  layer  1       new, clone of 0",
        "  layer  2       from 1",
        "  layer  3       new, clone of 1",
        "  zeroed in each new layer: self_attn.o_proj.weight, mlp.down_proj.weight",
    ]
    assert sum(".safetensors" in line for line in lines) >= 3
    assert re.search(r"^total .*: .* converted, 64 B zeroed$", result.out, re.MULTILINE)
    assert re.search(rf"^free  .* at {re.escape(str(source.parent))}$", result.out, re.MULTILINE)
    assert "config.json (new)" in result.out


def test_the_dry_run_tells_the_sizes_that_are_then_written(
    source: Path, run: Callable[..., Result]
) -> None:
    out = source.parent / "out"
    words = ["--src", source, "--out", out, "--new-layers", 2, "--position", "interleaved"]
    plan = json.loads(run(*words, "--dry-run", "--json").out)
    run(*words, "-q")
    for file in plan["files"]:
        assert (out / file["name"]).stat().st_size == file["nbytes"]
        parts = sum(file[part] for part in ("copied", "zeroed", "converted", "filled"))
        data = sum(len(t.data) for t in read_file(out / file["name"]).values())
        # A shard that is repeated as a whole is copied with its header.
        assert parts == (file["nbytes"] if file["identical_to"] else data)


def test_quiet_is_quiet(source: Path, run: Callable[..., Result]) -> None:
    out = source.parent / "out"
    words = ["--src", source, "--out", out, "--new-layers", 1, "-q", "--verify", "tensors"]
    assert run(*words, "--dry-run") == Result(0, "", "")
    assert run(*words) == Result(0, "", "")
    assert run("verify", source, out, "-q") == Result(0, "", "")
    assert run(*words) == Result(0, "", "")
    words[words.index(1)] = 2
    assert_refused(run(*words), "give --overwrite")


# the token


@pytest.mark.parametrize("words", [["--token", TOKEN], [f"--token={TOKEN}"]])
def test_a_token_is_written_and_printed_nowhere(
    words: list[str], source: Path, run: Callable[..., Result]
) -> None:
    out = source.parent / "out"
    results = [
        run("--src", source, *words, "--out", out, "--new-layers", 1, "-v"),
        run("--src", source, "--out", out, "--new-layers", 1, "--json", "--dry-run", *words),
        run("verify", source, out, *words),
        run(*words, "--src", source, "--out", out, "--new-layers", 1),
        run(*words, "--src", source.parent / "none", "--out", out, "--new-layers", 1),
    ]
    assert [result.status for result in results] == [0, 0, 0, 0, 3]
    for result in results:
        assert TOKEN not in result.out + result.err
    command = json.loads((out / "block_expansion.json").read_text())["command"]
    # Folders are named there as strangers may see them.
    assert command == "python -m blockexpand --src source --out out --new-layers 1 -v"
    for path in out.rglob("*"):
        assert TOKEN.encode() not in path.read_bytes()


def test_the_command_in_the_card_makes_the_same_again(
    source: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    out = source.parent / "an 'out' with $signs"
    run("--src", source, "--out", out, "--new-layers", 1, "--position", "start")
    command = json.loads((out / "block_expansion.json").read_text())["command"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    shutil.rmtree(out)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "blockexpand"]
    assert run(*words[3:]).status == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# streams and signals


def read_terminal(words: list[str]) -> tuple[str, str, int]:
    """Run with a terminal for stderr; return what it showed, stdout, and the exit status."""
    import fcntl
    import pty
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "blockexpand", *words],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    )
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([leader], [], [], 0.1)[0]:
            continue
        try:
            data = os.read(leader, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        shown += data
    out, _ = process.communicate(timeout=60)
    os.close(leader)
    return shown.decode(), out, process.returncode


def test_progress_is_shown_on_a_terminal_only(source: Path) -> None:
    out = source.parent / "out"
    words = ["--src", str(source), "--out", str(out), "--new-layers", "1"]
    shown, printed, status = read_terminal([*words, "--verify", "tensors"])
    assert status == 0
    assert re.search(r"writing: +100%\|.*B/s\]", shown)
    assert re.search(r"comparing: +100%\|.*B/s\]", shown)
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, ", shown)
    assert "verified" in printed
    for option in ("--no-progress", "-q"):
        shown, _, status = read_terminal([*words, "--overwrite", option])
        assert (shown, status) == ("", 0)
    piped = run_process(*words, "--overwrite", "--no-progress")
    assert (piped.returncode, piped.stderr) == (0, "")


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_traceback(buffered: str, source: Path) -> None:
    for words in (
        ["--help"],
        ["--src", str(source), "--out", "x", "--new-layers", "2000", "--dry-run", "--json"],
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "blockexpand", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": buffered},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(60) in (0, 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_stdout_is_told(source: Path) -> None:
    with Path("/dev/full").open("w") as full:
        words = ["--src", str(source), "--out", "x", "--new-layers", "1", "--dry-run"]
        done = subprocess.run(
            [sys.executable, "-m", "blockexpand", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 3
    assert done.stderr == "blockexpand: standard output: cannot write: No space left on device\n"


def test_ctrl_c_is_130_and_leaves_no_output(tmp_path: Path) -> None:
    # Large enough to be met at work: conversion of 80 MB.
    size = 1 << 19
    tensors = mistral_tensors(layers=4, dtype="F32", size=size)
    source = write_checkpoint(tmp_path / "source", [tensors])
    before = {name: entry[1:] for name, entry in snapshot(source).items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "blockexpand", "--src", str(source),
         "--out", str(tmp_path / "out"), "--new-layers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*/partial/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    err = without_progress(err)
    assert process.returncode == 130, err
    assert out == ""
    assert err.startswith("blockexpand: interrupted")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert {name: entry[1:] for name, entry in snapshot(source).items()} == before


def test_an_interrupted_proof_says_that_the_output_stands(
    source: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blockexpand.verification.output.verify_output", interrupt)
    out = source.parent / "out"
    result = run("--src", source, "--out", out, "--new-layers", 1, "--verify", "tensors")
    assert result.status == 130
    assert result.err == f"blockexpand: interrupted; {out} is complete, but not verified\n"
    assert out.is_dir()


def test_main_prints_the_same_wherever_it_is_called_from(
    source: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    """Paths of strange names, in and out, through a real process."""
    strange = tmp_path / os.fsdecode(b"caf\xe9 \n;'\"$x")
    copy_tree(source, strange)
    done = run_process("--src", strange, "--out", tmp_path / "out", "--new-layers", 1)
    assert (done.returncode, without_progress(done.stderr)) == (0, "")
    assert "caf\\udce9 \\n;'\"$x (mistral): 2 layers" in done.stdout
    done = run_process("verify", strange, tmp_path / "out", "--no-progress")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_library_that_cannot_be_loaded_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_checkpoint(tmp_path / "source", [mistral_tensors(2, "F32")])
    monkeypatch.setitem(sys.modules, "torch", None)
    out = tmp_path / "out"
    assert main(["--src", str(source), "--out", str(out), "--new-layers", "1", "-q"]) == 3
    message = capsys.readouterr().err
    assert message == (
        "blockexpand: torch is needed for this, and is not installed: pip install torch\n"
    )
    assert not out.exists()


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files(closed: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", [mistral_tensors(2, size=1 << 20)])
    command = f"{shlex.quote(sys.executable)} -m blockexpand"
    done = subprocess.run(
        f"{command} --src source --out out --new-layers 1 {closed} && "
        f"! {command} --src nowhere --out other --new-layers 1 {closed}",
        shell=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert main(["verify", str(source), str(tmp_path / "out"), "--quiet"]) == 0
