"""An expansion that another program saved (a trainer, another tool) against what it must be.

Tensors are compared by their names, in whatever files and floating-point dtype they lie; a tensor
of a new block may be what the expansion made it, or trained. It only reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..checkpoints.checkpoint import Checkpoint
from ..formats.tensor_spec import FLOAT_DTYPES
from ..fs.reading import Place
from ..models.families.tensor_roles import is_output, is_silenced
from ..planning.origins import Fill, Zeros
from ..planning.shards import PlannedTensor
from ..progress import SILENT, Progress
from .comparison import Compared, Mismatch, compare_tensors, is_zero
from .expectation import (
    Expectation,
    ExpectedTensor,
    constant_origin,
    find_extents,
    in_dtype,
    place_files,
)
from .findings import Finding
from .folder import show_spec
from .matching import find_lead, find_prefix

# What transformers drops and adds where a model's head is its embedding.
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedComparison:
    """`active` are the new layers that do not pass their input through; of the `originals`, which
    are the tensors outside of new blocks, `identical` have the source's values. `shared` bytes
    were not read, being the source's own."""

    findings: tuple[Finding, ...]
    trained: tuple[Finding, ...]
    notes: tuple[str, ...]
    active: tuple[int, ...]
    originals: int
    identical: int
    different: int
    shared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """An expected tensor and where it is: its file and its name, spec and offset there."""

    expected: ExpectedTensor
    file: str
    found: PlannedTensor


def compare_saved(
    expectation: Expectation, saved: Checkpoint, progress: Progress, *, paranoid: bool = False
) -> SavedComparison:
    """Compare every tensor of a checkpoint with an expectation.

    Raises: SourceChangedError where a file of either side changes meanwhile.
    """
    names = _match_names(expectation, saved)
    pairs, findings, notes = _pair(expectation, saved, names)
    place = place_files(saved)
    mismatches, shared = _compare(expectation.sources, place, pairs, progress, paranoid=paranoid)
    originals = [pair for pair in pairs.values() if pair.expected.layer is None]
    for pair in originals:
        if pair.found.name in mismatches:
            findings.append(describe_mismatch(mismatches[pair.found.name]))
    missing = {finding.tensor for finding in findings}
    trained, active = _judge_blocks(expectation, saved, place, pairs, mismatches)
    return SavedComparison(
        findings=tuple(findings),
        trained=tuple(trained),
        notes=tuple(notes),
        active=active,
        originals=sum(tensor.layer is None for tensor in expectation.tensors.values()),
        identical=sum(pair.found.name not in missing for pair in originals),
        different=sum(pair.found.name in mismatches for pair in originals),
        shared=shared,
    )


def fits(expectation: Expectation, saved: Checkpoint) -> bool:
    """Tell whether a checkpoint has exactly the expected tensors, whatever their bytes."""
    return not _pair(expectation, saved, _match_names(expectation, saved))[1]


def describe_mismatch(mismatch: Mismatch) -> Finding:
    """Say where a tensor differs first."""
    return Finding(
        file=mismatch.file,
        tensor=mismatch.tensor,
        offset=mismatch.offset,
        message=(
            f"differs at byte {mismatch.offset} of the tensor (byte {mismatch.position} of the "
            f"file): expected 0x{mismatch.expected:02x}, found 0x{mismatch.found:02x}"
        ),
    )


def _match_names(expectation: Expectation, saved: Checkpoint) -> dict[str, str]:
    """Return what each expected tensor is called in a checkpoint that may spell prefixes anew."""
    prefix = find_prefix(saved.specs, expectation.prefix)
    if prefix == expectation.prefix:
        return {name: name for name in expectation.tensors}
    dropped, added = find_lead(expectation.prefix, prefix), find_lead(prefix, expectation.prefix)
    names = {}
    for name in expectation.tensors:
        if name.startswith(expectation.prefix):
            names[name] = prefix + name[len(expectation.prefix) :]
        else:
            renamed = added + name.removeprefix(dropped)
            names[name] = renamed if renamed in saved.specs else name
    return names


def _pair(
    expectation: Expectation, saved: Checkpoint, names: Mapping[str, str]
) -> tuple[dict[str, _Pair], list[Finding], list[str]]:
    """Bring expected and found tensors together by name; find what has no partner."""
    places = {
        entry.name: (shard, entry) for shard in saved.shards for entry in shard.header.entries
    }
    tied = _find_tied(expectation, names)
    pairs: dict[str, _Pair] = {}
    findings: list[Finding] = []
    notes = [
        f"{name} is not stored: config.json ties it to the embedding"
        for name in names.values()
        if name not in places and name in tied
    ]
    files = {layer: shard.file.name for layer, (shard, _) in places.items()}
    default = next(iter(files.values()), "config.json")
    for name, expected in [*expectation.tensors.items(), *_added_heads(expectation, names, tied)]:
        here = names.get(name, name)
        if here not in places:
            if here not in tied:
                findings.append(Finding(file=default, tensor=here, message="is missing"))
            continue
        shard, entry = places[here]
        origin = in_dtype(expected.clone, expected.spec, entry.spec.dtype)
        if entry.spec.shape != expected.spec.shape or origin is None:
            message = f"expected {show_spec(expected.spec)}, found {show_spec(entry.spec)}"
            findings.append(Finding(file=shard.file.name, tensor=here, message=message))
            continue
        offset = shard.header.data_start + entry.data_offset
        found = PlannedTensor(here, entry.spec, offset, origin)
        pairs[here] = _Pair(expected=expected, file=shard.file.name, found=found)
    wanted = set(names.values()) | tied
    for name in places:
        if name not in wanted:
            message = "is not part of the expansion"
            findings.append(Finding(file=files[name], tensor=name, message=message))
    return pairs, findings, notes


def _find_tied(expectation: Expectation, names: Mapping[str, str]) -> frozenset[str]:
    """Return the head's name where it is tied, so that it may be stored or not."""
    config = expectation.config
    text = config.get("text_config")
    ties = config.get("tie_word_embeddings")
    if ties is None and isinstance(text, Mapping):
        ties = text.get("tie_word_embeddings")
    heads = {here for name, here in names.items() if name.endswith(_HEAD)}
    # Older configs leave out what is the default in their family: then the source tells.
    is_tied = ties is True or (ties is None and not heads)
    return frozenset(heads or {_HEAD}) if is_tied else frozenset()


def _added_heads(
    expectation: Expectation, names: Mapping[str, str], tied: frozenset[str]
) -> Iterator[tuple[str, ExpectedTensor]]:
    """Yield a tied head that the source does not store: its values are the embedding's."""
    if tied & set(names.values()):
        return
    for name, expected in expectation.tensors.items():
        if expected.layer is None and name.endswith("embed_tokens.weight"):
            for head in tied:
                yield head, expected
            return


def _compare(
    sources: Place,
    found: Place,
    pairs: Mapping[str, _Pair],
    progress: Progress,
    *,
    paranoid: bool,
) -> Compared:
    files: dict[str, list[PlannedTensor]] = {}
    for pair in pairs.values():
        files.setdefault(pair.file, []).append(pair.found)
    return compare_tensors(sources, found, files, progress, paranoid=paranoid)


def _judge_blocks(
    expectation: Expectation,
    saved: Checkpoint,
    place: Place,
    pairs: Mapping[str, _Pair],
    mismatches: Mapping[str, Mismatch],
) -> tuple[list[Finding], tuple[int, ...]]:
    """Return the tensors of new blocks that were trained, and the blocks that are at work."""
    family, extents = expectation.decoder.family, find_extents(saved)
    blocks: dict[int, list[_Pair]] = {
        index: [] for index, entry in enumerate(expectation.layer_map) if entry.is_new
    }
    for pair in pairs.values():
        if pair.expected.layer is not None:
            blocks[pair.expected.layer].append(pair)
    unequal = _unequal_constants(place, pairs)
    trained: list[Finding] = []
    active: list[int] = []
    for layer, block in blocks.items():
        zeroed, neutral, suffixes = set(), True, set()
        for pair in block:
            name, suffix = pair.found.name, pair.expected.suffix
            suffixes.add(suffix)
            is_float = pair.found.spec.dtype in FLOAT_DTYPES
            zero = (
                is_float
                and is_output(family, suffix)
                and is_zero(saved.root / pair.file, extents[name], pair.found.spec.dtype)
            )
            if isinstance(pair.expected.clone, Zeros | Fill):
                zero = name not in mismatches
            if zero:
                zeroed.add(suffix)
            constant = pair.expected.constant
            if constant is not None:
                neutral &= zero if constant == 0 else name not in unequal
            as_made = zero or (constant not in (None, 0) and name not in unequal)
            if name in mismatches and not as_made:
                finding = describe_mismatch(mismatches[name])
                if constant is not None:
                    message = f"is no longer {constant:g}, as the expansion made it"
                    finding = replace(finding, message=message, offset=None)
                trained.append(finding)
        row = any(pair.expected.constant is not None for pair in block)
        if not (row and neutral) and not is_silenced(family, tuple(suffixes), tuple(zeroed)):
            active.append(layer)
    return trained, tuple(active)


def _unequal_constants(place: Place, pairs: Mapping[str, _Pair]) -> set[str]:
    """Return the tensors that should be a constant other than zero, and are not."""
    files: dict[str, list[PlannedTensor]] = {}
    for pair in pairs.values():
        constant, spec = pair.expected.constant, pair.found.spec
        if constant and spec.dtype in FLOAT_DTYPES:
            origin = constant_origin(constant, spec.dtype, spec.nbytes)
            files.setdefault(pair.file, []).append(pair.found._replace(origin=origin))
    return set(compare_tensors(place, place, files, SILENT).mismatches)
