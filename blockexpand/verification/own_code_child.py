"""The child process in which a checkpoint's own code runs: `python -m` this, with a folder.

It reads the request there, cuts itself off the network where the system lets it, does the task
and leaves the answer. Nothing but `own_code.py` starts it; it writes in that folder alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import BlockExpandError, NoProofError
from ..messages import one_line

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main() -> None:
    folder = Path(sys.argv[1])
    # Read before any foreign code runs; what that may write there is never unpickled.
    task, *arguments = pickle.loads((folder / "request").read_bytes())
    leave_network()
    answer: dict[str, Any]
    try:
        answer = {"result": _do(task, *arguments)}
    except BlockExpandError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except BaseException as error:  # foreign code may raise anything, SystemExit too
        answer = {"error": NoProofError.__name__, "message": _explain(error)}
    (folder / "answer.json").write_text(json.dumps(answer, default=str))
    sys.stderr.flush()
    os._exit(0)  # threads and exit handlers of foreign code are not waited for


def _explain(error: BaseException) -> str:
    return (
        "nothing was proven: the checkpoint's own code failed: "
        f"{type(error).__name__}: {one_line(error)}"
    )


def _do(task: str, *arguments: Any) -> Any:
    from ..models.families.form import render_form
    from ..models.loading import quiet_transformers
    from .logits import compare_logits, plain_token_ids
    from .own_model import OWN_CODE, run_whole
    from .preflight import check_plan
    from .row_proof import find_row, prove_row

    with quiet_transformers():
        match task, arguments:
            case "row", (checkpoint, recipe, row):
                found = find_row(checkpoint, recipe, row, OWN_CODE)
                return found if isinstance(found, str) else render_form(found)
            case "proof", (checkpoint, recipe):
                return prove_row(checkpoint, recipe, OWN_CODE)
            case "check", (checkpoint, plan):
                return check_plan(checkpoint, plan, toys=OWN_CODE)
            case "logits", (checkpoint, source, out, dtype):
                run = partial(run_whole, checkpoint)
                return asdict(compare_logits(source, out, dtype, run, plain_token_ids(1 << 31)))
    raise AssertionError(task)


def leave_network() -> bool:
    """Take this process off all networks, and let it die with its parent, where Linux allows it."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DIE_WITH_PARENT, 9, 0, 0, 0)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_NETWORK):
        return bool(libc.unshare(_NEW_NETWORK) == 0)
    # Files that it makes belong to the user all the same; without the map its name is unknown.
    maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, line in maps.items():
        try:
            Path("/proc/self", name).write_text(line)
        except OSError:
            break
    return True


if __name__ == "__main__":
    main()
