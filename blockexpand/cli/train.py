"""`blockexpand train`: the new blocks of an expansion on plain text. Its parser and its run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from ..errors import BlockExpandError, ProcessError, UsageError
from .arguments import add_output_options
from .console import print_outcome
from .parsing import Parser


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand train",
        usage="blockexpand train OUT --text FILE --out TRAINED [options]",
        description="Train the new blocks of an expansion on plain text, everything else frozen. "
        "The new blocks are held in float32, and stored in OUT's dtype; every other tensor of "
        "TRAINED is OUT's own, byte for byte, and card, licence and manifest come along. The last "
        "5 % of each text is held out: a line for each evaluation says the loss on it, and how far "
        "what closes each new block has moved from zero. A run that was stopped goes on where it "
        "was when the same command is given again. It needs accelerate (pip install accelerate).",
        epilog="examples:\n\n"
        "  blockexpand train ./expanded --text law.txt --out ./trained\n"
        "  blockexpand train ./expanded --text law.txt --replay general.txt \\\n"
        "      --out ./trained --extract ./law-blocks --base org/name\n"
        "  torchrun --nproc-per-node 8 -m blockexpand train ./expanded \\\n"
        "      --text law.txt --out ./trained --batch-size 64 --fsdp",
    )
    add = parser.add_argument
    add("model", metavar="OUT", help="the folder that blockexpand made")
    add(
        "--text",
        dest="texts",
        action="append",
        default=[],
        metavar="FILE",
        help="plain text, UTF-8; may be given several times",
    )
    add("--out", metavar="TRAINED", help="folder to create")
    add = parser.add_argument_group("how to train").add_argument
    add(
        "--replay",
        metavar="FILE",
        help="text of what the model should not forget: mixed in, and evaluated too",
    )
    add(
        "--replay-share",
        type=float,
        metavar="SHARE",
        help="part of each step's examples that is replayed (default 0.1; 0 only evaluates)",
    )
    add("--steps", type=int, metavar="N", help="default: one pass over the text")
    add(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="examples a step, over all processes (default 8)",
    )
    add(
        "--micro-batch",
        type=int,
        metavar="N",
        help="examples that a process takes at a time; fewer need less memory and change nothing "
        "else (default: all of a step's)",
    )
    add("--length", type=int, metavar="N", help="tokens an example (default 512)")
    add(
        "--learning-rate",
        type=float,
        default=2e-4,
        metavar="RATE",
        help="its peak: 6 %% of the steps warm up, then a cosine to 0 (default 2e-4)",
    )
    add(
        "--weight-decay",
        type=float,
        default=0.1,
        metavar="W",
        help="of matrices; norms and biases have none (default 0.1)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the order of examples (default 0)")
    add(
        "--gradient-checkpointing",
        action="store_true",
        help="compute activations twice instead of keeping them: less memory, a third more time",
    )
    add(
        "--fsdp",
        action="store_true",
        help="under torchrun or accelerate launch: share the model out over the processes (FSDP) "
        "instead of repeating it in each (DDP)",
    )
    add("--evaluate-every", type=int, metavar="N", help="steps (default: a tenth of all)")
    add(
        "--save-every",
        type=int,
        metavar="N",
        help="steps after which the state of the run is "
        "saved, beside TRAINED (default: a tenth of all)",
    )
    add = parser.add_argument_group("look before, share after").add_argument
    add(
        "--dry-run",
        action="store_true",
        help="print what would be done, with memory and disk, and write nothing; what the run "
        "would refuse before it loads the model is refused",
    )
    add(
        "--extract",
        metavar="DIR",
        help="then save the new blocks alone too, as a block adapter",
    )
    add(
        "--base",
        help="with --extract: the model that was expanded (default: the Hub's repository that OUT "
        "names)",
    )
    add("--push-to-hub", metavar="REPO", help="then upload TRAINED to the model repository REPO")
    add("--private", action="store_true", help="with --push-to-hub: make a new REPO private")
    add("--token", help="token for the Hub; HF_TOKEN and `hf auth login` work too")
    add_output_options(parser, verbose="print every evaluation in the result too", progress=True)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    # Under a launcher every process runs this; one of them speaks, and each of its own end.
    if os.environ.get("RANK", "0") == "0":
        return _run(options)
    options.quiet, options.json = True, False
    try:
        return _run(options)
    except ProcessError:
        raise
    except BlockExpandError as error:
        return error.status


def _run(options: argparse.Namespace) -> int:
    if options.out is None or not options.texts:
        missing = [
            name for name, value in (("--text", options.texts), ("--out", options.out)) if not value
        ]
        raise UsageError(f"{' and '.join(missing)} missing; see `blockexpand train --help`")
    if options.private and options.push_to_hub is None:
        raise UsageError("--private needs --push-to-hub REPO")
    if options.replay_share is not None and options.replay is None:
        raise UsageError("--replay-share needs --replay FILE")
    from ..api.training import train
    from ..api.training_plan import plan_training
    from . import text_training
    from .reporting import reporting

    arguments: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            "texts",
            "replay",
            "steps",
            "batch_size",
            "micro_batch",
            "length",
            "learning_rate",
            "weight_decay",
            "seed",
            "gradient_checkpointing",
            "fsdp",
            "evaluate_every",
            "save_every",
            "base",
            "push_to_hub",
            "token",
        )
    }
    arguments["extract_to"] = options.extract
    if options.replay_share is not None:
        arguments["replay_share"] = options.replay_share
    if options.dry_run:
        with reporting(options) as progress:
            progress.stage("reading the text")
            plan = plan_training(options.model, options.out, **arguments)
        print_outcome(options, text_training.plan_as_json, text_training.describe_plan, plan)
        return 0
    with reporting(options) as progress:
        progress.stage("reading the text")
        result = train(
            options.model,
            options.out,
            **arguments,
            private=options.private,
            progress=progress,
            told=lambda evaluation: progress.tell(text_training.describe_evaluation(evaluation)),
        )
    print_outcome(options, text_training.trained_as_json, text_training.describe_trained, result)
    return 0
