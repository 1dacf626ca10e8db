"""The child process for own code without its start: forks of one that has imported everything.

Importing torch and transformers is nine tenths of what a child costs. `run` stands in for
`own_code._run_child`: it gives each request a process of its own with the same environment, whose
modules are as they were before any foreign code ran. What the start itself promises (search path,
folders, no tokens) is tested with the real child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from blockexpand.messages import one_line


class Forks:
    """A process that forks once for every request; its modules cache is in `folder`."""

    def __init__(self, folder: Path) -> None:
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        cache = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HOME": str(folder / "cache")}
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **offline, **cache, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path) -> str:
        """Do what lies in `folder`; return the last line of what was said."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        assert json.loads(self._process.stdout.readline()) == str(folder)
        lines = (folder / "said").read_text(errors="replace").split("\n")
        return one_line(next((line for line in reversed(lines) if line.strip()), ""))

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def serve() -> None:
    """Fork for each folder that is named on standard input; say when it is done."""
    import transformers
    from transformers import AutoModelForCausalLM, PreTrainedModel

    from blockexpand.verification import own_code_child, own_model, preflight, row_proof

    loaded: Any = (transformers, AutoModelForCausalLM, PreTrainedModel)
    loaded += (own_model, preflight, row_proof)
    for line in sys.stdin:
        folder = line.strip()
        child = os.fork()
        if child == 0:
            os.setsid()
            os.chdir(folder)
            said = os.open("said", os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(said, 2)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            sys.argv = ["own_code_child", folder]
            try:
                own_code_child.main()
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        sys.stdout.write(json.dumps(folder) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
