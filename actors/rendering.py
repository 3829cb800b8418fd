"""The rendering: the loop that keeps renderers busy and commits what they make, scene after scene in order.

Renderers finish in any order; a scene waits in Ray's object store until all before it are there. So the data set has
the same rows in the same order for any number of renderers, and a killed run has left a beginning of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.cluster import HERE_DIED, here_is_alive
from actors.faults import one_line, start_error
from actors.renderer import Renderer, Task
from actors.rendering_outcome import Rendered
from actors.unasked import forget, lost
from actors.waiting import Waiting

if TYPE_CHECKING:
    from storage.clip_row import ClipRow

# Scenes begun or waiting for an earlier one, per renderer: bounds what the object store holds.
AHEAD = 4
# So many scenes in a row that cannot be rendered are not the scenes' fault; nor is it theirs when no renderer starts.
FAILURES_IN_A_ROW = 10
FAILED_STARTS = 3


class Rendering:
    """One run over a connected cluster. filming: what all tasks share. options: of every renderer, as Ray takes them.
    commit: appends rows to the data set, whole scenes in order, about `group` bytes at a time. notify: called with a
    line that the user should see."""

    def __init__(
        self,
        tasks: Sequence[Task],
        filming: Any,
        *,
        workers: int,
        options: dict[str, Any],
        commit: Callable[[list[ClipRow]], None],
        group: float,
        retries: int,
        state: Rendered,
        progress: Callable[[Rendered], None] = lambda state: None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.tasks = tasks
        self.filming = filming
        self.workers = workers
        self.options = options
        self.commit = commit
        self.group = group
        self.retries = retries
        self.state = state
        self.progress = progress
        self.state.left = len(tasks)
        self._renderers: dict[int, Any] = {}  # by number
        self._ready: set[int] = set()  # those that have started
        self._idle: list[int] = []
        self._waiting = Waiting("renderer", options, notify)
        self._started = 0
        self._failed_starts = 0
        self._in_a_row = 0
        self._pending: dict[Any, Callable[[Any], None]] = {}  # ref -> what to do when it is ready
        self._attempts = [0] * len(tasks)
        self._again: list[int] = []  # tasks whose renderer died
        self._next = 0  # task to begin
        self._first = 0  # task that everything after waits for
        self._finished: dict[int, Any] = {}  # refs of rows, or None for what was given up
        self._gathered: list[ClipRow] = []
        self._scenes = 0  # in _gathered

    def __call__(self) -> Rendered:
        """Run to the end. What was rendered in order is committed also where something stops it; raises what `commit`
        raises, and nothing more is committed then."""
        try:
            for _ in range(min(self.workers, len(self.tasks))):
                self._start_renderer()
            while self._first < len(self.tasks) and not self.state.stopped:
                self._begin()
                self._waiting.look()
                self.progress(self.state)
                # A second is only the heartbeat of the progress display; anything that ends wakes the loop at once.
                ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=1.0, fetch_local=False)
                for ref in ready:
                    self._pending.pop(ref)(ref)
                self._gather()
                if not ready and not here_is_alive():
                    self.state.stopped = HERE_DIED
        except KeyboardInterrupt:
            self.state.stopped = "interrupted"
        finally:
            for renderer in self._renderers.values():
                ray.kill(renderer)
        self._commit()
        self.progress(self.state)
        return self.state

    # ---- renderers

    def _start_renderer(self) -> None:
        number, self._started = self._started, self._started + 1
        if not self._ready:
            self._waiting.begin()
        renderer = ray.remote(Renderer).options(**self.options).remote(self.filming)
        self._renderers[number] = renderer
        self._pending[renderer.ready.remote()] = lambda ref: self._renderer_ready(number, ref)

    def _renderer_ready(self, number: int, ref: Any) -> None:
        try:
            ray.get(ref)
        except RayError as error:
            del self._renderers[number]
            self._failed_starts += 1
            if self._failed_starts < FAILED_STARTS:
                self._start_renderer()
            elif not self._renderers:
                self.state.stopped = f"no renderer could start: {start_error(error)}"
        else:
            self._failed_starts = 0
            self._waiting.end()
            self._ready.add(number)
            self._idle.append(number)

    def _replace(self, number: int) -> None:
        ray.kill(self._renderers.pop(number))
        self._ready.discard(number)
        self._start_renderer()

    def _drop_lost(self) -> None:
        """A node that takes a busy renderer with it takes idle ones too, whose next scene has no part in that."""
        for number in lost({number: self._renderers[number] for number in self._idle}):
            self._idle.remove(number)
            self._replace(number)

    # ---- scenes

    def _begin(self) -> None:
        while self._idle and (self._again or self._next < min(len(self.tasks), self._first + AHEAD * self.workers)):
            if self._again:
                index = min(self._again)
                self._again.remove(index)
            else:
                index, self._next = self._next, self._next + 1
            self._render(self._idle.pop(), index)

    def _render(self, number: int, index: int) -> None:
        self._attempts[index] += 1
        done, rows = self._renderers[number].render.options(num_returns=2).remote(self.tasks[index])
        self._pending[done] = lambda ref: self._ended(number, index, ref, rows)

    def _ended(self, number: int, index: int, done: Any, rows: Any) -> None:
        try:
            frames = ray.get(done)
        except RayTaskError as error:
            forget(rows)
            self._idle.append(number)
            self._give_up(index, one_line(error))
        except RayError:
            # Died, unavailable, out of memory, its node gone: whatever it was, this renderer is given up.
            forget(rows)
            self._replace(number)
            self._drop_lost()
            self._retry(index, "its renderer died {} times; give it more memory, or make the clips smaller")
        else:
            self._idle.append(number)
            self._in_a_row = 0
            self._finished[index] = rows
            self.state.rendered += 1
            self.state.frames += frames
            self.state.left -= 1

    def _retry(self, index: int, reason: str) -> None:
        if self._attempts[index] <= self.retries:
            self._again.append(index)
        else:
            self._give_up(index, reason.format(self._attempts[index]))

    def _give_up(self, index: int, reason: str) -> None:
        self._finished[index] = None
        self.state.lost[self.tasks[index].name] = reason
        self.state.left -= 1
        self._in_a_row += 1
        if self._in_a_row >= FAILURES_IN_A_ROW:
            self.state.stopped = f"{FAILURES_IN_A_ROW} scenes in a row could not be rendered, the last: {reason}"

    # ---- commits

    def _gather(self) -> None:
        """Fetch what is next in order, and commit when it is enough."""
        while self._first in self._finished:
            rows = self._finished.pop(self._first)
            if rows is not None:
                try:
                    self._gathered += ray.get(rows)
                except RayError:  # the node that kept it is gone
                    self.state.rendered -= 1
                    self.state.left += 1
                    self._retry(self._first, "its clips were lost {} times with the node that had rendered them")
                    continue
                self._scenes += 1
            self._first += 1
            if self._gathered and sum(row.nbytes for row in self._gathered) >= self.group:
                self._commit()

    def _commit(self) -> None:
        if self._gathered:
            self.commit(self._gathered)
            self.state.committed += self._scenes
            self._gathered, self._scenes = [], 0
