"""At which commit of a repository an output is compared: its own, if the branch ever had it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..checkpoints.files import MANIFEST_FILE
from ..checkpoints.sources import HubOptions, OpenedSource, open_headers
from ..planning.claims import Claims
from ..verification.findings import CommitCheck, Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedSource:
    """A source at the commit that is compared with, and what is wrong with the stated one."""

    source: OpenedSource
    commit: CommitCheck | None = None
    findings: tuple[Finding, ...] = ()


def pin_source(
    source: OpenedSource, claims: Claims | None, src: str, hub: HubOptions
) -> PinnedSource:
    """Take the stated commit of a repository whose branch moved on, if the branch had it.

    The branch may have moved by a word in its card alone. But anybody can propose a commit to a
    repository: one that the branch never had is not what the user means by its name.
    """
    snapshot = source.snapshot
    if snapshot is None:
        return PinnedSource(source=source)
    repo, branch = snapshot.repo_id, snapshot.revision
    is_online = snapshot.cached is None
    is_given = hub.revision is not None or "@" in src
    check = CommitCheck(
        repo=repo,
        revision=branch,
        commit=snapshot.commit,
        is_head=None if is_given or not is_online else True,
        in_history=None if is_given or not is_online else True,
    )
    stated = None if claims is None or claims.source.repo != repo else claims.source.commit
    if is_given or stated in (None, snapshot.commit):
        return PinnedSource(source=source, commit=check)
    assert stated is not None
    from ..checkpoints.hub import is_in_history

    known = is_in_history(repo, stated, branch, token=hub.token) if is_online else None
    if known is False:
        message = (
            f"field 'source': says commit {stated} of {repo}, which is not in the history of "
            f"{branch}: compared with {branch} today ({snapshot.commit}); if you mean that commit, "
            f"give --revision {stated}"
        )
        return PinnedSource(
            source=source, commit=check, findings=(Finding(file=MANIFEST_FILE, message=message),)
        )
    return PinnedSource(
        source=open_headers(src, replace(hub, revision=stated)),
        commit=replace(
            check, commit=stated, is_head=False if is_online else None, in_history=known
        ),
    )
