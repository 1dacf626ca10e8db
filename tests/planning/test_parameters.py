"""Numbers of parameters, against `transformers` and against sums done by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockexpand.checkpoints.checkpoint import open_checkpoint
from blockexpand.formats.tensor_spec import make_tensor_spec
from blockexpand.planning.parameters import (
    Parameters,
    count_parameters,
    count_tensors,
    describe_parameters,
    spell_count,
)
from blockexpand.planning.plan import make_plan
from blockexpand.planning.recipe import Recipe


def test_counts_are_those_of_transformers(tiny_mistral: Path) -> None:
    from transformers import AutoModelForCausalLM

    import blockexpand

    out = tiny_mistral.parent / "counted"
    plan = blockexpand.expand(tiny_mistral, out, new_layers=2, position="interleaved").plan
    model = AutoModelForCausalLM.from_pretrained(out)
    found = count_parameters(plan)
    assert found.total == model.num_parameters()
    trainable = blockexpand.freeze_original_layers(model, out)
    assert found.new == sum(model.get_parameter(name).numel() for name in trainable)
    assert found.original == AutoModelForCausalLM.from_pretrained(tiny_mistral).num_parameters()
    assert found.new_share == found.new / found.total


def test_the_source_alone_can_be_counted(tiny_mistral: Path) -> None:
    checkpoint = open_checkpoint(tiny_mistral)
    plan = make_plan(checkpoint, Recipe(new_layers=1))
    source = count_tensors(checkpoint.specs.items(), plan.layer_prefix, ())
    assert (source.total, source.new) == (count_parameters(plan).original, 0)


def test_packed_weights_are_said_to_be_packed_not_counted_wrongly() -> None:
    tensors = [
        ("model.embed_tokens.weight", make_tensor_spec("BF16", (100, 8))),
        ("model.layers.0.mlp.down_proj.qweight", make_tensor_spec("I32", (4, 8))),
        ("model.layers.1.mlp.down_proj.qweight", make_tensor_spec("I32", (4, 8))),
        ("model.layers.1.mlp.up_proj.weight", make_tensor_spec("F8_E4M3", (8, 8))),
        ("model.layers.1.self_attn.bias", make_tensor_spec("BOOL", (1, 64, 64))),
        ("position_ids", make_tensor_spec("I64", (1, 64))),
        ("model.layers.10.x.weight", make_tensor_spec("F32", ())),
    ]
    found = count_tensors(tensors, "model.layers.", [1])
    assert found == Parameters(total=865, new=64, packed_nbytes=256, new_packed_nbytes=128)
    assert found.new_share is None
    assert describe_parameters(found) == (
        "865 parameters: 801 original + 64 new; not counted: quantised weights packed in 256 bytes "
        "of integers, 128 of them new"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (7_241_732_096, "7.24B"),
        (999_600, "1M"),
        (872_450_048, "872M"),
        (99_960_000, "100M"),
        (1_026_000_000_000, "1.03T"),
    ],
)
def test_three_digits(count: int, text: str) -> None:
    assert spell_count(count) == text


def test_one_line_says_all() -> None:
    assert describe_parameters(Parameters(total=8_114_000_000, new=872_000_000)) == (
        "8.11B parameters: 7.24B original + 872M new (10.7 %)"
    )
    assert describe_parameters(Parameters(total=8_114_000_000, new=0)) == "8.11B parameters"
