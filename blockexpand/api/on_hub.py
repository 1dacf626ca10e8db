"""Expand a repository of the Hub into another one there: what stays as it is never leaves the Hub.

Planned from headers. Shards that repeat a source shard are copied by the Hub; the others are made
here one at a time, from the ranges that they need, sent and deleted. All of it is one commit.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.hub.files import RepoFile, RepoSnapshot
from ..checkpoints.hub.snapshot import list_tree
from ..checkpoints.sources import (
    HubOptions,
    ModelRef,
    fetch_side_files,
    open_headers,
)
from ..errors import HubError, RecipeError
from ..fs.paths import expand_home
from ..planning.card import add_card
from ..planning.plan import Plan, make_plan
from ..planning.recipe import Recipe, render_command
from ..planning.shards import PlannedFile
from ..progress import SILENT, Progress
from ..publishing.commit import (
    CopyRefusedError,
    OpenedTarget,
    ServerCopy,
    can_copy,
    make_target,
    open_target,
)
from ..publishing.folder import bars
from ..publishing.target import PushTarget, check_push, refuse_secrets
from .on_hub_shards import HubPlan, ShardSender


@dataclass(frozen=True, slots=True, kw_only=True)
class HubExpansion:
    """A finished expansion on the Hub: what was done where, and the address of its commit."""

    done: HubPlan
    repo: str
    pushed: str

    @property
    def source(self) -> ModelRef:
        """What the source is called."""
        return self.done.source.name


def plan_on_hub(
    src: str, target: PushTarget, recipe: Recipe, hub: HubOptions, max_shard_size: str | int | None
) -> HubPlan:
    """Plan from headers, and say what the Hub can copy. Nothing is made or sent.

    Raises: RecipeError for a folder; what `make_plan` raises; HubError.
    """
    source = open_headers(src, hub)
    snapshot = source.snapshot
    if snapshot is None:
        raise RecipeError(f"{src}: --on-hub is for a repository of the Hub, not for a folder")
    if snapshot.cached is not None:
        raise HubError(f"{src}: --on-hub needs the Hub, which cannot be reached")
    plan = make_plan(source.checkpoint, recipe)
    name = target.repo_id.rpartition("/")[2]
    plan = add_card(plan, source.name, render_command(src, name, recipe, max_shard_size))
    refuse_secrets((file.name for file in plan.side_files), src)
    # Only the tree tells by which hash the storage of the Hub knows a file.
    listed = {file.name: file for file in _list(snapshot, hub)}
    copies: list[ServerCopy] = []
    made: list[PlannedFile] = []
    notes: list[str] = []
    for file in plan.files:
        original = None if file.identical_to is None else listed.get(file.identical_to)
        reason = None if original is None else can_copy(snapshot, original)
        if original is None or reason is not None:
            made.append(file)
            if reason is not None and not notes:
                notes.append(f"shards are sent, not copied on the Hub: {reason}")
            continue
        pinned = snapshot.file(original.name)
        if pinned.sha256 not in (None, original.sha256):
            raise HubError(f"{src}: the Hub lists two digests of {original.name} at one commit")
        copies.append(ServerCopy(name=file.name, source=original))
    return HubPlan(
        source=source,
        snapshot=snapshot,
        plan=plan,
        copies=tuple(copies),
        made=tuple(made),
        notes=tuple(notes),
    )


def expand_on_hub(
    src: str,
    target: PushTarget,
    recipe: Recipe,
    hub: HubOptions,
    *,
    max_shard_size: str | int | None = None,
    work: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> HubExpansion:
    """Expand on the Hub; `work` is a folder for one shard at a time, by default in the cache.

    A run that was cut goes on with what was sent. Raises: as `plan_on_hub`; HubError where the
    repository has files and `overwrite` is not given, or where something fails on the way: then
    nothing is committed.
    """
    check_push(target, token=hub.token, tell=hub.tell)
    opened = open_target(target, overwrite=overwrite, token=hub.token, tell=hub.tell)
    planned = plan_on_hub(src, target, recipe, hub, max_shard_size)
    for line in (*planned.notes, planned.describe()):
        progress.tell(line)
    checkpoint = fetch_side_files(planned.source, hub)
    opened = make_target(opened, token=hub.token, tell=hub.tell)
    folder = work or _default_work(opened, planned.plan)
    maker = ShardSender(planned, opened, hub, folder, progress)
    small: dict[str, Path | bytes] = {
        document.name: document.data for document in planned.plan.documents
    }
    small |= {file.name: checkpoint.root / file.name for file in checkpoint.side_files}
    with bars(progress.is_shown):
        progress.begin("sending", planned.sent_nbytes)
        sent = maker.make(planned.made)
        try:
            address = maker.commit(planned.copies, sent, small)
        except CopyRefusedError as error:
            progress.tell(f"the Hub does not copy the shards ({error}): they are sent instead")
            files = [
                file for file in planned.plan.files if file.name in {c.name for c in planned.copies}
            ]
            planned = replace(planned, copies=(), made=planned.plan.files)
            progress.begin("sending", sum(file.nbytes for file in files))
            address = maker.commit((), [*sent, *maker.make(files)], small)
    shutil.rmtree(folder, ignore_errors=True)
    return HubExpansion(done=planned, repo=opened.repo_id, pushed=address)


def _list(snapshot: RepoSnapshot, hub: HubOptions) -> tuple[RepoFile, ...]:
    from ..checkpoints.hub.failures import explaining

    with explaining(snapshot.repo_id, revision=snapshot.revision, token=hub.token, tell=hub.tell):
        return list_tree(snapshot.repo_id, snapshot.commit, hub.token)


def _default_work(opened: OpenedTarget, plan: Plan) -> Path:
    cache = expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    name = f"{opened.repo_id.replace('/', '--')}-{plan.fingerprint[:16]}"
    return cache / "blockexpand" / "on-hub" / name
