"""Expand a repository of the Hub into another one there: what stays as it is never leaves the Hub.

Planned from headers. Shards that repeat a source shard are copied by the Hub; the others are made
here one at a time, from the ranges that they need, sent and deleted. All of it is one commit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.hub.files import RepoFile, RepoSnapshot
from ..checkpoints.hub.pieces import merge_ranges, stream_pieces
from ..checkpoints.hub.snapshot import list_tree
from ..checkpoints.sources import (
    HubOptions,
    ModelRef,
    OpenedSource,
    ShardStream,
    fetch_side_files,
    open_headers,
)
from ..errors import HubError, RecipeError
from ..fs.paths import expand_home
from ..messages import format_size
from ..planning.card import add_card
from ..planning.origins import sources_of
from ..planning.plan import Plan, make_plan
from ..planning.recipe import Recipe, render_command
from ..planning.shards import PlannedFile
from ..progress import SILENT, Progress
from ..publishing.commit import (
    CopyRefusedError,
    OpenedTarget,
    ServerCopy,
    can_copy,
    commit,
    make_target,
    open_target,
    upload_file,
)
from ..publishing.folder import bars
from ..publishing.target import PushTarget, check_push, refuse_secrets
from ..writing.target import WriteOptions
from ..writing.writer import write


@dataclass(frozen=True, slots=True, kw_only=True)
class HubPlan:
    """What is done where: `copies` by the Hub, `made` here. Sizes in bytes; small files aside."""

    source: OpenedSource
    snapshot: RepoSnapshot
    plan: Plan
    copies: tuple[ServerCopy, ...]
    made: tuple[PlannedFile, ...]
    notes: tuple[str, ...]

    @property
    def copied_nbytes(self) -> int:
        """What the Hub copies."""
        return sum(copy.source.nbytes for copy in self.copies)

    @property
    def fetched_nbytes(self) -> int:
        """What is fetched of the source's shards."""
        return sum(
            nbytes
            for file in self.made
            for ranges in _find_ranges(file).values()
            for _, nbytes in merge_ranges(ranges)
        )

    @property
    def sent_nbytes(self) -> int:
        """What is sent of the output's shards."""
        return sum(file.nbytes for file in self.made)

    def describe(self) -> str:
        """Say in one line what is copied on the Hub, fetched and sent."""
        return (
            f"{len(self.copies)} of {len(self.plan.files)} shards are copied on the Hub "
            f"({format_size(self.copied_nbytes)}); {format_size(self.fetched_nbytes)} to fetch, "
            f"{format_size(self.sent_nbytes)} to send"
        )


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
    maker = _Maker(planned, opened, hub, folder, progress)
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


class _Maker:
    """Makes shards one at a time, sends each, and keeps in mind across runs what was sent."""

    def __init__(
        self,
        planned: HubPlan,
        opened: OpenedTarget,
        hub: HubOptions,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._planned = planned
        self._opened = opened
        self._hub = hub
        self._folder = folder
        self._notes = folder / "sent.json"
        self._progress = progress
        self._kept: dict[str, Path | bytes] = {}

    def make(self, files: Sequence[PlannedFile]) -> list[RepoFile]:
        """Make and send files; those that the Hub takes with the commit only are kept here."""
        sent = self._read_notes()
        for file in files:
            if file.name in sent and sent[file.name].nbytes == file.nbytes:
                self._progress.advance(file.nbytes)
                continue
            path = self._write(file)
            done = upload_file(
                self._opened, path, file.name, token=self._hub.token, tell=self._hub.tell
            )
            if done is None:
                self._kept[file.name] = path.read_bytes()
            else:
                sent[file.name] = done
                self._note(sent)
            shutil.rmtree(path.parent)
        return [sent[file.name] for file in files if file.name in sent]

    def commit(
        self,
        copies: Sequence[ServerCopy],
        sent: Sequence[RepoFile],
        small: Mapping[str, Path | bytes],
    ) -> str:
        try:
            return commit(
                self._opened,
                self._planned.snapshot,
                copies=copies,
                uploaded=sent,
                files={**self._kept, **small},
                token=self._hub.token,
                tell=self._hub.tell,
            )
        except CopyRefusedError:
            raise
        except HubError:
            # The Hub forgets after a while what was sent and not committed.
            self._notes.unlink(missing_ok=True)
            raise

    def _write(self, file: PlannedFile) -> Path:
        """Write one shard of the plan to a folder of its own."""
        plan = self._planned.plan
        ranges = _find_ranges(file)

        def fetch(
            names: Sequence[str], folder: Path, ahead_nbytes: Mapping[str, int]
        ) -> Generator[Path, None, None]:
            return stream_pieces(
                self._planned.snapshot,
                {name: ranges[name] for name in names},
                folder,
                token=self._hub.token,
                cache_dir=self._hub.cache_dir,
                tell=self._hub.tell,
            )

        alone = replace(
            plan,
            files=(replace(file, identical_to=None),),
            documents=(),
            side_files=(),
            source_files=tuple(one for one in plan.source_files if one.name in ranges),
        )
        folder = self._folder / file.name.removesuffix(".safetensors")
        # Written by a run that was ended before it noted that the shard was sent.
        shutil.rmtree(folder, ignore_errors=True)
        written = write(
            alone,
            folder,
            WriteOptions(reflink="never"),
            self._progress,
            None,
            ShardStream(commit=self._planned.snapshot.commit, fetch=fetch),
        )
        return written.out / file.name

    def _identity(self) -> dict[str, object]:
        opened = self._opened
        return {
            "repo": opened.repo_id,
            "branch": opened.target.branch,
            "fingerprint": self._planned.plan.fingerprint,
            "commit": self._planned.snapshot.commit,
        }

    def _read_notes(self) -> dict[str, RepoFile]:
        try:
            notes = json.loads(self._notes.read_text("utf-8"))
            if notes.pop("for") != self._identity():
                return {}
            return {
                name: RepoFile(name=name, nbytes=int(nbytes), sha256=str(sha256))
                for name, (nbytes, sha256) in notes["sent"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _note(self, sent: Mapping[str, RepoFile]) -> None:
        known = {name: [file.nbytes, file.sha256] for name, file in sent.items()}
        draft = self._notes.with_suffix(".part")
        draft.write_text(json.dumps({"for": self._identity(), "sent": known}), "utf-8")
        draft.replace(self._notes)


def _find_ranges(file: PlannedFile) -> dict[str, list[tuple[int, int]]]:
    """Return which ranges of which source files a shard takes its bytes from."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for tensor in file.tensors:
        for extent in sources_of(tensor.origin):
            ranges.setdefault(extent.file, []).append((extent.offset, extent.nbytes))
    return ranges


def _list(snapshot: RepoSnapshot, hub: HubOptions) -> tuple[RepoFile, ...]:
    from ..checkpoints.hub.failures import explaining

    with explaining(snapshot.repo_id, revision=snapshot.revision, token=hub.token, tell=hub.tell):
        return list_tree(snapshot.repo_id, snapshot.commit, hub.token)


def _default_work(opened: OpenedTarget, plan: Plan) -> Path:
    cache = expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    name = f"{opened.repo_id.replace('/', '--')}-{plan.fingerprint[:16]}"
    return cache / "blockexpand" / "on-hub" / name
