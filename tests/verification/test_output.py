"""`verify` finds every damage, says where it is, and believes nothing that the output says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    copy_tree,
    edit_json,
    mistral_tensors,
    read_file,
    read_header,
    render_file,
    snapshot,
    write_checkpoint,
)

import blockexpand
from blockexpand.checkpoints.checkpoint import open_checkpoint
from blockexpand.checkpoints.sources import ModelRef
from blockexpand.errors import BlockExpandError, CheckpointError, SourceChangedError
from blockexpand.progress import SILENT, Progress
from blockexpand.verification import folder as verification
from blockexpand.verification.findings import Finding
from blockexpand.verification.output import verify_output

MANIFEST = "block_expansion.json"
INDEX = "model.safetensors.index.json"
LAST = "model-00003-of-00003.safetensors"
COPIED = "model.layers.2.self_attn.q_proj.weight"
ZEROED = "model.layers.2.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source of 2 layers in 2 shards, and its expansion by one block at the end."""
    folder = tmp_path_factory.mktemp("made")
    tensors = mistral_tensors(size=8)
    first = {n: t for n, t in tensors.items() if "layers.0" in n or "embed" in n}
    rest = {n: t for n, t in tensors.items() if n not in first}
    # A wider tensor that stays, integers, a scalar and nothing at all.
    rest |= {
        "router": ("F32", (2,), bytes(range(8))),
        "positions": ("I64", (2,), bytes(range(16))),
        "scalar": ("BF16", (), b"\x80\x3f"),
        "nothing": ("BF16", (0,), b""),
    }
    source = write_checkpoint(
        folder / "source", [first, rest], {"rms_norm_eps": 1e-6, "torch_dtype": "bfloat16"}
    )
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    (source / "sub").mkdir()
    (source / "sub" / "large").write_bytes(bytes(3 << 20))
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    blockexpand.expand(source, folder / "out", new_layers=1)
    return source, folder / "out"


@pytest.fixture
def source(made: tuple[Path, Path]) -> Path:
    return made[0]


@pytest.fixture
def out(made: tuple[Path, Path], tmp_path: Path) -> Iterator[Path]:
    """A copy to damage."""
    yield copy_tree(made[1], tmp_path / "out")


def findings(source: Path, out: Path) -> tuple[Finding, ...]:
    before = snapshot(out)
    found = blockexpand.verify(source, out, untrained=True)[0].findings
    assert snapshot(out) == before
    return found


def messages(source: Path, out: Path) -> str:
    return "\n".join(map(str, findings(source, out)))


def remarks(source: Path, out: Path) -> str:
    """Return findings, notes and claims: all that is said of an output."""
    verification = blockexpand.verify(source, out, untrained=True)[0]
    said = (*verification.findings, *verification.notes, *verification.stated)
    return "\n".join(map(str, said))


def rewrite(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Write a shard again with other tensors, header and all."""
    metadata = read_header(path)[0].get("__metadata__")
    tensors: dict[str, Any] = dict(read_file(path))
    edit(tensors)
    _, start = read_header(path)
    path.write_bytes(render_file(tensors, metadata, align=4096 if start % 4096 == 0 else 8))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def test_a_sound_output_is_proven(source: Path, out: Path) -> None:
    verification, proof = blockexpand.verify(source, out)
    assert verification.findings == ()
    assert proof is None
    assert verification.tensors == 2 * 9 + 3 + 4 + 9
    assert verification.new_layers == (2,)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert verification.nbytes == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "source"])
@pytest.mark.parametrize("source_dtype", ["F64", "F32", "F16", "BF16"])
def test_converted_outputs_are_proven_and_a_flipped_bit_in_them_is_found(
    dtype: str, source_dtype: str, tmp_path: Path
) -> None:
    tensors = mistral_tensors(dtype=source_dtype, size=40)
    source = write_checkpoint(tmp_path / "source", [tensors])
    options = {"dtype": dtype, "max_shard_size": "500B", "position": (0, 1)}
    blockexpand.expand(source, tmp_path / "out", **options)
    assert findings(source, tmp_path / "out") == ()
    for name in ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        path = next(p for p in tmp_path.glob("out/*.safetensors") if name in read_file(p))
        tensor = read_file(path)[name]
        flip(path, tensor.offset + len(tensor.data) - 1)
        (found,) = findings(source, tmp_path / "out")
        assert (found.tensor, found.offset) == (name, len(tensor.data) - 1)
        flip(path, tensor.offset + len(tensor.data) - 1)


def test_a_flipped_bit_in_any_tensor_is_found_with_its_place(source: Path, out: Path) -> None:
    tried = 0
    for path in sorted(out.glob("*.safetensors")):
        for name, tensor in read_file(path).items():
            for at in sorted({0, len(tensor.data) // 2, len(tensor.data) - 1} - {-1}):
                if not tensor.data:
                    continue
                bit = tried % 8
                flip(path, tensor.offset + at, bit)
                (found,) = findings(source, out)
                assert (found.file, found.tensor, found.offset) == (path.name, name, at)
                byte = tensor.data[at]
                assert f"byte {at} of the tensor (byte {tensor.offset + at} of the file): " in (
                    found.message
                )
                assert found.message.endswith(
                    f"expected 0x{byte:02x}, found 0x{byte ^ 1 << bit:02x}"
                )
                flip(path, tensor.offset + at, bit)
                tried += 1
    assert tried > 90
    assert findings(source, out) == ()


def test_a_flipped_bit_anywhere_in_a_header_is_found(source: Path, out: Path) -> None:
    tried = 0
    for path in sorted(out.glob("*.safetensors")):
        _, start = read_header(path)
        for at in [*range(8), *range(8, start, 47), start - 1]:
            flip(path, at, tried % 8)
            found = findings(source, out)
            assert found, (path.name, at)
            assert found[0].file == path.name
            flip(path, at, tried % 8)
            tried += 1
    assert tried > 100
    assert findings(source, out) == ()


@pytest.mark.parametrize("name", ["config.json", INDEX, "README.md", MANIFEST, "tokenizer.json"])
def test_a_flipped_bit_anywhere_in_a_document_is_found(name: str, source: Path, out: Path) -> None:
    path = out / name
    data = path.read_bytes()
    step = max(len(data) // 40, 1)
    for at in [*range(0, len(data), step), len(data) - 1]:
        flip(path, at, at % 7)
        try:
            # What says how an output came about is noted, not held against it.
            said = remarks(source, out)
            assert name in said or (name == MANIFEST and said), at
            assert name in ("README.md", MANIFEST) or findings(source, out)
        except CheckpointError as error:
            # The recipe itself can no longer be read.
            assert name == MANIFEST
            assert MANIFEST in str(error)
        except BlockExpandError:
            # A recipe that is none for this source.
            assert name == MANIFEST
        path.write_bytes(data)
    assert remarks(source, out) == ""


def test_side_files_are_compared_to_their_last_byte(source: Path, out: Path) -> None:
    flip(out / "sub" / "large", (2 << 20) + 5)
    assert messages(source, out) == f"sub/large: differs from byte {(2 << 20) + 5} on"
    flip(out / "sub" / "large", (2 << 20) + 5)
    with (out / "sub" / "large").open("ab") as file:
        file.write(b"x")
    assert messages(source, out) == f"sub/large: expected {3 << 20} bytes, found {(3 << 20) + 1}"


def test_a_side_file_that_is_cut_short_meanwhile(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = verification.check_same

    def cut(path: Path, *arguments: Any) -> None:
        if path.name == "tokenizer.json":
            os.truncate(out / path.name, 5)
        check(path, *arguments)

    monkeypatch.setattr(verification, "check_same", cut)
    found = verify_output(open_checkpoint(source), ModelRef(model="source"), out, SILENT).findings
    assert [str(finding) for finding in found] == ["tokenizer.json: differs from byte 5 on"]


def test_a_renamed_tensor(source: Path, out: Path) -> None:
    rewrite(out / LAST, lambda t: t.update(other=t.pop(COPIED)))
    found = messages(source, out)
    assert f"{LAST}: tensor '{COPIED}': is missing" in found
    assert f"{LAST}: tensor 'other': is not part of the expansion" in found


def test_a_missing_tensor(source: Path, out: Path) -> None:
    rewrite(out / LAST, lambda t: t.pop(COPIED))
    assert f"{LAST}: tensor '{COPIED}': is missing" in messages(source, out)


def test_an_extra_tensor(source: Path, out: Path) -> None:
    rewrite(out / LAST, lambda t: t.update(extra=("U8", (1,), b"x")))
    assert f"{LAST}: tensor 'extra': is not part of the expansion" in messages(source, out)


def test_an_extra_empty_tensor(source: Path, out: Path) -> None:
    rewrite(out / LAST, lambda t: t.update(extra=("U8", (0,), b"")))
    assert "tensor 'extra': is not part of the expansion" in messages(source, out)


@pytest.mark.parametrize("number", [1, 3])
def test_a_tensor_that_is_there_twice(number: int, source: Path, out: Path) -> None:
    """The second one has the same bytes, and stands before or behind the right one."""
    name = "lm_head.weight"
    tensor = read_file(out / "model-00002-of-00003.safetensors")[name]
    path = out / f"model-0000{number}-of-00003.safetensors"
    rewrite(path, lambda t: t.update({name: tensor}))
    found = messages(source, out)
    assert f"{path.name}: tensor '{name}': is in {path.name}, expected in model-00002" in found


def test_swapped_tensors(source: Path, out: Path) -> None:
    names = ("model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.up_proj.weight")

    def swap(tensors: dict[str, Any]) -> None:
        one, other = (tensors[name] for name in names)
        tensors.update({names[0]: other, names[1]: one})

    rewrite(out / LAST, swap)
    found = findings(source, out)
    assert {finding.tensor for finding in found} == set(names)
    assert all(finding.offset is not None for finding in found)


def test_another_order_with_the_same_tensors(source: Path, out: Path) -> None:
    """No reader would see it, yet it is not what was written."""

    def turn(tensors: dict[str, Any]) -> None:
        name = next(iter(tensors))
        tensors[name] = tensors.pop(name)

    rewrite(out / LAST, turn)
    assert f"{LAST}: header: differs from byte" in messages(source, out)


def test_a_tensor_moved_to_another_file(source: Path, out: Path) -> None:
    tensor = read_file(out / LAST)[COPIED]
    rewrite(out / LAST, lambda t: t.pop(COPIED))
    first = "model-00001-of-00003.safetensors"
    rewrite(out / first, lambda t: t.update({COPIED: tensor}))
    assert f"tensor '{COPIED}': is in {first}, expected in {LAST}" in messages(source, out)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("BF16", (2, 4)), "expected BF16 [8], found BF16 [2, 4]"),
        (("F16", (8,)), "expected BF16 [8], found F16 [8]"),
        (("F32", (4,)), "expected BF16 [8], found F32 [4]"),
    ],
)
def test_a_wrong_shape_or_dtype(
    changed: tuple[str, tuple[int, ...]], message: str, source: Path, out: Path
) -> None:
    rewrite(out / LAST, lambda t: t.update({COPIED: (*changed, t[COPIED].data)}))
    assert f"{LAST}: tensor '{COPIED}': {message}" in messages(source, out)


@pytest.mark.parametrize(
    ("value", "offset", "byte"), [(b"\x00\x80", 7, "80"), (b"\x01\x00", 6, "01")]
)
def test_a_negative_zero_or_the_smallest_number_in_a_zeroed_tensor(
    value: bytes, offset: int, byte: str, source: Path, out: Path
) -> None:
    with (out / LAST).open("r+b") as file:
        file.seek(read_file(out / LAST)[ZEROED].offset + 6)
        file.write(value)
    (found,) = findings(source, out)
    assert (found.tensor, found.offset) == (ZEROED, offset)
    assert f"expected 0x00, found 0x{byte}" in found.message


def test_other_metadata(source: Path, out: Path) -> None:
    tensors = read_file(out / LAST)
    (out / LAST).write_bytes(render_file(tensors, {"format": "pt", "more": "x"}, align=4096))
    assert "header metadata: expected {'format': 'pt'}, found {'format': 'pt', 'more': 'x'}" in (
        messages(source, out)
    )


def test_stale_wrong_and_missing_entries_of_the_index(source: Path, out: Path) -> None:
    data = (out / INDEX).read_text()

    def change(edit: Callable[[dict[str, Any]], object]) -> str:
        index = json.loads(data)
        edit(index)
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        return messages(source, out)

    assert change(lambda i: i["weight_map"].update({COPIED: "x"})) == (
        f"{INDEX}: in 'weight_map': field '{COPIED}': expected \"{LAST}\", found \"x\""
    )
    assert f"field '{COPIED}' is missing" in change(lambda i: i["weight_map"].pop(COPIED))
    assert "field 'ghost' should not be there" in change(
        lambda i: i["weight_map"].update(ghost=LAST)
    )
    assert "in 'metadata': field 'total_size': expected 506, found 7" in change(
        lambda i: i["metadata"].update(total_size=7)
    )
    assert change(lambda i: i).count("\n") == 0
    assert change(lambda i: i) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 2}, "field 'num_hidden_layers': expected 3, found 2"),
        ({"num_hidden_layers": "3"}, "field 'num_hidden_layers': expected 3, found \"3\""),
        ({"num_hidden_layers": 3.0}, "field 'num_hidden_layers': expected 3, found 3.0"),
        ({"rms_norm_eps": 1e-5}, "field 'rms_norm_eps': expected 1e-06, found 1e-05"),
        ({"rms_norm_eps": ...}, "field 'rms_norm_eps' is missing"),
        ({"auto_map": {"AutoModel": "x.y"}}, "field 'auto_map' should not be there"),
        ({}, "differs from byte 1 on"),
    ],
)
def test_a_changed_config(change: dict[str, Any], message: str, source: Path, out: Path) -> None:
    edit_json(out / "config.json", **change)
    assert f"config.json: {message}" in messages(source, out)


def test_a_config_that_is_none(source: Path, out: Path) -> None:
    (out / "config.json").write_text("{")
    assert "config.json: line 1 column 2: no JSON" in messages(source, out)


@pytest.mark.parametrize("nbytes", [0, 5, 50, 700, -1])
def test_a_truncated_shard(nbytes: int, source: Path, out: Path) -> None:
    path = out / "model-00001-of-00003.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:nbytes])
    found = messages(source, out)
    assert path.name in found
    assert f"expected {len(data)} bytes, found {len(data[:nbytes])}" in found


def test_a_shard_with_bytes_behind_it(source: Path, out: Path) -> None:
    with (out / LAST).open("ab") as file:
        file.write(b"\0")
    assert f"{LAST}: the tensors do not fill the file" in messages(source, out)


@pytest.mark.parametrize(
    "name", [LAST, INDEX, "config.json", "README.md", "tokenizer.json", "sub/large"]
)
def test_a_missing_file(name: str, source: Path, out: Path) -> None:
    (out / name).unlink()
    if name == "README.md":
        assert remarks(source, out) == "README.md is missing"
    else:
        assert f"{name}: is missing" in messages(source, out)


@pytest.mark.parametrize("name", [LAST, INDEX, "config.json", "tokenizer.json", "sub/large"])
@pytest.mark.parametrize("kind", ["link to nothing", "pipe", "folder"])
def test_a_name_that_leads_to_no_file(kind: str, name: str, source: Path, out: Path) -> None:
    (out / name).unlink()
    if kind == "link to nothing":
        (out / name).symlink_to("../blobs/0123")
    elif kind == "pipe":
        os.mkfifo(out / name)
    else:
        (out / name).mkdir()
    message = {
        "link to nothing": "is a symbolic link",
        "pipe": "is not a file",
        "folder": "is missing",
    }
    assert f"{name}: {message[kind]}" in messages(source, out)


def test_swapped_files(source: Path, out: Path) -> None:
    one, other = (out / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    one.rename(out / "x")
    other.rename(one)
    (out / "x").rename(other)
    assert "expected in model-00002-of-00003.safetensors" in messages(source, out)


def test_files_that_are_too_many(source: Path, out: Path) -> None:
    (out / "pytorch_model.bin").write_bytes(b"x")
    (out / "sub" / "more").write_bytes(b"")
    (out / "dangling").symlink_to("nothing")
    (out / "folder").symlink_to("sub")
    os.mkfifo(out / "pipe")
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("not looked at")
    found = findings(source, out)
    assert {finding.message for finding in found} == {"is not part of the expansion"}
    assert {finding.file for finding in found} == {
        "pytorch_model.bin",
        "sub/more",
        "dangling",
        "folder",
        "pipe",
    }


# the manifest is not believed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zeroed": []}, "field 'zeroed'"),
        ({"zeroed": ["self_attn.q_proj.weight"]}, "field 'zeroed'"),
        ({"set": {"x": 1.0}}, "field 'set': expected {}, found {\"x\": 1.0}"),
        ({"layer_map": [0, 1, 0]}, "field 'layer_map': expected [0, 1, 1], found [0, 1, 0]"),
        ({"new_layers": [0]}, "field 'new_layers': expected [2], found [0]"),
        ({"original_layers": 3}, "source' (mistral, 3 layers), not from "),
        ({"position": "start"}, "model.layers.0."),
        ({"position": "interleaved"}, "fingerprint"),
        ({"position": "1"}, "fingerprint"),
        ({"position": "0"}, "model.layers.2."),
        ({"dtype": "float16"}, "tensor 'model.embed_tokens.weight': expected F16"),
        ({"dtype": "source"}, "fingerprint"),
        ({"max_shard_nbytes": 100}, "model-00001-of-"),
        ({"block_nbytes": 8192}, "fingerprint"),
        ({"layer_prefix": "x."}, "field 'layer_prefix'"),
        ({"blockexpand": "0.0.1"}, "made by blockexpand 0.0.1"),
        ({"fingerprint": "0"}, "field 'fingerprint'"),
        ({"command": "rm -rf /"}, "README.md"),
        ({"source": {"model": "other", "model_type": "mistral"}}, "README.md"),
        ({"source": {"model": "x", "model_type": "llama", "repo": "a/b"}}, "(llama, 2 layers)"),
        ({"more": 1}, "unknown fields were not checked: 'more'"),
    ],
)
def test_a_manifest_that_lies_is_found(
    change: dict[str, Any], message: str, source: Path, out: Path
) -> None:
    edit_json(out / MANIFEST, **change)
    assert message in remarks(source, out)


def test_the_stated_commit_is_in_the_card_too(tmp_path: Path) -> None:
    commit = "0123456789" * 4
    source = write_checkpoint(
        tmp_path / "models--org--name" / "snapshots" / commit, [mistral_tensors()]
    )
    blockexpand.expand(source, tmp_path / "out", new_layers=1)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["source"]["repo"] == "org/name"
    assert manifest["source"]["commit"] == commit
    edit_json(tmp_path / "out" / MANIFEST, source=manifest["source"] | {"commit": "f" * 40})
    said = remarks(source, tmp_path / "out")
    assert "README.md is not the card" in said
    assert f"org/name at commit {'f' * 40}: compared with commit {commit} instead" in said


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 4},
        {"new_layers": [2, 3]},
        {"position": ...},
        {"position": 5},
        {"position": "9" * 5000},
        {"position": "middle"},
        {"position": "7"},
        {"new_layers": 1},
        {"new_layers": []},
        {"dtype": "int8"},
        {"block_nbytes": 1 << 40},
        {"block_nbytes": 4097},
        {"block_nbytes": 0},
        {"block_nbytes": True},
        {"block_nbytes": "4096"},
        {"max_shard_nbytes": -1},
        {"max_shard_nbytes": 10**30},
        {"source": []},
        {"source": {"model": "x", "repo": 5}},
        {"source": {"model": "x", "commit": ["x"]}},
        {"command": ...},
    ],
)
def test_a_manifest_without_a_recipe_is_refused_on_one_line(
    change: dict[str, Any], source: Path, out: Path
) -> None:
    edit_json(out / MANIFEST, **change)
    with pytest.raises(BlockExpandError) as raised:
        blockexpand.verify(source, out)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 6000


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "\ufeff{}"])
def test_a_manifest_that_is_none_is_refused(text: str, source: Path, out: Path) -> None:
    (out / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=MANIFEST):
        blockexpand.verify(source, out)


def test_what_is_no_expansion_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        blockexpand.verify(source, tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        blockexpand.verify(source, tmp_path)


def test_another_source_is_found(source: Path, out: Path, tmp_path: Path) -> None:
    other = copy_tree(source, tmp_path / "other")
    path = other / "model-00001-of-00002.safetensors"
    name, tensor = next(iter(read_file(path).items()))
    flip(path, tensor.offset + 3)
    (found,) = findings(other, out)
    assert (found.tensor, found.offset) == (name, 3)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json"])
def test_a_source_that_changes_meanwhile_is_refused(
    name: str, source: Path, out: Path, tmp_path: Path
) -> None:
    other = copy_tree(source, tmp_path / "other")
    checkpoint = open_checkpoint(other)
    if name == "tokenizer.json":
        # Nothing is left that could differ.
        (other / name).write_bytes(b"")
    else:
        os.utime(other / name, ns=(1, 1))
    with pytest.raises(SourceChangedError):
        verify_output(checkpoint, ModelRef(model="source"), out, SILENT)


def test_every_byte_of_the_tensors_is_reported_once(source: Path, out: Path) -> None:
    done: list[int] = []
    totals: list[tuple[str, int]] = []
    progress = Progress(begin=lambda what, n: totals.append((what, n)), advance=done.append)
    blockexpand.verify(source, out, progress=progress)
    tensors = sum(
        len(tensor.data)
        for path in out.glob("*.safetensors")
        for tensor in read_file(path).values()
    )
    assert sum(done) == tensors + (3 << 20) + len('{"version": "1.0"}')
    assert totals == [("comparing", sum(done))]


def test_the_first_of_several_differences_in_a_large_tensor_is_named(tmp_path: Path) -> None:
    """More than one slice, on several threads."""
    nbytes = 18 << 20
    data = bytes(range(251)) * (nbytes // 251 + 1)
    tensors = mistral_tensors() | {"large": ("U8", (nbytes,), data[:nbytes])}
    source = write_checkpoint(tmp_path / "source", [tensors])
    blockexpand.expand(source, tmp_path / "out", new_layers=1)
    path = tmp_path / "out" / "model-00001-of-00002.safetensors"
    offset = read_file(path)["large"].offset
    places = [17 << 20, (9 << 20) + 1, (5 << 20) + 123_457, (3 << 20) + (300 << 10)]
    for place in places:
        flip(path, offset + place)
        (found,) = findings(source, tmp_path / "out")
        assert (found.tensor, found.offset) == ("large", place)


def test_nothing_that_writes_is_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys, blockexpand.verification.output; "
        "print([m for m in sys.modules if m.startswith('blockexpand') and 'writing' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_shared_copy_is_as_good(source: Path, out: Path, tmp_path: Path) -> None:
    """What was moved, copied or hard-linked elsewhere verifies as well."""
    shutil.move(out, tmp_path / "elsewhere")
    assert findings(source, tmp_path / "elsewhere") == ()
