"""What a run tells while it is at work: lines for a log, a bar, objects for a program."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import mistral_tensors, write_checkpoint

from blockexpand.cli import reporters
from blockexpand.cli.app import main
from blockexpand.cli.reporters import Bar, Lines, Objects, Reporter
from blockexpand.cli.text_sizes import format_duration
from blockexpand.progress import Progress

LINE = re.compile(r"\d\d:\d\d:\d\d [^\n]+\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tensors = mistral_tensors(4)
    names = list(tensors)
    shards = [{n: tensors[n] for n in names[:20]}, {n: tensors[n] for n in names[20:]}]
    write_checkpoint(tmp_path / "model", shards)
    return tmp_path


def tell(words: str, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Run a command and return what it told, every line of it with the time cut off."""
    capfd.readouterr()
    assert main(words.split()) == 0
    err = capfd.readouterr().err
    assert LINE.sub("", err) == ""
    return [line[9:] for line in err.splitlines()]


EXPAND = "--src model --out out --new-layers 2"


def test_a_log_has_a_line_for_each_stage_and_finished_file(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = tell(f"{EXPAND} --verify tensors", capfd)
    assert lines[0].startswith("writing: ")
    for number in (1, 2, 3):
        name = f"model-0000{number}-of-00003.safetensors"
        assert any(line.startswith(f"writing: {name} done, ") for line in lines)
        assert any(line.startswith(f"comparing: {name} done, ") for line in lines)
    assert re.search(r"done, \d+ B of \d+ B, 100 %$", lines[-1])
    assert tell("verify model out", capfd)[0].startswith("comparing: ")
    assert tell("diff model out", capfd)[0].startswith("comparing: ")


def test_a_batch_says_of_each_job_how_it_ended(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "jobs.yaml").write_text("matrix: {src: model, new-layers: [1, 2], out: 'm-{layers}'}")
    lines = tell("batch jobs.yaml", capfd)
    assert [line for line in lines if line.endswith(": done")] == [
        f"{folder}/m-5: done",
        f"{folder}/m-6: done",
    ]
    assert any(line.startswith(f"writing: {folder}/m-6: model-0") for line in lines)
    assert f"{folder}/m-5: skipped" in tell("batch jobs.yaml", capfd)


@pytest.mark.parametrize("option", ["--progress none", "--no-progress", "-q"])
def test_nothing_is_told_where_nothing_is_asked_for(
    option: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tell(f"{EXPAND} {option}", capfd) == []
    assert tell(f"verify model out {option}", capfd) == []
    assert tell(f"diff model out {option}", capfd) == []


def test_objects_are_one_a_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(f"{EXPAND} --progress json".split()) == 0
    records = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [record["event"] for record in records if record["event"] != "progress"] == [
        "begin",
        *["file"] * 3,
    ]
    assert records[0]["stage"] == "writing"
    done = [record["done_nbytes"] for record in records[1:]]
    assert done == sorted(done) and 0 < done[-1] <= records[0]["total_nbytes"]
    assert all(abs(record["time"] - time.time()) < 60 for record in records)


def test_verbose_logs_with_the_time_how_the_bytes_of_each_file_got_there(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = tell(f"{EXPAND} -v --progress none --reflink never", capfd)
    assert len(lines) == 3
    assert re.fullmatch(r"model-00001-of-00003.safetensors: [\d,]+ bytes copied", lines[0])
    assert not logging.getLogger("blockexpand").handlers


def test_a_stage_that_counts_nothing_is_told_and_loading_torch_is_one(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = tell(f"{EXPAND} --dtype float32", capfd)
    assert lines[:2] == ["loading torch", lines[1]] and lines[1].startswith("writing: ")
    lines = tell("--src model --out other --new-layers 1", capfd)
    assert "loading torch" not in lines


# the reporters, by a clock of the test's own


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(reporters.time, "monotonic", clock.monotonic)
    yield clock


def last_line(err: str) -> str:
    return err.splitlines()[-1][9:]


def test_a_line_every_half_minute_says_how_fast_and_how_long_still(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    assert lines.seconds == 30
    lines.tick()
    assert capsys.readouterr().err == ""
    lines.begin("writing", 1_340_000_000_000)
    lines.begin_file("model-00042-of-00163.safetensors")
    clock.now += 400
    lines.advance(412_000_000_000)
    lines.tick()
    assert last_line(capsys.readouterr().err) == (
        "writing: 412 GB of 1.34 TB, 30 %, 1.03 GB/s, 15 min left, model-00042-of-00163.safetensors"
    )
    lines.stage("comparing logits")
    clock.now += 200
    lines.tick()
    assert "comparing logits" in last_line(capsys.readouterr().err)


def test_a_stage_without_bytes_is_seen_to_live(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    lines.stage("testing the plan on a tiny model")
    clock.now += 30
    lines.tick()
    assert last_line(capsys.readouterr().err) == (
        "testing the plan on a tiny model: at work for 30 s"
    )


def test_objects_tell_each_second_where_a_run_is(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = Objects()
    assert objects.seconds == 1
    objects.begin("writing", 100)
    objects.begin_job("models/a")
    objects.begin_file("model-1.safetensors")
    objects.advance(40)
    objects.tick()
    found = json.loads(capsys.readouterr().err.splitlines()[-1])
    found.pop("time")
    assert found == {
        "event": "progress",
        "stage": "writing",
        "job": "models/a",
        "file": "model-1.safetensors",
        "done_nbytes": 40,
        "total_nbytes": 100,
    }


def test_a_bar_names_stage_job_and_file_within_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    bar = Bar()
    bar.begin("writing", 1_340_000_000_000)
    bar.begin_job("models/a-very-long-name-of-a-folder/mistral-36L")
    bar.begin_file("model-00042-of-00163.safetensors")
    bar.advance(412_000_000_000)
    bar.tick()
    shown = stream.getvalue().split("\r")[-1]
    assert re.match(r"writing …\S*mistral-36L 42/163: +31%\|", shown)
    assert "412G/1.34T" in shown
    bar.stage("comparing logits")
    bar.tick()
    assert "comparing logits" in stream.getvalue().split("\r")[-1]
    bar.close()
    assert "writing: " in stream.getvalue().split("\r")[-1]


def test_a_bar_without_bytes_shows_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    bar = Bar()
    bar.stage("testing the plan on a tiny model")
    bar.tick()
    assert re.search(r"testing the plan on a tiny model: \d\d:\d\d", stream.getvalue())
    bar.close()


@pytest.mark.parametrize("make", [Reporter, Lines, Objects, Bar])
def test_a_strangers_name_draws_nothing(
    make: Callable[[], Reporter], capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = make()
    reporter.begin("writing", 10)
    reporter.begin_file("evil\x1b[2J.safetensors")
    reporter.end_file("evil\x1b[2J.safetensors")
    reporter.end_job("evil\x1b[2J", "done")
    reporter.tell("evil\x1b[2J")
    reporter.tick()
    reporter.close()
    assert "\x1b[2J" not in capsys.readouterr().err


def test_every_callback_of_the_library_is_told() -> None:
    fields = set(Progress.__dataclass_fields__) - {"is_shown"}
    assert all(callable(getattr(Reporter(), name)) for name in fields)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "less than a second"), (8, "8 s"), (99, "99 s"), (840, "14 min"), (12_600, "3.5 h")],
)
def test_durations_are_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
