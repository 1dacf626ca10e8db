"""The exception tree. Every error that a user can cause derives from `BlockExpandError`.

A message is one line: what, where, what was expected, what to do. It imports nothing of ours.
"""

from __future__ import annotations


class BlockExpandError(Exception):
    """The root: the command line prints it on one line and exits with status 1."""


class HeaderError(BlockExpandError):
    """Bytes that are no valid safetensors header."""


class CheckpointError(BlockExpandError):
    """A source folder that is no complete, consistent checkpoint."""


class UnsupportedModelError(BlockExpandError):
    """A model that cannot be expanded exactly, with the reason."""


class RecipeError(BlockExpandError):
    """A request that does not fit this checkpoint: a count, a position, a size, a recipe file."""


class ArgumentError(RecipeError):
    """An argument that is wrong in itself; `argument` is its name in Python, `reason` the rest."""

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(f"{argument}: {reason}")
        self.argument = argument
        self.reason = reason

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, str]]:
        return type(self), (self.argument, self.reason)


class OutputError(BlockExpandError):
    """An output folder that may not be written, or a disk without room."""


class SourceChangedError(BlockExpandError):
    """A source file that is no longer the one that was planned with."""


class TransferError(BlockExpandError):
    """A system call that failed while bytes were moved."""


class HubError(BlockExpandError):
    """A Hub repository that is missing, gated, or cannot be reached."""


class ProofError(BlockExpandError):
    """A proof that was asked for (`--check`, `--verify`) and did not hold."""


class TrainingError(BlockExpandError):
    """A model or a trainer that does not fit the expansion whose new blocks it is to train."""
