"""How many bytes an upload of expansions sends, with the Hub's own Xet client and a local store.

    python scripts/measure_xet.py /data/source

The base is stored first, then each expansion of it: what Xet knows already is not sent again. The
store is a folder beside, removed at the end; nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import blockexpand

EXPANSIONS: dict[str, dict[str, Any]] = {
    "end": {"position": "end"},
    "interleaved": {"position": "interleaved"},
    "end, repacked": {"position": "end", "max_shard_size": "300MB"},
}


def main() -> None:
    """Print a table: the size of each output, and what its upload sends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="a checkpoint in the dtype that it shall keep")
    parser.add_argument("--new-layers", type=int, default=4)
    options = parser.parse_args()
    print("| upload | size | sent | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.source.parent) as work:
        store = Path(work) / "store"
        store.mkdir()
        show("the base", options.source, store)
        for name, arguments in EXPANSIONS.items():
            # Each beside the base alone, not beside the expansions before it.
            alone = Path(work) / "alone"
            shutil.copytree(store, alone)
            out = Path(work) / "out"
            blockexpand.expand(
                options.source, out, new_layers=options.new_layers, dtype="source", **arguments
            )
            show(name, out, alone)
            shutil.rmtree(out)
            shutil.rmtree(alone)


def show(name: str, folder: Path, store: Path) -> None:
    """Store a folder's weights and print a line of the table."""
    total, sent = upload(sorted(folder.glob("*.safetensors")), store)
    print(f"| {name} | {total / 1e6:,.1f} MB | {sent / 1e6:,.1f} MB | {sent / total:.1%} |")


def upload(files: list[Path], store: Path) -> tuple[int, int]:
    """Return the bytes of files, and how many of them a store takes that it has not."""
    import hf_xet

    session = hf_xet.XetSession()
    commit = session.new_upload_commit(endpoint=f"local://{store}")
    for file in files:
        commit.start_upload_file(str(file))
    metrics = commit.wait_to_finish().dedup_metrics
    return metrics.total_bytes, metrics.total_bytes_uploaded


if __name__ == "__main__":
    main()
