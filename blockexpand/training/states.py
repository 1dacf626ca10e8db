"""The state of a run that is to go on after a kill: the new blocks and Adam's moments, in float32.

Safetensors and JSON in a folder for each state, complete or absent; the state before is removed
once the new one is there. It knows no model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..formats.json_object import parse_json_object
from ..fs.io import explain, sync_files, sync_folder, write_document

if TYPE_CHECKING:
    import torch

_STATE_FILE = "state.json"

_NAMED = re.compile(r"step-(\d{8})")

_BEGUN = "begun"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A run after `step` steps. `tensors` maps `weights`, `exp_avg`, `exp_avg_sq` to tensors by the
    names of parameters; `run` says which run it is; `evaluations` are those made so far."""

    step: int
    run: str
    evaluations: list[dict[str, Any]]
    tensors: Mapping[str, Mapping[str, torch.Tensor]]


def save_state(folder: Path, state: State) -> None:
    """Write a state into the folder of its run. Raises: OutputError, TransferError."""
    from safetensors.torch import save_file

    final = folder / f"step-{state.step:08d}"
    begun = folder / _BEGUN
    try:
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        for name, tensors in state.tensors.items():
            save_file(dict(tensors), begun / f"{name}.safetensors")
        sync_files([begun / f"{name}.safetensors" for name in state.tensors])
        told = {"step": state.step, "run": state.run, "evaluations": state.evaluations}
        write_document(begun / _STATE_FILE, json.dumps(told, indent=2).encode())
        sync_folder(begun)
        shutil.rmtree(final, ignore_errors=True)
        begun.rename(final)
        sync_folder(folder)
    except OSError as error:
        raise explain("write", begun, error) from error
    for other in _list_states(folder):
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def is_of_a_run(name: str) -> bool:
    """Tell whether a name in a run's folder is one of its states."""
    return name == _BEGUN or _NAMED.fullmatch(name) is not None


def find_state(folder: Path, run: str) -> int | None:
    """Return the step of the last state of a run; None where there is none.

    Raises: OutputError where the folder holds the state of another run.
    """
    states = _list_states(folder)
    if not states:
        return None
    stated = _read(states[-1])
    if stated.get("run") != run:
        raise OutputError(
            f"{folder}: holds step {stated.get('step')} of a run with another model, other texts "
            "or other settings; give those again to go on, or remove the folder to begin anew"
        )
    return int(stated["step"])


def load_state(folder: Path, step: int) -> State:
    """Read the state after `step` steps. Raises: OutputError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = folder / f"step-{step:08d}"
    stated = _read(found)
    try:
        return State(
            step=step,
            run=str(stated["run"]),
            evaluations=list(stated["evaluations"]),
            tensors={
                name: load_file(found / f"{name}.safetensors")
                for name in ("weights", "exp_avg", "exp_avg_sq")
            },
        )
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise OutputError(f"{found}: is damaged ({error}); remove it to begin anew") from error


def remove_states(folder: Path) -> None:
    """Remove the states of a run that has ended; the folder too, if nothing else is in it."""
    for path in (*_list_states(folder), folder / _BEGUN):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def _list_states(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAMED.fullmatch(path.name))


def _read(found: Path) -> Mapping[str, Any]:
    try:
        return parse_json_object((found / _STATE_FILE).read_bytes(), str(found / _STATE_FILE))
    except OSError as error:
        raise OutputError(
            f"{found / _STATE_FILE}: cannot be read ({error.strerror}); remove {found} to begin "
            "anew"
        ) from error
