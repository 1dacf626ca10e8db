"""A folder → a catalogue, judged by `safetensors`; and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import (
    copy_tree,
    edit_json,
    mistral_tensors,
    render_file,
    snapshot,
    write_checkpoint,
)

from blockexpand.checkpoints.checkpoint import (
    assemble_checkpoint,
    open_checkpoint,
    summarize_faults,
)
from blockexpand.checkpoints.hub.files import wanted_files
from blockexpand.checkpoints.index import parse_weight_map
from blockexpand.errors import CheckpointError, HubError, SourceChangedError
from blockexpand.fs.reading import FileStat, check_same

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
OTHER = "model-00002-of-00002.safetensors"


@pytest.fixture
def two_shards(tmp_path: Path) -> Path:
    """A made-up Mistral of 2 layers, one in each of 2 shards."""
    tensors = mistral_tensors()
    first = {n: t for n, t in tensors.items() if "layers.0" in n or "embed" in n}
    rest = {n: t for n, t in tensors.items() if n not in first}
    return write_checkpoint(tmp_path / "source", [first, rest])


def edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(folder)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 3000
    return message


def test_the_catalogue_is_what_safetensors_reads(tiny_mistral: Path) -> None:
    from safetensors import safe_open

    checkpoint = open_checkpoint(tiny_mistral)
    found = {}
    for path in sorted(tiny_mistral.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                part = file.get_slice(name)
                found[name] = (part.get_dtype(), tuple(part.get_shape()), path.name)
    places = {e.name: s.file.name for s in checkpoint.shards for e in s.header.entries}
    assert {
        name: (spec.dtype, spec.shape, places[name]) for name, spec in checkpoint.specs.items()
    } == found
    assert checkpoint.config == json.loads((tiny_mistral / "config.json").read_bytes())
    assert checkpoint.config_bytes == (tiny_mistral / "config.json").read_bytes()
    assert checkpoint.card == (tiny_mistral / "README.md").read_bytes()
    others = {path.name for path in tiny_mistral.iterdir() if path.suffix != ".safetensors"}
    assert {"LICENSE", "generation_config.json", "tokenizer.json"} < others
    assert {file.name for file in checkpoint.side_files} == others - {
        "config.json",
        "README.md",
        "model.safetensors.index.json",
    }
    assert checkpoint.left_behind == ()
    for file in (*checkpoint.side_files, *(shard.file for shard in checkpoint.shards)):
        status = (tiny_mistral / file.name).stat()
        assert (file.nbytes, file.mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_single_file_goes_before_an_index_as_in_transformers(two_shards: Path) -> None:
    (two_shards / "model.safetensors").write_bytes(render_file(mistral_tensors(layers=2)))
    checkpoint = open_checkpoint(two_shards)
    assert [shard.file.name for shard in checkpoint.shards] == ["model.safetensors"]
    assert checkpoint.left_behind == (SHARD, OTHER)


def test_nothing_but_headers_is_read(tmp_path: Path) -> None:
    """A file of a terabyte that is one hole opens at once."""
    text = json.dumps(
        {"x": {"dtype": "U8", "shape": [10**12], "data_offsets": [0, 10**12]}}
    ).encode()
    folder = write_checkpoint(tmp_path / "source", [mistral_tensors()])
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 10**12)
    start = time.perf_counter()
    assert open_checkpoint(folder).specs["x"].nbytes == 10**12
    assert time.perf_counter() - start < 1


# what is missing


def test_no_folder_and_no_config(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin"], "only PyTorch pickles, which are never loaded: convert them"),
        (["consolidated.00.pth"], "only PyTorch pickles"),
        (["adapter_model.safetensors"], "a PEFT adapter"),
        ([SHARD, OTHER], f"only {SHARD} and 1 more: the index is missing"),
        (["x.gguf"], "only GGUF files, which cannot be expanded"),
        ([], "no safetensors weights"),
    ],
)
def test_missing_weights_say_what_is_there_and_what_to_do(
    files: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    assert message in refusal(tmp_path)


def test_a_missing_shard_is_named(two_shards: Path) -> None:
    (two_shards / OTHER).unlink()
    assert f"{INDEX} names '{OTHER}', which is missing: fetch it" in refusal(two_shards)


@pytest.mark.parametrize("nbytes", [0, 7, 8, 100, -1])
def test_a_shard_that_is_cut_short_is_named(nbytes: int, two_shards: Path) -> None:
    data = (two_shards / SHARD).read_bytes()
    (two_shards / SHARD).write_bytes(data[:nbytes])
    assert f"{SHARD}: " in refusal(two_shards)


def test_all_faults_are_told_together(two_shards: Path) -> None:
    (two_shards / SHARD).write_bytes(b"")
    (two_shards / OTHER).unlink()
    message = refusal(two_shards)
    assert SHARD in message
    assert OTHER in message


def test_many_faults_are_counted() -> None:
    assert summarize_faults(["a"] * 5) == "a; a; a; a; a"
    assert summarize_faults(["a"] * 7) == "a; a; a; a; a; and 2 more"


# the index


@pytest.mark.parametrize(
    "name", ["model.ghost.weight", "model.layers.1.ghost.weight", "score.weight", "vision_head.x"]
)
def test_a_tensor_that_a_model_may_need_and_no_shard_has(name: str, two_shards: Path) -> None:
    edit_index(two_shards, lambda m: m.update({name: SHARD}))
    message = refusal(two_shards)
    assert f"{INDEX}: tensor '{name}' should be in {SHARD}, but no shard has it" in message
    assert f"fetch {SHARD} again, or take the entry out" in message


@pytest.mark.parametrize("name", ["mtp.fc.weight", "model.layers.2.mtp_block.weight"])
def test_a_stale_entry_is_left_out_as_transformers_does(name: str, two_shards: Path) -> None:
    before = open_checkpoint(two_shards)
    edit_index(two_shards, lambda m: m.update({name: SHARD}))
    after = open_checkpoint(two_shards)
    assert (after.specs, before.notes) == (before.specs, ())
    assert after.notes == (
        f"{INDEX} names '{name}', which no shard has: left out, as transformers does",
    )


def test_a_tensor_that_the_index_lacks_comes_along(two_shards: Path) -> None:
    before = open_checkpoint(two_shards)
    edit_index(two_shards, lambda m: m.pop("lm_head.weight"))
    after = open_checkpoint(two_shards)
    assert after.specs == before.specs
    assert len(after.notes) == 1
    assert f"{INDEX} leaves out 'lm_head.weight', which the shards have" in after.notes[0]


def test_an_index_of_other_files_is_told_as_one(two_shards: Path) -> None:
    edit_index(two_shards, lambda m: m.update(dict.fromkeys(m, "other.safetensors")))
    message = refusal(two_shards)
    assert "names 'other.safetensors', of which none is there, only 'model-00001-of" in message
    for name in (SHARD, OTHER):
        (two_shards / name).unlink()
    assert "none is there: fetch them" in refusal(two_shards)
    (two_shards / "pytorch_model.bin").write_bytes(b"")
    assert "only PyTorch pickles" in refusal(two_shards)


def test_a_tensor_in_another_shard_than_the_index_says_is_named(two_shards: Path) -> None:
    edit_index(two_shards, lambda m: m.update({"lm_head.weight": SHARD}))
    assert f"'lm_head.weight' should be in {SHARD}, but is in {OTHER}" in refusal(two_shards)


def test_a_tensor_in_two_shards_is_named(two_shards: Path) -> None:
    (two_shards / SHARD).write_bytes(render_file(mistral_tensors()))
    assert f"{OTHER}: tensor 'model.layers.1.input_layernorm.weight' is in {SHARD} too: take" in (
        refusal(two_shards)
    )


@pytest.mark.parametrize(
    "value",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/model.safetensors",
        "..\\secret.safetensors",
        "sub\\model.safetensors",
        "..",
        "",
        "model.bin",
        "nul\0.safetensors",
        ".hidden.safetensors",
        "a/" * 5000 + "x.safetensors",
        7,
        None,
        ["model.safetensors"],
        {"a": "b"},
    ],
)
def test_an_index_may_only_name_files_of_its_folder(value: object, two_shards: Path) -> None:
    (two_shards.parent / "secret.safetensors").write_bytes((two_shards / SHARD).read_bytes())
    edit_index(two_shards, lambda m: m.update({"lm_head.weight": value}))  # type: ignore[dict-item]
    message = refusal(two_shards)
    assert message.startswith(f"{two_shards}: {INDEX}: weight_map names the shard ")
    assert "expected the plain name of a .safetensors file in the same folder" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object, found []"),
        ("{}", "weight_map: expected an object of tensor name to shard, found null"),
        ('{"weight_map": []}', "weight_map: expected an object of tensor name to shard, found []"),
        ('{"weight_map": {}}', "weight_map is empty"),
        ('{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}', "occurs twice"),
        ('\ufeff{"weight_map": {}}', "byte order mark"),
        ('{"weight_map": {} // none\n}', "a comment"),
        ("[" * 100_000, "nest deeper"),
        ('{"weight_map": ', "no JSON"),
    ],
)
def test_an_index_that_is_none(text: str, message: str, two_shards: Path) -> None:
    (two_shards / INDEX).write_text(text, encoding="utf-8")
    assert message in refusal(two_shards)


def test_a_config_that_is_no_object_is_refused(two_shards: Path) -> None:
    for text in (b"", b"[1]", b"{", b'{"a": 1, "a": 1}', b'\xef\xbb\xbf{"a": 1}', b"\xff{}"):
        (two_shards / "config.json").write_bytes(text)
        assert "config.json: " in refusal(two_shards)


def test_an_index_of_a_million_entries_is_judged_fast(two_shards: Path) -> None:
    members = ",".join([f'"ghost.{i}":"{i % 1000}.safetensors"' for i in range(10**6)])
    (two_shards / INDEX).write_text(f'{{"weight_map":{{{members}}}}}')
    start = time.process_time()
    assert "names '0.safetensors' and 999 more, of which none is there" in refusal(two_shards)
    assert time.process_time() - start < 10


def test_weight_map_keeps_its_order() -> None:
    text = '{"weight_map": {"b": "1.safetensors", "a": "2.safetensors"}}'
    assert list(parse_weight_map(text.encode())) == ["b", "a"]


# links


def test_a_snapshot_of_the_hub_cache_opens(two_shards: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot_folder = repo / "snapshots" / ("0" * 40)
    (repo / "blobs").mkdir(parents=True)
    (snapshot_folder / "additional_chat_templates").mkdir(parents=True)
    (two_shards / "additional_chat_templates").mkdir()
    (two_shards / "additional_chat_templates" / "rag.jinja").write_text("{{ x }}")
    for number, path in enumerate(p for p in sorted(two_shards.rglob("*")) if p.is_file()):
        shutil.copyfile(path, repo / "blobs" / str(number))
        link = snapshot_folder / path.relative_to(two_shards)
        target = os.path.relpath(repo / "blobs" / str(number), link.parent)
        link.symlink_to(target)
    found, expected = open_checkpoint(snapshot_folder), open_checkpoint(two_shards)
    assert found.specs == expected.specs
    assert [file.name for file in found.side_files] == ["additional_chat_templates/rag.jinja"]
    # A blob that was never fetched.
    (repo / "blobs" / "0").unlink()
    assert "symbolic link to no file" in refusal(snapshot_folder)


@pytest.mark.parametrize("name", ["secret.txt", SHARD, "config.json", "templates/x.jinja"])
def test_links_that_leave_the_folder_are_refused(
    name: str, two_shards: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes((two_shards / SHARD).read_bytes())
    (two_shards / name).parent.mkdir(exist_ok=True)
    (two_shards / name).unlink(missing_ok=True)
    (two_shards / name).symlink_to(outside)
    assert f"{name} is a symbolic link that leaves the folder" in refusal(two_shards)


def test_other_links_that_lead_astray_are_refused(two_shards: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    link = two_shards / "link"
    for target, message in (
        ("/etc", "leaves the folder"),
        (blobs, "leaves the folder"),
        ("..", "leaves the folder"),
        ("nothing", "to no file"),
        ("link", "link"),
        (".", "to a folder"),
    ):
        link.symlink_to(target)
        assert message in refusal(two_shards)
        link.unlink()


def test_links_within_the_folder_are_read(two_shards: Path) -> None:
    (two_shards / "NOTICE").symlink_to("config.json")
    assert [file.name for file in open_checkpoint(two_shards).side_files] == ["NOTICE"]


def test_a_hidden_link_is_never_followed(two_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    (two_shards / ".env").symlink_to(tmp_path / "outside")
    (two_shards / ".cache").symlink_to(tmp_path)
    assert open_checkpoint(two_shards).side_files == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["README.md", "side", SHARD, "config.json"])
def test_a_named_pipe_is_not_waited_for(name: str, two_shards: Path) -> None:
    (two_shards / name).unlink(missing_ok=True)
    os.mkfifo(two_shards / name)
    assert name in refusal(two_shards)


def test_only_the_beginning_of_a_huge_card_is_read(two_shards: Path) -> None:
    with (two_shards / "README.md").open("wb") as file:
        file.write(b"---\nlicense: mit\n---\n")
        file.truncate(10**12)
    card = open_checkpoint(two_shards).card
    assert card is not None
    assert card.startswith(b"---\nlicense: mit\n---\n\0")
    assert len(card) == 1 << 20


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_huge_document_is_refused(name: str, two_shards: Path) -> None:
    with (two_shards / name).open("ab") as file:
        file.truncate(10**12)
    assert f"{two_shards}: {name}: expected at most 268435456 bytes" in refusal(two_shards)


@pytest.mark.parametrize("name", ["zz\nout: verified", "back\\slash", "\x1b[2J"])
def test_a_file_whose_name_could_mislead_is_refused(name: str, two_shards: Path) -> None:
    (two_shards / name).write_bytes(b"")
    message = refusal(two_shards)
    assert message.isprintable() and "rename the file, or remove it" in message


def test_a_file_that_only_looks_like_a_hidden_one_is_none(two_shards: Path) -> None:
    (two_shards / ".git\n").mkdir()
    (two_shards / ".git\n" / "x").write_bytes(b"")
    open_checkpoint(two_shards)


# adapters


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_model_with_an_adapter_beside_it_is_refused(weights: str, two_shards: Path) -> None:
    (two_shards / "adapter_config.json").write_bytes(b"{}")
    (two_shards / weights).write_bytes(b"x")
    assert f"adapter_config.json and {weights} are a PEFT adapter" in refusal(two_shards)
    # The same of a repository.
    with pytest.raises(HubError, match="are a PEFT adapter"):
        wanted_files({*snapshot(two_shards)}, {SHARD, OTHER}, "org/name")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_transformers_applies_an_adapter_that_lies_beside_a_model(
    tiny_mistral: Path, tmp_path: Path
) -> None:
    """Why such a folder is refused: it is another model than its weights are."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    folder = copy_tree(tiny_mistral, tmp_path / "both")
    before = AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(
        folder
    )
    after = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        assert not torch.equal(before(tokens).logits, after(tokens).logits)
    assert "are a PEFT adapter" in refusal(folder)


def test_what_is_left_of_an_adapter_stays_behind(two_shards: Path) -> None:
    (two_shards / "adapter_config.json").write_bytes(b"{}")
    checkpoint = open_checkpoint(two_shards)
    assert "adapter_config.json" in checkpoint.left_behind
    assert not [file for file in checkpoint.side_files if "adapter" in file.name]
    assert "adapter_config.json is left behind" in checkpoint.notes[0]
    assert "merge_and_unload" in checkpoint.notes[0]


def test_two_sets_of_weights_are_told(two_shards: Path) -> None:
    (two_shards / "model.safetensors").write_bytes(render_file(mistral_tensors()))
    checkpoint = open_checkpoint(two_shards)
    assert [shard.file.name for shard in checkpoint.shards] == ["model.safetensors"]
    assert f"model.safetensors and {INDEX} are both there" in checkpoint.notes[0]


# by hand


def test_a_checkpoint_can_be_made_without_any_file() -> None:
    data = render_file(mistral_tensors())
    start = 8 + int.from_bytes(data[:8], "little")
    config = b'{"model_type": "mistral", "num_hidden_layers": 2}'
    checkpoint = assemble_checkpoint(
        Path("/nowhere"),
        {"config.json": config},
        [(FileStat(name="model.safetensors", nbytes=len(data), mtime_ns=0), data[:start])],
    )
    assert checkpoint.specs.keys() == mistral_tensors().keys()
    assert checkpoint.card is None


def test_opening_changes_nothing(tiny_mistral: Path, tmp_path: Path) -> None:
    source = copy_tree(tiny_mistral, tmp_path / "source")
    before = snapshot(source)
    open_checkpoint(source)
    assert snapshot(source) == before


def test_a_file_that_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    os.utime(path, ns=(5, 5))
    file = FileStat(name="file", nbytes=3, mtime_ns=5)
    check_same(path, file, path.stat())
    os.utime(path, ns=(5, 6))
    with pytest.raises(SourceChangedError, match="its time of change is another"):
        check_same(path, file, path.stat())
    path.write_bytes(b"abcd")
    with pytest.raises(SourceChangedError, match="expected 3 bytes, found 4"):
        check_same(path, file, path.stat())


def test_names_of_tensors_cannot_break_the_line(two_shards: Path) -> None:
    evil = "model.evil\n\x1b[2J" + "x" * 10_000
    edit_index(two_shards, lambda m: m.update({evil: SHARD}))
    assert "evil\\n\\x1b[2J" in refusal(two_shards)
    edit_json(two_shards / "config.json", model_type=...)
    edit_index(two_shards, lambda m: m.pop(evil))
    open_checkpoint(two_shards)
