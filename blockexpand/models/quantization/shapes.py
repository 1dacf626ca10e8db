"""The shape of a quantised module's weight, from headers or from the state stored beside it. Pure.

bitsandbytes stores four-bit weights as one column of bytes: their shape is data, in a small JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...errors import CheckpointError, RecipeError
from ...formats.codecs import Shape
from ...formats.tensor_spec import TensorSpec, make_tensor_spec
from .find import QuantizedModule


def find_state(module: QuantizedModule) -> str | None:
    """Return the tensor that holds a weight's shape as data; None where headers tell it."""
    if module.scheme.shape is not None:
        return None
    return next(part for role, part in module.parts.items() if role.startswith("state"))


def find_shape(module: QuantizedModule, q: TensorSpec, contents: Mapping[str, bytes]) -> Shape:
    """Return the shape of a module's weight; `contents` has the states by name.

    Raises: RecipeError where the state was not read; CheckpointError for one that is none, or that
    does not fit the values `q`.
    """
    state = find_state(module)
    if state is None:
        assert module.scheme.shape is not None
        return module.scheme.shape
    data = contents.get(state)
    if data is None:
        raise RecipeError(f"tensor {state!r} holds the shape of a weight, and was not read")
    try:
        shape = _read_shape(data)
        n_elements = make_tensor_spec("U8", shape).nbytes
    except (ValueError, CheckpointError) as error:
        raise CheckpointError(f"tensor {state!r}: no state of a weight: {error}") from None
    if -(-n_elements // 2) != q.nbytes:
        raise CheckpointError(
            f"tensor {state!r}: says {list(shape)}, which does not fit the weight's "
            f"{q.nbytes} bytes"
        )
    return shape


def _read_shape(data: bytes) -> Shape:
    """Return the shape in bitsandbytes' state of a weight. Raises: ValueError."""
    found = re.search(rb'"shape":\s*\[([0-9, ]*)\]', data)
    if found is None:
        raise ValueError("no shape")
    return tuple(int(dim) for dim in found[1].split(b","))
