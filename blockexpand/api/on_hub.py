"""Make a repository of the Hub from another one there: what stays as it is never leaves the Hub.

Planned from headers. Shards that repeat a source shard are copied by the Hub; the others are made
here one at a time, from the ranges that they need, sent and deleted. All of it is one commit. What
is made is a plan like any other: of an expansion, or of a base with block adapters in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.hub.failures import explaining
from ..checkpoints.hub.files import RepoFile, RepoSnapshot
from ..checkpoints.hub.snapshot import list_tree
from ..checkpoints.sources import (
    HubOptions,
    ModelRef,
    OpenedSource,
    fetch_side_files,
    open_headers,
)
from ..errors import HubError
from ..fs.io import make_folders
from ..fs.paths import expand_home
from ..planning.card import add_card
from ..planning.plan import Plan, make_plan
from ..planning.recipe import render_command
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
from ..publishing.target import PushTarget, check_push, parse_push_target, refuse_secrets
from ..writing.locking import lock_target
from ..writing.preflight import check_names
from ..writing.staging import check_owner
from .arguments import Dtype, Phase, Quantized, check_arguments
from .on_hub_shards import HubPlan, ShardSender
from .options import make_hub_options, make_recipe, refuse_folder
from .rows import choose_row, read_row


@dataclass(frozen=True, slots=True, kw_only=True)
class HubResult:
    """A model on the Hub: what was done where, and the address of its commit; None of a dry run.

    `done.plan` is its plan; `done.copied_nbytes` is what the Hub copied, `done.fetched_nbytes` and
    `done.sent_nbytes` are what went over the line, small files aside.
    """

    done: HubPlan
    repo: str
    pushed: str | None

    @property
    def source(self) -> ModelRef:
        """What the source is called."""
        return self.done.source.name


def expand_on_hub(
    src: str,
    repo: str,
    *,
    new_layers: int | None = None,
    position: str | Sequence[int] = "end",
    layers: str | None = None,
    phase: Phase | None = None,
    family: str | None = None,
    no_proof: bool = False,
    dtype: Dtype | None = None,
    quantized: Quantized = "keep",
    max_shard_size: str | int | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    private: bool = False,
    commit_message: str | None = None,
    create_pr: bool = False,
    work: str | Path | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> HubResult:
    """Expand a repository of the Hub into `repo` (or `repo@branch`) there; nothing is kept here.

    Shards that stay as they are are copied by the Hub itself; the others are made one at a time in
    the folder `work`, by default one in the cache, sent and deleted. All of it is one commit. A run
    that was cut goes on with what was sent. `overwrite` commits on top of what `repo` holds. A
    `dry_run` makes and sends nothing. The other arguments are those of `expand`.
    Raises: BlockExpandError. Then nothing was committed, unless the error says what is wrong with
    the commit.
    """
    check_arguments(locals())
    refuse_folder("src", src)
    target = parse_push_target(
        repo, private=private, message=commit_message, create_pr=create_pr, token=token
    )
    recipe = make_recipe(
        Path.cwd(), new_layers, position, dtype, max_shard_size, phase, layers, quantized
    )
    row = read_row(family) if family is not None else None
    hub = make_hub_options(revision, token, cache_dir, progress)

    def plan() -> HubPlan:
        source = open_on_hub(src, hub)
        chosen = choose_row(source.checkpoint, recipe, row, needs_proof=not no_proof)
        made = make_plan(source.checkpoint, chosen)
        name = target.repo_id.rpartition("/")[2]
        command = render_command(src, name, chosen, max_shard_size)
        return divide(source, add_card(made, source.name, command), hub)

    return make_on_hub(
        plan, target, hub, work=work, overwrite=overwrite, dry_run=dry_run, progress=progress
    )


def open_on_hub(src: str, hub: HubOptions) -> OpenedSource:
    """Open a repository's headers. Raises: HubError without the Hub; CheckpointError."""
    source = open_headers(src, hub)
    assert source.snapshot is not None
    if source.snapshot.cached is not None:
        raise HubError(f"{src}: --on-hub needs the Hub, which cannot be reached")
    return source


def divide(source: OpenedSource, plan: Plan, hub: HubOptions) -> HubPlan:
    """Say which shards of a plan the Hub can copy, and which are made here.

    Raises: HubError; OutputError for a name that leaves the folder it is made in.
    """
    snapshot = source.snapshot
    assert snapshot is not None
    # The second wall of the writer, for the names that are made here and uploaded as well.
    check_names(plan)
    refuse_secrets((file.name for file in plan.side_files), snapshot.repo_id)
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
        if pinned.nbytes != original.nbytes or pinned.sha256 not in (None, original.sha256):
            raise HubError(
                f"{snapshot.repo_id}: the Hub lists two digests of {original.name} at one commit"
            )
        copies.append(ServerCopy(name=file.name, source=original))
    return HubPlan(
        source=source,
        snapshot=snapshot,
        plan=plan,
        copies=tuple(copies),
        made=tuple(made),
        notes=tuple(notes),
    )


def make_on_hub(
    make: Callable[[], HubPlan],
    target: PushTarget,
    hub: HubOptions,
    *,
    work: str | Path | None,
    overwrite: bool,
    dry_run: bool,
    progress: Progress,
) -> HubResult:
    """Check that the commit will be allowed, have `make` plan it, then make and commit it.

    Raises: what `make` raises; HubError where the repository has files and `overwrite` is not
    given, or where something fails on the way.
    """
    check_push(target, token=hub.token, tell=hub.tell)
    opened = open_target(target, overwrite=overwrite, token=hub.token, tell=hub.tell)
    planned = make()
    if dry_run:
        return HubResult(done=planned, repo=opened.repo_id, pushed=None)
    for line in (*planned.notes, planned.describe()):
        progress.tell(line)
    checkpoint = fetch_side_files(planned.source, hub)
    opened = make_target(opened, token=hub.token, tell=hub.tell)
    folder = _work_folder(work, opened, planned.plan)
    check_owner(folder)
    make_folders(folder)
    with lock_target(folder):
        planned, address = _make(planned, opened, hub, folder, checkpoint, progress)
        shutil.rmtree(folder, ignore_errors=True)
    return HubResult(done=planned, repo=opened.repo_id, pushed=address)


def _make(
    planned: HubPlan,
    opened: OpenedTarget,
    hub: HubOptions,
    folder: Path,
    checkpoint: Checkpoint,
    progress: Progress,
) -> tuple[HubPlan, str]:
    """Make and send what the Hub does not copy, and commit; return what was done, and where."""
    maker = ShardSender(planned, opened, hub, folder, progress)
    small: dict[str, Path | bytes] = {
        document.name: document.data for document in planned.plan.documents
    }
    # Those that repeat the config of a quantised source are documents, or dropped.
    small |= {file.name: checkpoint.root / file.name for file in planned.plan.side_files}
    with bars(progress.is_shown):
        progress.begin("sending", planned.sent_nbytes)
        sent = maker.make(planned.made)
        try:
            address = maker.commit(planned.copies, sent, small)
        except CopyRefusedError as error:
            progress.tell(f"the Hub does not copy the shards ({error}): they are sent instead")
            refused = {copy.name for copy in planned.copies}
            files = [file for file in planned.plan.files if file.name in refused]
            planned = replace(planned, copies=(), made=planned.plan.files)
            progress.begin("sending", sum(file.nbytes for file in files))
            address = maker.commit((), [*sent, *maker.make(files)], small)
    return planned, address


def _list(snapshot: RepoSnapshot, hub: HubOptions) -> tuple[RepoFile, ...]:
    with explaining(snapshot.repo_id, revision=snapshot.revision, token=hub.token, tell=hub.tell):
        return list_tree(snapshot.repo_id, snapshot.commit, hub.token)


def _work_folder(work: str | Path | None, opened: OpenedTarget, plan: Plan) -> Path:
    """Return a folder that is this run's alone, and that the same command finds again."""
    if work is None:
        cache = expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        work = cache / "blockexpand" / "on-hub"
    name = f"{opened.repo_id.replace('/', '--')}-{plan.fingerprint[:16]}"
    return expand_home(work) / name
