"""What `apply` and `attach` do alike: open adapters, and prove the base and what the adapters hold.

Nothing is written. A base or an adapter that is another than it should be is refused in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.card import render_applied_card
from ..adapters.digests import digest_tensors
from ..adapters.format import ADAPTER_FILE, DigestedTensor, parse_adapter
from ..adapters.opening import OpenedAdapter, open_adapter
from ..adapters.proof import (
    find_content_differences,
    find_header_differences,
    is_known_by_files,
)
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CARD_FILE, MANIFEST_FILE
from ..checkpoints.sources import HubOptions, ModelRef, OpenedSource, looks_like_path
from ..errors import CheckpointError, HubError, RecipeError
from ..formats.json_object import JsonEdit, edit_json_object
from ..fs.paths import expand_home
from ..messages import and_more
from ..planning.manifest import render_manifest
from ..planning.plan import Plan
from ..planning.shards import Document
from ..progress import Progress

TRUSTED = "the base's bytes were not looked at (--trust-base)"

PROVEN_BY_LISTING = "the base is proven by the Hub's digests of its files"


def open_adapters(adapters: Sequence[str | Path], hub: HubOptions) -> tuple[OpenedAdapter, ...]:
    if not adapters:
        raise RecipeError("apply needs at least one block adapter")
    return tuple(open_adapter(*_find_adapter(str(adapter), hub)) for adapter in adapters)


def _find_adapter(adapter: str, hub: HubOptions) -> tuple[Path, str | None]:
    """Return an adapter's folder, downloaded if it is a repository of the Hub, and that one."""
    folder = expand_home(adapter)
    if folder.exists() or looks_like_path(adapter):
        return folder, None
    from ..checkpoints.hub import download_files, fetch_document, open_snapshot, parse_repo_ref

    try:
        # A revision of the base says nothing of the adapter's repository.
        ref = parse_repo_ref(adapter)
    except HubError as error:
        raise CheckpointError(f"{adapter}: no such folder, and {error}") from None
    try:
        snapshot = open_snapshot(ref, token=hub.token, cache_dir=hub.cache_dir)
    except HubError as error:
        # A folder's name that was mistyped looks like a repository.
        raise HubError(f"{error}; nor is there a folder {adapter} here") from None
    if not any(file.name == ADAPTER_FILE for file in snapshot.files):
        raise CheckpointError(
            f"{adapter}: the repository has no {ADAPTER_FILE}, so it is no block adapter"
        )
    document = fetch_document(snapshot, ADAPTER_FILE, token=hub.token, cache_dir=hub.cache_dir)
    names = parse_adapter(document, f"{adapter}/{ADAPTER_FILE}").files
    lacking = sorted(set(names) - {file.name for file in snapshot.files})
    if lacking:
        raise CheckpointError(f"{adapter}: {ADAPTER_FILE} names {lacking[0]}, which is not there")
    folder = download_files(
        snapshot, (ADAPTER_FILE, *names), token=hub.token, cache_dir=hub.cache_dir
    )
    return folder, snapshot.repo_id


@dataclass(frozen=True, slots=True, kw_only=True)
class _Differences:
    """What is another in a base than in the base of an adapter, in words."""

    adapter: OpenedAdapter
    found: Sequence[str]


def check_headers(
    checkpoint: Checkpoint, adapters: Sequence[OpenedAdapter], force_base: bool
) -> tuple[str, ...]:
    differences = [
        _Differences(adapter=opened, found=find_header_differences(checkpoint, opened.adapter))
        for opened in adapters
    ]
    return _judge(checkpoint, differences, force_base)


def _judge(
    checkpoint: Checkpoint, differences: Sequence[_Differences], force_base: bool
) -> tuple[str, ...]:
    """Refuse a base with differences, or say them. Raises: CheckpointError."""
    notes: tuple[str, ...] = ()
    for difference in differences:
        if not difference.found:
            continue
        name = difference.adapter.adapter.base.name.public
        fact = (
            f"another base than the blocks were trained in ({name}): {and_more(difference.found)}"
        )
        if not force_base:
            raise CheckpointError(
                f"{checkpoint.root}: is {fact}; give the base itself, or --force-base to put the "
                "blocks on this one"
            )
        notes += (f"this is {fact}",)
    return notes


def is_proven_by_listing(source: OpenedSource, adapters: Sequence[OpenedAdapter]) -> bool:
    """Tell whether the Hub lists for each shard of a base the digest that each adapter states."""
    if source.snapshot is None:
        return False
    listed = {
        shard.file.name: source.snapshot.file(shard.file.name).sha256
        for shard in source.checkpoint.shards
    }
    return all(is_known_by_files(listed, opened.adapter) for opened in adapters)


def check_content(
    source: OpenedSource,
    checkpoint: Checkpoint,
    adapters: Sequence[OpenedAdapter],
    force_base: bool,
    progress: Progress,
) -> tuple[str, ...]:
    """Prove the base's bytes, by the Hub's digests where there are some, else by reading them."""
    if is_proven_by_listing(source, adapters):
        return (PROVEN_BY_LISTING,)
    progress.begin("comparing", sum(spec.nbytes for spec in checkpoint.specs.values()))
    digests, _ = digest_tensors(checkpoint.root, checkpoint.shards, progress.advance)
    differences = [
        _Differences(
            adapter=opened,
            found=[
                f"tensor {name!r} has other values"
                for name in find_content_differences(digests, opened.adapter)
            ],
        )
        for opened in adapters
    ]
    notes = _judge(checkpoint, differences, force_base)
    return notes or ("the base is proven: every byte is that which the blocks were trained in",)


def check_adapters(adapters: Sequence[OpenedAdapter], progress: Progress) -> None:
    """Refuse an adapter whose bytes are not those of its digests. Raises: CheckpointError."""
    for opened in adapters:
        progress.begin("comparing", sum(shard.file.nbytes for shard in opened.shards))
        found, _ = digest_tensors(opened.root, opened.shards, progress.advance)
        for name, (tensor, _) in opened.placed.items():
            if found[name].sha256 != tensor.sha256:
                raise CheckpointError(
                    f"{opened.root}: tensor {name!r} is damaged: its bytes do not have the digest "
                    f"that {ADAPTER_FILE} states; fetch the adapter again"
                )


def add_documents(
    plan: Plan,
    base: ModelRef,
    adapters: Sequence[OpenedAdapter],
    scale: float,
    notes: Sequence[str],
    command: str,
) -> Plan:
    """Return the plan with its card and manifest."""
    said = " ".join(f"{note[0].upper()}{note[1:]}." for note in notes)
    manifest = edit_json_object(
        render_manifest(plan, base, command, {}),
        (JsonEdit(path=("adapters",), value=[_describe(opened, scale) for opened in adapters]),),
    )
    documents = (
        Document(name=CARD_FILE, data=render_applied_card(plan, base, adapters, scale, said)),
        Document(name=MANIFEST_FILE, data=manifest),
    )
    return replace(plan, documents=plan.documents + documents)


def _describe(opened: OpenedAdapter, scale: float) -> dict[str, object]:
    adapter = opened.adapter
    stored: dict[str, DigestedTensor] = {**adapter.tensors, **adapter.changed}
    return {
        "name": opened.name,
        "new_layers": list(adapter.new_layers),
        "scale": scale,
        "tensors": {name: tensor.sha256 for name, tensor in stored.items()},
    }
