"""`--push-to-hub`, from the command to what lies on the Hub, with the real client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import copy_tree, snapshot
from hub_server import HubServer, hub_environment, read_folder
from older import is_older

from blockexpand.cli.app import main

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
READ_TOKEN = "hf_readreadreadreadreadreadreadread00"
REPO = "user/grown"

# The client's own upload of large files passes `data=` where its HTTP library wants `content=`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def push(
    tiny_mistral: Path,
    tmp_path: Path,
    hub: HubServer,
    hub_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., int]:
    """Return a function that expands into `tmp_path / "out"` and uploads; the Hub knows TOKEN."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.allow(TOKEN)

    def run(
        *more: str, repo: str = REPO, token: str | None = TOKEN, source: Path = tiny_mistral
    ) -> int:
        words = ["--src", str(source), "--out", str(tmp_path / "out"), "--new-layers", "1"]
        if token is not None:
            words += ["--token", token]
        return main([*words, "--push-to-hub", repo, "--no-progress", *more])

    return run


def test_output_arrives(
    push: Callable[..., int], hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push("--private", "--verify", "tensors", "--json") == 0
    stdout, stderr = capfd.readouterr()
    assert hub.files(REPO) == read_folder(tmp_path / "out")
    assert {"config.json", "README.md", "block_expansion.json"} <= set(hub.files(REPO))
    assert hub.repos[REPO].private
    commit = hub.repos[REPO].refs["main"]
    assert json.loads(stdout)["pushed"] == f"{hub.url}/{REPO}/commit/{commit}"
    assert stderr == ""
    everything = stdout.encode() + b"".join(hub.files(REPO).values())
    assert TOKEN.encode() not in everything


def test_address_of_the_commit_is_told(
    push: Callable[..., int], hub: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push() == 0
    assert not hub.repos[REPO].private
    assert f"uploaded: {hub.url}/{REPO}/commit/" in capfd.readouterr().out


def test_card_is_accepted_by_the_client(push: Callable[..., int], tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    assert push() == 0
    assert ModelCard.load(tmp_path / "out" / "README.md").data.library_name == "transformers"


def test_failed_upload_leaves_the_output(
    push: Callable[..., int],
    hub: HubServer,
    tiny_mistral: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    injected = hub.fail("POST .*/commit/", times=999, status=403)
    assert push("--private") == 3
    injected.times = 0
    stdout, stderr = capfd.readouterr()
    out = tmp_path / "out"
    assert stdout == ""
    assert stderr.count("\n") == 1 and TOKEN not in stderr
    assert f"{out} is complete" in stderr and f"`hf upload {REPO} {out} --private`" in stderr
    assert main(["verify", str(tiny_mistral), str(out)]) == 0


def test_output_that_is_not_proven_is_not_uploaded(
    push: Callable[..., int], hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockexpand.writing import writer as writing

    publish = writing.publish

    def damage(staging: object, out: Path, **options: bool) -> tuple[str, ...]:
        notes = publish(staging, out, **options)  # type: ignore[arg-type]
        with next(out.glob("*.safetensors")).open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"\x55")
        return notes

    monkeypatch.setattr(writing, "publish", damage)
    assert push("--verify", "tensors") == 1
    assert REPO not in hub.repos and not hub.seen("commit|lfs", None)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"token": None}, 3, "a token that may write"),
        ({"repo": "a/b/c"}, 2, "no repository id"),
        ({"repo": "org/name@"}, 2, "no repository id"),
        ({"repo": "org/name@a..b"}, 2, "no repository id"),
        ({"token": "hf_wrongwrongwrongwrong"}, 3, "does not accept this token"),
        ({"token": READ_TOKEN}, 3, "this token may only read"),
        ({"repo": "stranger/grown"}, 3, "who is in no organization 'stranger'"),
        ({"repo": "lab/theirs"}, 3, "this token may not do that"),
    ],
)
def test_upload_that_cannot_succeed_is_refused_first(
    push: Callable[..., int],
    hub: HubServer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    options: dict[str, str | None],
    status: int,
    said: str,
) -> None:
    hub.add_repo("lab/theirs", {})
    hub.repos["lab/theirs"].writers = {"somebody else's"}
    hub.allow(READ_TOKEN)
    hub.roles[READ_TOKEN] = "read"
    assert push(**options) == status
    assert said in capfd.readouterr().err
    assert hub.repos.keys() == {"lab/theirs"} and not (tmp_path / "out").exists()
    assert not [request for request in hub.requests if request.method != "GET"]


def test_dry_run_uploads_nothing(push: Callable[..., int], hub: HubServer) -> None:
    assert push("--dry-run") == 0
    assert not [request for request in hub.requests if request.method != "GET"]


def test_private_alone_is_wrong_usage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--src", "a", "--out", str(tmp_path / "out"), "--new-layers", "1", "--private"]
    assert main(words) == 2
    assert "--push-to-hub" in capfd.readouterr().err


def test_as_a_command_from_one_repository_to_another(
    tiny_mistral: Path, tmp_path: Path, hub: HubServer
) -> None:
    """No bar and no token where nobody watches, with the token of the environment."""
    hub.add_repo("org/base", tiny_mistral)
    hub.allow(TOKEN, "org/base")
    before = snapshot(tiny_mistral)
    words = [
        "--src",
        "org/base",
        "--out",
        "out",
        "--new-layers",
        "1",
        "--push-to-hub",
        REPO,
        "--no-progress",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "blockexpand", *words],
        cwd=tmp_path,
        env=hub_environment(hub, tmp_path / "home", HF_TOKEN=TOKEN)
        | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert TOKEN not in done.stdout
    assert hub.files(REPO) == read_folder(tmp_path / "out")
    assert b"base_model: org/base" in hub.files(REPO)["README.md"]
    assert snapshot(tiny_mistral) == before


@pytest.mark.parametrize("name", ["id_rsa", "server.pem", "credentials.json", "sub/secrets.toml"])
def test_what_looks_like_a_secret_is_not_published(
    push: Callable[..., int],
    hub: HubServer,
    tiny_mistral: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    source = copy_tree(tiny_mistral, tmp_path / "source")
    path = source / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"-----BEGIN")
    assert push(source=source) == 3
    assert f"'{name}' would be published and looks like a secret" in capfd.readouterr().err
    assert not hub.repos and not (tmp_path / "out").exists()


def test_a_branch_of_its_own_and_a_pull_request(push: Callable[..., int], hub: HubServer) -> None:
    hub.add_repo(REPO, {"README.md": b"as it was"})
    assert push("--overwrite", repo=f"{REPO}@grown") == 0
    assert "config.json" in hub.files(REPO, "grown")
    assert hub.files(REPO) == {"README.md": b"as it was"}


def test_no_path_of_this_machine_is_published(
    push: Callable[..., int], hub: HubServer, tmp_path: Path
) -> None:
    assert push() == 0
    for name, data in hub.files(REPO).items():
        assert str(tmp_path).encode() not in data, name
        assert str(Path.home()).encode() not in data or name.endswith(".safetensors"), name


def test_paths_in_a_recipe_are_named_before_it_is_uploaded(
    tiny_mistral: Path,
    hub: HubServer,
    hub_cache: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.allow(TOKEN)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: passthrough\n"
        f"slices:\n  - sources: [{{model: {tiny_mistral}, layer_range: [0, 2]}}]\n"
    )
    words = ["merge", str(recipe), "--out", str(tmp_path / "out"), "--progress", "plain"]
    assert main([*words, "--push-to-hub", REPO, "--token", TOKEN]) == 0
    stderr = capfd.readouterr().err
    told = stderr.index(f"has paths of this machine ({str(tiny_mistral)!r})")
    assert told < stderr.index("uploading")


@pytest.mark.skipif(
    is_older("huggingface_hub", (1, 17)), reason="this client cannot have the Hub copy files"
)
@pytest.mark.parametrize("how", ["copied", "refused", "there are files"])
def test_shards_that_the_hub_holds_are_copied_there(
    push: Callable[..., int], hub: HubServer, tiny_mistral: Path, tmp_path: Path, how: str
) -> None:
    hub.add_repo("org/base", tiny_mistral)
    if how == "refused":
        body = json.dumps({"failed": [{"sha256": "ab", "error": "quota"}]}).encode()
        hub.fail("duplicate", status=200, body=body)
    elif how == "there are files":
        hub.add_repo(REPO, {"mine.txt": b"mine"})
    assert push("--dtype", "source", source=Path("org/base")) == 0
    more = {"mine.txt": b"mine"} if how == "there are files" else {}
    assert hub.files(REPO) == read_folder(tmp_path / "out") | more
    sent = {r.path for r in hub.seen("/upload/", "PUT")}
    shards = list((tmp_path / "out").glob("*.safetensors"))
    # Only the new shard, unless the Hub does not copy.
    assert len(sent) == (1 if how == "copied" else len(shards))
