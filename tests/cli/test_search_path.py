"""Nothing of the folder that the command is started in is run, which may be a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import REPOSITORY, make_source

NAMES = ("yaml", "argparse", "shlex", "resource", "json", "typing", "__future__", "multiprocessing")
NAMES += ("concurrent", "pickle", "socket", "tempfile", "numpy", "torch")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint with modules that leave a trace if they are run."""
    source = make_source(tmp_path / "source")
    for name in NAMES:
        text = f"open({str(tmp_path / 'was-run')!r}, 'a').write({name!r})\n"
        (source / f"{name}.py").write_text(text)
    return source


@pytest.mark.parametrize("executor", [(), ("--executor", "process:2")], ids=["alone", "workers"])
@pytest.mark.parametrize("start", ["-m", "script"])
def test_no_module_of_the_checkpoint_is_run(
    start: str, executor: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    if sys.version_info < (3, 11) and (executor or start == "-m"):
        pytest.skip("needs python -P, which Python 3.10 does not have")
    script = tmp_path / "blockexpand"
    # As pip writes it.
    script.write_text(
        "import sys\nfrom blockexpand.__main__ import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    command = ["-m", "blockexpand"] if start == "-m" else [str(script)]
    done = subprocess.run(
        [sys.executable, *command, "--src", ".", "--out", "../out", "--new-layers", "1", *executor],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "was-run").exists(), (tmp_path / "was-run").read_text()
    assert (tmp_path / "out" / "yaml.py").exists()


def test_the_package_is_found_in_the_current_folder_too(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = ["-m", "blockexpand", "--src", source, "--out", tmp_path / "out", "--new-layers", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--executor", "process:2"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_an_interruption_at_the_first_import_ends_in_one_line(tmp_path: Path) -> None:
    code = (
        "import builtins, sys\n"
        "import blockexpand.__main__ as start\n"
        "real = builtins.__import__\n"
        "def interrupted(name, *rest, **named):\n"
        "    if 'cli' in name: raise KeyboardInterrupt\n"
        "    return real(name, *rest, **named)\n"
        "builtins.__import__ = interrupted\n"
        "sys.exit(start.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 130
    assert done.stderr == "blockexpand: interrupted; the output was not made or changed\n"
