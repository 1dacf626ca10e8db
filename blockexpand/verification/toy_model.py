"""Toy checkpoints: random weights under the names of a real one, and what a toy computes.

A checkpoint's names are not the model's: `transformers` renames, stacks and splits tensors when
it loads them. Its own renaming tells which toy tensor stands for which name. It knows no plans,
and reads and writes no checkpoint but toys.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CONFIG_FILE, WEIGHTS_FILE
from ..errors import BlockExpandError, NoProofError
from ..messages import one_line
from ..models.loading import language_model_classes, load_model
from .toy_config import VOCABULARY, token_numbers

if TYPE_CHECKING:
    import torch


TOKENS = 48  # more than any window of a toy

_MOST_PARAMETERS = 300_000_000


class NoToyError(BlockExpandError):
    """A source of which no toy model can be made, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a toy computes, and what `transformers` did not find or know of it, with the toy."""

    logits: torch.Tensor
    missing: tuple[str, ...]
    unexpected: frozenset[str]
    model: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Toys:
    """How toys are made: with the classes of `transformers`, or with a checkpoint's own.

    `read_config(checkpoint)` returns its config with all defaults, None where no class is known;
    `write_config(checkpoint, config, folder)` writes a config.json and returns it with all defaults
    filled in; `make_weights(folder, names)` returns a toy tensor for each of a checkpoint's names;
    `run(folder, weights, ids)` says what the folder's toy computes with such tensors.
    """

    read_config: Callable[[Checkpoint], Mapping[str, Any] | None]
    write_config: Callable[[Checkpoint, Mapping[str, Any], Path], dict[str, Any]]
    make_weights: Callable[[Path, Sequence[str]], dict[str, torch.Tensor]]
    run: Callable[[Path, Mapping[str, torch.Tensor], torch.Tensor], Outcome]


def write_config_file(config: Mapping[str, Any], folder: Path) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def _write_config(
    checkpoint: Checkpoint, config: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    from transformers import AutoConfig

    folder.mkdir()
    write_config_file(config, folder)
    try:
        effective: dict[str, Any] = AutoConfig.from_pretrained(
            folder, trust_remote_code=False
        ).to_dict()
    except Exception as error:
        from transformers import CONFIG_MAPPING, __version__

        # Its own message is advice of several lines.
        if config.get("model_type") not in CONFIG_MAPPING:
            raise NoToyError(f"transformers {__version__} does not know the model type") from None
        raise NoToyError(f"transformers cannot read its config: {error}") from None
    return effective


def read_effective(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return a config with the defaults of `transformers`; None where it does not know it."""
    with tempfile.TemporaryDirectory(prefix="blockexpand-config-") as folder:
        try:
            return _write_config(checkpoint, checkpoint.config, Path(folder) / "config")
        except (NoToyError, ImportError):
            return None


def _make_source_weights(folder: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return a toy tensor for each of a checkpoint's names, from the toy's config in `folder`.

    Experts beyond those of the toy are left out. A name that is no part of the model (a stored
    mask, a layer for multi-token prediction) gets one element. Raises: NoToyError.
    """
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _build(folder)
            randomize(model)
        model.save_pretrained(folder / "saved")
        saved = _load(folder / "saved")
        groups: defaultdict[tuple[str, str | None], list[torch.Tensor]] = defaultdict(list)
        for name, key in _model_keys(model, saved).items():
            groups[key].append(saved[name])
        keys = _model_keys(model, names)
    except NoToyError:
        raise
    except Exception as error:
        raise NoToyError(f"{type(error).__name__}: {error}") from None
    state = model.state_dict()
    used: defaultdict[tuple[str, str | None], int] = defaultdict(int)
    weights = {}
    for name, key in keys.items():
        target, pattern = key
        if target not in state:
            weights[name] = torch.zeros(1)
        elif pattern is None:
            weights[name] = state[target]
        elif not groups[key]:
            raise NoToyError(f"it is not known which part of {target!r} {name!r} is")
        elif used[key] < len(groups[key]):
            weights[name] = groups[key][used[key]]
            used[key] += 1
    return {name: tensor.contiguous().clone() for name, tensor in weights.items()}


def _run_toy(folder: Path, weights: Mapping[str, torch.Tensor], ids: torch.Tensor) -> Outcome:
    import torch
    from safetensors.torch import save_file

    save_file(dict(weights), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    try:
        model, found = load_model(folder, "float32")
        with torch.no_grad():
            logits = model(input_ids=ids).logits.clone()
    except BlockExpandError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise NoProofError(
            f"transformers cannot run the toy model: {type(error).__name__}: {reason}"
        ) from None
    return report(
        model,
        logits,
        set(map(str, found.get("missing_keys", ()))),
        map(str, found.get("unexpected_keys", ())),
        set(map(str, found.get("mismatched_keys", ()))),
    )


def report(
    model: Any,
    logits: torch.Tensor,
    absent: Collection[str],
    unexpected: Iterable[str],
    mismatched: Collection[str] = (),
) -> Outcome:
    """Return what a loaded toy has computed, and what of its tensors was not found or not known."""
    state = model.state_dict()
    present = {tensor.data_ptr() for name, tensor in state.items() if name not in absent}
    # What is tied to a tensor that was found is not missing.
    missing = {name for name in absent if name in state and state[name].data_ptr() not in present}
    return Outcome(
        logits=logits,
        missing=tuple(sorted({*missing, *mismatched})),
        # Layers have other numbers in the output.
        unexpected=frozenset(re.sub(r"[0-9]+", "*", name) for name in unexpected),
        model=model,
    )


TRANSFORMERS = Toys(
    read_config=read_effective,
    write_config=_write_config,
    make_weights=_make_source_weights,
    run=_run_toy,
)


def refuse_large(size: int) -> None:
    """Raises: NoToyError for a toy of more parameters than this machine should be asked for."""
    if size > _MOST_PARAMETERS:
        raise NoToyError(f"at toy width it still has {size / 1e6:.0f} million parameters")


def token_ids(config: Mapping[str, Any]) -> torch.Tensor:
    import torch

    ordinary = [n for n in range(3, VOCABULARY - 8) if n not in token_numbers(config)]
    return torch.tensor([[ordinary[n * 37 % len(ordinary)] for n in range(TOKENS)]])


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep toys from sharing out their work: their matrices are too small for that to pay."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def _build(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig

    whole = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for model_class in language_model_classes(whole):
        # A multimodal checkpoint may name the class of its text model alone.
        own = getattr(model_class, "config_class", None)
        config = whole if own is None or isinstance(whole, own) else own.from_pretrained(folder)
        make: Callable[..., Any] = getattr(model_class, "from_config", model_class)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in make(config).parameters())
        refuse_large(size)
        model = make(config)
        if model.get_output_embeddings() is not None:
            return model.float()
    raise NoToyError(f"transformers knows no language model for {whole.model_type!r}")


def randomize(model: torch.nn.Module) -> None:
    """Give every parameter and every saved buffer random values of a healthy size.

    A constant would hide a mix-up, and a stream that explodes would hide all but the last layers.
    """
    import torch

    saved = set(model.state_dict())
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name not in saved or not tensor.is_floating_point() or tensor.dim() == 0:
                continue
            noise = torch.randn_like(tensor)
            if "emb" in name or "wte" in name:
                tensor.copy_(noise)
            elif tensor.dim() >= 2 and tensor.abs().max() < 0.5:
                tensor.copy_(noise * 0.7 / tensor.shape[-1] ** 0.5)
            else:  # norms, factors and decays keep the value that they are spread around
                tensor.add_(0.2 * noise)


def _load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def _model_keys(
    model: Any, names: Sequence[str] | dict[str, Any]
) -> dict[str, tuple[str, str | None]]:
    """Return for each tensor name of a checkpoint the model's parameter that it goes into.

    With it the pattern of the conversion that it goes through, None if it is only renamed.
    Names are in the loader's order, which numbers what is stacked.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # before transformers 5
        return {name: (old_key(model, name), None) for name in names}
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix, state = model.base_model_prefix, model.state_dict()
    keys = {}
    for name in sorted(names, key=dot_natural_key):
        key = rename_source_key(name, renamings, converters, prefix, state)
        if key[0] not in state and name in state:
            key = rename_source_key(name, [], [], prefix, state)
        keys[name] = key
    return keys


def old_key(model: Any, name: str) -> str:
    """Return what a checkpoint's tensor is called in a model of transformers 4, which only renames.

    Source: `PreTrainedModel._load_pretrained_model` of transformers 4.57.
    """
    renamings: Mapping[str, str] = getattr(model, "_checkpoint_conversion_mapping", {})
    for pattern, replacement in renamings.items():
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    state, prefix = model.state_dict(), f"{model.base_model_prefix}."
    spellings = (name, f"{prefix}{name}", name.removeprefix(prefix))
    return next((spelling for spelling in spellings if spelling in state), name)
