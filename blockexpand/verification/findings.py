"""What a verification found, as values. It reads and decides nothing."""

from __future__ import annotations

from dataclasses import dataclass


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
class Verification:
    """What was compared, and every difference that was found; none means proven."""

    tensors: int
    nbytes: int
    dtype: str
    new_layers: tuple[int, ...]
    keeps_function: bool
    is_unpacked: bool
    findings: tuple[Finding, ...]
