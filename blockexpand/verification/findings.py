"""What a verification found, as values. It reads and decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoints.sources import ModelRef
from ..models.layer_map import LayerMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference. `offset` is the first differing byte, from the start of the tensor."""

    file: str
    message: str
    tensor: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}: " + (f"tensor {self.tensor!r}: " if self.tensor else "")
        return where + self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitCheck:
    """At which commit of a Hub repository an output was compared, and what that commit is today.

    `is_head` tells whether it is the head of the branch, `in_history` whether it is in the
    branch's history at all: anybody can propose a commit that is not. None: the Hub could not be
    asked.
    """

    repo: str
    revision: str
    commit: str
    is_head: bool | None
    in_history: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProof:
    """How files of a repository were compared: `by` is "digest" or "read"; `read` more bytes of
    the source were read for it. Sizes in bytes.
    """

    by: str
    files: tuple[str, ...]
    nbytes: int
    read: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was compared and proven; no `findings` means that it holds.

    `source` is the model that was compared with. `has_manifest` tells an output of blockexpand
    from one that another tool made. `trained` are tensors of new blocks that differ from what the
    expansion gave them: no fault, unless the output should be untrained. `keeps_function` tells
    whether the output computes what its source does, None where that cannot be told. `identical`
    of the `originals` (tensors outside of new blocks) are bit for bit as in the source, or what
    converting them to the output's dtype makes of them; `active` are the new layers that do not
    pass their input through. `is_unpacked` tells an output whose quantised source was unpacked;
    `recipe` is the mergekit recipe that it follows; `stated` is what the manifest claims and
    nothing here can confirm; `wrong_source` says in one line that the output was made from another
    model. `shared` bytes of tensors lie on the source's own blocks of the disk and were not read.
    """

    source: ModelRef
    has_manifest: bool
    original_layers: int
    layer_map: LayerMap
    tensors: int
    nbytes: int
    dtype: str
    keeps_function: bool | None
    is_unpacked: bool = False
    findings: tuple[Finding, ...] = ()
    trained: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    originals: int = 0
    identical: int = 0
    active: tuple[int, ...] = ()
    recipe: str | None = None
    stated: tuple[str, ...] = ()
    commit: CommitCheck | None = None
    wrong_source: str | None = None
    proofs: tuple[FileProof, ...] = ()
    shared: int = 0

    @property
    def new_layers(self) -> tuple[int, ...]:
        """The numbers of the new layers, in order."""
        return tuple(index for index, entry in enumerate(self.layer_map) if entry.is_new)


def describe_layers(layer_map: LayerMap, originals: int) -> str:
    """Say how many layers are old and new, and where: `32 layers + 4 new at the end`."""
    new = [index for index, entry in enumerate(layer_map) if entry.is_new]
    if not new:
        return f"{len(layer_map)} layers"
    last = len(layer_map)
    if new == list(range(originals, last)):
        where = "at the end"
    elif new == list(range(len(new))):
        where = "at the start"
    else:
        where = f"({_join(new)})"
    return f"{last - len(new)} layers + {len(new)} new {where}"


def _join(numbers: Sequence[int], most: int = 16) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"
