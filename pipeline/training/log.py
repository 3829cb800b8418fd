"""The log of a training: one JSON object per line, readable while it grows."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

EVERY = 20  # steps whose mean makes a line


class Log:
    """Written by one process. A resumed training first drops the lines of the steps that it will take again."""

    def __init__(self, path: Path, step: int, report: Callable[[dict[str, Any]], None] = lambda figures: None) -> None:
        self.path, self.report = path, report
        self.sums: dict[str, float] = {}
        self.count = self.targets = 0
        self.began = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not step:
            path.unlink()
        if path.exists():
            kept = [line for line in _lines(path) if json.loads(line).get("step", 0) <= step]
            part = path.with_suffix(".part")
            part.write_text("".join(kept))
            part.replace(path)  # whole at any moment, also for who follows it

    def step(self, step: int, targets: int, figures: dict[str, float], last: bool = False) -> None:
        """Figures of one step, of which means are written now and then, and after the last."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.targets += targets
        if self.count == EVERY or last:
            seconds = time.monotonic() - self.began
            means = {name: value / self.count for name, value in self.sums.items()}
            rates = {"targets_per_s": self.targets / seconds, "seconds_per_step": seconds / self.count}
            self.write({"step": step, **means, **rates})
            self.sums, self.count, self.targets, self.began = {}, 0, 0, time.monotonic()

    def write(self, figures: dict[str, Any]) -> None:
        """One line."""
        line = {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.report(line)

    def paused(self, seconds: float) -> None:
        """Leave out of the rate what was spent on something else than steps."""
        self.began += seconds


def follow(path: Path, report: Callable[[dict[str, Any]], None], ended: threading.Event, every: float = 0.5) -> None:
    """Call `report` with every line that is added from now on, until `ended`. A training that is begun again drops
    lines: what it puts in their place is added, and what it keeps is not."""
    told, over = _lines(path), False
    while not over:
        over = ended.wait(every)
        there = _lines(path)
        alike = (old == new for old, new in zip(told, there, strict=False))
        for line in there[sum(takewhile(bool, alike)) :]:
            report(json.loads(line))
        told = there


def _lines(path: Path) -> list[str]:
    """Those that are there to their end."""
    try:
        return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []
