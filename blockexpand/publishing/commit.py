"""One commit on the Hub: files that lie there already as server copies, the rest as uploads.

Large files are sent one at a time, before the commit, and can be deleted here once they are there.
After the commit the Hub's own list of it is held to the digests of what was meant. Whoever looks at
the repository sees all of it or nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._version import __version__
from ..checkpoints.hub.answers import Tell, tell_nobody
from ..checkpoints.hub.digests import describe_bytes, describe_digest, describe_path
from ..checkpoints.hub.failures import explaining
from ..checkpoints.hub.files import RepoFile, RepoSnapshot
from ..checkpoints.hub.history import is_in_history
from ..checkpoints.hub.snapshot import list_tree
from ..errors import HubError
from ..messages import and_more, show
from ..planning.plan import Plan
from .target import PushTarget

_COMMIT = re.compile(r"[0-9a-f]{40}")

# Made by the Hub itself in every repository.
_OF_THE_HUB = frozenset({".gitattributes"})


class CopyRefusedError(HubError):
    """The Hub does not copy between these repositories; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedTarget:
    """A repository to commit to, as it was found: `head` is its commit, `files` what it holds."""

    target: PushTarget
    repo_id: str
    head: str | None
    files: tuple[RepoFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCopy:
    """A file of the source's repository, and the name that its copy gets."""

    name: str
    source: RepoFile


def can_copy(snapshot: RepoSnapshot, file: RepoFile) -> str | None:
    """Return why the Hub cannot copy a file to another repository; None where it may."""
    from huggingface_hub import CommitOperationCopy

    if "src_repo_id" not in CommitOperationCopy.__dataclass_fields__:
        return "this huggingface_hub is too old; 1.17 or newer is needed"
    if file.sha256 is None or file.xet_hash is None:
        return f"{snapshot.repo_id} does not tell the Xet hash of {file.name}"
    return None


def find_copies(
    plan: Plan, repo: str, commit_id: str, token: str | None, tell: Tell = tell_nobody
) -> tuple[RepoSnapshot, tuple[ServerCopy, ...]]:
    """Return which of a plan's shards repeat one of a repository's commit, and can be copied there.

    A repository that cannot be listed has none.
    """
    files: tuple[RepoFile, ...] = ()
    with (
        contextlib.suppress(HubError),
        explaining(repo, revision=commit_id, token=token, tell=tell),
    ):
        files = list_tree(repo, commit_id, token)
    snapshot = RepoSnapshot(repo_id=repo, revision=commit_id, commit=commit_id, files=files)
    listed = {file.name: file for file in files}
    copies = [
        ServerCopy(name=file.name, source=original)
        for file in plan.files
        if file.identical_to is not None
        and (original := listed.get(file.identical_to)) is not None
        and original.nbytes == file.nbytes
        and can_copy(snapshot, original) is None
    ]
    return snapshot, tuple(copies)


def open_target(
    target: PushTarget, *, overwrite: bool, token: str | None, tell: Tell = tell_nobody
) -> OpenedTarget:
    """Look at the repository, without making it. Raises: HubError where it has files to replace."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    revision = target.branch or "main"
    head: str | None = None
    files: tuple[RepoFile, ...] = ()
    with explaining(target.repo_id, revision=revision, token=token, tell=tell):
        api = _api(token)
        repo_id = target.repo_id
        if "/" not in repo_id:
            # The Hub puts the user's name before a name without one.
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        try:
            head = api.model_info(repo_id, revision=revision).sha
            files = () if head is None else list_tree(repo_id, head, token)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            pass
    found = [file.name for file in files if file.name not in _OF_THE_HUB]
    if found and not (overwrite or target.create_pr):
        raise HubError(
            f"{repo_id}: the repository has files ({and_more([show(n) for n in found])}); if an "
            f"earlier run made them, see `blockexpand verify SRC {repo_id}`; give --overwrite to "
            "commit on top of them, or another name"
        )
    return OpenedTarget(target=target, repo_id=repo_id, head=head, files=files)


def make_target(opened: OpenedTarget, *, token: str | None, tell: Tell) -> OpenedTarget:
    """Make the repository, or the branch, if there is none yet. Raises: HubError."""
    target = opened.target
    if opened.head is not None:
        return opened
    with explaining(opened.repo_id, revision=None, token=token, tell=tell):
        api = _api(token)
        api.create_repo(opened.repo_id, private=target.private or None, exist_ok=True)
        if target.branch is not None:
            api.create_branch(opened.repo_id, branch=target.branch, exist_ok=True)
        head = api.model_info(opened.repo_id, revision=target.branch or "main").sha
    return replace(opened, head=head)


def upload_file(
    opened: OpenedTarget, path: Path, name: str, *, token: str | None, tell: Tell
) -> RepoFile | None:
    """Send a large file ahead of the commit; None where it can go with the commit only.

    That is so of what the Hub does not keep apart from the repository, and of every file with a
    client that cannot be told later that a file was sent.
    Raises: HubError.
    """
    from huggingface_hub import CommitOperationAdd

    if not can_tell_uploaded():
        return None
    with explaining(opened.repo_id, revision=None, token=token, tell=tell):
        operation: Any = CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
        _api(token).preupload_lfs_files(
            opened.repo_id,
            [operation],
            revision=opened.target.branch,
            create_pr=opened.target.create_pr,
            free_memory=False,
        )
        if not operation._is_uploaded:
            return None
        info = operation.upload_info
        return RepoFile(name=name, nbytes=info.size, sha256=info.sha256.hex())


def can_tell_uploaded() -> bool:
    """Tell whether the client's operations have what `_uploaded_addition` sets.

    It has no public way to name a file that another process has sent.
    """
    from huggingface_hub import CommitOperationAdd

    fields = getattr(CommitOperationAdd, "__dataclass_fields__", {})
    return {"upload_info", "_upload_mode", "_should_ignore", "_is_uploaded"} <= fields.keys()


def commit(
    opened: OpenedTarget,
    snapshot: RepoSnapshot,
    *,
    copies: Sequence[ServerCopy],
    uploaded: Iterable[RepoFile],
    files: Mapping[str, Path | bytes],
    token: str | None,
    tell: Tell = tell_nobody,
) -> str:
    """Make the commit and check what the Hub made of it; return its address.

    `files` are sent with it. What else the repository held is taken away in the same commit, and
    stays in its history.
    Raises: CopyRefusedError, then nothing was committed; HubError.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    uploaded = tuple(uploaded)
    expected = [replace(copy.source, name=copy.name) for copy in copies] + list(uploaded)
    for name, content in files.items():
        if isinstance(content, Path):
            expected.append(describe_path(name, content))
        else:
            expected.append(describe_bytes(name, content))
    kept = {file.name for file in expected} | _OF_THE_HUB
    stale = [] if opened.target.create_pr else [f.name for f in opened.files if f.name not in kept]
    operations: list[Any] = [
        *(_uploaded_addition(file) for file in uploaded),
        *(CommitOperationAdd(name, content) for name, content in files.items()),
        *(CommitOperationDelete(name, is_folder=False) for name in stale),
    ]
    if copies:
        operations += [
            CommitOperationCopy(
                src_path_in_repo=copy.source.name,
                path_in_repo=copy.name,
                src_revision=snapshot.commit,
                src_repo_id=snapshot.repo_id,
                src_repo_type="model",
            )
            for copy in copies
        ]
    target = opened.target
    with explaining(opened.repo_id, revision=target.branch, token=token, tell=tell):
        try:
            done = _api(token).create_commit(
                opened.repo_id,
                operations,
                commit_message=target.message,
                revision=target.branch,
                create_pr=target.create_pr,
                parent_commit=opened.head,
            )
        except Exception as error:
            reason = _explain_refused_copy(error) if copies else None
            if reason is not None:
                raise CopyRefusedError(reason) from None
            if getattr(getattr(error, "response", None), "status_code", None) in (409, 412):
                raise HubError(
                    f"{opened.repo_id}: the branch moved while this ran: somebody else committed; "
                    "nothing of this is in it: look at it, and run the same command again"
                ) from None
            raise
        if not _COMMIT.fullmatch(str(done.oid)):
            raise HubError(
                f"{opened.repo_id}: the Hub answers the commit with {show(str(done.oid))} as its "
                "id; expected 40 digits: look at the repository before you use it"
            )
        check_commit(opened.repo_id, done.oid, expected, list_tree(opened.repo_id, done.oid, token))
        if not target.create_pr:
            _check_branch(opened.repo_id, target.branch or "main", done.oid, token)
    return str(done.pr_url or done.commit_url)


def _check_branch(repo_id: str, branch: str, oid: str, token: str | None) -> None:
    """Hold the branch to the commit that the Hub says it made. Raises: HubError."""
    head = _api(token).model_info(repo_id, revision=branch).sha
    # Somebody may have committed on top of it already.
    if head != oid and not is_in_history(repo_id, oid, branch, token=token):
        raise HubError(
            f"{repo_id}: the Hub says that it made commit {oid[:12]}, and {branch} is at "
            f"{str(head)[:12]}, which does not come from it: look at the repository before you use "
            "it"
        )


def check_commit(
    repo_id: str, oid: str, expected: Iterable[RepoFile], listed: Iterable[RepoFile]
) -> None:
    """Hold the Hub's list of a commit to what was meant. Raises: HubError."""
    there = {file.name: file for file in listed}
    for file in expected:
        found = there.get(file.name)
        if found is None:
            raise HubError(
                f"{repo_id}: commit {oid[:12]} lacks {file.name}; do not use it, and run again"
            )
        same = (
            found.sha256 == file.sha256 if found.sha256 else found.blob_id in (None, file.blob_id)
        )
        if found.nbytes != file.nbytes or not same:
            raise HubError(
                f"{repo_id}: commit {oid[:12]} holds another {file.name} than was meant: "
                f"{describe_digest(found)}, expected {describe_digest(file)}; do not use it"
            )


def _uploaded_addition(file: RepoFile) -> Any:
    """Return the operation of a file that is on the Hub already, though no longer here."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    assert file.sha256 is not None
    operation: Any = CommitOperationAdd(file.name, b"")
    # What the client itself sets once a file is sent; the list of the commit is checked after it.
    sha256 = bytes.fromhex(file.sha256)
    operation.upload_info = UploadInfo(size=file.nbytes, sample=b"", sha256=sha256)
    operation._upload_mode = "lfs"
    operation._should_ignore = False
    operation._is_uploaded = True
    return operation


def _explain_refused_copy(error: BaseException) -> str | None:
    """Return why the Hub did not copy, if that is what failed."""
    name = type(error).__name__
    if name == "FileDuplicationError" or (
        isinstance(error, ValueError) and "has no xet hash" in str(error)
    ):
        return " ".join(str(error).split())[:200]
    response = getattr(error, "response", None)
    if response is not None and "/lfs-files/duplicate" in str(response.url):
        said = getattr(error, "server_message", None)
        return f"status {response.status_code}" + (f": {said}" if said else "")
    return None


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="blockexpand", library_version=__version__)
