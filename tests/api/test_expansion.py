"""The main job: the output computes what the source computes, and holds nothing else.

Judged by `transformers`, by `safetensors`, and by files read by hand.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from checkpoints import (
    PARTS,
    Tensor,
    copy_tree,
    edit_json,
    mistral_tensors,
    read_file,
    read_header,
    read_tensors,
    snapshot,
    write_checkpoint,
)

import blockexpand
from blockexpand.errors import BlockExpandError, OutputError, ProofError, RecipeError
from blockexpand.planning.recipe import parse_position, parse_size
from blockexpand.progress import Progress

ZEROED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


class Case(NamedTuple):
    """A request, and what it means: for each output layer its source, with a `*` if it is new."""

    options: dict[str, Any]
    layers: str

    @property
    def sources(self) -> list[int]:
        return [int(word.rstrip("*")) for word in self.layers.split()]

    @property
    def new(self) -> list[int]:
        return [i for i, word in enumerate(self.layers.split()) if word.endswith("*")]


CASES = {
    "end": Case({"new_layers": 2}, "0 1 2 3 3* 3*"),
    "interleaved": Case({"new_layers": 2, "position": "interleaved"}, "0 1 1* 2 3 3*"),
    "start": Case({"new_layers": 1, "position": "start"}, "0* 0 1 2 3"),
    "list": Case({"position": (0, 2, 2)}, "0 0* 1 2 2* 2* 3"),
    "repacked": Case({"new_layers": 2, "max_shard_size": "90KB"}, "0 1 2 3 3* 3*"),
}


@pytest.fixture(scope="module")
def expand_tiny(
    tiny_mistral: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function that expands the tiny checkpoint as a case says, once."""
    made: dict[str, Path] = {}

    def expand(case: str) -> Path:
        if case not in made:
            out = tmp_path_factory.mktemp("expanded") / case
            blockexpand.expand(tiny_mistral, out, **CASES[case].options)
            made[case] = out
        return made[case]

    return expand


def expected_tensors(source: dict[str, Tensor], case: Case) -> dict[str, tuple[Any, ...]]:
    """Return dtype, shape and bytes of every output tensor, worked out from its name alone."""
    expected = {n: t[:3] for n, t in source.items() if not n.startswith("model.layers.")}
    for layer, origin in enumerate(case.sources):
        for part in PARTS:
            tensor = source[f"model.layers.{origin}.{part}.weight"]
            zero = layer in case.new and f"{part}.weight" in ZEROED
            data = bytes(len(tensor.data)) if zero else tensor.data
            expected[f"model.layers.{layer}.{part}.weight"] = (tensor.dtype, tensor.shape, data)
    return expected


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_its_source_or_plus_zero(
    case: str, expand_tiny: Callable[[str], Path], tiny_mistral: Path
) -> None:
    found = {name: tensor[:3] for name, tensor in read_tensors(expand_tiny(case)).items()}
    assert found == expected_tensors(read_tensors(tiny_mistral), CASES[case])


def run_model(folder: Path) -> tuple[Any, Any]:
    """Return the logits of a text, and the tokens that are generated from it with the cache."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    assert model.dtype == torch.bfloat16
    ids = AutoTokenizer.from_pretrained(folder)("Licensed under the", return_tensors="pt")
    ids.pop("token_type_ids", None)  # transformers before 5 gives them, and takes them not
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    with torch.no_grad():
        tokens = model.eval().generate(**ids, **options)
        assert tokens.shape[1] > ids["input_ids"].shape[1]
        return model(**ids).logits, tokens


@pytest.fixture(scope="module")
def source_run(tiny_mistral: Path) -> tuple[Any, Any]:
    return run_model(tiny_mistral)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_generation_are_those_of_the_source(
    case: str, expand_tiny: Callable[[str], Path], source_run: tuple[Any, Any]
) -> None:
    import torch

    logits, tokens = run_model(expand_tiny(case))
    assert torch.equal(logits, source_run[0])
    assert torch.equal(tokens, source_run[1])


@pytest.mark.parametrize("case", ["end", "interleaved"])
def test_a_training_step_reaches_the_zeroed_projections(
    case: str, expand_tiny: Callable[[str], Path]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(expand_tiny(case), dtype=torch.float32)
    ids = torch.arange(5, 37)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    for layer in CASES[case].new:
        for suffix in ZEROED:
            parameter = model.get_parameter(f"model.layers.{layer}.{suffix}")
            assert not parameter.any()
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("case", CASES)
def test_the_index_is_what_safetensors_finds(case: str, expand_tiny: Callable[[str], Path]) -> None:
    from safetensors import safe_open

    out = expand_tiny(case)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    weight_map, nbytes, parameters = {}, 0, 0
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 - it is no dict
                tensor = file.get_tensor(name)
                weight_map[name] = path.name
                nbytes += tensor.nbytes
                parameters += tensor.numel()
    assert index["weight_map"] == weight_map
    assert list(index["weight_map"]) == sorted(weight_map)
    assert index["metadata"] == {"total_parameters": parameters, "total_size": nbytes}


def test_shards_mirror_the_source(expand_tiny: Callable[[str], Path], tiny_mistral: Path) -> None:
    out = expand_tiny("end")
    originals = sorted(tiny_mistral.glob("*.safetensors"))
    made = sorted(out.glob("*.safetensors"))
    assert [path.name for path in made] == [
        f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)
    ]
    for original, mirrored in zip(originals, made, strict=False):
        # At the end no original is renamed, so the files are equal, headers included.
        assert original.read_bytes() == mirrored.read_bytes()
    assert {name.split(".")[2] for name in read_file(made[-1])} == {"4", "5"}


def test_renumbered_shards_keep_order_and_place_within_a_block(
    expand_tiny: Callable[[str], Path], tiny_mistral: Path
) -> None:
    renumber = {0: 0, 1: 1, 2: 3, 3: 4}
    made = sorted(expand_tiny("interleaved").glob("*.safetensors"))
    for original, mirrored in zip(sorted(tiny_mistral.glob("*.safetensors")), made, strict=False):
        _, source_start = read_header(original)
        _, start = read_header(mirrored)
        assert start % 4096 == source_start % 4096
        assert original.read_bytes()[source_start:] == mirrored.read_bytes()[start:]
        names = []
        for name in read_file(original):
            words = name.split(".")
            if words[1] == "layers":
                words[2] = str(renumber[int(words[2])])
            names.append(".".join(words))
        assert list(read_file(mirrored)) == names


def test_the_config_changes_in_its_count_and_nowhere_else(
    expand_tiny: Callable[[str], Path], tiny_mistral: Path
) -> None:
    before = (tiny_mistral / "config.json").read_bytes()
    assert before.count(b'"num_hidden_layers": 4') == 1
    expected = before.replace(b'"num_hidden_layers": 4', b'"num_hidden_layers": 6')
    assert (expand_tiny("end") / "config.json").read_bytes() == expected


def test_a_single_file_gets_an_index_when_blocks_need_a_second(
    tiny_mistral_single: Path, tmp_path: Path
) -> None:
    blockexpand.expand(tiny_mistral_single, tmp_path / "out", new_layers=1)
    files = {path.name for path in (tmp_path / "out").glob("model*")}
    assert files == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    assert (tmp_path / "out" / "model-00001-of-00002.safetensors").read_bytes() == (
        tiny_mistral_single / "model.safetensors"
    ).read_bytes()


def test_repacking_into_one_file_needs_no_index(
    tiny_mistral: Path, expand_tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    blockexpand.expand(tiny_mistral, tmp_path / "out", new_layers=2, max_shard_size="1GB")
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
    found = {name: tensor[:3] for name, tensor in read_tensors(tmp_path / "out").items()}
    assert found == {n: t[:3] for n, t in read_tensors(expand_tiny("end")).items()}


def test_repacked_shards_hold_the_size_and_the_order(expand_tiny: Callable[[str], Path]) -> None:
    layers = []
    for path in sorted(expand_tiny("repacked").glob("*.safetensors")):
        tensors = read_file(path)
        assert sum(len(tensor.data) for tensor in tensors.values()) <= 90_000
        layers += [int(name.split(".")[2]) for name in tensors if ".layers." in name]
    assert layers == sorted(layers)


def test_every_other_file_comes_along_and_weights_in_other_forms_do_not(
    tiny_mistral: Path, tmp_path: Path
) -> None:
    source = copy_tree(tiny_mistral, tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    carried = {
        "additional_chat_templates/rag.jinja": "{{ documents }}",
        "modeling_own.py": "raise SystemExit",
        "NOTICE": "n",
        "merges.txt": "a b",
        "vocab.json": "{}",
        "preprocessor_config.json": "{}",
        "an empty file": "",
    }
    for name, text in carried.items():
        (source / name).write_text(text)
    left = [
        "consolidated.00.pth",
        "model.gguf",
        "onnx/model.onnx",
        "original/params.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "stray.safetensors",
    ]
    for name in left:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("[core]")
    (source / ".gitattributes").write_text("* filter=lfs")
    result = blockexpand.expand(source, tmp_path / "out", new_layers=1)
    out = tmp_path / "out"
    for name, text in carried.items():
        assert (out / name).read_text() == text
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    templates = [path.name for path in source.glob("chat_template*")]  # older: in the tokenizer's
    assert all((out / n).read_bytes() == (source / n).read_bytes() for n in templates)
    assert sorted(result.plan.left_behind) == left
    found = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert not found & {*left, "onnx", "original", ".git", ".gitattributes"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(
    umask: int, tiny_mistral: Path, tmp_path: Path, set_umask: Callable[[int], None]
) -> None:
    set_umask(umask)
    blockexpand.expand(tiny_mistral, tmp_path / "out", new_layers=1)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.fixture
def set_umask() -> Any:
    """Return a function that sets this process's umask until the test ends."""
    import os

    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def test_the_source_and_its_surroundings_stay_as_they_were(
    tiny_mistral: Path, tmp_path: Path
) -> None:
    before = snapshot(tiny_mistral)
    blockexpand.expand(tiny_mistral, tmp_path / "out", new_layers=1, verify_after="tensors")
    assert snapshot(tiny_mistral) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_request_makes_the_same_bytes(tiny_mistral: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        blockexpand.expand(tiny_mistral, tmp_path / name, new_layers=1, command="the same")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two


def test_progress_counts_every_byte_once(tiny_mistral_f32: Path, tmp_path: Path) -> None:
    totals: list[tuple[str, int]] = []
    done: list[int] = []
    progress = Progress(begin=lambda what, n: totals.append((what, n)), advance=done.append)
    result = blockexpand.expand(tiny_mistral_f32, tmp_path / "out", new_layers=1, progress=progress)
    nbytes = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert totals == [("writing", nbytes)]
    assert sum(done) == nbytes == result.plan.nbytes


# dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "source"])
def test_a_float32_source_becomes_what_was_asked_for(
    dtype: str, tiny_mistral_f32: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    result = blockexpand.expand(
        tiny_mistral_f32, tmp_path / "out", new_layers=1, dtype=dtype, verify_after="logits"
    )
    assert result.proof is not None
    wanted = torch.float32 if dtype == "source" else getattr(torch, dtype)
    source: dict[str, Any] = {}
    for path in tiny_mistral_f32.glob("*.safetensors"):
        source |= load_file(path)
    for path in (tmp_path / "out").glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert tensor.dtype == wanted
            origin = name.replace("layers.4.", "layers.3.")
            if "layers.4." in name and name.endswith(ZEROED):
                assert not tensor.any()
            else:
                assert torch.equal(tensor, source[origin].to(wanted))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == str(wanted).removeprefix("torch.")


def test_what_a_bfloat16_source_keeps_wider_stays(tmp_path: Path) -> None:
    tensors = mistral_tensors(layers=2, size=8)
    wide = "model.layers.1.input_layernorm.weight"
    tensors |= {wide: mistral_tensors(layers=2, dtype="F32", size=8)[wide]}
    source = write_checkpoint(tmp_path / "source", [tensors], {"torch_dtype": "bfloat16"})
    blockexpand.expand(source, tmp_path / "out", new_layers=1)
    found = read_tensors(tmp_path / "out")
    for layer in (1, 2):
        assert found[f"model.layers.{layer}.input_layernorm.weight"][:3] == tensors[wide]
    assert found["model.norm.weight"].dtype == "BF16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_integers_booleans_scalars_and_empty_tensors_are_copied(dtype: str, tmp_path: Path) -> None:
    odd = {
        "flags": ("BOOL", (3,), b"\1\0\1"),
        "numbers": ("I64", (2,), bytes(range(16))),
        "bytes": ("U8", (5,), b"abcde"),
        "nothing": ("F32", (0, 4), b""),
        "empty integers": ("I32", (0,), b""),
        "scalar": ("I64", (), bytes(8)),
    }
    # What is narrow comes first, so that converting to wider elements would leave them unaligned.
    source = write_checkpoint(tmp_path / "source", [odd | mistral_tensors()])
    blockexpand.expand(source, tmp_path / "out", new_layers=1, dtype=dtype, verify_after="tensors")
    found = read_tensors(tmp_path / "out")
    for name, tensor in odd.items():
        assert found[name][:3] == tensor
    from safetensors import safe_open

    for path in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                file.get_tensor(name)


def test_converted_and_repacked_tensors_lie_at_multiples_of_their_elements(tmp_path: Path) -> None:
    tensors = {"odd": ("U8", (3,), b"abc")} | mistral_tensors(dtype="F16", size=5)
    source = write_checkpoint(tmp_path / "source", [tensors])
    for number, options in enumerate(({"dtype": "float32"}, {"max_shard_size": "100B"})):
        out = tmp_path / str(number)
        blockexpand.expand(source, out, new_layers=1, **options)
        for tensor in read_tensors(out).values():
            width = {"U8": 1, "F32": 4, "BF16": 2}[tensor.dtype]
            assert tensor.offset % width == 0


@pytest.mark.parametrize("size", [None, 1])
def test_a_value_too_large_for_float16_is_named_and_nothing_is_left(
    size: int | None, tmp_path: Path
) -> None:
    import struct

    tensors = mistral_tensors(dtype="F32")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = ("F32", (4,), struct.pack("<4f", 1.0, -65520.0, 2.0, 3.0))
    source = write_checkpoint(tmp_path / "source", [tensors])
    before = snapshot(source)
    wanted = rf"tensor '{name}': 65520 is too large for F16; expand with [^()]*$"
    with pytest.raises(RecipeError, match=wanted):
        blockexpand.expand(
            source, tmp_path / "out", new_layers=1, dtype="float16", max_shard_size=size
        )
    assert snapshot(source) == before
    assert list(tmp_path.iterdir()) == [source]
    # The greatest number that still rounds down, and an infinity of the source's own, pass.
    tensors[name] = ("F32", (4,), struct.pack("<4f", float("inf"), -65519.0, 2.0, 3.0))
    source = write_checkpoint(tmp_path / "other", [tensors])
    blockexpand.expand(source, tmp_path / "out", new_layers=1, dtype="float16")
    data = read_tensors(tmp_path / "out")[name].data
    assert struct.unpack("<4e", data) == (float("inf"), -65504.0, 2.0, 3.0)


# the folders


def test_the_output_may_not_be_the_source_or_lie_in_it_or_around_it(
    tiny_mistral: Path, tmp_path: Path
) -> None:
    source = copy_tree(tiny_mistral, tmp_path / "around" / "source")
    (tmp_path / "link").symlink_to(source)
    before = snapshot(tmp_path)
    for out in (
        source,
        tmp_path / "link",
        source / "out",
        source / "a" / "b",
        tmp_path / "link" / "out",
        tmp_path / "around",
        source / ".." / "source",
    ):
        for overwrite in (False, True):
            with pytest.raises(OutputError):
                blockexpand.expand(source, out, new_layers=1, overwrite=overwrite)
            assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["README.md", "model-00004-of-00004.safetensors"])
def test_a_folder_called_like_a_file_of_the_output_is_refused(
    name: str, tiny_mistral: Path, tmp_path: Path
) -> None:
    source = copy_tree(tiny_mistral, tmp_path / "source")
    (source / name).unlink(missing_ok=True)
    (source / name / "below").mkdir(parents=True)
    (source / name / "below" / "text.txt").write_text("text")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=rf"{re.escape(name)}: is a folder, and"):
        blockexpand.expand(source, tmp_path / "out", new_layers=1)
    assert snapshot(tmp_path) == before


def test_an_output_that_is_a_file_or_holds_something_is_refused(
    tiny_mistral: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = snapshot(tmp_path)
    for out in ("file", "full", "file/below"):
        with pytest.raises(BlockExpandError, match=str(tmp_path / out.partition("/")[0])):
            blockexpand.expand(tiny_mistral, tmp_path / out, new_layers=1)
        assert snapshot(tmp_path) == before


def test_an_empty_folder_a_link_to_one_and_missing_parents_are_made(
    tiny_mistral: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for out in ("empty", "link", "a/b/c", "with a space/and\na newline", "é/雨"):
        blockexpand.expand(tiny_mistral, tmp_path / out, new_layers=1)
        verification, _ = blockexpand.verify(tiny_mistral, tmp_path / out)
        assert not verification.findings
    assert (tmp_path / "link").is_symlink()


def test_paths_may_be_relative_end_in_a_slash_and_be_no_utf8(
    tiny_mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.chdir(tmp_path)
    copy_tree(tiny_mistral, tmp_path / "source")
    (tmp_path / "source" / os.fsdecode(b"side \xff file.txt")).write_text("text")
    blockexpand.expand("source/", "./out/", new_layers=1)
    strange = os.fsdecode(b"\xfe source")
    (tmp_path / "source").rename(tmp_path / strange)
    blockexpand.expand(strange, os.fsdecode(b"out \xff"), new_layers=1)
    verification, _ = blockexpand.verify(strange, os.fsdecode(b"out \xff"))
    assert not verification.findings
    assert os.fsdecode(b"side \xff file.txt") in {path.name for path in Path("out").iterdir()}
    json.loads((tmp_path / os.fsdecode(b"out \xff") / "block_expansion.json").read_text())


def test_overwrite_replaces_a_whole_folder(
    tiny_mistral: Path, tmp_path: Path, expand_tiny: Callable[[str], Path]
) -> None:
    out = copy_tree(expand_tiny("interleaved"), tmp_path / "out")
    (out / "vocab.txt").write_text("old")
    blockexpand.expand(tiny_mistral, out, new_layers=2, overwrite=True, verify_after="tensors")
    assert not (out / "vocab.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_expansion_can_be_expanded_again(
    expand_tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = blockexpand.expand(
        expand_tiny("end"), out, new_layers=1, position="start", verify_after="logits"
    )
    assert result.proof is not None
    manifest = json.loads((out / "block_expansion.json").read_text())
    assert (manifest["original_layers"], manifest["layers"]) == (6, 7)


def test_a_failed_proof_names_the_output(
    tiny_mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import blockexpand.api.pipeline as pipeline

    written = pipeline.write

    def write_and_damage(*arguments: Any) -> Any:
        result = written(*arguments)
        edit_json(result.out / "config.json", rms_norm_eps=1.0)
        return result

    monkeypatch.setattr(pipeline, "write", write_and_damage)
    with pytest.raises(ProofError, match="rms_norm_eps") as raised:
        blockexpand.expand(tiny_mistral, tmp_path / "out", new_layers=1, verify_after="tensors")
    assert str(tmp_path / "out") in str(raised.value)


# the arguments


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("5GB", 5 * 10**9),
        ("800MB", 800 * 10**6),
        ("1.5kb", 1500),
        ("7B", 7),
        (7, 7),
        (" 2 TB ", 2 * 10**12),
        ("0.1GB", 10**8),
        ("4611686018427387903B", 2**62 - 1),
        (None, None),
    ],
)
def test_sizes_are_decimal(text: str | int | None, nbytes: int | None) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0.4B",
        "-5GB",
        "GB",
        "1e9",
        "5 GB 3",
        "9" * 5000,
        "9" * 400 + "GB",
        "99999999999TB",
        "nan",
        "٣GB",
    ],
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="expected something like 5GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("5", "has no unit: expected something like 5GB, 5MB or 5B"),
        ("5GiB", "decimal here .* expected 5.369GB for this one"),
        ("512MiB", "expected 536.9MB for this one"),
    ],
)
def test_a_size_that_may_mean_two_things_is_asked_about(text: str, advice: str) -> None:
    with pytest.raises(RecipeError, match=advice):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("end", "end"),
        ("7,15", (7, 15)),
        (" 7 , 15 ", (7, 15)),
        ("3", (3,)),
        ([1, 2], (1, 2)),
        ("7,", "7,"),
        ("-1", "-1"),
        ("1,-2", "1,-2"),
        ("٣", "٣"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_positions_are_names_or_comma_lists(text: Any, position: Any) -> None:
    assert parse_position(text) == position
