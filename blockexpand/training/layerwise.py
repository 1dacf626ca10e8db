"""A model of which only one decoder layer is in memory at a time, read from its checkpoint's files.

It changes no file. Where the names in the files are not those in the model (experts that
transformers merges, parts that it regroups, quantised weights), the model cannot be read this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint
from ..errors import TrainingError
from ..formats.tensor_spec import FLOAT_DTYPES
from ..models.decoder import Decoder
from ..models.loading import dtype_argument, language_model_classes, load_whole_model
from ..models.runtime import runtime_prefixes
from .memory import choose_dtype

if TYPE_CHECKING:
    import torch

_FLOAT32_NBYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model whose layers are read one at a time, or that is in memory whole.

    `nbytes` is what its weights take of memory at most; `within(i)` holds layer i in memory.
    """

    model: Any
    layers: Sequence[torch.nn.Module]
    dtype: str
    nbytes: int
    is_whole: bool
    within: Callable[[int], AbstractContextManager[object]]


def open_by_layers(
    source: Checkpoint, decoder: Decoder, check_memory: Callable[[int, bool], None]
) -> OpenModel:
    """Open a checkpoint to run it layer by layer in float32, or whole in its own dtype.

    `check_memory` is asked before anything is read: the bytes, and whether it is the whole model.
    Raises: what it raises; TrainingError where the model's layers are not found.
    """
    opened = None
    if all(spec.dtype in FLOAT_DTYPES for spec in source.specs.values()):
        opened = _open_empty(source, decoder)
    if opened is None:
        nbytes = sum(spec.nbytes for spec in source.specs.values())
        check_memory(nbytes, True)
        dtype = choose_dtype(source.specs, source.specs.keys())
        model = load_whole_model(source.root, dtype)
        layers = _find_layers(model, decoder)[1]
        return OpenModel(
            model=model,
            layers=layers,
            dtype=dtype,
            nbytes=nbytes,
            is_whole=True,
            within=lambda index: nullcontext(),
        )
    model, prefix, layers = opened
    outside = [name for name in model.state_dict() if not name.startswith(prefix)]
    files = _map_files(source)

    def size(names: Sequence[str]) -> int:
        return sum(prod(source.specs[name].shape) * _FLOAT32_NBYTES for name in names)

    by_layer = [
        {name: f"{decoder.prefix}{index}.{name}" for name in layer.state_dict()}
        for index, layer in enumerate(layers)
    ]
    kept = [name for name in outside if name in source.specs]
    nbytes = size(kept) + max(size(list(names.values())) for names in by_layer)
    check_memory(nbytes, False)
    model.load_state_dict(_read(files, {name: name for name in kept}), strict=False, assign=True)
    model.tie_weights()

    @contextmanager
    def within(index: int) -> Iterator[None]:
        layer = layers[index]
        empty = dict(layer.state_dict())
        layer.load_state_dict(_read(files, by_layer[index]), assign=True)
        try:
            yield
        finally:
            layer.load_state_dict(empty, assign=True)

    return OpenModel(
        model=model, layers=layers, dtype="float32", nbytes=nbytes, is_whole=False, within=within
    )


def _open_empty(
    source: Checkpoint, decoder: Decoder
) -> tuple[Any, str, Sequence[torch.nn.Module]] | None:
    """Build the model without its weights; None where its names are not those of the files."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source.root, trust_remote_code=False)
        loader = language_model_classes(config)[0]
        build = getattr(loader, "_from_config", None) or loader.from_config
        with _parameters_on_meta():
            model = build(config, **dtype_argument("float32")).eval()
    except Exception:  # whatever is wrong with its config: loading it whole says so
        return None
    prefix, layers = _find_layers(model, decoder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # A head that is tied to the embeddings may not be stored.
    tied = {name for name, tensor in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, tensor in model.named_parameters()}
    tied |= set(getattr(model, "all_tied_weights_keys", None) or ())
    stored = {
        prefix + name.removeprefix(decoder.prefix) if name.startswith(decoder.prefix) else name: (
            spec.shape
        )
        for name, spec in source.specs.items()
    }
    missing = {name for name, shape in shapes.items() if stored.get(name) != shape}
    if missing - tied or stored.keys() - shapes.keys():
        return None
    return model, prefix, layers


def _find_layers(model: Any, decoder: Decoder) -> tuple[str, Sequence[torch.nn.Module]]:
    """Return the layers' path and the layers of a model, in order. Raises: TrainingError."""
    for prefix in runtime_prefixes(decoder.model_type, decoder.prefix):
        try:
            found: Any = model.get_submodule(prefix.rstrip("."))
        except AttributeError:
            continue
        return prefix, list(found)
    raise TrainingError(f"the loaded model has no layers under {decoder.prefix!r}")


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Give the parameters that are made meanwhile no memory; buffers are computed as ever."""
    import torch

    register = torch.nn.Module.register_parameter

    def register_empty(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = register_empty  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _map_files(source: Checkpoint) -> dict[str, str]:
    return {
        entry.name: str(source.root / shard.file.name)
        for shard in source.shards
        for entry in shard.header.entries
    }


def _read(files: dict[str, str], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Return tensors in float32, by another name; each file is opened once."""
    import torch
    from safetensors import safe_open

    found = {}
    for file in sorted({files[name] for name in names.values()}):
        with safe_open(file, framework="pt") as opened:
            for own, name in names.items():
                if files[name] == file:
                    found[own] = opened.get_tensor(name).to(torch.float32, copy=True)
    return found
