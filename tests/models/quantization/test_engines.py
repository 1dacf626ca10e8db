"""The matchers of modules beside vLLM's and SGLang's own functions, taken out of their wheels.

`clients`: downloads two pinned wheels (400 MB). Neither engine starts without a GPU, but the
functions that read a config's lists are plain Python: they are cut out of the sources and called.
"""

from __future__ import annotations

import ast
import fnmatch
import itertools
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from test_skip_lists import LAYER_2, plan_settings

from blockexpand.models.quantization.find import METHODS
from blockexpand.models.quantization.matchers import SKIPPED

pytestmark = pytest.mark.clients

VLLM = "vllm/model_executor/layers/quantization"
SGLANG = "sglang/srt/layers/quantization"
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

LAYERS = (0, 1, 2, 3, 11, 21)
MODULES = [
    f"model.layers.{layer}.{module}"
    for layer in LAYERS
    for module in (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate"),
        *("mlp.experts", "mlp.shared_experts.down_proj"),
    )
] + ["lm_head", "model.embed_tokens"]
ENTRIES = [
    *MODULES,
    *("lm_head", "model.layers.1", "model.layers.2.mlp", "layers.2.self_attn", "mlp.gate"),
    *("self_attn", "o_proj", "model.layers.1.mlp.experts.0.up_proj", "mlp.experts", "1"),
    *("language_model.model.layers.2.mlp.experts", "model.layers.1.", "layers.1.mlp.down_proj"),
]
PATTERNS = [
    *(r"re:model\.layers\.2\..*", r"re:.*self_attn.*", r"re:.*layers\.(1|11)\..*o_proj"),
    *(r"re:^model\.layers\.1\..*", "re:lm_head", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python sources of both engines' quantisation, out of their wheels."""
    folder = tmp_path_factory.mktemp("engines")
    wheels = ["vllm==0.33.0", "sglang==0.5.23"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, *wheels], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith((VLLM, SGLANG))]
            archive.extractall(folder, [n for n in names if n.endswith(".py")])
    return folder


def take(sources: Path, file: str, *names: str, known: Mapping[str, Any] | None = None) -> Any:
    """Return functions and constants of a source file, executed without its imports."""
    tree = ast.parse((sources / file).read_text())
    picked: list[ast.stmt] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            picked.append(node)
        elif isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") in names:
            picked.append(node)
    assert len(picked) >= len(names), (file, names)
    text = "from __future__ import annotations\n" + "\n".join(map(ast.unparse, picked))
    space: dict[str, Any] = {
        "re": re,
        "fnmatch": fnmatch.fnmatch,
        "MappingProxyType": MappingProxyType,
        **(known or {}),
    }
    exec(compile(text, file, "exec"), space)
    return SimpleNamespace(**space)


class Config(dict):  # type: ignore[type-arg]
    """A class of an engine's config, as far as `from_config` uses it: it keeps what it is given."""

    def __init__(self, sources: Path, engine: str) -> None:
        own = take(sources, f"{engine}/base_config.py", "get_from_keys", "get_from_keys_or")
        self.get_from_keys = own.get_from_keys

    def get_from_keys_or(self, config: Mapping[str, Any], keys: list[str], default: Any) -> Any:
        try:
            return self.get_from_keys(config, keys)
        except ValueError:
            return default

    def __call__(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs


def read_fp8(sources: Path, engine: str) -> Callable[[Mapping[str, Any]], list[str]]:
    known = {"envs": None, "logger": None}
    own = take(sources, f"{engine}/fp8.py", "from_config", known=known)
    config = Config(sources, engine)
    return lambda settings: own.from_config(config, dict(settings))["ignored_layers"] or []


Asked = Callable[[Mapping[str, Any], str], bool]
"""Tells of a config and a module whether an engine leaves the module unquantised."""


def make_engines(sources: Path) -> dict[tuple[str, str], Asked]:
    """Return what the engines themselves make of a config, by method and engine."""
    skips = take(sources, f"{VLLM}/utils/quant_utils.py", "is_layer_skipped").is_layer_skipped
    utils = take(
        sources,
        f"{SGLANG}/utils.py",
        *("is_layer_skipped", "_module_path_match", "_FALLBACK_FUSED_SHARDS"),
    )
    vllm_fp8, sglang_fp8 = read_fp8(sources, VLLM), read_fp8(sources, SGLANG)
    matching = take(
        sources,
        f"{VLLM}/utils/config_utils.py",
        *("find_matching_patterns", "is_equal_or_regex_match"),
    )
    vllm_ct = take(
        sources, f"{VLLM}/compressed_tensors/utils.py", "should_ignore_layer", known=vars(matching)
    )
    sglang_ct = take(
        sources,
        f"{SGLANG}/compressed_tensors/utils.py",
        *("should_ignore_layer", "check_equal_or_regex_match", "_is_equal_or_regex_match"),
    )
    gptq = take(
        sources,
        f"{VLLM}/utils/gptq_utils.py",
        *("get_dynamic_override", "is_layer_gptq_quantized", "flatten_list"),
    )
    sglang_gptq = take(sources, f"{SGLANG}/utils.py", "get_dynamic_override")
    awq = take(sources, f"{SGLANG}/awq/awq.py", "is_layer_skipped_awq").is_layer_skipped_awq
    bnb = take(sources, f"{SGLANG}/bitsandbytes.py", "is_layer_skipped_bnb").is_layer_skipped_bnb

    def is_left_out(own: Any, config: Mapping[str, Any], module: str) -> bool:
        # It returns False, which is not 0 or an empty object, for what is left out.
        dynamic = SimpleNamespace(dynamic=config.get("dynamic") or {})
        return own.get_dynamic_override(dynamic, module) is False

    def not_convert(config: Mapping[str, Any]) -> list[str]:
        return config.get("modules_to_not_convert") or []

    def blocks(config: Mapping[str, Any]) -> list[Any]:
        return config.get("modules_in_block_to_quantize") or []

    return {
        ("fp8", "vLLM"): lambda c, m: skips(m, vllm_fp8(c), FUSED),
        ("fp8", "SGLang"): lambda c, m: utils.is_layer_skipped(m, sglang_fp8(c), FUSED),
        ("awq", "vLLM"): lambda c, m: skips(m, not_convert(c), FUSED, match_mode="substring"),
        ("awq", "SGLang"): lambda c, m: awq(m, not_convert(c)),
        ("bitsandbytes", "SGLang"): lambda c, m: bnb(m, c.get("llm_int8_skip_modules") or []),
        ("compressed-tensors", "vLLM"): lambda c, m: vllm_ct.should_ignore_layer(
            m, c["ignore"], FUSED
        ),
        ("compressed-tensors", "SGLang"): lambda c, m: sglang_ct.should_ignore_layer(
            m, c["ignore"], FUSED
        ),
        ("gptq", "vLLM"): lambda c, m: (
            is_left_out(gptq, c, m) or not gptq.is_layer_gptq_quantized(m, blocks(c), FUSED)
        ),
        ("gptq", "SGLang"): lambda c, m: is_left_out(sglang_gptq, c, m),
    }


def make_configs(method: str) -> Iterator[dict[str, Any]]:
    """Yield configs with lists drawn from names and patterns as released ones have them."""
    chance = random.Random(7)
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}}
    for _ in range(400):
        names = chance.sample(ENTRIES, chance.randrange(6))
        other = chance.sample(ENTRIES, chance.randrange(3))
        patterns = chance.sample(PATTERNS, chance.randrange(3))
        if method == "fp8":
            settings: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
            first = chance.choice([None, {"ignored_layers": other}, {"ignored_layers": None}, {}])
            yield settings | {"modules_to_not_convert": names} | (first or {})
        elif method == "compressed-tensors":
            yield {"ignore": [*names, *patterns], "config_groups": groups}
        elif method == "gptq":
            signs = ("-:", "+:")
            rules = {chance.choice(signs) + p.removeprefix("re:"): {"bits": 8} for p in patterns}
            yield {"dynamic": rules, "modules_in_block_to_quantize": [names] if names else None}
        else:
            key = "llm_int8_skip_modules" if method == "bitsandbytes" else "modules_to_not_convert"
            yield {key: names}


def test_the_matchers_agree_with_the_engines_own(sources: Path) -> None:
    compared = skipped = 0
    for (method, engine), asked in make_engines(sources).items():
        own = METHODS[method].engines[engine]
        for config, module in itertools.product(make_configs(method), MODULES):
            expected = asked(config, module)
            assert (own(config, module) == SKIPPED) == expected, (method, engine, config, module)
            compared, skipped = compared + 1, skipped + expected
    assert compared > 100_000 and skipped > compared // 50


@pytest.mark.parametrize("quantized", ["keep", "new-blocks-full"])
@pytest.mark.parametrize("method", ["fp8", "compressed-tensors", "gptq"])
def test_the_engines_read_what_is_written_as_the_source(
    method: str, quantized: str, sources: Path, tmp_path: Path
) -> None:
    """Fused as they ask for modules: parts that are not alike would end in an error there."""
    own = {
        "fp8": {"modules_to_not_convert": ["lm_head", *LAYER_2], "activation_scheme": "dynamic"},
        "compressed-tensors": {"ignore": ["lm_head", r"re:model\.layers\.2\.self_attn\..*"]},
        "gptq": {"dynamic": {r"-:model\.layers\.2\.self_attn\..*": {}}},
    }[method]
    found = plan_settings(tmp_path, method, own, plain=LAYER_2, quantized=quantized)
    full = {1, 4} if quantized == "new-blocks-full" else set()
    for (name, engine), asked in make_engines(sources).items():
        if name != method:
            continue
        for layer, source in enumerate((0, 0, 1, 2, 2, 3)):
            for module in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj"):
                is_plain = (source == 2 and "attn" in module) or layer in full
                asked_for = f"model.layers.{layer}.{module}"
                assert asked(found, asked_for) == is_plain, (engine, asked_for)
