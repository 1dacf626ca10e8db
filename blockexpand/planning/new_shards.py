"""In which files, and in which order, the tensors of new blocks lie. Pure.

As few files as there can be. A file system shares only whole blocks of a disk, so a copied tensor
should lie at its source's offset modulo that block. Where clones behind each other would not, small
tensors and constants, which nobody shares, are moved between the large ones to bring them there.
Sizes and offsets alone decide, so that the same plan has the same bytes on every machine.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Container, Iterable, Mapping, Sequence

from ..formats.tensor_spec import DTYPE_BITS
from .origins import Copy, Part, source_of

# New blocks go into further shards of at most this size (the default of the Hub's own tools).
NEW_SHARD_NBYTES = 5_000_000_000

# So much must be spared from copying to be worth a further file, a fifteenth of a second of a disk.
WORTH_A_FILE_NBYTES = 1 << 26

# And so much to be worth another order than the source's.
_WORTH_MOVING_NBYTES = 1 << 20

# A tensor of less is put wherever it helps the others.
_SMALL_NBYTES = 1 << 16

# Older files are not looked at again, so that thousands of blocks do not take the square of time.
_MOST_OPEN_FILES = 64

# A search for fillers ends after so many residues, and there are so many searches for a file: with
# no more than that, thousands of blocks are arranged in a second.
_MOST_RESIDUES = 512
_MOST_SEARCHES = 256


def arrange_blocks(blocks: Sequence[Sequence[Part]], block_nbytes: int) -> list[list[Part]]:
    """Return the files of new blocks, each as its parts in order.

    `blocks` are the new blocks' parts in the source's order, `block_nbytes` what a file system
    shares at least.
    """
    files: list[list[Part]] = []
    for pieces in _fill(piece for block in blocks for piece in _split_block(block)):
        ordered = _order([part for piece in pieces for part in piece], block_nbytes)
        shareable = sum(p.spec.nbytes for p in ordered if isinstance(p.origin, Copy))
        if shareable - best_residue(ordered, block_nbytes)[1] < WORTH_A_FILE_NBYTES:
            files.append(ordered)
        else:
            files += _spread(pieces, block_nbytes)
    return files


def best_residue(parts: Iterable[Part], block_nbytes: int) -> tuple[int, int]:
    """Return the data section's start, modulo the block, that lets the most bytes be shared.

    Also how many bytes that is. Without anything to share it is 0.
    """
    nbytes_by_residue = {0: 0}
    data_offset = 0
    for part in parts:
        nbytes = part.spec.nbytes
        if isinstance(part.origin, Copy):
            residue = (part.origin.extent.offset - data_offset) % block_nbytes
            nbytes_by_residue[residue] = nbytes_by_residue.get(residue, 0) + nbytes
        data_offset += nbytes
    return max(nbytes_by_residue.items(), key=lambda item: item[1])


def is_aligned(parts: Iterable[Part]) -> bool:
    """Tell whether every tensor, one behind the other, begins at a multiple of its element."""
    data_offset = 0
    for part in parts:
        if data_offset % (DTYPE_BITS[part.spec.dtype] // 8 or 1):
            return False
        data_offset += part.spec.nbytes
    return True


def _split_block(block: Sequence[Part]) -> list[list[Part]]:
    """Cut a block where its source goes on in another file, or where a shard would be too large.

    Constants have no place in the source: they stay with the tensor before them.
    """
    pieces: list[list[Part]] = []
    file: str | None = None
    nbytes = 0
    for part in block:
        extent = source_of(part.origin)
        source = None if extent is None else extent.file
        has_moved = source is not None and file is not None and source != file
        if not pieces or has_moved or nbytes + part.spec.nbytes > NEW_SHARD_NBYTES:
            pieces.append([])
            nbytes = 0
        file = source or file
        pieces[-1].append(part)
        nbytes += part.spec.nbytes
    return pieces


def _fill(pieces: Iterable[list[Part]]) -> list[list[list[Part]]]:
    """Share pieces out to files in their order."""
    files: list[list[list[Part]]] = []
    room = 0
    for piece in pieces:
        nbytes = _weigh(piece)
        if not files or nbytes > room:
            files.append([])
            room = NEW_SHARD_NBYTES
        files[-1].append(piece)
        room -= nbytes
    return files


def _spread(pieces: Iterable[list[Part]], block_nbytes: int) -> list[list[Part]]:
    """Give pieces that would lose their place, and are worth it, further files."""
    files: list[tuple[int, list[Part]]] = []
    filled: list[int] = []
    for piece in pieces:
        residue, shared_nbytes = best_residue(piece, block_nbytes)
        nbytes = _weigh(piece)
        is_worth_it = shared_nbytes >= WORTH_A_FILE_NBYTES
        for at in range(max(len(files) - _MOST_OPEN_FILES, 0), len(files)):
            lands = (files[at][0] + filled[at]) % block_nbytes
            if filled[at] + nbytes <= NEW_SHARD_NBYTES and (lands == residue or not is_worth_it):
                files[at][1].extend(piece)
                filled[at] += nbytes
                break
        else:
            files.append((residue, list(piece)))
            filled.append(nbytes)
    return [parts for _, parts in files]


def _weigh(parts: Iterable[Part]) -> int:
    return sum(part.spec.nbytes for part in parts)


class _Run:
    """Parts that stay together; `residue` is where they have to begin, modulo the block."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.residue: int | None = None
        self.nbytes = 0

    def accepts(self, residue: int, block_nbytes: int) -> bool:
        return self.residue is None or (self.residue + self.nbytes) % block_nbytes == residue

    def append(self, part: Part, residue: int | None, block_nbytes: int) -> None:
        if self.residue is None and residue is not None:
            self.residue = (residue - self.nbytes) % block_nbytes
        self.parts.append(part)
        self.nbytes += part.spec.nbytes


def _order(parts: list[Part], block_nbytes: int) -> list[Part]:
    """Return parts in the order in which more of them can be shared, if that is worth it."""
    shareable = sum(p.spec.nbytes for p in parts if isinstance(p.origin, Copy))
    shared = best_residue(parts, block_nbytes)[1]
    if shareable - shared < _WORTH_MOVING_NBYTES:
        return parts
    ordered = _reorder(parts, block_nbytes)
    gained = best_residue(ordered, block_nbytes)[1] - shared
    return ordered if gained >= _WORTH_MOVING_NBYTES and is_aligned(ordered) else parts


def _reorder(parts: Sequence[Part], block_nbytes: int) -> list[Part]:
    """Order runs of large tensors, with fillers between them, so that each lands on its place."""
    runs, fillers = _take_apart(parts, block_nbytes)
    # A run without a place to keep may begin anywhere: those stand first.
    ordered = [part for run in runs if run.residue is None for part in run.parts]
    waiting: dict[int, deque[_Run]] = {}
    for run in runs:
        if run.residue is not None:
            waiting.setdefault(run.residue, deque()).append(run)
    here = next(iter(waiting), 0)
    searches = 0
    while waiting:
        wanted, filling = here, tuple[int, ...]()
        if here not in waiting and searches < _MOST_SEARCHES:
            searches += 1
            wanted, filling = _find_filling(here, waiting, fillers, block_nbytes)
        ordered += [fillers[size].popleft() for size in filling]
        here = wanted
        if wanted not in waiting:
            # Nothing brings any run to its place from here: the next one is copied.
            wanted = next(iter(waiting))
        run = waiting[wanted].popleft()
        if not waiting[wanted]:
            del waiting[wanted]
        ordered += run.parts
        here = (here + run.nbytes) % block_nbytes
    return ordered + [part for same in fillers.values() for part in same]


def _take_apart(
    parts: Iterable[Part], block_nbytes: int
) -> tuple[list[_Run], dict[int, deque[Part]]]:
    """Return the runs of parts that have a place to keep, and all other parts by their size modulo
    the block."""
    runs: list[_Run] = []
    fillers: dict[int, deque[Part]] = defaultdict(deque)
    for part in parts:
        residue = None
        if isinstance(part.origin, Copy) and part.spec.nbytes >= _SMALL_NBYTES:
            residue = part.origin.extent.offset % block_nbytes
        elif size := part.spec.nbytes % block_nbytes:
            fillers[size].append(part)
            continue
        if not runs or (residue is not None and not runs[-1].accepts(residue, block_nbytes)):
            runs.append(_Run())
        runs[-1].append(part, residue, block_nbytes)
    return runs, fillers


def _find_filling(
    here: int, wanted: Container[int], fillers: Mapping[int, deque[Part]], block_nbytes: int
) -> tuple[int, tuple[int, ...]]:
    """Return a wanted residue and the sizes of the fewest fillers that lead there from `here`.

    Where none do, that is `here` with no filler, although it is not wanted.
    """
    ways: dict[int, tuple[int, ...]] = {here: ()}
    newest = [here]
    while newest and len(ways) < _MOST_RESIDUES:
        for residue in newest:
            if residue in wanted:
                return residue, ways[residue]
        reached = []
        for residue in newest:
            used = Counter(ways[residue])
            for size, same in fillers.items():
                after = (residue + size) % block_nbytes
                if after not in ways and used[size] < len(same):
                    ways[after] = (*ways[residue], size)
                    reached.append(after)
        newest = reached
    return here, ()
