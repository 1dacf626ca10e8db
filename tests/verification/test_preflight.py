"""The proof at toy width: it holds for right plans, needs no weights, and breaks for wrong ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_zoo import Zoo, make_checkpoint
from older import is_older
from safetensors.torch import load_file
from zoo import ZOO as EVERY_RECIPE

from blockexpand.api.expansion import expand
from blockexpand.checkpoints.checkpoint import Checkpoint, assemble_checkpoint, open_checkpoint
from blockexpand.cli.app import main
from blockexpand.errors import NoProofError, ProofError
from blockexpand.formats.safetensors import render_header
from blockexpand.formats.tensor_spec import TensorSpec
from blockexpand.fs.reading import FileStat
from blockexpand.planning.origins import Copy, Fill, Scale, Zeros
from blockexpand.planning.plan import Plan, make_plan
from blockexpand.planning.recipe import Recipe
from blockexpand.planning.shards import PlannedTensor
from blockexpand.verification.preflight import check_plan

PROVEN = "bit-identical, also with each new layer in the place of its source"
ZOO = {recipe.name: recipe for recipe in EVERY_RECIPE}
# Each has something that a toy could get wrong: names that are not the model's, stacked experts,
# lists of widths, rotary embeddings bound to the size of a head, towers, layers past the end.
DIFFICULT = (
    *("gpt2_hub", "codegen", "phi3", "qwen2_window_legacy", "gemma3_hub", "qwen2_vl_flat"),
    *("qwen3_vl_moe", "llama4", "mixtral", "deepseek_v3", "laguna", "gpt_oss", "mamba2"),
    *("granitemoehybrid", "nemotron_h", "xlstm", "gemma4_text"),
)


def real_width(model_type: str, **fields: Any) -> Checkpoint:
    """Make the headers of a checkpoint with the default sizes of `transformers`, and no file."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers does not have {model_type}")
    if model_type == "gemma2" and is_older("transformers", (4, 53)):
        pytest.skip("this transformers tells the kind of a Gemma 2 layer from its number")
    config = AutoConfig.for_model(model_type, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    entries = [
        (name, TensorSpec(dtype="BF16", shape=tuple(t.shape), nbytes=2 * math.prod(t.shape)))
        for name, t in model.state_dict().items()
    ]
    header = render_header(entries, {"format": "pt"}, data_start_modulo=(0, 4096))
    nbytes = len(header) + sum(spec.nbytes for _, spec in entries)
    return assemble_checkpoint(
        Path("no such folder"),
        {"config.json": config.to_json_string().encode()},
        [(FileStat(name="model.safetensors", nbytes=nbytes, mtime_ns=0), header)],
    )


@pytest.fixture(scope="module")
def gemma() -> tuple[Checkpoint, Plan]:
    """Gemma 2 at 2B: windows in every second layer, closing norms that are set to -1."""
    checkpoint = real_width("gemma2", num_hidden_layers=6)
    return checkpoint, make_plan(checkpoint, Recipe(new_layers=2, position="interleaved"))


@pytest.fixture(scope="module")
def qwen() -> tuple[Checkpoint, Plan]:
    """Qwen3 with a window from layer 3 on, projections zeroed."""
    checkpoint = real_width(
        "qwen3",
        num_hidden_layers=6,
        use_sliding_window=True,
        sliding_window=4096,
        max_window_layers=3,
    )
    return checkpoint, make_plan(checkpoint, Recipe(new_layers=2, position="interleaved"))


def edit_config(plan: Plan, **fields: Any) -> Plan:
    document = next(doc for doc in plan.documents if doc.name == "config.json")
    data = json.dumps(json.loads(document.data) | fields).encode()
    return replace(plan, documents=(replace(document, data=data),))


def edit_tensor(
    plan: Plan, name: str, change: Callable[[PlannedTensor], PlannedTensor | None]
) -> Plan:
    files = []
    hits = 0
    for file in plan.files:
        tensors = [change(t) if t.name == name else t for t in file.tensors]
        hits += sum(t.name == name for t in file.tensors)
        files.append(replace(file, tensors=tuple(t for t in tensors if t is not None)))
    assert hits == 1
    return replace(plan, files=tuple(files))


def origin_of(plan: Plan, name: str) -> Any:
    return next(t.origin for file in plan.files for t in file.tensors if t.name == name)


@pytest.mark.parametrize("position", ["end", "interleaved", "start", (1, 1, 4)])
def test_a_right_plan_of_headers_alone_is_proven(position: str | tuple[int, ...]) -> None:
    checkpoint = real_width("gemma2", num_hidden_layers=6)
    count = 3 if isinstance(position, str) else None
    plan = make_plan(checkpoint, Recipe(new_layers=count, position=position))
    assert check_plan(checkpoint, plan) == (
        f"toy model of the same 9 layers: logits of 48 tokens {PROVEN}"
    )


def test_eighty_layers_of_real_width_are_proven() -> None:
    checkpoint = real_width(
        "llama",
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    plan = make_plan(checkpoint, Recipe(new_layers=8, position="interleaved"))
    assert "the same 88 layers" in check_plan(checkpoint, plan)


def test_layers_that_are_configured_by_padded_numbers_are_proven() -> None:
    """`transformers` saves the keys of `per_layer_config` as 05, 11, …"""
    checkpoint = real_width("gemma4_unified_text")
    assert "05" in checkpoint.config["per_layer_config"]
    plan = make_plan(checkpoint, Recipe(new_layers=2, position="interleaved"))
    numbers = json.loads(plan.documents[0].data)["per_layer_config"]
    assert list(numbers) == ["05", "11", "18", "24", "30", "31"]
    assert PROVEN in check_plan(checkpoint, plan)


# Making the checkpoint of Llama 4 casts its rotary table.
@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("name", DIFFICULT)
def test_a_saved_checkpoint_is_proven(name: str, tmp_path: Path) -> None:
    if name == "qwen2_vl_flat" and is_older("transformers", (4, 56)):
        pytest.skip("this transformers cannot make a model of its own flat config")
    make_checkpoint(ZOO[name], tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    plan = make_plan(checkpoint, Recipe(new_layers=2, position="interleaved"))
    assert PROVEN in check_plan(checkpoint, plan)


def test_an_original_layer_of_another_kind_is_found(gemma: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = gemma
    kinds = ["sliding_attention", "full_attention"] * 4  # what no list gives: new layers shift it
    assert kinds != json.loads(plan.documents[0].data)["layer_types"]
    with pytest.raises(ProofError, match="of the same 8 layers computes something else"):
        check_plan(checkpoint, edit_config(plan, layer_types=kinds))


def test_a_new_layer_of_another_kind_is_found(qwen: tuple[Checkpoint, Plan]) -> None:
    """As the identity it computes the same whatever its kind; trained, it would not."""
    checkpoint, plan = qwen
    kinds = json.loads(plan.documents[0].data)["layer_types"]
    assert plan.new_layers == (3, 7) and kinds[7] == "sliding_attention"
    with pytest.raises(ProofError, match="in the place of the layers that they clone"):
        check_plan(checkpoint, edit_config(plan, layer_types=[*kinds[:7], "full_attention"]))


@pytest.mark.parametrize("layers", [6, 7, 9])
def test_a_wrong_count_is_found(qwen: tuple[Checkpoint, Plan], layers: int) -> None:
    checkpoint, plan = qwen
    kinds = (json.loads(plan.documents[0].data)["layer_types"] * 2)[:layers]
    with pytest.raises(ProofError):
        check_plan(checkpoint, edit_config(plan, num_hidden_layers=layers, layer_types=kinds))


def test_a_list_that_does_not_fit_the_depth_is_found(qwen: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = qwen
    kinds = checkpoint.config["layer_types"]
    with pytest.raises(ProofError, match="cannot run"):
        check_plan(checkpoint, edit_config(plan, layer_types=kinds))


def test_a_projection_that_is_not_zeroed_is_found(qwen: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = qwen
    name = "model.layers.7.mlp.down_proj.weight"
    assert isinstance(origin_of(plan, name), Zeros)
    source = origin_of(plan, "model.layers.6.mlp.down_proj.weight")
    with pytest.raises(ProofError, match="computes something else"):
        check_plan(checkpoint, edit_tensor(plan, name, lambda t: t._replace(origin=source)))


def test_a_norm_of_zero_where_the_code_adds_one_is_found(gemma: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = gemma
    name = "model.layers.3.post_attention_layernorm.weight"
    origin = origin_of(plan, name)
    assert isinstance(origin, Fill)
    zeros = Zeros(nbytes=origin.nbytes)
    with pytest.raises(ProofError, match="computes something else"):
        check_plan(checkpoint, edit_tensor(plan, name, lambda t: t._replace(origin=zeros)))


def test_layers_out_of_order_are_found(qwen: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = qwen
    one, other = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    first, second = origin_of(plan, one), origin_of(plan, other)
    assert isinstance(first, Copy) and isinstance(second, Copy)
    wrong = edit_tensor(plan, one, lambda t: t._replace(origin=second))
    wrong = edit_tensor(wrong, other, lambda t: t._replace(origin=first))
    with pytest.raises(ProofError, match="computes something else"):
        check_plan(checkpoint, wrong)


def test_a_tensor_that_is_left_out_is_found(qwen: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = qwen
    wrong = edit_tensor(plan, "model.layers.7.self_attn.q_norm.weight", lambda t: None)
    with pytest.raises(ProofError, match=r"lacks 1 tensor.*layers\.7\.self_attn\.q_norm"):
        check_plan(checkpoint, wrong)


def test_a_tensor_that_the_model_does_not_know_is_found(qwen: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = qwen
    name = "model.layers.7.self_attn.q_norm.weight"
    wrong = edit_tensor(plan, name, lambda t: t._replace(name="model.layers.7.q_norm.weight"))
    with pytest.raises(ProofError, match="lacks 1 tensor"):
        check_plan(checkpoint, wrong)
    extra = edit_tensor(plan, name, lambda t: t)
    file = extra.files[0]
    added = file.tensors[0]._replace(name="model.layers.7.further.weight")
    wrong = replace(extra, files=(replace(file, tensors=(*file.tensors, added)), *extra.files[1:]))
    with pytest.raises(ProofError, match="does not know"):
        check_plan(checkpoint, wrong)


def test_a_tensor_from_nowhere_is_found(qwen: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = qwen
    name = "model.layers.0.self_attn.q_proj.weight"
    extent = origin_of(plan, name).extent._replace(offset=1)
    wrong = edit_tensor(plan, name, lambda t: t._replace(origin=Copy(*extent)))
    with pytest.raises(ProofError, match=r"layers\.0\.self_attn\.q_proj.*from no source tensor"):
        check_plan(checkpoint, wrong)


def test_new_layers_that_are_no_clones_are_named(tmp_path: Path) -> None:
    make_checkpoint(ZOO["gpt2_scaled_by_index"], tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    plan = make_plan(checkpoint, Recipe(new_layers=2, position="end"))
    note = check_plan(checkpoint, plan)
    assert note.endswith(
        "bit-identical; the new layers are no true clones, so they were not compared"
    )


def test_a_recipe_that_changes_the_model_is_not_proven(qwen: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = qwen
    with pytest.raises(NoProofError, match="proves nothing: this recipe does not keep what its s"):
        check_plan(checkpoint, replace(plan, keeps_function=False))


def test_a_tensor_that_is_scaled_is_found(qwen: tuple[Checkpoint, Plan]) -> None:
    checkpoint, plan = qwen
    name = "model.layers.0.mlp.down_proj.weight"
    scale = Scale(
        extent=origin_of(plan, name).extent,
        from_dtype="BF16",
        math_dtype="BF16",
        to_dtype="BF16",
        factor=1.0,
    )
    same = edit_tensor(plan, name, lambda t: t._replace(origin=scale))
    assert PROVEN in check_plan(checkpoint, same)
    wrong = edit_tensor(plan, name, lambda t: t._replace(origin=replace(scale, factor=0.5)))
    with pytest.raises(ProofError, match="computes something else"):
        check_plan(checkpoint, wrong)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hidden_act": "no such function"}, "no such function"),
        ({"num_attention_heads": "many"}, "cannot read its config"),
    ],
)
def test_it_says_where_no_toy_can_be_made(
    qwen: tuple[Checkpoint, Plan], fields: dict[str, Any], reason: str
) -> None:
    checkpoint, plan = qwen
    unknown = replace(checkpoint, config=checkpoint.config | fields)
    with pytest.raises(NoProofError) as raised:
        check_plan(unknown, plan)
    note = str(raised.value)
    assert note.startswith("--check proves nothing: no toy model could be made of this source: ")
    assert reason in note and "\n" not in note
    assert raised.value.status == 3


def test_a_source_that_lacks_a_tensor_proves_nothing(qwen: tuple[Checkpoint, Plan]) -> None:
    checkpoint, _ = qwen
    shard = checkpoint.shards[0]
    left = [entry for entry in shard.header.entries if entry.name != "model.norm.weight"]
    header = render_header(((e.name, e.spec) for e in left), {"format": "pt"})
    nbytes = len(header) + sum(entry.spec.nbytes for entry in left)
    incomplete = assemble_checkpoint(
        checkpoint.root,
        {"config.json": checkpoint.config_bytes},
        [(FileStat(name="model.safetensors", nbytes=nbytes, mtime_ns=0), header)],
    )
    plan = make_plan(incomplete, Recipe(new_layers=1))
    with pytest.raises(NoProofError, match=r"misses 'model\.norm\.weight' in the source itself"):
        check_plan(incomplete, plan)


def test_custom_code_of_the_checkpoint_is_not_run(tmp_path: Path) -> None:
    make_checkpoint(Zoo(name="llama", model_type="llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (tmp_path / "modeling.py").write_text(f"open({str(ran)!r}, 'w')")
    checkpoint = open_checkpoint(tmp_path)
    plan = make_plan(checkpoint, Recipe(new_layers=1))
    assert PROVEN in check_plan(checkpoint, plan)
    assert not ran.exists()


def test_it_leaves_torch_as_it_was(qwen: tuple[Checkpoint, Plan]) -> None:
    torch.manual_seed(7)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    check_plan(*qwen)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_command_checks_before_it_writes(
    tiny_mistral: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    options = ["--src", str(tiny_mistral), "--out", str(out), "--new-layers", "2", "--check"]
    assert main([*options, "--dry-run"]) == 0
    assert PROVEN in capsys.readouterr().out
    assert main(options) == 0
    assert PROVEN in capsys.readouterr().out
    assert len(load_file(out / "model-00001-of-00004.safetensors")) > 0

    def refuse(checkpoint: Checkpoint, plan: Plan, **options: Any) -> str:
        raise ProofError("the toy model computes something else")

    monkeypatch.setattr("blockexpand.api.rows.check_plan", refuse)
    other = tmp_path / "other"
    with pytest.raises(ProofError):
        expand(tiny_mistral, other, new_layers=2, check=True)
    assert not other.exists()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("name", ZOO)
def test_every_checkpoint_of_the_zoo_is_proven(name: str, tmp_path: Path) -> None:
    make_checkpoint(ZOO[name], tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for position in ("end", "interleaved", "start"):
        if position not in ZOO[name].refused:
            plan = make_plan(checkpoint, Recipe(new_layers=2, position=position))
            assert "bit-identical" in check_plan(checkpoint, plan)
