"""`blockexpand rank`: which layers matter least on a text. Its parser and its run."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BlockExpandError, OutputError
from .arguments import add_hub_options, add_output_options, whole_number
from .console import note_unused_options, print_outcome
from .parsing import Parser
from .reporting import reporting


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand rank",
        usage="blockexpand rank SRC TEXT [options]",
        description="Tell which layers of a model matter least on a text: how little each changes "
        "what passes through it (block influence, ShortGPT, arXiv 2403.03853) and how far the loss "
        "rises without it. Prints the command that puts a new block behind each of the least "
        "critical ones. It is one way to choose a place, never a default: in our own measurement "
        "(docs/training.md) blocks there forgot less and learned less. One layer is in memory at a "
        "time, in float32, beside the embeddings; a model that is quantized, or whose experts "
        "transformers merges, is loaded whole.",
        epilog="examples:\n"
        "  blockexpand rank ./model general.txt\n"
        "  blockexpand rank org/name general.txt --new-layers 8 --tokens 16384",
    )
    parser.add_argument("src", metavar="SRC", help="a folder or a Hub repository")
    parser.add_argument("text", metavar="TEXT", help="plain text, UTF-8")
    parser.add_argument(
        "--new-layers",
        type=whole_number,
        metavar="N",
        help="how many layers to name (default: one for every four)",
    )
    parser.add_argument(
        "--tokens",
        type=whole_number,
        default=2048,
        metavar="N",
        help="how much of the text is run (default 2048)",
    )
    parser.add_argument(
        "--save",
        metavar="FILE",
        help="write the scores there, as --json prints them; the command that is printed then has "
        "--position @FILE, which puts them into the manifest of the expansion",
    )
    add_hub_options(parser)
    add_output_options(parser, progress=True)
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    note_unused_options(options, options.src)
    from ..api.ranking import rank

    saved = None if options.save is None else _check_saved(options.save)
    with reporting(options) as progress:
        found = rank(
            options.src,
            options.text,
            new_layers=options.new_layers,
            tokens=options.tokens,
            revision=options.revision,
            token=options.token,
            cache_dir=options.cache_dir,
            progress=progress,
        )
    content = _as_json(found, options.save)
    if saved is not None:
        _save(saved, content)
    print_outcome(
        options,
        lambda _: content,
        lambda found, verbose: _describe(found, content["command"]),
        found,
    )
    return 0


def _check_saved(file: str) -> Path:
    """Refuse, before the model is run, a file that is none of ours. Raises: OutputError."""
    from ..formats.json_object import MOST_JSON_NBYTES
    from ..fs.paths import expand_home
    from ..planning.ranks import parse_ranks

    path = expand_home(file)
    if not path.parent.is_dir():
        raise OutputError(f"{file}: there is no folder {path.parent}")
    if path.exists():
        try:
            with path.open("rb") as stream:
                parse_ranks(stream.read(MOST_JSON_NBYTES), file)
        except (BlockExpandError, OSError):
            raise OutputError(
                f"{file}: exists and is no ranking by blockexpand; give another name"
            ) from None
    return path


def _save(path: Path, content: dict[str, Any]) -> None:
    """Write the scores. Raises: OutputError."""
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _command(found: Any, saved: str | None) -> str:
    position = ",".join(map(str, found.least)) if saved is None else f"@{saved}"
    return shlex.join(["blockexpand", "--src", found.name, "--out", "OUT", "--position", position])


def _describe(found: Any, command: str) -> str:
    from .text_batch import make_table

    rows = [
        (
            f"{score.layer}{'*' if score.layer in found.least else ''}",
            f"{score.influence:.4f}",
            f"{score.loss_rise:+.4f}",
        )
        for score in sorted(found.scores, key=lambda score: score.influence)
    ]
    return "\n".join(
        [
            f"{found.name}: {len(found.scores)} layers on {found.tokens:,} tokens of {found.text}, "
            f"loss {found.loss:.4f} in {found.dtype} "
            f"({found.memory_nbytes / 1e9:.2g} GB of weights at a time)",
            "",
            *make_table(("layer", "influence", "loss without it"), rows),
            "",
            f"* the {len(found.least)} least critical by influence; a new block behind each:",
            f"  {command}",
        ]
    )


def _as_json(found: Any, saved: str | None) -> dict[str, Any]:
    return {
        "source": found.name,
        "method": "block influence (arXiv 2403.03853)",
        "text": {"name": found.text, "sha256": found.text_sha256, "tokens": found.tokens},
        "dtype": found.dtype,
        "memory_nbytes": found.memory_nbytes,
        "loss": found.loss,
        "scores": [
            {"layer": s.layer, "influence": s.influence, "loss_rise": s.loss_rise}
            for s in found.scores
        ],
        "least_critical": list(found.least),
        "command": _command(found, saved),
    }
