"""Ways to show a run's progress on stderr: a bar, lines for a log, objects for a program.

Each counts what it is told, from any thread, and knows nothing of models.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from typing import Any

from ..messages import printable
from .text_sizes import format_duration, format_size

_LONGEST_LABEL = 34


class Reporter:
    """Shows nothing of what it counts but the lines that are told."""

    seconds = 30.0

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stage = self._counted = ""
        self._file = ""
        self._job = ""
        self._jobs = 0
        self._done = self._total = 0
        self._start = time.monotonic()

    def begin(self, what: str, nbytes: int) -> None:
        with self._lock:
            self._stage = self._counted = what
            self._done, self._total = 0, nbytes
            self._file = ""
            self._start = time.monotonic()
            self.on_begin()

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            self.on_advance(nbytes)

    def stage(self, what: str) -> None:
        with self._lock:
            self._stage, self._file = what, ""
            self.on_stage()

    def begin_file(self, name: str) -> None:
        with self._lock:
            self._file = name
            self.on_change()

    def end_file(self, name: str) -> None:
        with self._lock:
            self.on_file(name)

    def begin_job(self, name: str) -> None:
        with self._lock:
            self._job, self._stage = name, self._counted
            self.on_change()

    def end_job(self, name: str, state: str) -> None:
        with self._lock:
            self._jobs += 1
            self.on_job(name, state)

    def tell(self, line: str) -> None:
        with self._lock:
            self.on_line(printable(line))

    def tick(self) -> None:
        """Show that the run lives; called every `seconds`."""

    def close(self) -> None:
        """End what is shown."""

    def on_begin(self) -> None: ...

    def on_advance(self, nbytes: int) -> None: ...

    def on_stage(self) -> None: ...

    def on_change(self) -> None: ...

    def on_file(self, name: str) -> None: ...

    def on_job(self, name: str, state: str) -> None: ...

    def on_line(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Lines(Reporter):
    """A line for each stage, finished file and finished job, and every half minute."""

    def on_begin(self) -> None:
        self._print(f"{self._stage}: {format_size(self._total)}")

    def on_stage(self) -> None:
        self._print(self._stage)

    def on_file(self, name: str) -> None:
        job = f" {self._job}:" if self._job else ""
        self._print(f"{self._stage}:{job} {name} done, {self._count()}")

    def on_job(self, name: str, state: str) -> None:
        self._print(f"{name}: {state}")

    def tick(self) -> None:
        with self._lock:
            if not self._stage:
                return
            at = ", ".join(part for part in (self._job, self._file) if part)
            elapsed = time.monotonic() - self._start
            if not self._total or self._done >= self._total:
                self._print(
                    f"{self._stage}: at work for {format_duration(elapsed)}, {at}".rstrip(", ")
                )
                return
            rate = self._done / elapsed if elapsed > 0 else 0
            left = f", {format_duration((self._total - self._done) / rate)} left" if rate else ""
            text = f"{self._stage}: {self._count()}, {format_size(int(rate))}/s{left}, {at}"
            self._print(text.rstrip(", "))

    def _count(self) -> str:
        # Small files may come on top of what was counted before.
        done = min(self._done, self._total)
        share = f", {100 * done // self._total} %" if self._total else ""
        return f"{format_size(done)} of {format_size(self._total)}{share}"

    def _print(self, text: str) -> None:
        self.on_line(f"{time.strftime('%H:%M:%S')} {printable(text)}")


class Objects(Reporter):
    """A JSON object a line: what begins, how far it is once a second, what is finished."""

    seconds = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[str, int] | None = None

    def on_begin(self) -> None:
        self._write("begin", stage=self._stage, total_nbytes=self._total)

    def on_stage(self) -> None:
        self._write("stage", stage=self._stage)

    def on_file(self, name: str) -> None:
        self._write("file", stage=self._stage, file=name, **self._counts())

    def on_job(self, name: str, state: str) -> None:
        self._write("job", job=name, state=state)

    def on_line(self, line: str) -> None:
        self._write("message", message=line)

    def tick(self) -> None:
        with self._lock:
            if self._stage:
                self._write(
                    "progress",
                    stage=self._stage,
                    job=self._job or None,
                    file=self._file or None,
                    **self._counts(),
                )

    def _counts(self) -> dict[str, int]:
        return {"done_nbytes": self._done, "total_nbytes": self._total}

    def _write(self, event: str, **fields: object) -> None:
        record = {"event": event, "time": round(time.time(), 3), **fields}
        print(json.dumps(record), file=sys.stderr, flush=True)


class Bar(Reporter):
    """A bar on a terminal that names the stage, the job and the file; drawn by tqdm."""

    seconds = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._title = ""

    def on_begin(self) -> None:
        self._open(
            total=self._total,
            unit="B",
            unit_scale=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
        )

    def on_advance(self, nbytes: int) -> None:
        if self._bar is not None and self._bar.unit == "B":
            self._bar.update(nbytes)

    def on_stage(self) -> None:
        if self._bar is not None and self._bar.unit == "B" and self._done < self._total:
            self.on_change()
            return
        self._open(bar_format="{desc}: {elapsed}")

    def on_change(self) -> None:
        if self._bar is not None:
            self._bar.set_description_str(self._label())

    def on_line(self, line: str) -> None:
        from tqdm import tqdm

        # Above a bar that is shown.
        tqdm.write(line, file=sys.stderr)

    def on_job(self, name: str, state: str) -> None:
        self.on_line(printable(f"{name}: {state}"))

    def tick(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.refresh()

    def close(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.set_description_str(self._title)
                self._bar.close()
                self._bar = None

    def _open(self, **options: Any) -> None:
        from tqdm import tqdm

        self.close()
        self._title = self._stage
        self._bar = tqdm(desc=self._label(), file=sys.stderr, dynamic_ncols=True, **options)

    def _label(self) -> str:
        """Name what goes on, short enough to leave room for the bar."""
        file = re.sub(r"^.*-0*(\d+)-of-0*(\d+)\.safetensors$", r"\1/\2", self._file)
        words = [self._stage, *(_shorten(word) for word in (self._job, file) if word)]
        return printable(" ".join(words))


def _shorten(text: str) -> str:
    room = _LONGEST_LABEL // 2
    return text if len(text) <= room else f"…{text[1 - room :]}"
