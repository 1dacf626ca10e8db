"""The exception tree. Every error that a user can cause derives from `BlockExpandError`.

A message is one line: what, where, what was expected, what to do. `status` is what the command line
exits with, so that a script can tell a difference (1) from wrong values (2) and from what could not
be done (3). It imports nothing of ours.
"""

from __future__ import annotations

from typing import ClassVar


class BlockExpandError(Exception):
    """The root: the command line prints it on one line and exits with its `status`."""

    status: ClassVar[int] = 3


class HeaderError(BlockExpandError):
    """Bytes that are no valid safetensors header."""


class CheckpointError(BlockExpandError):
    """A source folder that is no complete, consistent checkpoint."""


class UnsupportedModelError(BlockExpandError):
    """A model that cannot be expanded exactly, with the reason."""


class UnknownFamilyError(UnsupportedModelError):
    """A model type that the table of families does not have."""


class UsageError(BlockExpandError):
    """An option or argument that is unknown, missing, malformed, or excluded by another one."""

    status = 2


class RecipeError(BlockExpandError):
    """Values that do not fit the model: a count, a position, a size, what a recipe file says."""

    status = 2


class ArgumentError(RecipeError):
    """An argument that is wrong in itself; `argument` is its name in Python, `reason` the rest."""

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(f"{argument}: {reason}")
        self.argument = argument
        self.reason = reason

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, str]]:
        return type(self), (self.argument, self.reason)


class InputError(BlockExpandError):
    """A recipe or jobs file that is missing or cannot be read."""


class OutputError(BlockExpandError):
    """An output folder that may not be written, or a disk without room."""


class OutputBusyError(OutputError):
    """An output folder that another run is writing."""


class SourceChangedError(BlockExpandError):
    """A source file that is no longer the one that was planned with."""


class TransferError(BlockExpandError):
    """A system call that failed while bytes were moved."""


class HubError(BlockExpandError):
    """A Hub repository that is missing, gated, or cannot be reached."""


class ProofError(BlockExpandError):
    """A proof that was asked for (`--check`, `--verify`) and did not hold."""

    status = 1


class NoProofError(ProofError):
    """A proof that was asked for and could not be made, which says nothing of the output."""

    status = 3


class TrainingError(BlockExpandError):
    """A model or a trainer that does not fit the expansion whose new blocks it is to train."""


class ProcessError(TrainingError):
    """What ended one of several processes that train together; the others do not know of it."""
