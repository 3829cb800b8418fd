"""Waiting for actors to start: one that no node has room for waits without a word of Ray's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

# Seconds without any of them after which the user is told what is being waited for.
SILENCE = 60.0


class Waiting:
    """what: their name in words. asked: the options that each is started with. notify: called with a line that the user
    should see, once for every time that none is there for long."""

    def __init__(self, what: str, asked: Mapping[str, Any], notify: Callable[[str], None]) -> None:
        self.what, self.asked, self.notify = what, asked, notify
        self._since: float | None = None

    def begin(self) -> None:
        """Some were asked for and none is there."""
        if self._since is None:
            self._since = time.monotonic()

    def end(self) -> None:
        """One has started."""
        self._since = None

    def look(self) -> None:
        """To be called now and then."""
        if self._since is not None and time.monotonic() - self._since > SILENCE:
            self._since = None
            free = ray.available_resources()
            self.notify(
                f"no {self.what} has started in {SILENCE:.0f} s: each asks for {self.asked.get('num_cpus', 0):g} CPUs "
                f"and {self.asked.get('num_gpus', 0):g} GPUs on one node, free in all are {free.get('CPU', 0):g} and "
                f"{free.get('GPU', 0):g}; still waiting"
            )
