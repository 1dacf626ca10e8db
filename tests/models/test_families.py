"""Every row of the table of families: exact at every position, or refused with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from family_check import (
    POSITIONS,
    check_position,
    decoder_layers,
    expand,
    layer_map_at,
    load,
    run,
    tokens,
)
from family_zoo import Zoo, make_checkpoint
from zoo import ZOO
from zoo_wrappers import NEED_MORE

import blockexpand
from blockexpand.models import families
from blockexpand.models.families.layer_vocabulary import COPIED
from blockexpand.models.families.refused import REFUSED

# Rows of which no checkpoint is made here, because another recipe builds the same classes.
SAME_CLASSES = {
    "gpt-sw3": "gpt2",
    "qwen2_vl_text": "qwen2_vl",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "qwen3_vl_text": "qwen3_vl",
    "qwen3_vl_moe_text": "qwen3_vl_moe",
    "mllama_text_model": "mllama",
    **{
        f"{name}_text": name
        for name in (
            *("glm4v", "glm4v_moe", "glm_ocr", "hunyuan_vl", "paddleocr_vl", "ernie4_5_vl_moe"),
            *("granite_docling", "voxtral_realtime"),
        )
    },
    # Llama's, DeepSeek-V3's, GLM-4.5's and Moshi's layers under another name.
    **{"exaone": "llama", "sarvam_mla": "deepseek_v3", "sarvam_moe": "glm4_moe"},
    "kyutai_speech_to_text": "moshi",
    # Not in every transformers that the tests run with.
    **{"apertus1p5_text": "apertus", "hy_v4_vl_text": "hy_v4", "lara_mini": "qwen3_next"},
    **{
        f"{name}_text": name
        for name in (
            *("cosmos3_edge", "deepseek_ocr2", "unlimited_ocr", "granite4_vision", "molmo2"),
            *("cohere_compass", "mistral_large4", "muse_glimmer"),
        )
    },
    "step3p5": "step3p7",
    "qwen2_5_omni_text": "qwen2_5_omni_thinker",
    "qwen3_omni_moe_text": "qwen3_omni_moe_thinker",
    "emu3_text_model": "emu3",
    "kosmos_2_text_model": "kosmos-2",
    "kosmos_2_5_text_model": "kosmos-2.5",
}


@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # a vision tower's buffer
@pytest.mark.parametrize("recipe", ZOO, ids=lambda recipe: recipe.name)
def test_an_expansion_is_exact_and_can_learn_or_is_refused(
    recipe: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # half of the time, and not the subject
    folder = tmp_path / "source"
    make_checkpoint(recipe, folder)
    source = run(folder, recipe.depth)
    for position in POSITIONS:
        check_position(recipe, source, folder, position, tmp_path / position)


def test_a_recipe_repeats_a_whole_period_where_the_config_knows_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jamba = next(recipe for recipe in ZOO if recipe.name == "jamba")
    make_checkpoint(jamba, tmp_path / "source")
    silent = "[{filter: o_proj, value: 0}, {filter: out_proj, value: 0}, "
    silent += "{filter: down_proj, value: 0}, {value: 1}]"
    whole = f"{{model: {tmp_path}/source, layer_range: [0, 6]"
    (tmp_path / "recipe.yml").write_text(
        "merge_method: passthrough\ndtype: bfloat16\nslices:\n"
        f"- sources: [{whole}}}]\n- sources: [{whole}, parameters: {{scale: {silent}}}}}]\n"
    )
    blockexpand.merge(tmp_path / "recipe.yml", tmp_path / "out")
    source, out = run(tmp_path / "source", 6), run(tmp_path / "out", 12)
    assert all(torch.equal(out.logits[dtype], source.logits[dtype]) for dtype in out.logits)
    assert torch.equal(out.tokens, source.tokens)


@pytest.mark.parametrize("recipe", NEED_MORE, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_decoder_is_found_where_the_whole_model_needs_more_than_tokens(
    recipe: Zoo, position: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    make_checkpoint(recipe, tmp_path / "source")
    expand(recipe, tmp_path / "source", position, tmp_path / "out")
    source, out = (load(tmp_path / name, torch.float32) for name in ("source", "out"))
    blockexpand.freeze_original_layers(out, tmp_path / "out")
    layers = decoder_layers(out, len(layer_map_at(recipe.depth, position)))
    trained = [name for name, parameter in layers.named_parameters() if parameter.requires_grad]
    assert {int(name.partition(".")[0]) for name in trained} == {
        index for index, (_, is_new) in enumerate(layer_map_at(recipe.depth, position)) if is_new
    }
    with torch.no_grad():
        assert torch.equal(decode(source), decode(out))


def decode(model: torch.nn.Module) -> torch.Tensor:
    """Run a multimodal model's decoder on tokens alone."""
    parts = ("language_model", "text_model")
    part = next(m for name, m in model.named_modules() if name.rpartition(".")[2] in parts)
    more = {"t_cond": torch.ones(1, 1, 32)} if "Realtime" in type(model).__name__ else {}
    result: torch.Tensor = part(input_ids=tokens(), **more)[0]
    return result


def test_every_row_has_a_recipe() -> None:
    built = {recipe.model_type for recipe in (*ZOO, *NEED_MORE)}
    rows = {SAME_CLASSES.get(model_type, model_type) for model_type in families.FAMILIES}
    assert rows - built == set()


def test_no_model_type_is_in_two_rows() -> None:
    rows = (*families.DENSE, *families.MIXTURE, *families.RECURRENT, *families.RECENT)
    names = [model_type for row in rows for model_type in row.model_types]
    names += [model_type for row in families.WRAPPERS for model_type in row.model_types]
    names += REFUSED
    assert sorted(names) == sorted(set(names))


def test_no_output_is_copied() -> None:
    """An output of a row may be an input elsewhere only where a layer cannot be both."""
    outputs = {
        output
        for row in families.FAMILIES.values()
        for branch in row.branches
        for form in branch
        for output in form.outputs
    }
    assert outputs & COPIED == set()
