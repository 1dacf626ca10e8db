"""Forged manifests: what a stranger writes into one is never what an output is compared with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    edit_json,
    mistral_tensors,
    snapshot,
    write_checkpoint,
)
from hub_server import HubServer

import blockexpand
from blockexpand.cli.app import main
from blockexpand.errors import BlockExpandError, CheckpointError

MANIFEST = "block_expansion.json"


def other_weights(tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (dtype, shape, bytes(byte ^ 0x11 for byte in data))
        for name, (dtype, shape, data) in tensors.items()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", [mistral_tensors(size=8)])


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A model of the source's shape without a byte of its weights."""
    return write_checkpoint(tmp_path / "evil", [other_weights(mistral_tensors(size=8))])


def recipe(path: Path, model: str, *slices: tuple[int, int, float | None]) -> Path:
    lines = ["merge_method: passthrough", "slices:"]
    for first, last, scale in slices:
        lines.append(f"- sources: [{{model: '{model}', layer_range: [{first}, {last}]")
        lines[-1] += f", parameters: {{scale: {scale}}}}}]" if scale is not None else "}]"
    path.write_text("\n".join(lines))
    return path


def forge(out: Path, source: Path, **changes: Any) -> None:
    """Let a manifest say that its output was made of `source`."""
    manifest = json.loads((out / MANIFEST).read_text())
    edit_json(out / MANIFEST, source=manifest["source"] | {"model": str(source)}, **changes)


def test_the_recipes_own_model_is_always_the_given_source(
    source: Path, evil: Path, tmp_path: Path
) -> None:
    file = recipe(tmp_path / "r.yaml", str(source), (0, 2, None))
    out = tmp_path / "out"
    blockexpand.merge(file, out, src=evil)
    forge(out, source)
    assert blockexpand.verify(source, out)[0].wrong_source is not None
    for schema in (1, 2):
        forge(out, source, models={str(source): {"model": str(evil)}}, schema_version=schema)
        with pytest.raises(CheckpointError, match="the recipe's own model; that is the source as"):
            blockexpand.verify(source, out)


@pytest.mark.parametrize("schema", [1, 2])
def test_models_are_exactly_those_of_the_recipe(
    schema: int, source: Path, evil: Path, tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "merge_method: passthrough\nslices:\n"
        f"- sources: [{{model: '{source}', layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: '{evil}', layer_range: [1, 2]}}]\n"
    )
    out = tmp_path / "out"
    blockexpand.merge(file, out)
    verification = blockexpand.verify(source, out)[0]
    assert (verification.findings, verification.keeps_function) == ((), False)
    edit_json(out / MANIFEST, schema_version=schema)
    honest = json.loads((out / MANIFEST).read_text())
    edit_json(out / MANIFEST, models=honest["models"] | {"more": {"model": str(evil)}})
    with pytest.raises(CheckpointError, match=r"field 'models': expected .* found .*'more'"):
        blockexpand.verify(source, out)
    edit_json(out / MANIFEST, models={})
    if schema == 2:
        with pytest.raises(CheckpointError, match=r"field 'models': expected .* found none"):
            blockexpand.verify(source, out)
    else:
        # An older manifest leaves out what is the source itself: so it is compared with that.
        assert blockexpand.verify(source, out)[0].findings


def test_models_without_a_recipe_are_refused(source: Path, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    edit_json(out / MANIFEST, models={"x": {"model": str(evil)}})
    with pytest.raises(CheckpointError, match="expected none without a recipe, found 'x'"):
        blockexpand.verify(source, out)


def test_the_source_under_a_second_name_is_told(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    file = tmp_path / "r.yaml"
    file.write_text(
        "merge_method: passthrough\nslices:\n"
        f"- sources: [{{model: '{source}', layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: '{tmp_path / 'link'}', layer_range: [1, 2]}}]\n"
    )
    out = tmp_path / "out"
    blockexpand.merge(file, out)
    stated = json.loads((out / MANIFEST).read_text())["models"]
    assert stated == {str(tmp_path / "link"): {"same_as_source": True}}
    (tmp_path / "link").unlink()
    assert blockexpand.verify(source, out)[0].findings == ()


def test_a_recipe_that_changes_the_function_is_said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path / "r.yaml", str(source), (0, 1, None), (1, 2, 0.5))
    out = tmp_path / "out"
    blockexpand.merge(file, out)
    assert main(["verify", str(source), str(out)]) == 0
    assert "function kept: NO (its recipe changes what the model computes)" in (
        capsys.readouterr().out
    )
    assert main(["verify", str(source), str(out), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["ok"], content["keeps_function"]) == (True, False)
    assert "0.5" in content["recipe"]


def test_what_was_proven_is_said_on_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=3)
    assert main(["verify", str(source), str(out)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"{out}: verified: 2 layers + 3 new at the end, bfloat16, every byte as of {source}, "
        "function kept: yes; 48 tensors, "
    )
    assert main(["verify", str(source), str(out), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["keeps_function"] is True
    assert content["new_layers"] == [2, 3, 4]
    assert content["commit"] is None


# the stated origin


def test_a_source_that_the_folder_cannot_confirm_is_a_claim(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    claim = {"model": "meta/big", "model_type": "mistral", "repo": "meta/big", "commit": "0" * 40}
    edit_json(out / MANIFEST, source=claim, command="pip install x\n```\n<img onerror=x>")
    assert main(["verify", str(source), str(out)]) == 0
    said = capsys.readouterr().out
    where = f"meta/big at commit {'0' * 40}"
    assert f"claim: it says it was made from {where}: not checked, the source given is" in said
    assert "field 'command' has control characters" in said
    assert "<img" not in said
    assert main(["verify", str(source), str(out), "--json"]) == 0
    assert where in json.loads(capsys.readouterr().out)["claims"][0]


def test_another_repository_than_the_source_is_a_difference(tmp_path: Path) -> None:
    commit = "0123456789" * 4
    source = write_checkpoint(
        tmp_path / "models--org--name" / "snapshots" / commit, [mistral_tensors()]
    )
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    stated = json.loads((out / MANIFEST).read_text())["source"]
    edit_json(out / MANIFEST, source=stated | {"repo": "meta/big"})
    (finding,) = blockexpand.verify(source, out)[0].findings
    assert f"says meta/big at commit {commit}, which is not the source, org/name" in str(finding)


def test_names_that_hold_line_breaks_stay_on_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    (out / "zz\nout: verified: 30 tensors").write_bytes(b"")
    assert main(["verify", str(source), str(out)]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert said.out.startswith("zz\\n")
    assert not any(line.startswith("out: ") for line in said.err.splitlines())


# what lies beside the model


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        (".git/objects/x.py", True),
        (".cache/huggingface/download/x", True),
        (".gitattributes", True),
        (".cache/x.py", False),
        (".cache", False),
        (".gitattributes/x.py", False),
        (".gitignore", False),
        ("sub/.git/x", False),
        ("x/.cache/huggingface/y", False),
    ],
)
def test_what_clients_keep_beside_a_model(
    name: str, is_kept: bool, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("x")
    found = [finding.file for finding in blockexpand.verify(source, out)[0].findings]
    assert found == ([] if is_kept else [name])


def test_links_follow_the_rule_of_a_source(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    shard = next(out.glob("model-00001*"))
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    (finding,) = blockexpand.verify(source, out)[0].findings
    assert "is a symbolic link that leaves the folder (to " in str(finding)
    # In the Hub's cache a snapshot's files are links into the blobs beside it.
    place = tmp_path / "cache" / "models--org--out"
    (place / "blobs").mkdir(parents=True)
    shard.unlink()
    (tmp_path / "elsewhere").rename(shard)
    commit = place / "snapshots" / ("0" * 40)
    commit.mkdir(parents=True)
    for number, path in enumerate(out.iterdir()):
        path.rename(place / "blobs" / f"{number}")
        (commit / path.name).symlink_to(f"../../blobs/{number}")
    assert blockexpand.verify(source, commit)[0].findings == ()


# no network, and limits


def test_two_folders_are_compared_without_the_network(
    hub: HubServer, hub_cache: Path, source: Path, evil: Path, tmp_path: Path
) -> None:
    hub.add_repo("org/name", evil)
    file = tmp_path / "r.yaml"
    file.write_text(
        "merge_method: passthrough\nslices:\n"
        f"- sources: [{{model: '{source}', layer_range: [0, 2]}}]\n"
        "- sources: [{model: org/name, layer_range: [1, 2]}]\n"
    )
    out = tmp_path / "out"
    blockexpand.merge(file, out, cache_dir=tmp_path / "cache")
    hub.requests.clear()
    with pytest.raises(CheckpointError, match=r"`hf download org/name --revision [0-9a-f]{40}`"):
        blockexpand.verify(source, out, cache_dir=tmp_path / "empty")
    # What is in the cache already needs no network.
    verification = blockexpand.verify(source, out, cache_dir=tmp_path / "cache")[0]
    assert verification.findings == ()
    assert hub.requests == []


def test_a_model_that_is_said_to_be_another_repository_is_refused(
    hub: HubServer, hub_cache: Path, source: Path, evil: Path, tmp_path: Path
) -> None:
    hub.add_repo("org/name", evil)
    file = tmp_path / "r.yaml"
    file.write_text(
        "merge_method: passthrough\nslices:\n"
        f"- sources: [{{model: '{source}', layer_range: [0, 2]}}]\n"
        "- sources: [{model: org/name, layer_range: [1, 2]}]\n"
    )
    out = tmp_path / "out"
    blockexpand.merge(file, out, cache_dir=tmp_path / "cache")
    models = json.loads((out / MANIFEST).read_text())["models"]
    models["org/name"]["repo"] = "evil/name"
    edit_json(out / MANIFEST, models=models)
    with pytest.raises(CheckpointError, match="says that 'org/name' is 'evil/name'"):
        blockexpand.verify(source, out, cache_dir=tmp_path / "cache")


LIMITS = """
import sys, time
import blockexpand
from blockexpand.errors import BlockExpandError
try:
    blockexpand.verify(sys.argv[1], sys.argv[2])
except BlockExpandError as error:
    assert "\\n" not in str(error) and len(str(error)) < 2000
    print(error)
# ru_maxrss would count the test's own memory, from before this program was started.
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(time.process_time(), peak)
"""


def aliases() -> str:
    return (
        "merge_method: passthrough\na: &a {sources: [{model: m, layer_range: [0, 2]}]}\nslices:\n"
        + "- *a\n" * 180_000
    )


HOSTILE: dict[str, Any] = {
    "aliased slices": {"recipe": aliases()},
    "long slices": {
        "recipe": "merge_method: passthrough\nslices:\n"
        + "- sources: [{model: m, layer_range: [0, 10000]}]\n" * 15_000
    },
    "many conditions": {
        "recipe": "merge_method: passthrough\nparameters:\n  scale:\n"
        + "  - {filter: x, value: 1}\n" * 30_000
        + "slices:\n- sources: [{model: m, layer_range: [0, 2]}]\n"
    },
    "conditions by alias": {
        "recipe": "merge_method: passthrough\nparameters:\n  scale: &s\n"
        + "  - {filter: x, value: 1}\n" * 15_000
        + "slices:\n"
        + "- {sources: [{model: m, layer_range: [0, 1], parameters: {scale: *s}}]}\n" * 5_000
    },
    "many new layers": {
        "layer_map": [0, *[1] * 9_999],
        "new_layers": list(range(2, 10_000)),
        "layers": 10_000,
    },
    "deep models": {"models": {f"m{number}": {"model": "m"} for number in range(60_000)}},
    "empty lists": {"more": [[]] * 700_000},
    "small objects": {"more": [{"": 0}] * 300_000},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_manifest_takes_little_time_and_memory(
    kind: str, source: Path, tmp_path: Path
) -> None:
    """At most 10 s and 200 MB, what Python and the libraries take included."""
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    content = json.loads((out / MANIFEST).read_text()) | HOSTILE[kind]
    (out / MANIFEST).write_text(json.dumps(content, separators=(",", ":")))
    done = subprocess.run(
        [sys.executable, "-c", LIMITS, str(source), str(out)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    seconds, kilobytes = map(float, done.stdout.splitlines()[-1].split())
    assert seconds < 10, done.stdout[:500]
    assert kilobytes < 200_000, done.stdout[:500]


@pytest.mark.parametrize(
    "change",
    [{"new_layers": []}, {"dtype": "float8"}, {"position": "end\nverified"}, {"recipe": "x"}],
)
def test_what_a_manifest_states_is_never_taken_for_wrong_usage(
    change: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    content = json.loads((out / MANIFEST).read_text()) | change
    (out / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        blockexpand.verify(source, out)
    line = str(caught.value)
    assert str(out / MANIFEST) in line and line.isprintable() and caught.value.status == 3


def test_a_huge_sparse_manifest_is_refused_by_its_size(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    os.truncate(out / MANIFEST, 3 << 30)
    with pytest.raises(CheckpointError, match="expected at most 3000000 bytes, found more"):
        blockexpand.verify(source, out)


@pytest.mark.parametrize(("version", "is_read"), [(..., True), (1, True), (2, True)])
def test_manifests_of_known_schemas_are_read(
    version: Any, is_read: bool, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    assert json.loads((out / MANIFEST).read_text())["schema_version"] == 2
    edit_json(out / MANIFEST, schema_version=version)
    assert blockexpand.verify(source, out)[0].findings == ()


@pytest.mark.parametrize("version", [3, 10**30])
def test_a_newer_schema_is_refused_in_one_line(version: int, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    edit_json(out / MANIFEST, schema_version=version)
    for read in (
        lambda: blockexpand.verify(source, out),
        lambda: blockexpand.diff(source, out),
        lambda: blockexpand.open_manifest(out),
        lambda: blockexpand.make_settings(out, "axolotl"),
    ):
        with pytest.raises(
            CheckpointError,
            match=rf"schema_version {version}: this release knows 2 and older; inst",
        ):
            read()


@pytest.mark.parametrize("version", [0, -1, True, "2", 2.0, None])
def test_a_schema_version_that_is_none(version: Any, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    edit_json(out / MANIFEST, schema_version=version)
    with pytest.raises(CheckpointError, match="field 'schema_version': expected a whole number"):
        blockexpand.verify(source, out)


# commits


def test_a_commit_that_the_branch_had_is_compared_with(
    hub: HubServer,
    hub_cache: Path,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = hub.add_repo("org/base", source)
    out = tmp_path / "out"
    blockexpand.expand("org/base", out, new_layers=1)
    assert main(["verify", "org/base", str(out)]) == 0
    assert f"as of org/base (commit {first}, main today: yes)" in capsys.readouterr().out
    changed = write_checkpoint(tmp_path / "new", [other_weights(mistral_tensors(size=8))])
    second = hub.add_repo("org/base", changed)
    assert main(["verify", "org/base", str(out)]) == 0
    assert f"as of org/base (commit {first}, main today: no)" in capsys.readouterr().out
    assert main(["verify", "org/base", str(out), "--json"]) == 0
    check = json.loads(capsys.readouterr().out)["commit"]
    assert check == {
        "repo": "org/base",
        "revision": "main",
        "commit": first,
        "is_head": False,
        "in_history": True,
    }
    assert second != first
    # Nobody says whether the branch ever had it.
    hub.fail("GET /api/models/org/base/commits/", times=99, status=500)
    assert main(["verify", "org/base", str(out)]) == 0
    assert "main today: no, whether it was ever: not known)" in capsys.readouterr().out


def test_a_commit_that_the_branch_never_had_is_not_the_source(
    hub: HubServer,
    hub_cache: Path,
    source: Path,
    evil: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Anybody can make a commit of any repository, by proposing a change."""
    head = hub.add_repo("org/base", source)
    proposed = hub.add_repo("org/base", evil, revision="refs/pr/1")
    out = tmp_path / "out"
    blockexpand.expand("org/base", out, new_layers=1, revision=proposed)
    stated = json.loads((out / MANIFEST).read_text())["source"]
    assert stated["commit"] == proposed
    edit_json(out / MANIFEST, source=stated | {"revision": "main"})
    assert main(["verify", "org/base", str(out)]) == 1
    assert main(["verify", "org/base", str(out), "--json"]) == 1
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert content["commit"]["commit"] == head
    assert (
        f"says commit {proposed} of org/base, which is not in the history of main"
        in (content["findings"][0]["message"])
    )
    assert content["identical_originals"] == 0
    # Whoever means that commit says so.
    assert main(["verify", "org/base", str(out), "--revision", proposed]) == 0


def test_nothing_is_fetched_for_a_manifest_that_is_refused(
    hub: HubServer, hub_cache: Path, source: Path, tmp_path: Path
) -> None:
    hub.add_repo("org/base", source)
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    edit_json(out / MANIFEST, dtype="int8")
    hub.requests.clear()
    with pytest.raises(BlockExpandError):
        blockexpand.verify("org/base", out)
    assert not [r for r in hub.requests if r.origin == "cdn" and r.range is None]


def test_verifying_changes_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=1)
    before = snapshot(source), snapshot(out)
    blockexpand.verify(source, out)
    assert (snapshot(source), snapshot(out)) == before
