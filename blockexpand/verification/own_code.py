"""Hand work that needs a checkpoint's own code to a child process, and take its answer back.

A stranger's code runs there alone, and only where the user has allowed it: without the tokens and
settings of this process's environment, with folders of its own for what it caches, offline, for a
limited time. That is no cage: it may read and write what the user may. This module runs none.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import errors
from ..checkpoints.checkpoint import Checkpoint
from ..errors import NoProofError, UnsupportedModelError
from ..messages import one_line, show
from ..models.families.form import Row, parse_form
from ..planning.plan import Plan
from ..planning.recipe import Recipe
from .logits import LogitsProof

_LIMIT_S = 600

_MOST_ANSWER_NBYTES = 1 << 24

# What a child needs to find its libraries and to speak; a token is in none of them.
_PASSED_ON = frozenset(
    {
        *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
        *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "PATHEXT", "COMSPEC", "OMP_NUM_THREADS"),
    }
)


def has_own_code(config: Mapping[str, Any]) -> bool:
    """Tell whether a config names code that the checkpoint brings with it."""
    return bool(config.get("auto_map"))


def find_row_with_own_code(checkpoint: Checkpoint, recipe: Recipe, row: Row | None) -> Row:
    """Do `find_row` with the model that the checkpoint's own code builds. Raises: as it does."""
    found = _ask("row", checkpoint, recipe, row)
    return found if isinstance(found, str) else parse_form(found, "the inferred row")


def prove_row_with_own_code(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Do `prove_row` with the model that the checkpoint's own code builds. Raises: as it does."""
    _ask("proof", checkpoint, recipe)


def check_plan_with_own_code(checkpoint: Checkpoint, plan: Plan) -> str:
    """Do `check_plan` with the model that the checkpoint's own code builds. Raises: as it does."""
    return str(_ask("check", checkpoint, plan))


def compare_logits_with_own_code(checkpoint: Checkpoint, out: Path, dtype: str) -> LogitsProof:
    """Do `compare_logits` with the checkpoint's own code, on tokens from all over its vocabulary.

    Raises: as it does.
    """
    return LogitsProof(
        **_ask("logits", checkpoint, checkpoint.root.resolve(), out.resolve(), dtype)
    )


def _ask(task: str, checkpoint: Checkpoint, *arguments: Any) -> Any:
    """Run one task in a child. Raises: the error that it raised there, NoProofError."""
    _refuse_code_elsewhere(checkpoint.config)
    with tempfile.TemporaryDirectory(prefix="blockexpand-own-code-") as name:
        folder = Path(name)
        (folder / "request").write_bytes(pickle.dumps((task, checkpoint, *arguments)))
        said = _run_child(folder)
        answer = _read_answer(folder / "answer.json")
    if answer is None:
        raise NoProofError(
            "nothing was proven: the checkpoint's own code ended without an answer"
            + (f" ({said})" if said else "")
        )
    if "error" in answer:
        known = getattr(errors, str(answer["error"]), NoProofError)
        raise known(one_line(answer.get("message"), 2000))
    return answer.get("result")


def _refuse_code_elsewhere(config: Mapping[str, Any]) -> None:
    """Refuse code of another repository: the child is offline, and what it is can change."""
    named = config.get("auto_map")
    for value in named.values() if isinstance(named, Mapping) else ():
        if isinstance(value, str) and "--" in value:
            repository, _, what = value.partition("--")
            raise UnsupportedModelError(
                f"config.json: 'auto_map' names code of another repository, {show(repository)}, "
                f"which is not fetched; put its files beside config.json and name them {what!r}"
            )


def _run_child(folder: Path) -> str:
    """Run the child on the request in `folder`; return the last line of what it said."""
    environment = {key: value for key, value in os.environ.items() if key.upper() in _PASSED_ON}
    environment |= {
        "PYTHONPATH": os.pathsep.join(_search_path()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "HF_HOME": str(folder / "cache"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "blockexpand.verification.own_code_child", str(folder)]
    with (folder / "said").open("wb") as said:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            child.wait(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise NoProofError(
                f"nothing was proven: the checkpoint's own code ran for {_LIMIT_S} s and was ended"
            ) from None
        finally:
            _end(child)
    with (folder / "said").open("rb") as stream:
        stream.seek(max(0, (folder / "said").stat().st_size - 4096))
        lines = stream.read().decode(errors="replace").split("\n")
    return one_line(next((line for line in reversed(lines) if line.strip()), ""))


def _search_path() -> list[str]:
    """Return where this process finds its modules, but the folder that it was started in."""
    home = str(Path(__file__).resolve().parents[2])
    return list(dict.fromkeys([home, *(entry for entry in sys.path if Path(entry).is_absolute())]))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child with all that it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    elif child.poll() is None:
        child.kill()
    child.wait()


def _read_answer(path: Path) -> dict[str, Any] | None:
    """Return a child's answer, None if it left none that can be read."""
    try:
        with path.open("rb") as stream:
            answer = json.loads(stream.read(_MOST_ANSWER_NBYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
