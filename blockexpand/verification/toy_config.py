"""A checkpoint's config → the same model at toy width: few heads, narrow matrices, same layers.

Every field that is per layer, or tells what a layer is, stays as it is; only widths change, by
name. A rule here need not hold for every model: what it gets wrong does not build, and then no
proof is claimed. Pure: it builds no model and reads no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Fields = Mapping[str, Any]

ToyFields = dict[tuple[str, ...], dict[str, Any]]
"""What to write, by the path of the object of config.json that holds it.

Of a list it is the toy value of each real one, so that lists of any depth can be rewritten.
"""

VOCABULARY = 128

WINDOW = 8

_MLA_HIDDEN = 64

_STATE = 16

_EXPERTS = 4

_EXPERTS_PER_TOKEN = 2

_HIDDEN = ("embed_dim", "hidden_size", "n_embd", "d_model", "embedding_dim")

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")

_OTHER_HEADS = ("num_attention_heads_per_layer", "swa_num_attention_heads")

_KV_HEADS = (
    *("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads"),
    *("swa_num_key_value_heads", "num_global_key_value_heads"),
)

_HEAD_DIMS = ("head_dim", "dim_head", "kv_channels", "attention_head_dim", "swa_head_dim")

_INNER = (
    *("intermediate_size", "intermediate_size_mlp", "moe_intermediate_size", "ffn_dim", "dff"),
    *("shared_expert_intermediate_size", "shared_intermediate_size", "dense_intermediate_size"),
    *("moe_shared_expert_intermediate_size", "ffn_hidden_size", "dim_ff", "n_inner", "mlp_dim"),
    *("alignment_intermediate_size", "block_ff_dim", "moe_latent_size"),
)

# Widths that equal the hidden size, of the model itself or of the one that they lead to.
_LIKE_HIDDEN = (
    *("word_embed_proj_dim", "lru_width", "attention_hidden_size", "out_hidden_size"),
    *("projection_dim", "projector_input_dim", "projector_output_dim", "vision_output_dim"),
    *("hidden_size", "projector_hidden_size"),
)

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

_PER_TOKEN = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"),
    *("top_k_experts",),
)

_GROUPS = ("n_group", "num_expert_group")

_RANKS = ("q_lora_rank", "kv_lora_rank", "time_step_rank", "mamba_dt_rank")

_STATES = (
    *("state_size", "ssm_state_size", "mamba_d_state"),
    "hidden_size_per_layer_input",
)

_CHUNKS = ("chunk_size", "mamba_chunk_size")

_WINDOWS = (
    *("sliding_window", "window_size", "attention_window_size", "attention_chunk_size"),
    *("keep_window_size", "index_topk", "sliding_window_size"),
)

_VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input")

_ROPE_LISTS = ("short_factor", "long_factor", "mrope_section")


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowing:
    """How many heads a toy has, and how large one may be; no heads leave all widths as they are."""

    heads: int
    head_dim: int = 0


def make_toy_fields(config: Fields, effective: Fields, toy: Narrowing) -> ToyFields:
    """Return the toy widths of a config.json and of its nested configs.

    `effective` is what `transformers` makes of it, defaults filled in.
    """
    text_path = ("text_config",) if "text_config" in effective else ()
    text = _section(config, effective, text_path)
    narrow = _Widths(text, toy)
    toys: ToyFields = {text_path: narrow.fields(text)}
    if text_path and "text_config" not in config:
        # The layout of the first Qwen2-VL checkpoints: the text model's fields at the root.
        toys = {(): toys[text_path]}
    for path, section in _nested(config, effective, text_path if text_path in toys else ()):
        towers = path[0] != "text_config" and any(section.get(name) for name in _HIDDEN)
        own = _Widths(section, toy) if towers else narrow
        toys[path] = own.fields(section, vision=towers)
        for name in _LIKE_HIDDEN if towers else ():
            own_width = name == own.hidden_name
            if toy.heads and section.get(name) == narrow.real_hidden and not own_width:
                toys[path][name] = narrow.hidden
    if text_path in toys and text_path:
        root = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
        toys[()] = narrow.fields(root)
    return toys


def apply_toy_fields(config: Fields, toys: ToyFields) -> dict[str, Any]:
    """Return a copy of a config.json with the toy widths in it."""
    result = dict(config)
    for path, fields in toys.items():
        target = result
        for key in path:
            target[key] = dict(target.get(key) or {})
            target = target[key]
        for name, value in fields.items():
            if not isinstance(value, dict):
                target[name] = value
            elif isinstance(target.get(name), list):
                target[name] = [value.get(item, item) for item in target[name]]
    return result


def token_numbers(config: Fields) -> frozenset[int]:
    """Return the numbers of all special tokens that a config names."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= token_numbers(value)
        elif key.endswith(("_token_id", "_token_index", "_token_ids")):
            found |= {item for item in (value if isinstance(value, list) else [value]) if item}
    return frozenset(found)


class _Widths:
    """The toy widths of one model, from its real ones."""

    def __init__(self, real: Fields, toy: Narrowing) -> None:
        self._toy = toy
        self.hidden_name = next((name for name in _HIDDEN if _is_count(real.get(name))), None)
        self.real_hidden = real[self.hidden_name] if self.hidden_name else 0
        counts = _counts(real, (*_HEADS[:1], *_OTHER_HEADS)) or _counts(real, _HEADS)
        self._heads = {
            count: toy.heads * rank for rank, count in enumerate(sorted(counts), start=1)
        }
        most = max(self._heads, default=1)
        heads = next((real[name] for name in _HEADS if _is_count(real.get(name))), 1)
        explicit = next((real[name] for name in _HEAD_DIMS if _is_count(real.get(name))), None)
        self.real_head_dim = explicit or self.real_hidden // heads or 1
        # Latent attention has rotary dimensions of its own, which do not follow from head_dim.
        latent = _is_count(real.get("qk_rope_head_dim"))
        kept = latent or _has_rope_lists(real)
        self.head_dim = self.real_head_dim if kept else min(toy.head_dim, self.real_head_dim)
        self.hidden = _MLA_HIDDEN if latent else self._heads.get(heads, toy.heads) * self.head_dim
        self._most_heads = most
        expand = real.get("expand") or real.get("mamba_expand") or 2
        self._mamba_width = int(expand * self.hidden)
        groups = next((real[name] for name in _GROUPS if _is_count(real.get(name))), 1)
        self._experts = max(_EXPERTS, 2 * groups if groups > 1 else 0)
        self._is_mamba2 = "expand" in real and "num_heads" in real

    def fields(self, section: Fields, *, vision: bool = False) -> dict[str, Any]:
        """Return the toy value of every width in one object of the config."""
        toys = {}
        for name, value in section.items():
            values = value if isinstance(value, list) else [value]
            if not values or not all(map(_is_count, values)):
                continue
            new = {item: self._narrow(name, item, section, vision=vision) for item in values}
            if any(item != narrow for item, narrow in new.items()):
                toys[name] = new if isinstance(value, list) else new[value]
        pad = section.get("pad_token_id")
        if isinstance(pad, int) and pad >= VOCABULARY:
            toys["pad_token_id"] = 0
        return toys

    def _narrow(self, name: str, value: int, section: Fields, *, vision: bool) -> int:
        if name in _VOCABULARIES:
            return VOCABULARY
        if name in _WINDOWS and not vision:
            return min(value, WINDOW)
        if name == "local_attention":  # half of it to each side
            return min(value, 2 * WINDOW)
        return self._narrow_width(name, value, section) if self._toy.heads else value

    def _narrow_width(self, name: str, value: int, section: Fields) -> int:
        if name == self.hidden_name or (name in _HIDDEN and value == self.real_hidden):
            return self.hidden
        if self._is_mamba2 and name == "num_heads":
            return self._mamba_width // self.head_dim
        if name in _HEADS or name in _OTHER_HEADS:
            return self._heads.get(value, self._most_heads)
        if name in _KV_HEADS:
            return self._heads.get(value, 1)
        if name in _HEAD_DIMS:
            return self.head_dim if value == self.real_head_dim else self._scale(value)
        if name in ("rotary_dim", "global_head_dim", "v_head_dim", "swa_v_head_dim"):
            return value if "qk_rope_head_dim" in section else self._scale(value)
        if name in _INNER:
            return self.hidden * max(1, round(value / max(self.real_hidden, 1)))
        if name in _LIKE_HIDDEN:
            ratio, rest = divmod(value, self.real_hidden or value)
            return value if rest or not ratio else ratio * self.hidden
        if name in _EXPERT_COUNTS:
            return min(value, self._experts)
        if name in _PER_TOKEN:
            return min(value, _EXPERTS_PER_TOKEN)
        return self._narrow_mixer(name, value, section)

    def _narrow_mixer(self, name: str, value: int, section: Fields) -> int:
        if name in (*_RANKS, *_STATES, *_CHUNKS):
            return min(value, _STATE)
        if name in ("mamba_d_head", "mamba_head_dim"):
            return min(value, _STATE)
        if name == "mamba_d_ssm":
            return self._mamba_width
        if name == "mamba_n_heads":
            size = section.get("mamba_d_head")
            size = min(size, _STATE) if isinstance(size, int) else _STATE
            return max(self._mamba_width // size, 1)
        if name in ("mamba_num_heads", "linear_num_heads", "index_n_heads"):
            return min(value, 4)
        if name in ("n_groups", "mamba_n_groups"):
            return min(value, 2)
        if name == "linear_num_key_heads":
            return min(value, 2)
        if name == "linear_num_value_heads":
            keys = section.get("linear_num_key_heads") or value
            return min(keys, 2) * (value // keys)
        return value

    def _scale(self, value: int) -> int:
        return max(value * self.head_dim // self.real_head_dim, 1)


def _section(config: Fields, effective: Fields, path: tuple[str, ...]) -> Fields:
    """Return an object of the config with the library's defaults below what the file says."""
    for key in path:
        effective = effective.get(key) or {}
        config = config.get(key) or (config if key == "text_config" else {})
    return {**effective, **{key: value for key, value in config.items() if value is not None}}


def _nested(
    config: Fields, effective: Fields, within: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Fields]]:
    """Yield the configs inside of a config, and those inside of its text config."""
    names = {key for key in (*config, *effective) if key.endswith("_config")}
    for name in sorted(names - {"text_config", "quantization_config"}):
        section = _section(config, effective, (name,))
        if section:
            yield (name,), section
    if within:
        inner = _section(config, effective, within)
        for name in sorted(key for key in inner if key.endswith("_config")):
            if isinstance(inner[name], Mapping):
                yield (*within, name), inner[name]


def _has_rope_lists(fields: Fields) -> bool:
    """Tell whether rotary embeddings are given by lists as long as half a head."""
    return any(
        name in _ROPE_LISTS
        or (isinstance(value, Mapping) and "rope" in str(name) and _has_rope_lists(value))
        for name, value in fields.items()
    )


def _counts(fields: Fields, names: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for name in names:
        value = fields.get(name)
        found |= {item for item in (value if isinstance(value, list) else [value]) if item}
    return {item for item in found if _is_count(item)}


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0
