"""Measure what an expansion on the Hub fetches, sends and needs of the disk, against a local Hub.

    python scripts/measure_on_hub.py SOURCE --new-layers 2

SOURCE is a folder; the Hub is the one of the tests, on this machine, with the real client. It holds
the source and the output in memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


def main() -> None:
    from hub_server import HubServer, hub_environment

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--new-layers", default="2")
    parser.add_argument("--position", default="end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        hub.allow(TOKEN)
        hub.add_repo("org/name", options.source)
        hub.requests.clear()
        words = [
            "--src",
            "org/name",
            "--push-to-hub",
            "user/grown",
            "--on-hub",
            "--dtype",
            "source",
        ]
        words += ["--new-layers", options.new_layers, "--position", options.position]
        begun = time.monotonic()
        run = subprocess.Popen(
            [sys.executable, "-m", "blockexpand", *words],
            env=hub_environment(hub, Path(folder), HF_TOKEN=TOKEN),
        )
        most = [0]
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(Path(folder), most, ended))
        watcher.start()
        status = run.wait()
        ended.set()
        watcher.join()
        if status:
            raise SystemExit(status)
        fetched = sum(r.nbytes for r in hub.requests if r.method == "GET")
        puts = [r.path.rpartition("/")[2] for r in hub.requests if r.method == "PUT"]
        sent = sum(len(hub.uploads[digest]) for digest in puts)
        size = sum(len(data) for data in hub.files("user/grown").values())
        print(f"output {size:,} bytes, fetched {fetched:,}, sent {sent:,}")
        print(f"most disk at one time {most[0]:,} bytes, {time.monotonic() - begun:.0f} s")


def watch(folder: Path, most: list[int], ended: threading.Event) -> None:
    """Note the most that a folder's files ever take of the disk."""
    while not ended.wait(0.05):
        held = 0
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    held += (Path(root) / name).lstat().st_blocks * 512
                except OSError:
                    continue
        most[0] = max(most[0], held)


if __name__ == "__main__":
    main()
