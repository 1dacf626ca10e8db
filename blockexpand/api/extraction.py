"""`extract`: the new blocks of a trained model, and nothing else, as a block adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .._version import __version__
from ..adapters.card import render_adapter_card
from ..adapters.digests import digest_tensors, digest_widened
from ..adapters.extraction import (
    Extracted,
    compare_with_base,
    config_differences,
    expected_tensors,
    fingerprint,
    plan_blocks_files,
    refuse_unfit_base,
    without_wrapper,
)
from ..adapters.format import (
    ADAPTER_FILE,
    BLOCKS_INDEX_FILE,
    Base,
    BlockAdapter,
    DigestedTensor,
    render_adapter,
)
from ..adapters.quantized_base import expect_whole_model, refuse_changed_modules, refuse_requantized
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CARD_FILE, MANIFEST_FILE
from ..checkpoints.sources import ModelRef, open_source
from ..errors import CheckpointError, UnknownFamilyError, UnsupportedModelError
from ..formats.elements import is_widening
from ..formats.json_object import edit_json_object, parse_json_object
from ..fs.paths import existing_folder, expand_home
from ..fs.sharing import file_system_block
from ..messages import and_more
from ..models.decoder import Decoder, find_decoder
from ..models.layer_map import LayerMap
from ..models.surgery import plan_surgery
from ..planning.manifest import parse_manifest
from ..planning.plan import Plan, naming
from ..planning.recipe import PlanOptions
from ..planning.shards import Document, render_index
from ..planning.unquantized import drop_quantization
from ..progress import SILENT, Progress
from ..publishing.target import check_push, parse_push_target
from ..verification.layer_finding import find_layer_map
from ..writing.leftovers import clear_debris
from ..writing.preflight import check_write
from ..writing.shard import Moved
from ..writing.target import WriteOptions, check_target, resolve_target
from ..writing.writer import Written, write
from .arguments import check_arguments
from .finished import use_finished_adapter
from .options import make_hub_options, refuse_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """A finished adapter: where it is, what it holds, and how its bytes got there."""

    out: Path
    adapter: BlockAdapter
    nbytes: int
    moved: Moved
    notes: tuple[str, ...]
    pushed: str | None = None


def extract(
    trained: str | Path,
    out: str | Path,
    *,
    base: str | Path,
    with_changed: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    commit_message: str | None = None,
    create_pr: bool = False,
    progress: Progress = SILENT,
) -> Extraction:
    """Write the new blocks of a trained expansion as a block adapter of its base.

    `with_changed` stores originals that were trained too; without it they are refused. `revision`
    is that of `base`.
    Raises: CheckpointError where an original tensor or the config's meaning has changed, or the
    layers that are new cannot be told; then nothing is written.
    """
    check_arguments(locals())
    target = resolve_target(expand_home(out))
    refuse_source(base, target)
    refuse_source(trained, target)
    options = WriteOptions(overwrite=overwrite)
    hub = make_hub_options(revision, token, cache_dir, progress)
    clear_debris(target)
    check_target(target, options, planned=False)
    upload = None
    if push_to_hub is not None:
        upload = parse_push_target(
            push_to_hub,
            private=private,
            message=commit_message or f"Upload block adapter made with blockexpand {__version__}",
            create_pr=create_pr,
            token=token,
        )
        check_push(upload, token=token, tell=hub.tell)
    base_checkpoint, base_name = open_source(str(base), hub, progress=progress)
    options = replace(options, compared=(base_checkpoint.root,))
    theirs, _ = open_source(
        str(trained), make_hub_options(None, token, cache_dir), progress=progress
    )
    theirs = without_wrapper(theirs)
    try:
        with naming(base_checkpoint):
            decoder = find_decoder(base_checkpoint.config, base_checkpoint.specs)
    except UnknownFamilyError as error:
        raise UnsupportedModelError(
            f"{error}; an adapter carries no row of its own, so block adapters are for "
            "families of the table alone"
        ) from None
    refuse_unfit_base(decoder, str(base))
    if decoder.quantization is not None:
        refuse_requantized(decoder.quantization.method, theirs, str(trained))
    layer_map = _find_layers(base_checkpoint, theirs, decoder, str(trained))
    adapter, extracted = _compare(
        base_checkpoint, base_name, theirs, decoder, layer_map, progress, str(trained)
    )
    if not with_changed:
        _refuse_changes(adapter, str(trained))
    block_nbytes = file_system_block(existing_folder(target))
    plan = _plan(base_checkpoint, theirs, adapter, extracted, decoder, block_nbytes)
    note = None if options.replaces else use_finished_adapter(plan, target)
    if note is not None:
        written = Written(out=target, moved=Moved(reused=plan.nbytes), notes=(note,))
    else:
        check_write(plan, target, options)
        progress.begin("writing", plan.nbytes)
        written = write(plan, target, options, progress)
    pushed = None
    if upload is not None:
        from ..publishing.folder import push_folder

        pushed = push_folder(
            written.out,
            upload,
            token=token,
            show_progress=progress.is_shown,
            tell=progress.tell,
        )
    return Extraction(
        out=written.out,
        adapter=adapter,
        nbytes=sum(file.nbytes for file in plan.files),
        moved=written.moved,
        notes=plan.notes + written.notes,
        pushed=pushed,
    )


def _find_layers(base: Checkpoint, trained: Checkpoint, decoder: Decoder, where: str) -> LayerMap:
    """Return the layer map of a trained model, from its manifest or from its tensors.

    Trainers do not copy the manifest, and other tools write none. Raises: CheckpointError.
    """
    if trained.manifest is not None:
        return parse_manifest(trained.manifest, f"{where}/{MANIFEST_FILE}").layer_map
    with naming(trained):
        theirs = find_decoder(trained.config, trained.specs)
    layer_map = find_layer_map(base, trained, (decoder.prefix, theirs.prefix))
    if layer_map is None or not any(entry.is_new for entry in layer_map):
        raise CheckpointError(
            f"{where}: its tensors do not tell which layers are new in it; copy {MANIFEST_FILE} "
            "from the expansion that was trained"
        )
    return layer_map


def _compare(
    base: Checkpoint,
    base_name: ModelRef,
    trained: Checkpoint,
    decoder: Decoder,
    layer_map: LayerMap,
    progress: Progress,
    where: str,
) -> tuple[BlockAdapter, Extracted]:
    """Digest both, and describe what is new in the trained model."""
    sides = sum(spec.nbytes for side in (base, trained) for spec in side.specs.values())
    progress.begin("comparing", sides)
    digests, shards = digest_tensors(base.root, base.shards, progress.advance)
    found, _ = digest_tensors(trained.root, trained.shards, progress.advance)
    with naming(trained):
        prefix = find_decoder(trained.config, trained.specs).prefix
    whole = None
    expected, before = expected_tensors(decoder, base.specs, layer_map), digests
    sources = {name: source for name, (source, _) in expected.items()}
    if decoder.quantization is not None:
        whole = expect_whole_model(base, decoder, layer_map, digests, found, prefix)
        expected, before, sources = dict(whole.expected), dict(whole.before), dict(whole.plain)
    names = _name_trained(expected, decoder, trained, prefix)
    wide = {
        source: found[names[name]].spec.dtype
        for name, source in sources.items()
        if not expected[name][1]
        and name in names
        and is_widening(digests[source].spec.dtype, found[names[name]].spec.dtype)
    }
    digested = digest_widened(base.root, base.shards, wide, lambda nbytes: None) if wide else {}
    widened = {
        expected[name][0]: digested[source]
        for name, source in sources.items()
        if source in digested
    }
    extracted = compare_with_base(expected, before, found, names, widened, where)
    if whole is not None:
        refuse_changed_modules(whole, extracted, where)
    surgery = plan_surgery(decoder, base.config, layer_map)
    config = edit_json_object(base.config_bytes, surgery.config_edits)
    # How the base's layers are quantised is told by the base alone; trainers save them otherwise.
    changes = config_differences(
        drop_quantization(parse_json_object(config, "config.json")),
        drop_quantization(trained.config),
    )
    neutral = {
        suffix: constant
        for entry in layer_map
        if entry.is_new
        for suffix, constant in surgery.neutral[entry.source].items()
    }
    adapter = BlockAdapter(
        base=Base(name=base_name, config=base.config, shards=shards, tensors=digests),
        layer_prefix=decoder.prefix,
        layer_map=layer_map,
        neutral=neutral,
        files=(),
        tensors=_pick(extracted.new, found),
        changed=_pick(extracted.changed, found),
        config_changes=tuple(changes.items()),
    )
    return adapter, extracted


def _pick(
    names: Mapping[str, str], found: Mapping[str, DigestedTensor]
) -> dict[str, DigestedTensor]:
    return {name: found[there] for name, there in names.items()}


def _name_trained(
    expected: Mapping[str, tuple[str, bool]], decoder: Decoder, trained: Checkpoint, prefix: str
) -> dict[str, str]:
    """Return what the trained checkpoint calls the whole model's tensors, where it has them.

    `prefix` is what stands before a layer's number there.
    """
    names = {}
    for name in expected:
        there = name
        if name.startswith(decoder.prefix):
            there = prefix + name.removeprefix(decoder.prefix)
        if there in trained.specs:
            names[name] = there
    return names


def _refuse_changes(adapter: BlockAdapter, trained: str) -> None:
    """Raises: CheckpointError naming originals or config fields that are not the base's."""
    changed = [repr(name) for name in adapter.changed]
    if changed:
        raise CheckpointError(
            f"{trained}: not only the new blocks were trained: {and_more(changed)} of the base "
            "changed; give --with-changed to store them too"
        )
    fields = [repr(".".join(path)) for path, _ in adapter.config_changes]
    if fields:
        raise CheckpointError(
            f"{trained}: config.json: {and_more(fields)} say another model than the base with "
            "these blocks; give --with-changed to store them too"
        )


def _plan(
    base: Checkpoint,
    trained: Checkpoint,
    adapter: BlockAdapter,
    extracted: Extracted,
    decoder: Decoder,
    block_nbytes: int,
) -> Plan:
    files = plan_blocks_files(trained, extracted, block_nbytes)
    adapter = replace(adapter, files=tuple(file.name for file in files))
    document = render_adapter(adapter)
    nbytes = sum(file.nbytes for file in files)
    documents = [
        Document(name=ADAPTER_FILE, data=document),
        Document(name=CARD_FILE, data=render_adapter_card(adapter, base.card, nbytes)),
    ]
    if len(files) > 1:
        documents.append(Document(name=BLOCKS_INDEX_FILE, data=render_index(files)))
    notes: tuple[str, ...] = ()
    if extracted.widened:
        notes = (
            f"{len(extracted.widened)} original tensors were saved in a wider dtype, every value "
            "the same; the base keeps its own",
        )
    return Plan(
        root=trained.root,
        options=PlanOptions(
            position="adapter", dtype="source", max_shard_nbytes=None, block_nbytes=block_nbytes
        ),
        model_type=decoder.model_type,
        layer_prefix=decoder.prefix,
        original_layers=decoder.layers,
        layer_map=adapter.layer_map,
        neutral=adapter.neutral,
        dtype="source",
        files=files,
        documents=tuple(documents),
        side_files=(),
        source_files=tuple(shard.file for shard in trained.shards),
        source_card=base.card,
        left_behind=(),
        notes=notes,
        fingerprint=fingerprint(document, files),
        keeps_function=False,
    )
