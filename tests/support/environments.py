"""Environments of their own for programs of others, beside what is installed here."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def make_python(folder: Path, *packages: str, alone: bool = False) -> Path:
    """Make an environment of some packages, `alone` without what they need besides."""
    venv.create(folder, with_pip=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    here = [path for path in sys.path if path.endswith("site-packages")]
    (own / "here.pth").write_text("\n".join(here))
    program = folder / "bin" / "python"
    more = ["--no-deps"] if alone else []
    subprocess.run([program, "-m", "pip", "install", "-q", *more, *packages], check=True)
    return program
