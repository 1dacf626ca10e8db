"""How `transformers` loads a checkpoint folder: quietly, and never with the folder's own code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BlockExpandError, CheckpointError, NoProofError
from ..messages import and_more, one_line
from .quantization.find import METHODS

if TYPE_CHECKING:
    import torch

_CRITICAL = 50  # as in Python's logging


def load_model(folder: Path, dtype: str, *, needs_head: bool = True) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint's language model with `transformers`, and the report of its loading.

    One that only embeds or scores is taken for what its config names unless it `needs_head`: as a
    language model it would get a head at random.
    Raises: NoProofError where `transformers` cannot.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for loader in language_model_classes(config):
        model, report = loader.from_pretrained(
            folder,
            **dtype_argument(dtype),
            **_quantized_argument(config, folder),
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        if not needs_head or model.get_output_embeddings() is not None:
            # Loaded weights can be views of the mapped file, and CPU kernels may round otherwise
            # where memory is aligned otherwise: give every tensor memory of its own.
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.data.clone()
            return model.eval(), report
    raise NoProofError(f"{folder}: transformers knows no language model for {config.model_type!r}")


def load_whole_model(folder: Path, dtype: str) -> Any:
    """Load a checkpoint's language model, of which nothing is filled at random.

    Raises: CheckpointError where tensors are missing or `transformers` cannot; NoProofError.
    """
    try:
        model, report = load_model(folder, dtype)
    except BlockExpandError:
        raise
    except Exception as error:  # whatever is wrong with its files
        raise CheckpointError(
            f"{folder}: transformers cannot load it: {one_line(error, 300)}"
        ) from error
    if find_absent(model, report):
        missing = and_more(sorted(map(str, report["missing_keys"])), 3)
        raise CheckpointError(
            f"{folder}: transformers misses tensors of its language model and would fill them at "
            f"random ({missing}); give a checkpoint with its language-model head"
        )
    return model


def find_absent(model: Any, report: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the parameters that no tensor of the checkpoint has filled, tied ones with it."""
    names = set(map(str, report.get("missing_keys", ())))
    state = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(tensor) for name, tensor in state.items() if name not in names}
    return [state[name] for name in names if name in state and id(state[name]) not in filled]


def _quantized_argument(config: Any, folder: Path) -> dict[str, Any]:
    """Return what makes a quantised checkpoint load wherever it is run.

    Raises: NoProofError where the library of its format is not installed.
    """
    import transformers

    settings = getattr(config, "quantization_config", None)
    fields = settings if isinstance(settings, dict) else getattr(settings, "__dict__", {})
    method = METHODS.get(str(fields.get("quant_method")))
    if method is None:
        return {}
    if method.library is not None and find_spec(method.library) is None:
        package = method.library.replace("_", "-")
        raise NoProofError(
            f"{folder}: transformers needs {package} to load {method.title} weights; install it "
            f"(pip install {package}), or compare the tensors alone"
        )
    if method.loading is None:
        return {}
    return {"quantization_config": getattr(transformers, method.loading)(dequantize=True)}


def dtype_argument(dtype: str) -> dict[str, Any]:
    """Return the dtype as `from_pretrained` and `from_config` want it called."""
    import torch
    import transformers

    release = tuple(int(number) for number in transformers.__version__.split(".")[:2])
    return {"dtype" if release >= (4, 56) else "torch_dtype": getattr(torch, dtype)}


def language_model_classes(config: Any) -> tuple[Any, ...]:
    """Return the classes that may load a config's language model, the likeliest first."""
    import transformers

    # Checkpoints name their own class, which also covers the multimodal ones.
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    known = [
        model_class
        for model_class in named
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    ]
    return (*known, transformers.AutoModelForCausalLM)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the bars and remarks of `transformers` off the terminal for a while."""
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(_CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
