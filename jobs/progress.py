"""How far a run is: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any, TextIO

from actors.rendering_outcome import Rendered
from actors.scheduler import Scheduler

LIVE_EVERY, PLAIN_EVERY = 0.1, 15.0  # seconds between lines on a terminal and in a log


def duration(seconds: float) -> str:
    """`3725` → `1:02:05`; what is not known yet is `?`."""
    if not 0 <= seconds < 1e8:
        return "?"
    return str(timedelta(seconds=round(seconds)))


class Display:
    """A line that is drawn over and over on a terminal, and printed seldom elsewhere. A kind of it says the line."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.began = time.monotonic()
        self.next = self.began + (LIVE_EVERY if self.live else PLAIN_EVERY)  # when to say the next line

    def line(self, state: Any, now: float) -> str:
        raise NotImplementedError

    def __call__(self, state: Any) -> None:
        now = time.monotonic()
        if self.live:
            if now >= self.next:
                self.stream.write("\r\x1b[K" + self.line(state, now))
                self.stream.flush()
                # Of a hundred thousand sources a line takes as long to say as they wait between two.
                after = time.monotonic()
                self.next = after + max(LIVE_EVERY, 10 * (after - now))
        elif now >= self.next:
            self.next = now + PLAIN_EVERY
            print(self.line(state, now), file=self.stream, flush=True)

    def close(self, state: Any) -> None:
        """The last line, on a line of its own."""
        self.stream.write(("\r\x1b[K" if self.live else "") + self.line(state, time.monotonic()) + "\n")
        self.stream.flush()


class SceneProgress(Display):
    """How far a data set of scenes is; called with its state after every event."""

    def line(self, state: Rendered, now: float) -> str:
        elapsed = max(now - self.began, 1e-9)
        eta = elapsed / state.rendered * state.left if state.rendered else float("inf")
        return (
            f"{state.committed} scenes committed, {state.left} left, {state.failed} failed | "
            f"{state.frames / elapsed:.0f} frames/s | ETA {duration(eta)}"
        )


class Progress(Display):
    """Called with the scheduler after every event."""

    def __init__(self, stream: TextIO | None = None):
        super().__init__(stream)
        self.first: tuple[int, float] | None = None

    def __call__(self, scheduler: Scheduler) -> None:
        self._begin(scheduler)
        super().__call__(scheduler)

    def line(self, scheduler: Scheduler, now: float) -> str:
        edits, sources = scheduler.edits, scheduler.sources
        done, cost = self._begin(scheduler)
        made, cost = edits.done - done, cost - scheduler.remaining_cost
        elapsed = max(now - self.began, 1e-9)
        # Seconds per unit of cost and worker so far, times the workers' share of the rest or the longest chain.
        eta = elapsed / cost * scheduler.healthy_workers * scheduler.remaining_span if cost > 0 else float("inf")
        # A run may have no edit to make, and only publish again.
        pace = f" | {made / elapsed:.2f} edits/s | ETA {duration(eta)}" if made else ""
        return (
            f"{edits.done} edits done, {edits.left} left, {edits.failed} failed | "
            f"{sources.done}/{sources.done + sources.left + sources.failed} videos{pace}"
        )

    def _begin(self, scheduler: Scheduler) -> tuple[int, float]:
        """Edits done and cost left when the run began."""
        if self.first is None:
            self.first = scheduler.edits.done, scheduler.remaining_cost
        return self.first
