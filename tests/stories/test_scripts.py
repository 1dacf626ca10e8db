"""The scripts say what is true: what they compare, what they measure, and why they stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import benchmark
import benchmark_cases
import compare_generation
import compare_with_mergekit
import disk_limit
import measure_growth
import measuring
import pytest
from measuring import Measurement

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"
SHELL_SCRIPTS = [*sorted(SCRIPTS.glob("*.sh")), REPOSITORY / ".ci" / "run"]


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_python_scripts_explain_themselves_without_torch(script: Path) -> None:
    hide_torch = "import sys, runpy; sys.modules['torch'] = sys.modules['transformers'] = None; "
    code = (
        f"{hide_torch}sys.argv = ['x', '--help']; runpy.run_path('{script}', run_name='__main__')"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
    )


@pytest.mark.parametrize("script", ["test.sh", "demo.sh"])
def test_an_old_python_is_refused_in_one_line(script: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" || exit 1\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", SCRIPTS / script],
        env=os.environ | {"PYTHON": str(python)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        done.stderr == f"{script}: Python 3.9.18 is too old: set PYTHON to Python 3.10 or newer\n"
    )


def test_the_scripts_install_one_torch() -> None:
    pins = re.findall(
        r"torch==\S+",
        (SCRIPTS / "environment.sh").read_text() + (SCRIPTS / "requirements-test.txt").read_text(),
    )
    assert pins == ["torch==2.13.0", "torch==2.13.0"]


def test_the_mergekit_recipe_is_the_seed_models(tiny_mistral: Path) -> None:
    import yaml

    source = {"model": str(tiny_mistral)}
    scale = [{"filter": "o_proj", "value": 0}, {"filter": "down_proj", "value": 0}, {"value": 1}]
    new = {"sources": [source | {"layer_range": [31, 32], "parameters": {"scale": scale}}]}
    assert yaml.safe_load(compare_with_mergekit.render_mergekit_yaml(tiny_mistral, 32, 4)) == {
        "slices": [{"sources": [source | {"layer_range": [0, 32]}]}, new, new, new, new],
        "merge_method": "passthrough",
        "dtype": "bfloat16",
    }


def change_tensor(folder: Path, name: str, change: Callable) -> None:
    """Rewrite one tensor of a checkpoint; what `change` returns replaces it, None removes it."""
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            changed = change(tensors.pop(name))
            save_file(tensors if changed is None else tensors | {name: changed}, file)


@pytest.mark.parametrize(
    ("name", "change", "difference"),
    [
        ("model.norm.weight", lambda tensor: None, "only in"),
        ("model.norm.weight", lambda tensor: tensor.float(), "torch.bfloat16 [32] against"),
        ("model.norm.weight", lambda tensor: tensor[:-1], "[32] against torch.bfloat16 [31]"),
        ("model.layers.2.mlp.down_proj.weight", lambda tensor: -tensor, "the bytes differ"),
        ("model.layers.3.mlp.up_proj.weight", lambda tensor: -tensor, "the bytes differ"),
        ("model.layers.3.mlp.down_proj.weight", lambda tensor: tensor + 1, "is not zero"),
        # mergekit's way: -0.0, equal by value
        ("model.layers.3.self_attn.o_proj.weight", lambda tensor: -tensor, None),
    ],
)
def test_the_comparison_finds_each_difference(
    tiny_mistral: Path, tmp_path: Path, name: str, change: Callable, difference: str | None
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(tiny_mistral, ours)
    for zeroed in ("mlp.down_proj", "self_attn.o_proj"):
        change_tensor(ours, f"model.layers.3.{zeroed}.weight", lambda tensor: tensor.zero_())
    shutil.copytree(ours, theirs)
    assert compare_with_mergekit.compare(ours, theirs, first_new_layer=3) == []
    change_tensor(theirs, name, change)
    found = compare_with_mergekit.compare(ours, theirs, first_new_layer=3)
    if difference is None:
        assert found == []
        swapped = compare_with_mergekit.compare(theirs, ours, first_new_layer=3)
        assert swapped == [f"{name}: ours is not all +0"]
    else:
        assert len(found) == 1
        assert found[0].startswith(f"{name}: ") and difference in found[0]


def test_generations_are_compared(
    tiny_mistral: Path,
    make_tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = ["compare_generation.py", str(tiny_mistral)]
    monkeypatch.setattr(sys, "argv", [*script, str(tiny_mistral)])
    assert compare_generation.main() == 0
    assert "the same 32 tokens" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*script, str(make_tiny(seed=1))])
    assert compare_generation.main() == 1
    assert "differ" in capsys.readouterr().err


def test_a_measurement_counts_what_the_process_costs(tmp_path: Path) -> None:
    """Measured from a small process: this one is large by now, and its children inherit that."""
    work = "import time; block = b'x' * 80_000_000; time.sleep(0.3); sum(range(3_000_000))"
    code = f"""
import sys
from pathlib import Path
from measuring import measure
for work in ("pass", {work!r}):
    run = measure([sys.executable, "-S", "-c", work], Path({str(tmp_path)!r}), Path("log"))
    print(run.peak_nbytes, run.wall_s, run.cpu_s)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
    )
    nothing, large = (tuple(map(float, line.split())) for line in done.stdout.splitlines())
    assert nothing[0] < 40_000_000 < 80_000_000 < large[0] < 130_000_000
    assert 0.3 < large[1] < 60
    assert 0.01 < large[2] < large[1] - 0.2


def test_a_failing_command_ends_the_measurement(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo what went wrong >&2; exit 3"]
    with pytest.raises(SystemExit, match=r"what went wrong[\s\S]*status 3"):
        measuring.measure(command, tmp_path, tmp_path / "log")


def test_the_tables_give_median_range_and_ratios_of_the_same_round() -> None:
    def run(wall_s: float, cpu_s: float) -> Measurement:
        return Measurement(
            wall_s=wall_s, flush_s=1, cpu_s=cpu_s, peak_nbytes=60_000_000, disk_nbytes=4_000_000
        )

    results = {
        "blockexpand": [run(1, 0.5), run(3, 0.25), run(2, 1)],
        "cp -r": [run(4, 1), run(4, 1), run(100, 1)],
    }
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in benchmark.render_tables(results).splitlines()
    ]
    assert rows[2] == ["blockexpand", "2 (1–3)", "1 (1–1)", "0.5 (0.25–1)", "60 (60–60)", "4 (4–4)"]
    assert rows[3][:2] == ["cp -r", "4 (4–100)"]
    assert rows[7] == [
        "blockexpand ÷ cp -r",
        "0.25 (0.02–0.75)",
        "0.4 (0.0297–0.8)",
        "0.5 (0.25–1)",
    ]


@pytest.mark.parametrize(
    "case",
    [
        case if case in ("expand", "verify") else pytest.param(case, marks=pytest.mark.long)
        for case in benchmark_cases.CASES
    ],
)
def test_the_benchmark_measures_every_case(
    case: str, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_tiny(layers=8, dtype="float32" if case == "convert" else "bfloat16")
    work, runs = tmp_path / "work", tmp_path / "runs.json"
    work.mkdir()
    command = [sys.executable, SCRIPTS / "benchmark.py", "--src", source, "--case", case]
    command += ["--rounds", "1", "--warm", "--work", work, "--json", runs]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": os.defpath},
    )
    (found,) = json.loads(runs.read_text())["cases"]
    assert next(iter(found["runs"])) == "blockexpand"
    assert len(found["runs"]) > 1
    for name, (run,) in found["runs"].items():
        assert f"| {name} | " in done.stdout
        assert run["wall_s"] > 0
    if case in ("plan", "batch"):
        assert found["limit_s"] is None
    else:
        # Of so few bytes it says little.
        assert found["limit_s"] > 0
    assert "8 layers, 3 file(s)" in done.stdout
    assert list(work.iterdir()) == []


def test_the_limit_is_that_of_bytes_that_are_really_moved(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(os.urandom(40_000_000))
    limit = disk_limit.measure_limit(source, tmp_path, nbytes=40_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert limit.read > 10e6 and limit.copied > 10e6
    assert limit.seconds(10**9, 0) == pytest.approx(1e9 / limit.read)
    assert limit.seconds(10**9, 10**9) == pytest.approx(2e9 / limit.copied)


def test_what_grows_as_the_model_does_is_drawn_as_a_straight_line() -> None:
    lines = {"dry run": [(1.0, 0.01), (10.0, 0.1), (1000.0, 10.0)], "expand": [(1.0, 1.0)]}
    svg = ElementTree.fromstring(measure_growth.draw({"tensors": lines}))
    places = [
        (float(circle.get("cx", "")), float(circle.get("cy", "")))
        for circle in svg.iter("{http://www.w3.org/2000/svg}circle")
    ]
    (x0, y0), (x1, y1), (x2, y2), _ = places
    assert (y1 - y0) / (x1 - x0) == pytest.approx((y2 - y1) / (x2 - x1), rel=0.02)
    assert x0 < x1 < x2
    assert y2 < y1 < y0
    assert "tensors" in [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_the_table_goes_between_the_marks_of_the_readme(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{benchmark.BEGIN}old\n{benchmark.END}after\n")
    for table in ("| a |", "| b |\n| c |"):
        benchmark.write_readme(table, readme)
        expected = f"before\n{benchmark.BEGIN}{table}\n{benchmark.END}after\n"
        assert readme.read_text() == expected
    readme.write_text("no marks")
    with pytest.raises(SystemExit, match="expected <!-- benchmark -->"):
        benchmark.write_readme("| a |", readme)


@pytest.mark.mount
def test_a_file_system_is_made_and_removed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs is not installed")
    image = tmp_path / "image"
    try:
        with measuring.loop_mount("xfs", image, 400_000_000) as point:
            assert measuring.find_file_system(point) == "xfs"
            (point / "file").write_text("here")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"mounting is not permitted: {error}")
    assert not image.exists()
    assert not point.exists()


@pytest.mark.long
def test_the_demo_runs_to_its_end() -> None:
    done = subprocess.run(["bash", SCRIPTS / "demo.sh"], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stdout.count("the same ") == 2 and "\nnext: " in done.stdout
