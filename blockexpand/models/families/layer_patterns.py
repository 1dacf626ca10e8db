"""The formulas by which models derive the kinds of their layers where no list spells them out.

Each is, or makes, a function of (config, layers) that returns one kind per layer.
Source: the `__post_init__` of the configuration classes of transformers 5.23.
"""

from __future__ import annotations

from ...errors import CheckpointError
from .layer_fields import Config, Derive, Kinds, get_field

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"

CHUNKED = "chunked_attention"

PICKING = "indexed_attention"


def every(
    period: int | str,
    default: int = 0,
    *,
    first: int = 1,
    last: object = FULL,
    other: object = SLIDING,
) -> Derive:
    """Layer i is `last` where i + `first` is a multiple of `period`, else `other`.

    `period` may name a config field, which is then `default` where it is absent.
    """

    def derive(config: Config, layers: int) -> Kinds:
        step = get_field(config, period, default) if isinstance(period, str) else period
        if not isinstance(step, int) or step < 1:
            raise CheckpointError(
                f"config.json: {period!r} is {step!r}; expected a number of layers of at least 1, "
                "or a list 'layer_types'"
            )
        return tuple(other if (index + first) % step else last for index in range(layers))

    return derive


def sparse_after(first_sparse: int | str, default: int = 0) -> Derive:
    """The first layers have a dense MLP, the others experts; the count may name a field."""

    def derive(config: Config, layers: int) -> Kinds:
        count = first_sparse
        if isinstance(count, str):
            count = config.get(count, default)
        return tuple("dense" if index < count else "sparse" for index in range(layers))

    return derive


def sparse_every(config: Config, layers: int) -> Kinds:
    """A.X: experts in every `moe_layer_freq`-th layer after the first dense ones."""
    dense, step = config.get("first_k_dense_replace", 1), config.get("moe_layer_freq", 1)
    return tuple("sparse" if i >= dense and i % step == 0 else "dense" for i in range(layers))


def window_after(default: int, *, switch: bool) -> Derive:
    """Qwen2: a sliding window from layer `max_window_layers` on; `switch`: if it is in use."""

    def derive(config: Config, layers: int) -> Kinds:
        first = get_field(config, "max_window_layers", default)
        window = config.get("sliding_window", 0) is not None
        window = window and (not switch or bool(config.get("use_sliding_window")))
        return tuple(SLIDING if window and i >= first else FULL for i in range(layers))

    return derive


def alternating_before(config: Config, layers: int) -> Kinds:
    """Qwen2-MoE: every other layer before `max_window_layers` has a sliding window."""
    last = get_field(config, "max_window_layers", 28) if config.get("use_sliding_window") else 0
    return tuple(SLIDING if (i + 1) % 2 and i < last else FULL for i in range(layers))


def rope_except_every(config: Config, layers: int) -> Kinds:
    """SmolLM3, Llama 4: 1 for a layer with rotary positions, 0 for every n-th, without."""
    return every("no_rope_layer_interval", 4, last=0, other=1)(config, layers)


def window_without_rope(config: Config, layers: int) -> Kinds:
    """SmolLM3: the layers without rotary positions have a sliding window, if one is in use."""
    window = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    rope = get_field(config, "no_rope_layers") or rope_except_every(config, layers)
    return tuple(SLIDING if window and not has_rope else FULL for has_rope in rope)


def chunked_with_rope(config: Config, layers: int) -> Kinds:
    """Llama 4: the layers with rotary positions attend within chunks."""
    rope = get_field(config, "no_rope_layers") or rope_except_every(config, layers)
    return tuple(CHUNKED if has_rope else FULL for has_rope in rope)


def prefix_then_every(config: Config, layers: int) -> Kinds:
    """Cohere2-MoE: one pattern for the first dense layers, another one for the rest."""
    dense = config.get("first_k_dense_replace", 0)
    head = every("prefix_dense_sliding_window_pattern", 1)(config, dense)
    return head + every("sliding_window_pattern", 4)(config, layers - dense)


def first_and_every_sixth(config: Config, layers: int) -> Kinds:
    """MiMo-V2: the first and every sixth layer attend to everything."""
    return tuple(SLIDING if i and (i + 1) % 6 else FULL for i in range(layers))


def full_every_fourth(config: Config, layers: int) -> Kinds:
    """OLMo hybrid: every fourth layer attends; if there are fewer than four, the last."""
    kinds = every(4, other=LINEAR)(config, layers)
    return kinds if FULL in kinds else (*kinds[:-1], FULL)


def flint(config: Config, layers: int) -> Kinds:
    """Flint: the first two, every fourth and the last layer attend to everything."""
    full = {0, 1, layers - 1}
    return tuple(FULL if i in full or i % 4 == 1 else SLIDING for i in range(layers))


def attention_indices(field: str, other: str) -> Derive:
    """The layers that `field` lists attend, the others are `other`; without it all attend."""

    def derive(config: Config, layers: int) -> Kinds:
        indices = get_field(config, field, range(layers))
        return tuple(FULL if index in indices else other for index in range(layers))

    return derive


def kimi_linear(config: Config, layers: int) -> Kinds:
    """Kimi Linear: the two lists of `linear_attn_config`, from 1; else every fourth from 4."""
    full = get_field(config, "linear_attn_config.full_attn_layers")
    if full is not None and get_field(config, "linear_attn_config.kda_layers") is not None:
        return tuple(FULL if index + 1 in full else LINEAR for index in range(layers))
    return tuple(FULL if i and i % 4 == 0 else LINEAR for i in range(layers))


def lfm3(config: Config, layers: int) -> Kinds:
    """LFM3: of four layers one attends, one has a window; the others, and layer 0, convolve."""
    kinds = (SLIDING, "conv", FULL, "conv")
    return tuple("conv" if index == 0 else kinds[index % 4] for index in range(layers))


def by_flags(field: str, on: str, off: str) -> Derive:
    """A list of flags, one per layer; without it every layer is `off`."""

    def derive(config: Config, layers: int) -> Kinds:
        flags = get_field(config, field)
        return (off,) * layers if flags is None else tuple(on if flag else off for flag in flags)

    return derive


def shared_indexers(config: Config, layers: int) -> Kinds:
    """GLM DSA: which layers pick the tokens to attend to, and which reuse the last pick."""
    pattern = get_field(config, "index_topk_pattern")
    if isinstance(pattern, str):
        return tuple({"F": "full", "S": "shared"}.get(symbol, symbol) for symbol in pattern)
    if pattern is not None:
        return tuple(pattern)
    step, offset = max(config.get("index_topk_freq", 1), 1), config.get("index_skip_topk_offset", 2)
    return tuple("shared" if max(i - offset + 1, 0) % step else "full" for i in range(layers))


def first_then_every_fourth_picks(config: Config, layers: int) -> Kinds:
    """HY-V4: layer 0 and every fourth one from layer 1 pick tokens, the others reuse the pick."""
    return tuple("shared" if i and (i - 1) % 4 else "full" for i in range(layers))


def minimax_m3_mlp(config: Config, layers: int) -> Kinds:
    """MiniMax-M3: flags per layer; without them every layer has experts."""
    return by_flags("moe_layer_freq", "sparse", "dense")(
        {"moe_layer_freq": get_field(config, "moe_layer_freq", [1] * layers)}, layers
    )


def dots3(config: Config, layers: int) -> Kinds:
    """dots 3: the first two and every fourth layer attend to everything, or to what they pick."""
    full = FULL if config.get("use_dsa") is False else "indexed_attention"
    window = config.get("use_sliding_window", True)
    return tuple(SLIDING if window and i >= 2 and i % 4 != 1 else full for i in range(layers))


def inkling(config: Config, layers: int) -> Kinds:
    """Inkling: the layers that `local_layer_ids` lists have a window; else all but every sixth."""
    local = get_field(config, "local_layer_ids")
    if local is None:
        return every(6, last="hybrid", other="hybrid_sliding")(config, layers)
    return tuple("hybrid_sliding" if index in local else "hybrid" for index in range(layers))


def attends_from_the_last(config: Config, layers: int) -> Kinds:
    """Muse: every fourth layer attends to everything, counted from the last one."""
    return tuple(SLIDING if (layers - 1 - i) % 4 else FULL for i in range(layers))


def rope_from_the_last(config: Config, layers: int) -> Kinds:
    """Muse: the layers that attend to everything have no rotary positions, a base of 0."""
    theta = get_field(config, "rope_parameters.rope_theta") or config.get("rope_theta") or 10000.0
    return tuple(theta if (layers - 1 - i) % 4 else 0 for i in range(layers))


def cycle(*kinds: object) -> Derive:
    """The kinds over and over again."""
    return lambda config, layers: tuple(kinds[index % len(kinds)] for index in range(layers))


def zamba(config: Config, layers: int) -> Kinds:
    """Zamba: layer 2 attends as well, and after it every `attn_layer_period`-th from an offset."""
    step, start = config.get("attn_layer_period", 6), config.get("attn_layer_offset", 4)
    hybrid = {2, *(3 + i for i in range(layers - 3) if i % step == start)}
    return tuple("hybrid" if index in hybrid else LINEAR for index in range(layers))


def zamba2(config: Config, layers: int) -> Kinds:
    """Zamba 2: a pattern for 54 layers; of any other depth the list must be written out."""
    hybrid = {*range(6, 43, 6), 47, 51}
    return (
        tuple("hybrid" if i in hybrid else LINEAR for i in range(54))
        if layers == 54
        else ("",) * layers
    )
