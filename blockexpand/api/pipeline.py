"""What all ways to make an output share once there is a plan: write, prove, upload."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CARD_FILE
from ..checkpoints.sources import (
    ModelRef,
    ShardStream,
)
from ..errors import NoProofError, ProofError, RecipeError
from ..formats.elements import load_beside
from ..models.quantization.find import find_misread, find_quantization
from ..planning.card import add_proof
from ..planning.plan import Plan
from ..progress import Progress
from ..writing.documents import replace_document
from ..writing.leftovers import clear_debris
from ..writing.shard import Moved
from ..writing.target import WriteOptions, check_target
from ..writing.writer import write

CHECKING = "testing the plan on a tiny model"
"""What is told to be going on while `--check` is at work."""

if TYPE_CHECKING:
    from ..checkpoints.hub.files import RepoSnapshot
    from ..publishing.commit import ServerCopy
    from ..verification.findings import Finding, Verification
    from ..verification.logits import LogitsProof


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """A finished expansion: where it is, what it is, and how its bytes got there.

    `pushed` is the address of the commit on the Hub, where it was uploaded.
    """

    out: Path
    source: ModelRef
    plan: Plan
    moved: Moved
    notes: tuple[str, ...]
    verification: Verification | None = None
    proof: LogitsProof | None = None
    pushed: str | None = None


class Verified(NamedTuple):
    """What `verify` found: of the bytes, and of the logits where they were asked for.

    It unpacks as `verification, proof = verify(...)`.
    """

    verification: Verification
    proof: LogitsProof | None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What differs; empty where the output is as its source and recipe say."""
        return self.verification.findings

    @property
    def ok(self) -> bool:
        """Tell whether nothing differs."""
        return not self.verification.findings


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """What follows once an output is in its place: the arguments of `expand` of these names.

    `own_code` is its `trust_remote_code`.
    """

    verify: str | None = None
    push_to_hub: str | None = None
    private: bool = False
    token: str | None = None
    commit_message: str | None = None
    create_pr: bool = False
    own_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedOutput:
    """A plan with its card, the models that it is made from, and the folder that it is for.

    `checkpoint` is the model whose config the output has; `others` holds the further models of a
    recipe, by the names that it gives them.
    """

    checkpoint: Checkpoint
    name: ModelRef
    plan: Plan
    out: Path
    others: Mapping[str, Checkpoint] = field(default_factory=dict)


def check_out(
    out: Path,
    options: WriteOptions,
    *,
    push_to_hub: str | None,
    token: str | None,
    create_pr: bool = False,
) -> None:
    """Refuse, before anything is fetched, what could not be written or uploaded in the end.

    Raises: OutputError, HubError, UsageError.
    """
    clear_debris(out)
    check_target(out, options, planned=False)
    if push_to_hub is not None:
        from ..publishing.target import check_push, parse_push_target

        check_push(parse_push_target(push_to_hub, create_pr=create_pr, token=token), token=token)


def write_and_publish(
    planned: PlannedOutput,
    options: WriteOptions,
    publish: PublishOptions,
    progress: Progress,
    executor: Executor | None = None,
    stream: ShardStream | None = None,
) -> Expansion:
    """Write a plan that `check_write` has passed, then prove and upload as `publish` says.

    Raises: as `expand`.
    """
    plan = planned.plan
    if publish.push_to_hub is not None:
        from ..publishing.target import refuse_secrets

        refuse_secrets((file.name for file in plan.side_files), planned.name.model)
    if executor is None and plan.computes:
        progress.stage("loading torch")
        load_beside()
    progress.begin("writing", plan.nbytes)
    written = write(plan, planned.out, options, progress, executor, stream)
    result = Expansion(
        out=written.out,
        source=planned.name,
        plan=plan,
        moved=written.moved,
        notes=plan.notes + written.notes,
    )
    return verify_and_push(planned.checkpoint, result, publish, progress, planned.others)


def return_finished(
    planned: PlannedOutput, note: str, publish: PublishOptions, progress: Progress
) -> Expansion:
    """Return an output that is there already; what is to follow, a proof or an upload, is done.

    Raises: as `expand`.
    """
    result = Expansion(
        out=planned.out,
        source=planned.name,
        plan=planned.plan,
        moved=Moved(reused=planned.plan.nbytes),
        notes=(*planned.plan.notes, note),
    )
    return verify_and_push(planned.checkpoint, result, publish, progress, planned.others)


def verify_and_push(
    checkpoint: Checkpoint,
    result: Expansion,
    publish: PublishOptions,
    progress: Progress,
    others: Mapping[str, Checkpoint] | None = None,
) -> Expansion:
    """Prove and upload an output that is complete. Raises: as `expand`."""
    out = result.out
    if publish.verify is not None:
        from ..verification.output import verify_output

        try:
            verification = verify_output(checkpoint, result.source, out, progress, others)
            proof = None
            if publish.verify == "logits" and not verification.findings:
                proof = prove_logits(
                    checkpoint, out, verification, progress, own_code=publish.own_code
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{out} is complete, but not verified") from None
        if verification.findings:
            raise ProofError(
                f"{out}: {verification.findings[0]}; keep it if it was trained since; if not, "
                "expand into another folder"
            )
        result = replace(result, verification=verification, proof=proof)
        _note_in_card(out, verification, proof)
    if publish.push_to_hub is not None:
        from ..publishing.commit import find_copies
        from ..publishing.folder import push_folder
        from ..publishing.target import parse_push_target

        progress.stage(f"uploading to {publish.push_to_hub}")
        # What the source's repository holds too, the Hub can copy itself.
        repo, commit_id = result.source.repo, result.source.commit
        known: tuple[RepoSnapshot | None, tuple[ServerCopy, ...]] = None, ()
        if repo is not None and commit_id is not None and result.plan.recipe_text is None:
            known = find_copies(result.plan, repo, commit_id, publish.token, progress.tell)
        try:
            pushed = push_folder(
                out,
                parse_push_target(
                    publish.push_to_hub,
                    private=publish.private,
                    message=publish.commit_message,
                    create_pr=publish.create_pr,
                    token=publish.token,
                ),
                token=publish.token,
                show_progress=progress.is_shown,
                tell=progress.tell,
                copies=known[1],
                source=known[0],
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{out} is complete, but not uploaded") from None
        result = replace(result, pushed=pushed)
    return result


def _note_in_card(out: Path, verification: Verification, proof: LogitsProof | None) -> None:
    """Let the model card say what was compared."""
    card = (out / CARD_FILE).read_bytes()
    said = add_proof(
        card,
        tensors=verification.tensors,
        nbytes=verification.nbytes,
        tokens=None if proof is None else proof.tokens,
        dtype=None if proof is None else proof.dtype,
    )
    # Without room for it the card says less, and everything else is as it should be.
    with suppress(OSError):
        replace_document(out, CARD_FILE, said)


def _refuse_other_values(checkpoint: Checkpoint, folder: Path, verification: Verification) -> None:
    """Refuse logits of a source that transformers unpacks otherwise than its format says."""
    quantization = find_quantization(checkpoint.config, checkpoint.specs)
    if quantization is None or not verification.is_unpacked:
        return
    misread = find_misread(quantization)
    if misread is not None:
        raise NoProofError(
            f"{folder}: every value is as the format defines it, but transformers unpacks "
            f"{misread} otherwise, so that the source's logits prove nothing; leave --logits out"
        )


def prove_logits(
    checkpoint: Checkpoint,
    folder: Path,
    verification: Verification,
    progress: Progress,
    *,
    own_code: bool = False,
) -> LogitsProof:
    """Compare the logits of an output with its source's; `own_code` may be the source's, if it has.

    Raises: ProofError, RecipeError.
    """
    if verification.active:
        raise RecipeError(
            f"{folder}: its new blocks were trained, so its logits cannot be those of the source; "
            "leave --logits out"
        )
    if verification.keeps_function is False:
        raise RecipeError(
            f"{folder}: every byte is as its recipe says, which changes what the model "
            "computes: the logits cannot be those of the source; leave --logits out"
        )
    _refuse_other_values(checkpoint, folder, verification)
    progress.stage("comparing logits")
    from ..verification.logits import compare_logits
    from ..verification.own_code import compare_logits_with_own_code, has_own_code

    if own_code and has_own_code(checkpoint.config):
        return compare_logits_with_own_code(checkpoint, folder, verification.dtype)
    return compare_logits(checkpoint.root, folder, verification.dtype)
