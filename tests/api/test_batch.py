"""Batches: planned together, written one by one, skipped when finished, told in a table."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from checkpoints import snapshot
from hub_server import HubServer, read_folder

import blockexpand
from blockexpand.api import batch as batch_module
from blockexpand.api.batch import JobResult, expand_batch
from blockexpand.api.batch_plan import plan_batch
from blockexpand.api.jobs_file import open_jobs
from blockexpand.api.pipeline import write_and_publish
from blockexpand.cli.app import main
from blockexpand.errors import BlockExpandError, TransferError
from blockexpand.planning.plan import make_plan
from blockexpand.progress import Progress

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
MATRIX = """\
defaults: {src: SRC, out: "family/{model}-{layers}L-{position}"}
matrix:
  - {new-layers: [1, 2], position: end}
  - {new-layers: 2, position: interleaved}
"""
NAMES = ["source-5L-end", "source-6L-end", "source-6L-interleaved"]


@pytest.fixture
def write_jobs(
    tiny_mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Return a function that writes a jobs file into the current folder; SRC is the source."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = tmp_path / "jobs.yaml"
        path.write_text(text.replace("SRC", str(tiny_mistral)))
        return path

    return write


def states(results: tuple[JobResult, ...]) -> list[str]:
    return [result.state for result in results]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(path: Path) -> str:
    with pytest.raises(BlockExpandError) as caught:
        expand_batch(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without_command(folder: Path) -> dict[str, bytes]:
    """Return a folder's files; the card and the manifest, which show the command, are not."""
    files = read_folder(folder)
    return {k: v for k, v in files.items() if k not in ("README.md", "block_expansion.json")}


@pytest.mark.parametrize("parallel", [1, 3])
def test_each_job_makes_what_its_command_makes(
    write_jobs: Callable[[str], Path], tiny_mistral: Path, tmp_path: Path, parallel: int
) -> None:
    before = snapshot(tiny_mistral)
    results = expand_batch(write_jobs(MATRIX), parallel=parallel)
    assert states(results) == ["done"] * 3
    assert names(tmp_path / "family") == NAMES
    for name, count, position in zip(NAMES, (1, 2, 2), ("end", "end", "interleaved"), strict=True):
        alone = tmp_path / f"alone-{name}"
        blockexpand.expand(tiny_mistral, alone, new_layers=count, position=position)
        assert without_command(tmp_path / "family" / name) == without_command(alone)
    assert snapshot(tiny_mistral) == before


def test_command_of_the_card_makes_the_same(
    write_jobs: Callable[[str], Path], tiny_mistral: Path, tmp_path: Path
) -> None:
    import shlex

    expand_batch(write_jobs(MATRIX))
    made = tmp_path / "family" / NAMES[2]
    command = json.loads((made / "block_expansion.json").read_text())["command"]
    kept = snapshot(made)
    shutil.rmtree(made)
    words = shlex.split(command)[3:]
    # It has names and no paths: the reader says where these are.
    words[words.index(tiny_mistral.name)] = str(tiny_mistral)
    words[words.index(made.name)] = str(made)
    assert main(words) == 0
    assert {k: v[0] for k, v in snapshot(made).items() if k.endswith(".safetensors")} == {
        k: v[0] for k, v in kept.items() if k.endswith(".safetensors")
    }


def test_finished_jobs_are_skipped(write_jobs: Callable[[str], Path], tmp_path: Path) -> None:
    path = write_jobs(MATRIX)
    expand_batch(path)
    before = snapshot(tmp_path / "family")
    assert states(expand_batch(path)) == ["skipped"] * 3
    assert snapshot(tmp_path / "family") == before
    shutil.rmtree(tmp_path / "family" / NAMES[1])
    assert states(expand_batch(path)) == ["skipped", "done", "skipped"]


def test_finished_job_is_not_written_again_with_overwrite(
    write_jobs: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_jobs(MATRIX.replace("{src", "{overwrite: true, src"))
    expand_batch(path)
    before = snapshot(tmp_path / "family")
    assert states(expand_batch(path)) == ["skipped"] * 3
    assert snapshot(tmp_path / "family") == before


@pytest.mark.parametrize("damage", ["shorter", "missing", "another plan", "config", "no manifest"])
def test_output_that_is_not_this_job_finished(
    write_jobs: Callable[[str], Path], tmp_path: Path, damage: str
) -> None:
    path = write_jobs(MATRIX)
    expand_batch(path)
    folder = tmp_path / "family" / NAMES[1]
    shard = sorted(folder.glob("*.safetensors"))[0]
    if damage == "shorter":
        os.truncate(shard, shard.stat().st_size - 1)
    elif damage == "missing":
        (folder / "tokenizer.json").unlink()
    elif damage == "another plan":
        shutil.rmtree(folder)
        shutil.copytree(folder.with_name(NAMES[2]), folder)
    elif damage == "config":
        (folder / "config.json").write_text("{}")
    else:
        (folder / "block_expansion.json").unlink()
    before = snapshot(folder)
    assert "source-6L-end: exists and is not empty" in refuse(path)
    assert snapshot(folder) == before
    write_jobs(MATRIX.replace("{src", "{overwrite: true, src"))
    assert states(expand_batch(path)) == ["skipped", "done", "skipped"]


def test_output_of_another_plan_of_the_same_sizes(
    write_jobs: Callable[[str], Path], tmp_path: Path
) -> None:
    job = "jobs: [{src: SRC, out: out, position: %s, max-shard-size: 5GB}]"
    expand_batch(write_jobs(job % "[1]"))
    before = snapshot(tmp_path / "out")
    assert "out: exists and is not empty" in refuse(write_jobs(job % "[2]"))
    assert snapshot(tmp_path / "out") == before
    assert states(expand_batch(write_jobs(job % "[1]"))) == ["skipped"]


@pytest.mark.parametrize("change", ["weights", "model"])
def test_output_of_other_weights_of_the_same_shape_is_not_taken_for_finished(
    write_jobs: Callable[[str], Path], tiny_mistral: Path, tmp_path: Path, change: str
) -> None:
    text = "defaults: {src: %s, out: made, new-layers: 1, overwrite: %s}\njobs: [{}]"
    model = shutil.copytree(tiny_mistral, tmp_path / "model")
    assert states(expand_batch(write_jobs(text % ("model", "false")))) == ["done"]
    if change == "model":
        model = shutil.copytree(model, tmp_path / "other")
        reason = "made: was made from 'model', not from other; choose another folder"
    else:
        reason = "of model was last changed; choose another folder"
    shard = sorted(model.glob("*.safetensors"))[0]
    before = shard.stat()
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if change == "model":
        # No newer than the output: only its name tells.
        os.utime(shard, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert reason in refuse(write_jobs(text % (model.name, "false")))
    assert states(expand_batch(write_jobs(text % (model.name, "true")))) == ["done"]
    verification, _ = blockexpand.verify(model, tmp_path / "made")
    assert verification.findings == ()
    assert states(expand_batch(write_jobs(text % (model.name, "false")))) == ["skipped"]


def test_all_faults_are_found_before_the_first_byte(
    write_jobs: Callable[[str], Path], tiny_mistral: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    path = write_jobs("""\
defaults: {src: SRC, new-layers: 1}
jobs:
  - {out: good}
  - {out: same}
  - {out: ./same/}
  - {out: same/inside}
  - {out: full}
  - {out: far, position: [99], new-layers: ~}
  - {out: none, src: ./nowhere}
  - {out: SRC/inside}
  - {out: one, push-to-hub: "user/{model}"}
""")
    line = refuse(path)
    for where, said in [
        (5, "same: is also the output of"),
        (6, "inside: lies inside, or around,"),
        (7, "full: exists and is not empty"),
        (8, "99"),
        (9, "no such folder"),
        (10, "may not lie inside each other"),
        (11, "a token that may write"),
    ]:
        assert any(
            fault.startswith(f"{path}:{where}: ") and said in fault
            for fault in line.replace(f"; {path}", f"\n{path}").splitlines()
        ), said
    assert f"{path}:3:" not in line
    assert names(tmp_path) == ["full", "jobs.yaml"]


def test_jobs_that_differ_in_their_outputs_alone_are_planned_once(
    write_jobs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each still has a card of its own, which shows its own command."""
    plans = 0

    def count(*arguments: Any) -> Any:
        nonlocal plans
        plans += 1
        return make_plan(*arguments)

    monkeypatch.setattr("blockexpand.api.batch_plan.make_plan", count)
    lines = [f"  - {{src: SRC, out: runs/{number}, new-layers: 1}}\n" for number in range(30)]
    batch = plan_batch(open_jobs(write_jobs("jobs:\n" + "".join(lines))))
    assert plans == 1
    cards = {document.data for job in batch.jobs for document in job.plan.documents[-2:]}
    assert len(cards) == 2 * len(batch.jobs)


def test_two_uploads_to_one_repository(
    write_jobs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    path = write_jobs(MATRIX.replace("{src", '{push-to-hub: "user/{model}", src'))
    assert "uploads to user/source, as" in refuse(path)


def test_output_around_the_source_of_another_job(
    write_jobs: Callable[[str], Path], make_tiny: Callable[..., Path]
) -> None:
    other = make_tiny(shards=1)
    path = write_jobs(f"""\
defaults: {{new-layers: 1, overwrite: true}}
jobs:
  - {{src: SRC, out: {other}}}
  - {{src: {other}, out: out}}
""")
    before = snapshot(other)
    assert f"{other}: lies inside, or around, {other}, the source of {path}:4" in refuse(path)
    assert snapshot(other) == before


def test_disk_of_all_jobs_together(
    write_jobs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each job alone would fit, all of them do not."""
    path = write_jobs(MATRIX)
    sizes = [result.expansion.plan.nbytes for result in expand_batch(path) if result.expansion]
    shutil.rmtree(tmp_path / "family")
    free = max(sizes) + 10_000

    def disk_usage(folder: Path) -> Any:
        return NamedTuple("Usage", [("total", int), ("used", int), ("free", int)])(0, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    line = refuse(path)
    assert "not enough disk for all jobs together" in line and f"{free:,} free" in line
    assert not (tmp_path / "family").exists()
    # What was finished by an earlier run needs nothing more.
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    expand_batch(path)
    shutil.rmtree(tmp_path / "family" / NAMES[0])
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert states(expand_batch(path)) == ["done", "skipped", "skipped"]


@pytest.fixture
def second_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        if arguments[0].out.name == NAMES[1]:
            raise TransferError("the disk reports a fault")
        return write_and_publish(*arguments)

    monkeypatch.setattr(batch_module, "write_and_publish", fail)


def test_one_failure_does_not_stop_the_others(
    write_jobs: Callable[[str], Path],
    second_fails: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = write_jobs(MATRIX)
    assert main(["batch", str(path), "--no-progress"]) == 1
    stdout, stderr = capfd.readouterr()
    assert [line.split()[-1] for line in stdout.splitlines()[:4]] == [
        "state",
        "done",
        "failed",
        "done",
    ]
    assert stdout.splitlines()[4] == f"{path}:3: the disk reports a fault"
    assert stderr == (
        f"blockexpand: {path}: 1 of 3 jobs failed, the first: {tmp_path / 'family' / NAMES[1]}: "
        "the disk reports a fault\n"
    )
    assert names(tmp_path / "family") == [NAMES[0], NAMES[2]]


@pytest.mark.parametrize("word", [[], ["--keep-going"]])
def test_json(
    write_jobs: Callable[[str], Path],
    second_fails: None,
    capfd: pytest.CaptureFixture[str],
    word: list[str],
) -> None:
    assert main(["batch", str(write_jobs(MATRIX)), "--json", *word]) == 1
    found = json.loads(capfd.readouterr().out)
    assert found["failed"] == 1
    assert [job["state"] for job in found["jobs"]] == ["done", "failed", "done"]
    assert found["jobs"][1]["error"] == "the disk reports a fault"
    assert found["jobs"][2]["expansion"]["new_layers"] == [2, 5]


def test_fail_fast(write_jobs: Callable[[str], Path], second_fails: None, tmp_path: Path) -> None:
    results = expand_batch(write_jobs(MATRIX), fail_fast=True)
    assert states(results) == ["done", "failed", "not started"]
    assert names(tmp_path / "family") == [NAMES[0]]


def test_dry_run(
    write_jobs: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_jobs(MATRIX)
    assert main(["batch", str(path), "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [Path(line.split()[0]).name for line in lines[1:4]] == NAMES
    assert lines[4].startswith("needs ") and lines[4].endswith(f"free at {tmp_path}")
    assert main(["batch", str(path), "--dry-run", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [job["layers"] for job in found["jobs"]] == [5, 6, 6]
    needed = sum(job["nbytes"] for job in found["jobs"])
    zeroed = sum(file["zeroed"] for job in found["jobs"] for file in job["files"])
    assert needed - zeroed <= found["disk"][0]["nbytes"] <= needed
    assert names(tmp_path) == ["jobs.yaml"]


@pytest.mark.parametrize("words", [["--jobs", "0"], ["--keep-going", "--fail-fast"], []])
def test_wrong_usage(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", *words, *(["jobs.yaml"] if words else [])]) == 2


def test_proof_is_done_again_where_the_job_is_finished(
    write_jobs: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_jobs(MATRIX.replace("{src", "{verify: tensors, src"))
    assert all(r.expansion and r.expansion.verification for r in expand_batch(path))
    shard = next((tmp_path / "family" / NAMES[1]).glob("*.safetensors"))
    with shard.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x55")
    results = expand_batch(path)
    assert states(results) == ["skipped", "failed", "skipped"]


@pytest.mark.parametrize("parallel", [1, 2])
def test_interrupt_says_how_far_it_came_and_a_rerun_goes_on(
    write_jobs: Callable[[str], Path], tmp_path: Path, parallel: int
) -> None:
    path = write_jobs(MATRIX)
    seen = 0
    lock = threading.Lock()

    def interrupt(nbytes: int) -> None:
        nonlocal seen
        with lock:
            seen += nbytes
        if seen > 400_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"[01] of 3 jobs are done: run the same"):
        expand_batch(path, parallel=parallel, progress=Progress(advance=interrupt))
    assert names(tmp_path / "family")[-1:] != [NAMES[2]]
    results = expand_batch(path)
    assert set(states(results)) <= {"done", "skipped"}
    left = [name for name in names(tmp_path / "family") if name.startswith(".")]
    assert left == []


def test_progress_counts_every_byte_once(write_jobs: Callable[[str], Path]) -> None:
    totals: list[tuple[str, int]] = []
    counted: list[int] = []
    progress = Progress(begin=lambda what, n: totals.append((what, n)), advance=counted.append)
    expand_batch(write_jobs(MATRIX.replace("{src", "{verify: tensors, src")), progress=progress)
    ((what, nbytes),) = totals
    assert what == "writing" and sum(counted) == nbytes


# ------------------------------------------------------------------------- the Hub


HUB_JOBS = """\
defaults: {src: org/base, out: "{model}-{layers}L"}
matrix: {new-layers: [1, 2, 3]}
"""


def test_source_of_the_hub_is_fetched_once(
    write_jobs: Callable[[str], Path],
    hub: HubServer,
    hub_cache: Path,
    tiny_mistral: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from blockexpand.checkpoints import hub as hub_module

    downloads: list[object] = []
    download = hub_module.download_checkpoint
    monkeypatch.setattr(
        hub_module,
        "download_checkpoint",
        lambda *a, **k: downloads.append(a) or download(*a, **k),
    )
    commit = hub.add_repo("org/base", tiny_mistral)
    path = write_jobs(HUB_JOBS)
    assert states(expand_batch(path)) == ["done"] * 3
    assert len(downloads) == 1
    weights = [r for r in hub.requests if r.origin == "cdn" and r.method == "GET"]
    sizes = [file.stat().st_size for file in tiny_mistral.glob("*.safetensors")]
    # Every shard once, and before it the headers for the plan.
    assert sum(sizes) <= sum(r.nbytes for r in weights) < 1.5 * sum(sizes)
    for layers in (5, 6, 7):
        out = tmp_path / f"base-{layers}L"
        assert json.loads((out / "block_expansion.json").read_text())["source"]["commit"] == commit
        assert main(["verify", str(tiny_mistral), str(out)]) == 0
    hub.requests.clear()
    assert states(expand_batch(path)) == ["skipped"] * 3
    assert not [r for r in hub.requests if r.nbytes > 100_000]


def test_output_of_another_commit_is_not_taken_for_finished(
    write_jobs: Callable[[str], Path],
    hub: HubServer,
    hub_cache: Path,
    tiny_mistral: Path,
    tmp_path: Path,
) -> None:
    first = hub.add_repo("org/base", tiny_mistral)
    path = write_jobs(HUB_JOBS)
    assert states(expand_batch(path)) == ["done"] * 3
    files = read_folder(tiny_mistral)
    shard = sorted(name for name in files if name.endswith(".safetensors"))[0]
    files[shard] = files[shard][:-1] + bytes([files[shard][-1] ^ 1])
    second = hub.add_repo("org/base", files)
    reason = (
        f"was made from commit {first} of org/base, which is at {second}; choose another folder"
    )
    assert refuse(path).count(reason) == 3
    pinned = path.read_text().replace("{", f"{{revision: {first}, ", 1)
    path.write_text(pinned)
    assert states(expand_batch(path)) == ["skipped"] * 3


def test_dry_run_fetches_headers_only(
    write_jobs: Callable[[str], Path], hub: HubServer, hub_cache: Path, tiny_mistral: Path
) -> None:
    hub.add_repo("org/base", tiny_mistral)
    assert main(["batch", str(write_jobs(HUB_JOBS)), "--dry-run"]) == 0
    assert max(r.nbytes for r in hub.requests) < 50_000


def test_download_that_fails_fails_its_jobs_only(
    write_jobs: Callable[[str], Path],
    hub: HubServer,
    hub_cache: Path,
    tiny_mistral: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add_repo("org/base", tiny_mistral)
    path = write_jobs("""\
defaults: {new-layers: 1}
jobs:
  - {src: org/base, out: one}
  - {src: SRC, out: two}
  - {src: org/base, out: three}
""")

    def fail(*_: object, **__: object) -> None:
        raise blockexpand.errors.HubError("org/base: cannot reach the Hub")

    monkeypatch.setattr("blockexpand.checkpoints.hub.download_checkpoint", fail)
    results = expand_batch(path)
    assert states(results) == ["failed", "done", "failed"]
    assert "cannot reach" in str(results[0].error)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_every_output_is_uploaded(
    write_jobs: Callable[[str], Path], hub: HubServer, hub_cache: Path, tmp_path: Path
) -> None:
    hub.allow(TOKEN)
    path = write_jobs(
        MATRIX.replace("{src", '{push-to-hub: "user/{model}-{layers}-{position}", src')
    )
    words = ["batch", str(path), "--token", TOKEN, "-q"]
    assert main(words) == 0
    for name in NAMES:
        repo = f"user/{name.replace('L', '')}"
        assert hub.files(repo) == read_folder(tmp_path / "family" / name)
    # Of a finished job nothing tells that it was uploaded: it is offered again, and sends nothing.
    sent = len(hub.seen("/upload/", method="PUT"))
    assert main(words) == 0
    assert len(hub.seen("/upload/", method="PUT")) == sent


def test_a_job_that_another_batch_finishes_meanwhile_is_skipped(
    write_jobs: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two whole batches at once: what one holds the other puts off, and both end well."""
    path = write_jobs(MATRIX)
    both: dict[str, tuple[JobResult, ...]] = {}
    meet = threading.Barrier(2)
    met: set[str] = set()

    def run(name: str) -> None:
        def wait_once(nbytes: int) -> None:
            if name not in met:
                met.add(name)
                with contextlib.suppress(threading.BrokenBarrierError):
                    meet.wait(60)

        both[name] = expand_batch(path, progress=Progress(advance=wait_once))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results in both.values():
        assert {result.state for result in results} <= {"done", "skipped"}
        assert [result.error for result in results] == [None] * 3
    made = [{result.state for result in pair} for pair in zip(*both.values(), strict=True)]
    assert made == [{"done", "skipped"}] * 3
    assert names(tmp_path / "family") == NAMES


def test_a_skipped_job_says_what_was_compared(write_jobs: Callable[[str], Path]) -> None:
    path = write_jobs(MATRIX)
    expand_batch(path)
    for result in expand_batch(path):
        assert result.expansion is not None
        assert (
            "already there: the same plan, sizes and headers, and a block of"
            in (result.expansion.notes[-1])
        )


def test_an_output_with_the_jobs_file_in_it_is_not_replaced(
    write_jobs: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_jobs("jobs: [{src: SRC, out: out, new-layers: 1}]")
    expand_batch(path)
    inside = tmp_path / "out" / "tokenizer_config.json"
    inside.write_text(path.read_text().replace("1}", "2, overwrite: true}"))
    before = snapshot(tmp_path / "out")
    assert "which this run reads; --overwrite replaces only" in refuse(inside)
    assert snapshot(tmp_path / "out") == before
