"""Toys of a model that only the checkpoint's own code builds. To be used in the child alone.

Such code is written for one release of `transformers` and may fail in any other, so little is asked
of that: the config's class, the model's class, a state dict by its names, a forward pass.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CONFIG_FILE, WEIGHTS_FILE
from ..errors import BlockExpandError, NoProofError
from ..messages import one_line
from .logits import Outcome as Whole
from .toy_model import (
    NoToyError,
    Outcome,
    Toys,
    old_key,
    randomize,
    refuse_large,
    report,
    write_config_file,
)

if TYPE_CHECKING:
    import torch


def _read_effective(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's config as its own class has it. Raises: NoProofError."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _write_config(checkpoint, checkpoint.config, Path(folder) / "config")
        except NoToyError as error:
            raise NoProofError(f"nothing was proven: {error}") from None


def _write_config(
    checkpoint: Checkpoint, config: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Write a config.json beside a copy of the checkpoint's code; return what its class makes."""
    folder.mkdir()
    for name in (file.name for file in checkpoint.side_files if file.name.endswith(".py")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.root / name, folder / name)
    write_config_file(config, folder)
    effective: dict[str, Any] = _read_config(folder).to_dict()
    return effective


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=True)
    except Exception as error:
        raise NoToyError(_explain("cannot read its config", error)) from None


def _explain(what: str, error: Exception) -> str:
    import transformers

    return (
        f"the checkpoint's own code {what} with transformers {transformers.__version__}: "
        f"{type(error).__name__}: {one_line(error)}"
    )


def _make_model(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    config.use_cache = False
    make: Callable[..., Any] = AutoModelForCausalLM.from_config
    return make(config, trust_remote_code=True)


def _build(folder: Path) -> Any:
    """Build the model that a folder's code makes of its config, with random weights."""
    import torch

    config = _read_config(folder)
    with torch.device("meta"):
        try:
            size = sum(p.numel() for p in _make_model(config).parameters())
        except Exception:
            size = 0  # code that computes while it builds cannot do so without memory
    refuse_large(size)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _make_model(config).float().eval()
            if size == 0:
                refuse_large(sum(p.numel() for p in model.parameters()))
            randomize(model)
    except NoToyError:
        raise
    except Exception as error:
        raise NoToyError(_explain("cannot build its model", error)) from None
    return model


def _make_weights(folder: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return a toy tensor for each of a checkpoint's names, as `make_source_weights`."""
    import torch

    model = _build(folder)
    state = model.state_dict()
    weights = {}
    for name in names:
        tensor = state.get(old_key(model, name))
        weights[name] = torch.zeros(1) if tensor is None else tensor.contiguous().clone()
    return weights


def _run(folder: Path, weights: Mapping[str, torch.Tensor], ids: torch.Tensor) -> Outcome:
    """Load a toy by the names of its tensors and run it. Raises: NoProofError."""
    import torch
    from safetensors.torch import load_file, save_file

    save_file(dict(weights), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    try:
        model = _build(folder)
        state = model.state_dict()
        found: dict[str, torch.Tensor] = {}
        unexpected = []
        for name, tensor in load_file(folder / WEIGHTS_FILE).items():
            key = old_key(model, name)
            if key not in state or state[key].shape != tensor.shape:
                unexpected.append(name)
            else:
                found[key] = tensor
        absent = set(model.load_state_dict(found, strict=False).missing_keys)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits.float().clone()
    except BlockExpandError:
        raise
    except Exception as error:
        raise NoProofError(_explain("cannot run its toy model", error)) from None
    return report(model, logits, absent, unexpected)


def run_whole(checkpoint: Checkpoint, folder: Path, dtype: str, ids: torch.Tensor) -> Whole:
    """Run the real model of a folder with the code of `checkpoint`, whatever code lies there.

    Raises: NoProofError.
    """
    import torch
    from safetensors.torch import load_file

    try:
        with tempfile.TemporaryDirectory() as name:
            config = json.loads((folder / CONFIG_FILE).read_bytes())
            _write_config(checkpoint, config, Path(name) / "model")
            model = _make_model(_read_config(Path(name) / "model"))
        model = model.to(getattr(torch, dtype)).eval()
        missing = set(model.state_dict())
        for file in sorted(folder.glob("*.safetensors")):
            tensors = {old_key(model, name): value for name, value in load_file(file).items()}
            model.load_state_dict(tensors, strict=False)
            missing -= set(tensors)
        missing = set(report(model, torch.zeros(0), missing, ()).missing)
        with torch.no_grad():
            ids = ids % int(model.config.vocab_size)
            logits = model(input_ids=ids, use_cache=False).logits.clone()
    except NoToyError as error:
        raise NoProofError(f"{folder}: {error}") from None
    except Exception as error:
        raise NoProofError(f"{folder}: {_explain('cannot run its model', error)}") from None
    return Whole(logits, {"missing_keys": sorted(missing)}, "logits", not missing)


OWN_CODE = Toys(
    read_config=_read_effective, write_config=_write_config, make_weights=_make_weights, run=_run
)
