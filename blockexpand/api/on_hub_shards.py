"""The shards of a model on the Hub that the Hub does not copy: made one at a time, and sent.

Each lies in a folder of its own until it is sent. What was sent is noted, for a run that goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.hub.files import RepoFile, RepoSnapshot
from ..checkpoints.sources import HubOptions, OpenedSource
from ..errors import HubError
from ..fs.io import attempt, write_document
from ..messages import format_size
from ..planning.plan import Plan
from ..planning.shards import PlannedFile
from ..progress import Progress
from ..publishing.commit import (
    CopyRefusedError,
    OpenedTarget,
    ServerCopy,
    can_tell_uploaded,
    commit,
    upload_file,
)
from ..writing.target import WriteOptions
from ..writing.writer import write
from .shard_sources import bring_sources, count_ranges


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
        return sum(count_ranges(file, self.plan.paths) for file in self.made)

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


class ShardSender:
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
        """Make and send files; those that go with the commit only stay here until then."""
        sent = self._read_notes() if can_tell_uploaded() else {}
        for file in files:
            if file.name in sent and sent[file.name].nbytes == file.nbytes:
                self._progress.advance(file.nbytes)
                continue
            path = self._write(file)
            done = upload_file(
                self._opened, path, file.name, token=self._hub.token, tell=self._hub.tell
            )
            if done is None:
                self._kept[file.name] = path
                continue
            sent[file.name] = done
            self._note(sent)
            attempt("remove", path.parent, shutil.rmtree, path.parent)
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
        except HubError as error:
            # The Hub forgets after a while what was sent and not committed.
            try:
                self._notes.unlink(missing_ok=True)
            except OSError:
                raise HubError(
                    f"{error} ({self._notes} cannot be removed; remove it before you run the same "
                    "command again)"
                ) from error
            raise

    def _write(self, file: PlannedFile) -> Path:
        """Write one shard of the plan to a folder of its own."""
        planned = self._planned
        name = file.name.removesuffix(".safetensors")
        sources = self._folder / f"{name}.sources"
        alone = bring_sources(planned.plan, file, planned.snapshot, self._hub, sources)
        folder = self._folder / name
        # Written by a run that was ended before it noted that the shard was sent.
        shutil.rmtree(folder, ignore_errors=True)
        written = write(alone, folder, WriteOptions(), self._progress)
        attempt("remove", sources, shutil.rmtree, sources)
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
                name: RepoFile(name=name, nbytes=int(nbytes), sha256=sha256)
                for name, (nbytes, sha256) in notes["sent"].items()
                if len(bytes.fromhex(sha256)) == 32
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _note(self, sent: Mapping[str, RepoFile]) -> None:
        known = {name: [file.nbytes, file.sha256] for name, file in sent.items()}
        draft = self._notes.with_suffix(".part")
        write_document(draft, json.dumps({"for": self._identity(), "sent": known}).encode())
        attempt("write", self._notes, os.replace, draft, self._notes)
