"""The run: the loop that keeps editors busy, and the only place that waits on Ray.

Every decision is the scheduler's. The loop starts what it assigns, tells it what happened, hands finished latents to
the Librarian (by reference: they never pass through this process) and committed turns to the Publisher.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from actors.cluster import HERE_DIED, Places, here_is_alive
from actors.editor import Editor
from actors.faults import blame, disk_is_full, one_line, start_error
from actors.librarian import Librarian
from actors.outcome import Outcome
from actors.publication import CompareVideo, TurnVideo
from actors.publisher import Publisher
from actors.scheduler import Assignment, Scheduler
from actors.setup import Setup
from actors.unasked import forget, lost
from actors.waiting import Waiting
from pipeline.edit import Edit
from storage.memory import LibraryError

# Seconds to wait for a Librarian that died: its process must start and load torch and Lance on a machine under load.
PATIENCE = 180.0
# How often a video is sent to a Publisher, and how often in a row editors may fail to start.
RESENDS = 3
FAILED_STARTS = 3


@dataclass
class SourceWork:
    """One source of a run: its chain, and what is published of it."""

    name: str
    ids: Sequence[str]
    costs: Sequence[float]
    committed: Collection[str]
    edit: Callable[[int], Edit]
    videos: Sequence[TurnVideo]  # one per turn
    compare: CompareVideo | None


@dataclass
class _Commit:
    assignment: Assignment
    memory: Any  # ObjectRef of the row, kept until it is acknowledged
    missed: float = 0.0  # when the Librarian was first found dead


@dataclass
class _Publication:
    source: str
    video: TurnVideo | CompareVideo
    sends: int = 1


class Run:
    """One run of a plan over a connected cluster.

    progress: called with the scheduler after every event. notify: with a line that the user should see.
    """

    def __init__(
        self,
        work: Sequence[SourceWork],
        scheduler: Scheduler,
        setup: Setup,
        places: Places,
        progress: Callable[[Scheduler], None] = lambda scheduler: None,
        notify: Callable[[str], None] = lambda line: None,
    ):
        self.work = {source.name: source for source in work}
        self.scheduler = scheduler
        self.setup = setup
        self.places = places
        self.progress = progress
        self.outcome = Outcome()
        self._editors: dict[str, Any] = {}
        self._started = 0
        self._first_commit: float | None = None
        self._failed_starts = 0
        self._waiting = Waiting("editor", places.editors, notify)
        self._pending: dict[Any, Callable[[Any], None]] = {}  # ref -> what to do when it is ready
        self._index = {id: index for source in work for index, id in enumerate(source.ids)}
        self._uncommitted = {
            (source.name, turn): set(video.ids) - set(source.committed)
            for source in work
            for turn, video in enumerate(source.videos)
        }
        self._to_publish: deque[_Publication] = deque()
        self._unpublished_turns = {source.name: len(source.videos) for source in work}
        self._publishing = False
        self._librarian = ray.remote(Librarian).options(**places.librarian).remote(**setup.library_place)
        self._publisher = self._start_publisher()

    def __call__(self) -> Outcome:
        """Run to the end. KeyboardInterrupt ends it early; what is committed stays."""
        began = time.monotonic()
        try:
            self._begin()
            self._loop()
        except KeyboardInterrupt:
            self.scheduler.stop("interrupted")
        finally:
            for actor in [*self._editors.values(), self._librarian, self._publisher]:
                ray.kill(actor)
        self.outcome.failed = self.scheduler.quarantined
        self.outcome.stopped = self.scheduler.stopped
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _begin(self) -> None:
        for source in self.work.values():
            self.scheduler.submit(source.name, source.ids, source.costs, source.committed)
        for source in self.work.values():
            for turn in range(len(source.videos)):
                self._publish_if_whole(source, turn)
        # A source has one edit in flight at most, so more editors than sources would only wait.
        for _ in range(min(self.places.workers, self.scheduler.sources.left)):
            self._start_editor()
        try:
            ray.get(self._librarian.ready.remote())
        except RayError as error:
            self.scheduler.stop(f"the library cannot be opened: {start_error(error)}")

    def _loop(self) -> None:
        while True:
            for assignment in self.scheduler.dispatch():
                self._start_edit(assignment)
            self._start_publication()
            self._replace_sick()
            self._look_around()
            self.progress(self.scheduler)
            if self.scheduler.finished and not self._publishing:
                return
            # A second is only the heartbeat of the progress display; anything that ends wakes the loop at once.
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=1.0, fetch_local=False)
            for ref in ready:
                self._pending.pop(ref)(ref)

    # ---- editors

    def _start_editor(self) -> None:
        name = f"editor-{self._started}"
        self._started += 1
        actor = ray.remote(Editor).options(**self.places.editors).remote(self.setup)
        self._editors[name] = actor
        self._pending[actor.ready.remote()] = lambda ref: self._editor_ready(name, ref)
        if not self.scheduler.healthy_workers:
            self._waiting.begin()

    def _editor_ready(self, name: str, ref: Any) -> None:
        try:
            ray.get(ref)
        except RayError as error:
            del self._editors[name]
            self._failed_starts += 1
            if self._failed_starts < FAILED_STARTS:
                self._start_editor()
            elif not self._editors:
                self.scheduler.stop(f"no editor could start: {start_error(error)}")
        else:
            self._failed_starts = 0
            self._waiting.end()
            self.scheduler.add_worker(name)

    def _replace(self, name: str) -> None:
        actor = self._editors.pop(name, None)
        if actor is not None:
            ray.kill(actor)
            self._start_editor()

    def _replace_sick(self) -> None:
        for name in self.scheduler.sick_workers:
            self.scheduler.remove_worker(name)
            self._replace(name)

    def _drop_lost(self) -> None:
        """A node that takes a busy editor with it takes idle ones too. An edit sent to one of those would be charged
        with a loss that it has no part in."""
        for name in lost({name: self._editors[name] for name in self.scheduler.idle_workers}):
            self.scheduler.remove_worker(name)
            self._replace(name)

    def _look_around(self) -> None:
        """An actor that no node has room for waits without a word of Ray's, and so does one whose node is gone."""
        if not self.scheduler.healthy_workers and not self.scheduler.stopped and not here_is_alive():
            self.scheduler.stop(HERE_DIED)
        self._waiting.look()

    # ---- edits

    def _start_edit(self, assignment: Assignment) -> None:
        edit = self.work[assignment.source].edit(self._index[assignment.edit])
        account, memory = self._editors[assignment.worker].edit.options(num_returns=2).remote(edit, assignment.attempt)
        self._pending[account] = lambda ref: self._edit_ended(assignment, ref, memory)

    def _edit_ended(self, assignment: Assignment, account: Any, memory: Any) -> None:
        try:
            ray.get(account)
        except RayTaskError as error:
            forget(memory)
            if disk_is_full(error):
                self.scheduler.stop(one_line(error))
            self.scheduler.failed(assignment, one_line(error), blame=blame(error))
        except RayError:
            # Died, unavailable, out of memory, its node gone: whatever it was, this editor is given up.
            forget(memory)
            self.scheduler.worker_lost(assignment.worker)
            self._replace(assignment.worker)
            self._drop_lost()
        else:
            self.scheduler.executed(assignment)
            self._send(_Commit(assignment, memory))

    def _send(self, commit: _Commit) -> None:
        self._pending[self._librarian.commit.remote(commit.memory)] = lambda ref: self._commit_ended(commit, ref)

    def _commit_ended(self, commit: _Commit, ref: Any) -> None:
        assignment = commit.assignment
        try:
            ray.get(ref)
        except RayActorError as error:
            # The Librarian restarts, and commits are idempotent: the same row is sent again. That it stays away is
            # nobody's fault among the sources, and without it nothing can be kept.
            commit.missed = commit.missed or time.monotonic()
            if time.monotonic() - commit.missed > PATIENCE or isinstance(error, ActorDiedError):
                self.scheduler.stop(f"the library cannot be written: {start_error(error)}")
                self.scheduler.commit_failed(assignment, start_error(error))
            else:
                self._send(commit)
        except RayError as error:
            if disk_is_full(error):
                self.scheduler.stop(one_line(error))
            self.scheduler.commit_failed(assignment, one_line(error))
        else:
            self.scheduler.committed(assignment)
            self.outcome.edits += 1
            self._first_commit = self._first_commit or time.monotonic()
            self.outcome.editing = time.monotonic() - self._first_commit
            source = self.work[assignment.source]
            turn = self._index[assignment.edit] * len(source.videos) // len(source.ids)
            self._uncommitted[source.name, turn].discard(assignment.edit)
            self._publish_if_whole(source, turn)

    # ---- publishing

    def _start_publisher(self) -> Any:
        return ray.remote(Publisher).options(**self.places.publisher).remote(self.setup)

    def _publish_if_whole(self, source: SourceWork, turn: int) -> None:
        if not self._uncommitted[source.name, turn]:
            self._to_publish.append(_Publication(source.name, source.videos[turn]))

    def _start_publication(self) -> None:
        if self._to_publish and not self._publishing:
            self._publishing = True
            publication = self._to_publish.popleft()
            video = publication.video
            method = self._publisher.publish if isinstance(video, TurnVideo) else self._publisher.compare
            self._pending[method.remote(video)] = lambda ref: self._publication_ended(publication, ref)

    def _publication_ended(self, publication: _Publication, ref: Any) -> None:
        self._publishing = False
        try:
            ray.get(ref)
        except RayError as error:
            raised = isinstance(error, RayTaskError)
            if not raised:
                self._publisher = self._start_publisher()
            if disk_is_full(error):
                self.scheduler.stop(one_line(error))
                self._to_publish.clear()
            elif publication.sends < RESENDS:
                publication.sends += 1
                self._to_publish.append(publication)
                return
            reason = one_line(error) if raised else start_error(error)
            if not isinstance(error, LibraryError):  # which says that edits are damaged or gone
                reason += " (the edits are kept: the same command publishes them again)"
            self.outcome.unpublished.append((publication.source, reason))
        else:
            if isinstance(publication.video, TurnVideo):
                self._unpublished_turns[publication.source] -= 1
                compare = self.work[publication.source].compare
                if compare is not None and not self._unpublished_turns[publication.source]:
                    self._to_publish.append(_Publication(publication.source, compare))
