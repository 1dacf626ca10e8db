"""Verify an expansion that another tool made, or a trainer saved: nothing relates it to its source.

The layer map is found from the tensors, whether a new layer passes its input through from the
family's row. It only reads.
"""

from __future__ import annotations

from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.files import CONFIG_FILE, INDEX_FILE
from ..checkpoints.sources import ModelRef
from ..messages import and_more
from ..models.decoder import find_decoder
from ..planning.dtypes import name_main_dtype
from ..progress import Progress
from .claims import find_other_weights, show_name
from .expectation import expect_layers
from .findings import Finding, Verification
from .layer_finding import find_layer_map, group_layers
from .matching import find_prefix
from .saved import compare_saved
from .saved_config import compare_configs


def verify_other(
    checkpoint: Checkpoint,
    source: ModelRef,
    out: Path,
    progress: Progress,
    *,
    untrained: bool = False,
    paranoid: bool = False,
) -> Verification:
    """Compare a checkpoint with the expansion of a source that its tensors show it to be.

    Raises: CheckpointError, UnsupportedModelError for a side that is no model of a known family;
    SourceChangedError where a file of either side changes meanwhile.
    """
    decoder = find_decoder(checkpoint.config, checkpoint.specs)
    saved = open_checkpoint(out)
    prefix = find_prefix(saved.specs, decoder.prefix)
    layer_map = find_layer_map(checkpoint, saved, (decoder.prefix, prefix))
    dtype = name_main_dtype(saved.specs.values())
    if layer_map is None:
        layers = len(group_layers(saved.specs, prefix))
        found = saved.config.get("model_type")
        wrong = (
            f"is no expansion of {source.model} ({decoder.model_type}, {decoder.layers} layers): "
            f"it has {layers} layers ({show_name(found)}), and most are not those of the source"
        )
        return Verification(
            source=source,
            has_manifest=False,
            original_layers=decoder.layers,
            layer_map=(),
            tensors=len(saved.specs),
            nbytes=sum(spec.nbytes for spec in saved.specs.values()),
            dtype=dtype,
            keeps_function=None,
            findings=(Finding(file=INDEX_FILE, message=wrong),),
            wrong_source=wrong,
        )
    if decoder.tail_layers:
        # Layers stored past the end are none of the decoder's, and move with it.
        layer_map = layer_map[: -decoder.tail_layers]
    expectation = expect_layers(checkpoint, decoder, layer_map)
    progress.begin("comparing", sum(spec.nbytes for spec in saved.specs.values()))
    compared = compare_saved(expectation, saved, progress, paranoid=paranoid)
    findings, notes = compare_configs(expectation.config, saved.config)
    findings = [*compared.findings, *findings]
    if expectation.fault is not None:
        findings.append(Finding(file=CONFIG_FILE, message=expectation.fault))
    known = {file.name for file in checkpoint.side_files}
    extra = [file.name for file in saved.side_files if file.name not in known]
    if extra:
        notes = [*notes, f"files that the source does not have: {and_more(extra, 5)}"]
    trained = {finding.tensor for finding in compared.trained}
    for layer in compared.active:
        block = {f"{prefix}{layer}.{suffix}" for suffix in group_layers(saved.specs, prefix)[layer]}
        if not block & trained:
            message = (
                f"layer {layer} repeats layer {layer_map[layer].source} and does not pass its "
                "input through: the model computes something else"
            )
            findings.append(Finding(file=INDEX_FILE, message=message))
    if untrained:
        findings += compared.trained
    return Verification(
        source=source,
        has_manifest=False,
        original_layers=decoder.layers,
        layer_map=layer_map,
        tensors=len(saved.specs),
        nbytes=sum(spec.nbytes for spec in saved.specs.values()),
        dtype=dtype,
        keeps_function=None if findings else not compared.active,
        findings=tuple(findings),
        trained=() if untrained else compared.trained,
        notes=(*compared.notes, *notes),
        originals=compared.originals,
        identical=compared.identical,
        active=compared.active,
        shared=compared.shared,
        wrong_source=find_other_weights(compared.different, compared.originals, source, None),
    )
