"""Checkpoints that bitsandbytes quantised, in an environment that has it.

`clients`: needs a package index, and takes minutes. The library is not among what every test runs
with: PEFT imports it where it is there, and it writes to stderr.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import bitsandbytes_check
import pytest

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with bitsandbytes, and everything else as it is here."""
    folder = tmp_path_factory.mktemp("bitsandbytes")
    venv.create(folder, with_pip=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    here = [path for path in sys.path if path.endswith("site-packages")]
    (own / "here.pth").write_text("\n".join(here))
    program = folder / "bin" / "python"
    package = "bitsandbytes==0.50.2"
    subprocess.run([program, "-m", "pip", "install", "-q", "--no-deps", package], check=True)
    return program


@pytest.mark.parametrize("kind", bitsandbytes_check.KINDS)
def test_what_bitsandbytes_quantised(kind: str, python: Path, tmp_path: Path) -> None:
    script = Path(bitsandbytes_check.__file__)
    search = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [python, script, kind, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert done.returncode == 0, done.stderr[-3000:]
