"""What `verify` found as text and as JSON: what was proven, what was not, what is only a claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..messages import join_lines
from ..planning.layer_text import layer_runs
from ..verification.findings import (
    CommitCheck,
    FileProof,
    Finding,
    Verification,
    describe_layers,
)
from ..verification.logits import LogitsProof
from .text_sizes import describe_shared, format_size

_MOST_LINES = 20


def describe_verification(
    verification: Verification, proof: LogitsProof | None, out: Path, *, verbose: bool
) -> str:
    """Return what was proven in one or two lines and the notes; or what differs."""
    if verification.wrong_source is not None:
        return ""  # the one line that says so goes to stderr
    findings = verification.findings
    if findings:
        shown = findings if verbose else findings[:_MOST_LINES]
        lines = [str(finding) for finding in shown]
        if len(findings) > len(shown):
            lines.append(f"and {len(findings) - len(shown)} more; -v or --json lists them all")
    else:
        lines = [f"{out}: {describe_proof(verification, proof)}"]
        lines += _new_layer_lines(verification)
    lines += [f"  {_describe_files(proof, verbose=verbose)}" for proof in verification.proofs]
    if verification.shared:
        lines.append(f"  {describe_shared(verification.shared)}")
    if verbose:
        lines += [f"  trained: {finding}" for finding in verification.trained]
    lines += [f"  note: {note}" for note in verification.notes]
    lines += [f"  claim: it says it was {claim}" for claim in verification.stated]
    return join_lines(lines)


def describe_proof(verification: Verification, proof: LogitsProof | None) -> str:
    """Say what was proven of an output that holds, on one line."""
    v = verification
    layers = describe_layers(v.layer_map, v.original_layers)
    what = "byte" if v.has_manifest else "tensor"
    if v.trained:
        tensors = "tensor" if len(v.trained) == 1 else "tensors"
        text = (
            f"trained: {len(v.trained)} {tensors} of the new blocks differ, all {v.originals} "
            f"originals identical: {layers}, {v.dtype}, as of {_source(v)}"
        )
    else:
        text = f"verified: {layers}, {v.dtype}, every {what} as of {_source(v)}"
    text += f", function kept: {_function(v)}; {v.tensors} tensors, {format_size(v.nbytes)}"
    if proof is not None:
        text += f"; {describe_logits(proof)}"
    return text


def _describe_files(proof: FileProof, *, verbose: bool) -> str:
    """Say how files on the Hub were compared."""
    shards = sum(name.endswith(".safetensors") for name in proof.files)
    what = f"{shards} shard{'s' if shards > 1 else ''}" if shards else f"{len(proof.files)} small"
    text = f"{what}, {format_size(proof.nbytes)}: "
    if proof.by == "digest":
        text += "the Hub lists the digest of the source's file"
    else:
        text += "read from the Hub and compared"
    if proof.read:
        text += f", with {format_size(proof.read)} of the source"
    return f"{text} ({', '.join(proof.files)})" if verbose else text


def describe_logits(proof: LogitsProof) -> str:
    """Say what was compared beside the bytes."""
    return f"{proof.what} of {proof.tokens} tokens bit-identical in {proof.dtype}"


def describe_differences(verification: Verification, out: Path) -> str:
    """Say on one line, for stderr, why an output does not hold, and what to do."""
    v = verification
    if v.wrong_source is not None:
        if v.has_manifest and v.tensors == 0:
            return f"{out} {v.wrong_source}; give the source that it was made from"
        return f"{out}: {v.wrong_source}; give the source that it was made from"
    count = len(v.findings)
    text = (
        f"{out}: {count} difference{'s' if count > 1 else ''} from what its source and recipe "
        f"say, the first: {v.findings[0]}"
    )
    if v.trained:
        return f"{text}; its new blocks were trained: keep it, and see blockexpand diff"
    if any(finding.file.endswith(".safetensors") for finding in v.findings):
        kept = "keep it if it was trained or saved anew; if not, expand into another folder"
        return f"{text}; {kept}"
    return text


def verification_as_json(
    verification: Verification, proof: LogitsProof | None, out: Path
) -> dict[str, Any]:
    """Return a verification for scripts: every finding, without a limit."""
    v = verification
    return {
        "out": str(out),
        "ok": not v.findings,
        "source": {"model": v.source.model, "repo": v.source.repo, "commit": v.source.commit},
        "commit": None if v.commit is None else _commit_fields(v.commit),
        "has_manifest": v.has_manifest,
        "original_layers": v.original_layers,
        "layers": len(v.layer_map),
        "layer_map": [entry.source for entry in v.layer_map],
        "new_layers": list(v.new_layers),
        "active_layers": list(v.active),
        "dtype": v.dtype,
        "keeps_function": v.keeps_function,
        "recipe": v.recipe,
        "tensors": v.tensors,
        "nbytes": v.nbytes,
        "shared": v.shared,
        "originals": v.originals,
        "identical_originals": v.identical,
        "wrong_source": v.wrong_source,
        "findings": [_finding_fields(finding) for finding in v.findings],
        "trained": [_finding_fields(finding) for finding in v.trained],
        "notes": list(v.notes),
        "claims": list(v.stated),
        "proofs": [
            {
                "by": proof.by,
                "files": list(proof.files),
                "nbytes": proof.nbytes,
                "source_nbytes_read": proof.read,
            }
            for proof in v.proofs
        ],
        "logits": None
        if proof is None
        else {
            "equal": True,
            "what": proof.what,
            "tokens": proof.tokens,
            "dtype": proof.dtype,
        },
    }


def _source(verification: Verification) -> str:
    name, check = verification.source.model, verification.commit
    if check is None:
        commit = verification.source.commit
        return f"{name} (commit {commit})" if commit else name
    if check.is_head is None and check.in_history is None:
        return f"{name} (commit {check.commit})"
    today = {True: "yes", False: "no", None: "not known"}
    text = f"{name} (commit {check.commit}, {check.revision} today: {today[check.is_head]}"
    if check.in_history is None:
        text += ", whether it was ever: not known"
    return f"{text})"


def _function(verification: Verification) -> str:
    if verification.keeps_function is None:
        return "not known"
    if verification.keeps_function:
        return "yes"
    if verification.active:
        return "no (the new blocks are at work)"
    return "NO (its recipe changes what the model computes)"


def _new_layer_lines(verification: Verification) -> list[str]:
    """Say of each run of new layers what they are clones of, where nothing had said so before."""
    if verification.has_manifest:
        return []
    lines = []
    for first, last, source, is_new in layer_runs(verification.layer_map):
        if is_new:
            layers = f"layer {first}" if first == last else f"layers {first}-{last}"
            at_work = any(first <= layer <= last for layer in verification.active)
            effect = "no longer passes" if at_work else "passes"
            each = effect if first == last else f"each {effect}"
            lines.append(f"  {layers}: new, clone of {source}, {each} its input through")
    return lines


def _finding_fields(finding: Finding) -> dict[str, Any]:
    return {
        "file": finding.file,
        "tensor": finding.tensor,
        "offset": finding.offset,
        "message": finding.message,
    }


def _commit_fields(check: CommitCheck) -> dict[str, Any]:
    return {
        "repo": check.repo,
        "revision": check.revision,
        "commit": check.commit,
        "is_head": check.is_head,
        "in_history": check.in_history,
    }
