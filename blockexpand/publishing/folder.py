"""Upload a finished folder to the Hub with the client's own, resumable upload.

It changes nothing in the folder, and says how to go on where an upload failed.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._version import __version__
from ..checkpoints.files import MANIFEST_FILE
from ..checkpoints.hub.answers import Tell, tell_nobody
from ..checkpoints.hub.client import client_utils
from ..checkpoints.hub.digests import describe_path
from ..checkpoints.hub.failures import explaining
from ..checkpoints.hub.files import RepoSnapshot
from ..checkpoints.hub.snapshot import list_tree
from ..errors import HubError
from .commit import (
    CopyRefusedError,
    ServerCopy,
    check_commit,
    commit,
    make_target,
    open_target,
    upload_file,
)
from .target import PushTarget, check_push, parse_push_target, refuse_secrets

# A model of a recipe that is a folder of this machine, as YAML or JSON spells it.
_LOCAL_MODEL = re.compile(r'model["\']?\s*:\s*["\']?(?:/|~|[A-Za-z]:\\)')


def push_folder(
    folder: Path,
    target: PushTarget | str,
    *,
    private: bool = False,
    token: str | None = None,
    show_progress: bool = False,
    tell: Tell = tell_nobody,
    copies: Sequence[ServerCopy] = (),
    source: RepoSnapshot | None = None,
) -> str:
    """Upload a folder to a model repository, made if there is none; return the commit's address.

    A repository that exists keeps its visibility and its other files. `show_progress` lets the
    client draw its own bars on stderr. Afterwards the Hub's list of the commit is held to the
    digests of the files. `copies` are files of the folder that lie in `source` too: to a repository
    without files the Hub copies them itself.
    Raises: HubError, which says that the folder is complete and how to go on.
    """
    from huggingface_hub import HfApi

    if isinstance(target, str):
        target = parse_push_target(target, private=private, token=token)
    repo_id = target.repo_id
    try:
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        refuse_secrets(names, str(folder))
        _warn_of_paths(folder, tell)
        with explaining(repo_id, revision=None, token=token, tell=tell), bars(show_progress):
            check_push(target, token=token, tell=tell)
            if source is not None and copies:
                address = _push_with_copies(folder, names, target, copies, source, token, tell)
                if address is not None:
                    return address
            api = HfApi(token=token, library_name="blockexpand", library_version=__version__)
            made = api.create_repo(repo_id, private=target.private or None, exist_ok=True)
            if target.branch is not None:
                api.create_branch(made.repo_id, branch=target.branch, exist_ok=True)
            done = api.upload_folder(
                # The Hub puts the user's name before a name without one.
                repo_id=made.repo_id,
                folder_path=folder,
                revision=target.branch,
                commit_message=target.message,
                create_pr=target.create_pr or None,
            )
            expected = [
                describe_path(name, folder / name)
                for name in names
                if not name.startswith((".git/", ".cache/"))
            ]
            check_commit(made.repo_id, done.oid, expected, list_tree(made.repo_id, done.oid, token))
            return str(done.pr_url or done.commit_url)
    except HubError as error:
        words = ["hf", "upload", repo_id, str(folder)]
        words += ["--private"] if target.private else []
        words += ["--revision", target.branch] if target.branch else []
        words += ["--create-pr"] if target.create_pr else []
        raise HubError(
            f"{error}; {folder} is complete, only the upload is not: go on with "
            f"`{shlex.join(words)}`"
        ) from None


def _push_with_copies(
    folder: Path,
    names: Sequence[str],
    target: PushTarget,
    copies: Sequence[ServerCopy],
    source: RepoSnapshot,
    token: str | None,
    tell: Tell,
) -> str | None:
    """Have the Hub copy what it holds already, and send the rest; None where it cannot be so."""
    opened = open_target(target, overwrite=True, token=token, tell=tell)
    if any(file.name != ".gitattributes" for file in opened.files):
        return None
    opened = make_target(opened, token=token, tell=tell)
    copied = {copy.name for copy in copies}
    files: dict[str, Path | bytes] = {name: folder / name for name in names if name not in copied}
    uploaded = []
    for name in [name for name in files if name.endswith(".safetensors")]:
        done = upload_file(opened, folder / name, name, token=token, tell=tell)
        if done is not None:
            uploaded.append(done)
            del files[name]
    try:
        return commit(
            opened, source, copies=copies, uploaded=uploaded, files=files, token=token, tell=tell
        )
    except CopyRefusedError as error:
        tell(f"the Hub does not copy the shards ({error}): they are sent instead")
        return None


def _warn_of_paths(folder: Path, tell: Tell) -> None:
    """Say that a recipe, which `verify` finds its models by, names folders of this machine."""
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        return
    # Escapes of JSON aside, a recipe's text stands there as it is.
    if _LOCAL_MODEL.search(manifest.read_text("utf-8", "replace").replace("\\n", "\n")):
        tell(
            f"{MANIFEST_FILE} is published with the recipe's own names of models, which are paths "
            "of this machine"
        )


@contextlib.contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Let the client draw its bars on stderr, or have it be silent."""
    utils = client_utils()
    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
