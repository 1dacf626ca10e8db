"""An expansion + the trained tensors of its new blocks → the plan of the trained model. Pure.

Every file keeps its name, header and layout. Original tensors are the expansion's own bytes, never
what a trainer held in memory, so that they cannot change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import Checkpoint, Shard
from ..checkpoints.files import CARD_FILE, CONFIG_FILE, INDEX_FILE, MANIFEST_FILE
from ..formats.json_object import JsonEdit, edit_json_object
from ..models.decoder import Decoder
from ..planning.dtypes import name_main_dtype
from ..planning.fingerprint import take_fingerprint
from ..planning.manifest import Manifest
from ..planning.origins import Copy, Extent
from ..planning.plan import Plan
from ..planning.recipe import PlanOptions
from ..planning.shards import Document, PlannedFile, PlannedTensor, render_index
from .card import tell_training

_TRAINED = "trained/"
"""What stands before the names of files that training made, in a plan."""


def plan_trained(
    out: Checkpoint,
    manifest: Manifest,
    decoder: Decoder,
    trained: Shard,
    folder: Path,
    record: Mapping[str, Any],
    block_nbytes: int,
) -> Plan:
    """Plan the expansion `out` with the tensors of the file `trained`, which lies in `folder`.

    `record` says how they were trained: it goes into the manifest and the card.
    """
    key = _TRAINED + trained.file.name
    places = {
        entry.name: Extent(key, trained.header.data_start + entry.data_offset, entry.spec.nbytes)
        for entry in trained.header.entries
    }
    files = tuple(_plan_file(shard, places) for shard in out.shards)
    documents = [Document(name=CONFIG_FILE, data=out.config_bytes)]
    if len(files) > 1:
        documents.append(Document(name=INDEX_FILE, data=render_index(files)))
    options = PlanOptions(
        position=str(manifest.content.get("position", "")),
        dtype="source",
        max_shard_nbytes=None,
        block_nbytes=block_nbytes,
    )
    plan_fingerprint = take_fingerprint(options, files, documents)
    documents.append(Document(name=MANIFEST_FILE, data=_add_record(out, manifest, record)))
    if out.card is not None:
        documents.append(Document(name=CARD_FILE, data=tell_training(out.card, record)))
    return Plan(
        root=out.root,
        options=options,
        model_type=decoder.model_type,
        layer_prefix=manifest.layer_prefix,
        original_layers=manifest.original_layers,
        layer_map=manifest.layer_map,
        neutral=manifest.neutral,
        dtype=name_main_dtype(out.specs.values()),
        files=files,
        documents=tuple(documents),
        side_files=out.side_files,
        source_files=(
            *(shard.file for shard in out.shards),
            replace(trained.file, name=key),
        ),
        source_card=out.card,
        left_behind=out.left_behind,
        notes=(),
        fingerprint=plan_fingerprint,
        paths={key: folder / trained.file.name},
        keeps_function=False,
    )


def _plan_file(shard: Shard, places: Mapping[str, Extent]) -> PlannedFile:
    start = shard.header.data_start
    name = shard.file.name
    tensors = tuple(
        PlannedTensor(
            entry.name,
            entry.spec,
            start + entry.data_offset,
            Copy(
                *places.get(entry.name, (name, start + entry.data_offset, entry.spec.nbytes)),
            ),
        )
        for entry in shard.header.entries
    )
    is_same = not any(entry.name in places for entry in shard.header.entries)
    return PlannedFile(
        name=name,
        header=shard.header_bytes,
        tensors=tensors,
        nbytes=shard.file.nbytes,
        identical_to=name if is_same else None,
    )


def _add_record(out: Checkpoint, manifest: Manifest, record: Mapping[str, Any]) -> bytes:
    """Return the manifest with this training behind those before it."""
    before = manifest.content.get("training")
    runs: Any = [*before, record] if isinstance(before, list) else [record]
    edits = (JsonEdit(path=("training",), value=runs),)
    data = out.manifest or (json.dumps(dict(manifest.content), indent=2) + "\n").encode()
    return edit_json_object(data, edits)
