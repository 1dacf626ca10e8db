"""The commands as people meet them: help that fits, mistyped words, what each one tells."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit_json, mistral_tensors, read_file, write_checkpoint

import blockexpand
from blockexpand.cli.app import main
from blockexpand.cli.commands import COMMANDS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(shlex.split(words))
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where `model` is a Mistral of 12 layers and `out` its expansion by 3 blocks."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model", [mistral_tensors(12)])
    words = ["--src", "model", "--out", "out", "--new-layers", "3", "--position", "interleaved"]
    assert main([*words, "-q"]) == 0
    return tmp_path


def everything_that_helps() -> list[list[str]]:
    return [["--help"], ["-h"], ["help"]] + [
        words for name in COMMANDS for words in ([name, "--help"], ["help", name])
    ]


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("words", everything_that_helps(), ids=" ".join)
def test_help_fits_the_terminal_and_cuts_no_word(
    words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(words) == 0
    text, err = capsys.readouterr()
    assert err == ""
    assert text.startswith("usage: blockexpand")
    # An example is a line that can be copied, whatever the width.
    prose = [line for line in text.splitlines() if not line.startswith("  blockexpand")]
    if columns >= 80:
        assert max(map(len, text.splitlines())) <= 80
        assert not [line for line in prose if line.endswith("-") and not line.endswith(" -")]
    assert set(re.findall(r"[A-Za-z]+", text)) >= {"usage", "blockexpand"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_knows_its_version_and_is_explained(name: str, run: Run) -> None:
    for option in ("-V", "--version"):
        assert run(f"{name} {option}") == (0, f"blockexpand {blockexpand.__version__}\n", "")
    _, explained, _ = run(f"help {name}")
    assert run(f"{name} --help")[1].rstrip() == explained.rstrip()
    assert f"  {name} " in run("help")[1]
    assert f"  {name} " in run("--help")[1]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("verfy a b", "verfy: no such command; did you mean verify? See `blockexpand help`"),
        ("trainconfig out", "did you mean train-config?"),
        ("nonesuch", "nonesuch: no such command; see `blockexpand help`"),
        ("help shwo", "did you mean show?"),
        ("franken.yml out", "`blockexpand merge franken.yml --out out`"),
        ("franken.yaml", "`blockexpand merge franken.yaml --out OUT`"),
        ("--srcc model --out x", "unknown option --srcc; did you mean --src?"),
        ("verify model out --logit", "did you mean --logits?"),
        (
            "--src model --out x --new-layers 1 --xyzzy",
            "unknown option --xyzzy; expected `blockexpand ",
        ),
        ("train-config out --framework axoltl", "did you mean axolotl?"),
        ("--src model --out x --new-layers 1 --position interleavd", "did you mean interleaved?"),
        ("--src model --out x --new-layers 1 --dtype bfloat", "did you mean bfloat16?"),
        ("--src model --src out --out x --new-layers 1", "--src is given twice"),
        ("-q -v --src model --out x --new-layers 1", "not allowed with"),
        ("--src model --out x --new-layers four", "expected a whole number, found 'four'"),
        ("--src model --out x", "needs --new-layers N; `blockexpand suggest model` lists"),
        ("", "`blockexpand help` lists the commands"),
        ("--dry-run", "--src and --out missing"),
        ("--src model", "--out missing"),
        ("merge recipe.yml", "--out"),
        ("verify model out extra", "unexpected argument 'extra'"),
        ("verify --src model --out out", "expected `blockexpand verify SRC OUT [options]`"),
        ("expand model x 2", "expected `blockexpand [expand] --src SRC --out OUT"),
        ("model x --new-layers 2", "a model is expanded with --src model --out OUT"),
        ("''", "blockexpand: '': no such command; see"),
        ("VERIFY model out", "did you mean verify?"),
        ("-help", "did you mean --help?"),
        ("--src model --out x --new_layers 1", "did you mean --new-layers?"),
        ("--src model --out x --new-layers 1_0", "expected a whole number, found '1_0'"),
        ("--src model --out x --new-layers ２", "expected a whole number, found '２'"),
        ("--src model --out x --new-layers", "--new-layers needs a value; see"),
        ("--src model --out -x --new-layers 1", "one with a hyphen is written --out=-x"),
        ("--src model --out x --new-layers 1 --dtype fp16", "did you mean float16?"),
        ("--src model --out x --new-layers 1 --dtype bf16", "did you mean bfloat16?"),
        ("train-config out --framework LLaMA-Factory", "did you mean llamafactory?"),
        ("--src model --out x --new-layers 1 --private", "--private needs --push-to-hub REPO"),
        ("--src model --out x --new-layers 1 --create-pr", "--create-pr needs --push-to-hub"),
        ("merge a.yml --out x --commit-message y", "--commit-message needs --push-to-hub REPO"),
        ("extract out --base model --out x --create-pr", "--create-pr needs --push-to-hub"),
        ("apply model blocks --out x --commit-message y", "--commit-message needs --push-to"),
        ("apply model blocks --out x --scale nan", "--scale: expected a finite number, found nan"),
        ("batch jobs.yaml --jobs two", "expected a whole number, found 'two'"),
        ("merge a.yml out", "--out missing; expected `blockexpand merge FILE --out OUT"),
        ("verify model ''", "OUT: expected a value, found an empty text"),
        ("diff model out --html ''", "--html: expected a value, found an empty text"),
        ("--src model --out x --new-layers 1 --cache-dir ''", "--cache-dir: expected a value"),
    ],
)
def test_a_mistyped_word_is_one_line_with_what_was_meant(
    words: str, hint: str, folder: Path, run: Run
) -> None:
    status, out, err = run(words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("blockexpand: ")
    assert hint in err
    assert not (folder / "x").exists()


def test_general_options_may_stand_before_the_command(folder: Path, run: Run) -> None:
    after = run("verify --json model out")[1]
    before = run("--json verify model out")[1]
    assert json.loads(before).keys() == json.loads(after).keys()
    assert run("-q verify model out") == (0, "", "")
    assert run("--help verify") == run("verify --help")


def test_the_source_as_its_own_output_is_named_as_such(folder: Path, run: Run) -> None:
    for out in ("model", "model/", "./x/../model", "model --overwrite", "model --dry-run"):
        status, _, err = run(f"--src model --new-layers 1 --out {out}")
        assert (status, err) == (
            3,
            f"blockexpand: {folder / 'model'}: is the source itself; choose another output "
            "folder\n",
        )


def test_overwriting_is_advised_only_where_a_model_is(folder: Path, run: Run) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    write_checkpoint(folder / "other", [mistral_tensors(2)])
    assert run("--src model --new-layers 1 --out notes")[2].endswith("choose another folder\n")
    assert run("--src model --new-layers 1 --out other")[2].endswith("or give --overwrite\n")


def test_a_recipe_may_come_through_a_pipe(folder: Path) -> None:
    recipe = (
        "slices: [{sources: [{model: model, layer_range: [0, 2]}]}]\nmerge_method: passthrough\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "blockexpand", "merge", "/dev/stdin", "--out", "x", "-q"],
        input=recipe,
        text=True,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "x" / "config.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("how", ["plain", "bar", "json"])
def test_a_log_that_cannot_be_written_ends_no_run(folder: Path, how: str) -> None:
    words = ["--src", "model", "--out", "x", "--new-layers", "1", "--progress", how]
    with Path("/dev/full").open("w") as full:
        for status, more in ((0, words), (2, ["nonsense"]), (3, ["verify", "model", "nowhere"])):
            done = subprocess.run(
                [sys.executable, "-m", "blockexpand", *more], stderr=full, stdout=subprocess.PIPE
            )
            assert done.returncode == status
    assert (folder / "x" / "config.json").is_file()


def test_expand_is_the_word_for_the_bare_form(folder: Path, run: Run) -> None:
    for out, word in (("bare", ""), ("named", "expand ")):
        assert run(f"{word}--src model --out {out} --new-layers 2 -q") == (0, "", "")
    for path in (folder / "bare").glob("*.safetensors"):
        assert (folder / "named" / path.name).read_bytes() == path.read_bytes()
    # The command that the card shows is the one that was typed.
    manifest = json.loads((folder / "named" / "block_expansion.json").read_text())
    assert manifest["command"].startswith("python -m blockexpand expand --src model")


def test_merge_is_the_word_for_a_recipe(folder: Path, run: Run) -> None:
    recipe = "slices: [{sources: [{model: model, layer_range: [0, 12]}]}]\n"
    (folder / "r.yml").write_text(recipe + "merge_method: passthrough\ndtype: bfloat16\n")
    assert run("merge r.yml --out one -q") == (0, "", "")
    assert run("--recipe r.yml --out two -q") == (0, "", "")
    one, two = (
        {p.name: p.read_bytes() for p in (folder / out).glob("*.safetensors")}
        for out in ("one", "two")
    )
    assert one == two
    assert run("merge none.yml --out three")[0] == 3


# show


def test_show_draws_the_depth_and_tells_old_from_new(folder: Path, run: Run) -> None:
    status, text, err = run("show out")
    assert (status, err) == (0, "")
    assert "▁▁▁▁█▁▁▁▁█▁▁▁▁█" in text
    assert re.search(r"layers +12 \+ 3 new = 15$", text, re.MULTILINE)
    assert "untrained" in text
    found = json.loads(run("show out --json")[1])
    # Counted by hand: 4 numbers in each of 9 tensors a layer, and 3 tensors beside them.
    assert found["parameters"]["total"] == 4 * (9 * 15 + 3)
    assert found["parameters"]["new"] == 4 * 9 * 3
    assert found["new_layers"] == [4, 9, 14]
    assert (found["closing_tensors"], found["trained_tensors"]) == (6, 0)
    plain = json.loads(run("show model --json")[1])
    assert (plain["new_layers"], plain["lineage"], plain["trained_tensors"]) == ([], [], None)


def test_show_follows_what_a_model_was_made_from(folder: Path, run: Run) -> None:
    assert run("--src out --out again --new-layers 2 -q")[0] == 0
    found = json.loads(run("show again --json")[1])
    assert found["lineage"] == ["out (15 layers + 2)", "model (12 layers + 3)"]
    shutil.rmtree(folder / "out")
    assert json.loads(run("show again --json")[1])["lineage"] == ["out (15 layers + 2)"]


@pytest.mark.parametrize(
    ("value", "trained"), [(b"\x00\x00", 0), (b"\x00\x80", 0), (b"\x80\x00", 1), (b"\x80\x3f", 1)]
)
def test_show_tells_trained_blocks_from_untrained_ones(
    value: bytes, trained: int, folder: Path, run: Run
) -> None:
    """Negative zeros, as other tools write them, are zeros."""
    name = "model.layers.9.mlp.down_proj.weight"
    for path in (folder / "out").glob("*.safetensors"):
        tensors = read_file(path)
        if name in tensors:
            with path.open("r+b") as file:
                file.seek(tensors[name].offset + 2)
                file.write(value)
    found = json.loads(run("show out --json")[1])
    assert found["trained_tensors"] == trained
    assert ("untrained" in run("show out")[1]) == (not trained)


def test_show_of_a_model_that_cannot_be_expanded_says_why(folder: Path, run: Run) -> None:
    edit_json(folder / "model" / "config.json", model_type="bert")
    status, text, _ = run("show model")
    assert status == 0
    assert "not possible" in text and "each layer ends in a norm" in " ".join(text.split())


# suggest, families, env, completion


def test_suggest_lists_what_makes_equal_groups(folder: Path, run: Run) -> None:
    found = json.loads(run("suggest model --json")[1])
    rows = {row["new_layers"]: row for row in found["suggestions"]}
    assert list(rows) == [1, 2, 3, 4, 6, 12]
    assert [n for n, row in rows.items() if row["nearest_to_llama_pro"]] == [3]
    size = sum(p.stat().st_size for p in (folder / "out").iterdir())
    # All but the card and the manifest, which are not planned here.
    assert 0 < size - rows[3]["nbytes"] < 10_000
    assert rows[3]["parameters"]["new"] == 4 * 9 * 3
    assert rows[3]["training_nbytes"] - 16 * 4 * 9 * 3 > 2 * 4 * (9 * 15 + 3)
    status, text, err = run("suggest model")
    assert (status, err) == (0, "")
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^3\* +interleaved, each 4 +15 ", text, re.MULTILINE)


def test_families_says_what_holds_and_what_is_close(run: Run) -> None:
    status, text, _ = run("families")
    assert status == 0
    assert max(map(len, text.splitlines())) <= 80
    for name in ("mistral", "qwen3_vl", "bert"):
        assert re.search(rf"\b{name}\b", text)
    assert "self_attn.o_proj" in run("families mistral")[1]
    assert "its text decoder is" in run("families qwen3_vl")[1]
    assert "refused" in run("families bert")[1]
    unknown = run("families mistrall")
    assert unknown[0] == 0 and re.search(r"closest names: .*\bmistral\b", unknown[1])
    assert json.loads(run("families bert --json")[1])["supported"] is False
    assert "mistral" in json.loads(run("families --json")[1])["decoders"]


def test_env_tells_versions_and_nothing_of_the_user(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import version

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", "/home/jane/hub")
    status, text, err = run("env")
    assert (status, err) == (0, "")
    assert f"torch            {version('torch')}" in text
    assert "HF_TOKEN" in text and "hf_secret" not in text
    assert "jane" not in text and str(Path.home()) not in text
    assert json.loads(run("env --json")[1])["blockexpand"] == blockexpand.__version__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(shell: str, run: Run, tmp_path: Path) -> None:
    status, script, err = run(f"completion {shell}")
    assert (status, err) == (0, "")
    for word in ("train-config", "new-layers", "logits"):
        assert word in script
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(script)
        done = subprocess.run([shell, "-n", path], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_a_command_and_an_option(run: Run, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(run("completion bash")[1])
    probe = f"""
source {tmp_path}/script
complete_words() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
    COMPREPLY=(); $function blockexpand; echo "${{COMPREPLY[@]}}"
}}
function=$(complete -p blockexpand | sed 's/.*-F \\([^ ]*\\).*/\\1/')
complete_words blockexpand ver
complete_words blockexpand verify --log
complete_words blockexpand --new
"""
    done = subprocess.run(["bash", "-c", probe], capture_output=True, text=True)
    assert done.stdout.split("\n")[:3] == ["verify", "--logits", "--new-layers"], done


def test_without_shtab_completion_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    status, out, err = run("completion bash")
    assert (status, out) == (3, "")
    assert "pip install 'blockexpand[completion]'" in err
