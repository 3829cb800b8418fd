"""Which edit runs next, where, and what happens when it fails: a pure state machine without Ray, clock or I/O.

Every source is a chain of edits and each edit needs the one before it committed, so at most one edit of a source is
in flight. Among the sources that wait, the one with the most cost left goes first: the longest chain decides when the
run ends. Whatever happens, every source ends as done or quarantined, unless the failure budget stops the run.

    scheduler.submit("bikes", edits=["e1", "e2"], costs=[1.0, 1.0])
    scheduler.add_worker("gpu-0")
    [assignment] = scheduler.dispatch()
    scheduler.executed(assignment)      # the editor is free again, the commit is under way
    scheduler.committed(assignment)     # now "e2" may start

Delivery is at least once: a worker declared lost may still have committed its edit, and news of it may come late or
twice. Every event therefore carries its `Assignment`, and an assignment that has been superseded is recognised.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

Blame = Literal["source", "worker", "unknown"]

# An idle worker keeps its last source, whose frames and latents it still holds, while that chain is at least this
# share of the longest one waiting. At 1 equal chains would be dealt around and never run warm; at 0 a short chain
# would delay a long one, which then ends the run alone.
WARM_SHARE = 0.5


class SchedulerError(RuntimeError):
    """An event or submission that contradicts what the scheduler knows: a fault in the loop, not in a source."""


@dataclass(frozen=True)
class Assignment:
    """One execution of one edit on one worker. `attempt` counts this edit's executions from 1."""

    worker: str
    source: str
    edit: str
    attempt: int


@dataclass(frozen=True)
class Counts:
    """Edits, or sources: `done + left + failed` is their number; those in flight are among the ones left."""

    done: int
    left: int
    failed: int
    in_flight: int


class _Phase(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    COMMITTING = "committing"
    DONE = "done"
    QUARANTINED = "quarantined"


_IN_FLIGHT = (_Phase.RUNNING, _Phase.COMMITTING)
_ENDED = (_Phase.DONE, _Phase.QUARANTINED)


@dataclass(eq=False)
class _Chain:
    """One source: the edits still to commit, in order, and what its current edit has gone through."""

    source: str
    order: int
    edits: tuple[str, ...]
    remaining: tuple[float, ...]  # remaining[i]: cost of edits i and after; one longer than edits
    done_before: int
    position: int = 0
    ticket: int = 0  # only the heap entry with the latest ticket counts
    phase: _Phase = _Phase.WAITING
    current: Assignment | None = None  # the latest execution of the current edit
    warm_worker: str | None = None
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    failed_on: set[str] = field(default_factory=set)
    committed_meanwhile: bool = False  # an execution given up for lost committed after all, while another one runs

    @property
    def cost(self) -> float:
        return self.remaining[self.position]


@dataclass
class _Worker:
    name: str
    current: Assignment | None = None
    last_source: str | None = None
    failed_sources: set[str] = field(default_factory=set)  # since its last success
    sick: bool = False


class Scheduler:
    """Decides; the loop around it acts.

    `retries`: how often an edit that failed is tried again, on another worker where there is one.
    `failure_budget`: more quarantined sources than this stop the run; None never does.
    `breaker`: a worker that fails on this many different sources in a row is sick: no more work until it is replaced.
    `losses`: how many workers may die under one edit before the edit is taken for the cause. Apart from `retries`,
    because pre-empted machines are not a source's fault.
    """

    def __init__(self, retries: int = 2, failure_budget: int | None = None, breaker: int = 3, losses: int = 4) -> None:
        if min(retries, failure_budget or 0) < 0 or min(breaker, losses) < 1:
            raise SchedulerError(
                f"retries={retries} and failure_budget={failure_budget} must be 0 or more, "
                f"breaker={breaker} and losses={losses} at least 1"
            )
        self._retries = retries
        self._failure_budget = failure_budget
        self._breaker = breaker
        self._losses = losses
        self._chains: dict[str, _Chain] = {}
        self._owner: dict[str, str] = {}  # edit -> source
        self._workers: dict[str, _Worker] = {}
        self._idle: dict[str, None] = {}  # healthy idle workers, the longest idle first
        self._waiting: list[tuple[float, int, int]] = []  # heap of (-cost, order, ticket); stale entries are skipped
        self._by_order: list[_Chain] = []
        self._open = 0
        self._in_flight = 0
        self._quarantined: dict[str, str] = {}
        self._stopped: str | None = None

    # ---- what is to do, and who does it

    def submit(
        self, source: str, edits: Sequence[str], costs: Sequence[float], committed: Collection[str] = ()
    ) -> None:
        """Add a source with its whole chain, in order. Edits in `committed` are done already."""
        if source in self._chains:
            raise SchedulerError(f"source {source!r} is submitted twice; name every source once")
        if len(edits) != len(costs):
            raise SchedulerError(f"source {source!r} has {len(edits)} edits but {len(costs)} costs; one cost per edit")
        if bad := [cost for cost in costs if not (cost >= 0 and math.isfinite(cost))]:
            raise SchedulerError(f"source {source!r}: cost {bad[0]} found, a finite number >= 0 expected")
        if len(set(edits)) != len(edits):
            raise SchedulerError(f"source {source!r} lists an edit twice; the ids of a chain are all different")
        for edit in edits:
            if edit in self._owner:
                raise SchedulerError(
                    f"sources {self._owner[edit]!r} and {source!r} share edit {edit!r}: they hold the same video; "
                    "submit one of them"
                )
        todo = [(edit, cost) for edit, cost in zip(edits, costs, strict=True) if edit not in committed]
        remaining = [0.0]
        for _, cost in reversed(todo):
            remaining.append(remaining[-1] + cost)
        chain = _Chain(
            source=source,
            order=len(self._by_order),
            edits=tuple(edit for edit, _ in todo),
            remaining=tuple(reversed(remaining)),
            done_before=len(edits) - len(todo),
        )
        self._owner.update(dict.fromkeys(edits, source))
        self._chains[source] = chain
        self._by_order.append(chain)
        self._open += 1
        self._wait_or_end(chain)

    def add_worker(self, worker: str) -> None:
        """A worker that is ready for its first edit. Raises SchedulerError for a name that is there already."""
        if worker in self._workers:
            raise SchedulerError(f"worker {worker!r} is there already; remove it first or give the new one a new name")
        self._workers[worker] = _Worker(worker)
        self._idle[worker] = None

    def remove_worker(self, worker: str) -> None:
        """Take a worker away on purpose. An edit it was running waits again and is not charged with anything."""
        assignment = self._forget(worker)
        if assignment is not None:
            self._again_or_advance(self._chains[assignment.source])

    def worker_lost(self, worker: str) -> None:
        """The worker died. Its edit is tried again; one that takes too many workers with it is quarantined."""
        assignment = self._forget(worker)
        if assignment is not None:
            self._charge_loss(self._chains[assignment.source], f"worker {worker} died")

    def dispatch(self) -> list[Assignment]:
        """Give idle healthy workers their next edits. Same events in the same order, same assignments."""
        if self._stopped is not None:
            return []
        assignments = [self._start(chain, worker) for chain, worker in self._warm_pairs()]
        set_aside: list[_Chain] = []  # waiting chains that have failed on the idle workers looked at so far
        for worker in list(self._idle):
            chain = self._take(worker, set_aside)
            if chain is not None:
                assignments.append(self._start(chain, worker))
        for chain in set_aside:
            self._push(chain)
        return assignments

    # ---- what happened

    def executed(self, assignment: Assignment) -> None:
        """The worker is free again; the commit of what it made is under way."""
        worker = self._free(assignment)
        if worker is not None:
            worker.failed_sources.clear()
        chain = self._chains[assignment.source]
        if chain.current != assignment or chain.phase is not _Phase.RUNNING:
            return
        if chain.committed_meanwhile:
            self._advance(chain)
        else:
            chain.phase = _Phase.COMMITTING

    def committed(self, assignment: Assignment) -> None:
        """The edit is in the library. Counts also from an execution given up for lost; twice is once."""
        chain = self._chains[assignment.source]
        if chain.phase in _ENDED or chain.edits[chain.position] != assignment.edit:
            return
        if chain.phase is _Phase.RUNNING and chain.current != assignment:
            chain.committed_meanwhile = True  # the other execution still holds its worker: let it come to its end
            return
        if chain.phase is _Phase.RUNNING:
            self.executed(assignment)
        self._advance(chain)

    def failed(self, assignment: Assignment, error: str, *, blame: Blame = "unknown") -> None:
        """The execution raised. `source`: the input is bad, quarantined at once. `worker`: the worker is sick, the edit
        is tried elsewhere. `unknown`: charged to both, so that a bad source and a bad worker each show in time."""
        worker = self._free(assignment, sick=blame == "worker")
        chain = self._chains[assignment.source]
        if worker is not None and blame == "unknown":
            worker.failed_sources.add(assignment.source)
            if len(worker.failed_sources) >= self._breaker:
                self._declare_sick(worker)
        if chain.current != assignment or chain.phase is not _Phase.RUNNING:
            return
        if chain.committed_meanwhile:
            self._advance(chain)
        elif blame == "source":
            self._quarantine(chain, error)
        elif blame == "worker":
            self._charge_loss(chain, error)
        else:
            chain.failed_on.add(assignment.worker)
            self._charge_failure(chain, error)

    def commit_failed(self, assignment: Assignment, error: str) -> None:
        """The library refused this row. The edit is made again: its latent went with the execution."""
        chain = self._chains[assignment.source]
        if chain.current == assignment and chain.phase is _Phase.COMMITTING:
            self._charge_failure(chain, error)

    def stop(self, reason: str) -> None:
        """Dispatch nothing any more; what is in flight may still end. The first reason stays."""
        if self._stopped is None:
            self._stopped = reason

    # ---- views

    @property
    def finished(self) -> bool:
        """Nothing is left to wait for: every source has ended, or the run is stopped and nothing is in flight."""
        return self._open == 0 or (self._stopped is not None and self._in_flight == 0)

    @property
    def stopped(self) -> str | None:
        """Why no further edit is dispatched, or None."""
        return self._stopped

    @property
    def quarantined(self) -> dict[str, str]:
        """Source to reason, in the order in which they were given up."""
        return dict(self._quarantined)

    @property
    def sick_workers(self) -> list[str]:
        """Workers to replace: kill them, `remove_worker`, `add_worker`."""
        return [worker.name for worker in self._workers.values() if worker.sick]

    @property
    def idle_workers(self) -> list[str]:
        """Healthy workers that run nothing, the longest idle first."""
        return list(self._idle)

    @property
    def edits(self) -> Counts:
        """How many edits are done, left, given up with their source, and being made."""
        done = sum(chain.done_before + chain.position for chain in self._by_order)
        failed = sum(len(self._chains[source].edits) - self._chains[source].position for source in self._quarantined)
        left = sum(len(c.edits) - c.position for c in self._by_order) - failed
        return Counts(done, left, failed, self._in_flight)

    @property
    def sources(self) -> Counts:
        """How many sources are done, left and given up, and how many edits are being made."""
        failed = len(self._quarantined)
        return Counts(len(self._by_order) - self._open - failed, self._open, failed, self._in_flight)

    @property
    def remaining_cost(self) -> float:
        """Cost of all edits still to be made."""
        return math.fsum(chain.cost for chain in self._by_order if chain.phase not in _ENDED)

    @property
    def remaining_span(self) -> float:
        """Least cost until the end with the healthy workers there are: their share of the work, or the longest chain
        where that is more. Times the seconds a unit of cost takes, this is the time to go; inf without workers."""
        left = [chain.cost for chain in self._by_order if chain.phase not in _ENDED]
        if not left:
            return 0.0
        return max(math.fsum(left) / self.healthy_workers, *left) if self.healthy_workers else math.inf

    @property
    def healthy_workers(self) -> int:
        return sum(not worker.sick for worker in self._workers.values())

    # ---- inside

    def _warm_pairs(self) -> list[tuple[_Chain, str]]:
        """Idle workers whose last source waits and is long enough to go on with; each chain once."""
        longest = self._peek()
        pairs: dict[str, str] = {}
        for name in self._idle:
            source = self._workers[name].last_source
            chain = self._chains[source] if source is not None else None
            if longest is None or chain is None or chain.phase is not _Phase.WAITING:
                continue
            if chain.warm_worker == name and name not in chain.failed_on and chain.cost >= WARM_SHARE * longest.cost:
                pairs[chain.source] = name
        return [(self._chains[source], name) for source, name in pairs.items()]

    def _take(self, worker: str, set_aside: list[_Chain]) -> _Chain | None:
        """The longest waiting chain this worker may run: one that has failed here goes elsewhere while there is an
        elsewhere, and otherwise comes after all that have not, so that a sick worker shows before it ruins a source."""
        for index, chain in enumerate(set_aside):
            if worker not in chain.failed_on:
                return set_aside.pop(index)
        while (longest := self._peek()) is not None:
            heapq.heappop(self._waiting)
            if worker not in longest.failed_on:
                return longest
            set_aside.append(longest)
        if set_aside:
            healthy = {name for name, state in self._workers.items() if not state.sick}
            for index, chain in enumerate(set_aside):
                if healthy <= chain.failed_on:
                    return set_aside.pop(index)
        return None

    def _start(self, chain: _Chain, worker: str) -> Assignment:
        chain.attempts += 1
        assignment = Assignment(worker, chain.source, chain.edits[chain.position], chain.attempts)
        chain.phase = _Phase.RUNNING
        chain.current = assignment
        chain.warm_worker = worker
        state = self._workers[worker]
        state.current = assignment
        state.last_source = chain.source
        del self._idle[worker]
        self._in_flight += 1
        return assignment

    def _peek(self) -> _Chain | None:
        while self._waiting:
            _, order, ticket = self._waiting[0]
            chain = self._by_order[order]
            if chain.phase is _Phase.WAITING and chain.ticket == ticket:
                return chain
            heapq.heappop(self._waiting)
        return None

    def _push(self, chain: _Chain) -> None:
        chain.ticket += 1
        heapq.heappush(self._waiting, (-chain.cost, chain.order, chain.ticket))

    def _wait_or_end(self, chain: _Chain) -> None:
        if chain.position < len(chain.edits):
            chain.phase = _Phase.WAITING
            self._push(chain)
        else:
            chain.phase = _Phase.DONE
            self._open -= 1

    def _free(self, assignment: Assignment, *, sick: bool = False) -> _Worker | None:
        """The worker, idle again, if it still runs this assignment; None for late news."""
        worker = self._workers.get(assignment.worker)
        if worker is None or worker.current != assignment:
            return None
        worker.current = None
        if sick:
            self._declare_sick(worker)
        else:
            self._idle[worker.name] = None
        return worker

    def _declare_sick(self, worker: _Worker) -> None:
        worker.sick = True
        self._idle.pop(worker.name, None)

    def _forget(self, worker: str) -> Assignment | None:
        """Drop a worker and return the execution that went with it. Unknown workers too: death is reported twice."""
        state = self._workers.pop(worker, None)
        self._idle.pop(worker, None)
        return state.current if state is not None else None

    def _land(self, chain: _Chain) -> None:
        if chain.phase in _IN_FLIGHT:
            self._in_flight -= 1

    def _advance(self, chain: _Chain) -> None:
        self._land(chain)
        chain.position += 1
        chain.attempts = chain.failures = chain.losses = 0
        chain.failed_on.clear()
        chain.committed_meanwhile = False
        self._wait_or_end(chain)

    def _again_or_advance(self, chain: _Chain) -> None:
        if chain.committed_meanwhile:
            self._advance(chain)
        else:
            self._land(chain)
            self._wait_or_end(chain)

    def _charge_failure(self, chain: _Chain, error: str) -> None:
        chain.failures += 1
        if chain.failures > self._retries:
            self._quarantine(chain, f"edit {chain.edits[chain.position]} failed {chain.failures} times, last: {error}")
        else:
            self._again_or_advance(chain)

    def _charge_loss(self, chain: _Chain, error: str) -> None:
        chain.losses += 1
        if chain.losses >= self._losses and not chain.committed_meanwhile:
            edit = chain.edits[chain.position]
            self._quarantine(chain, f"edit {edit} took {chain.losses} workers with it, last: {error}")
        else:
            self._again_or_advance(chain)

    def _quarantine(self, chain: _Chain, reason: str) -> None:
        self._land(chain)
        chain.phase = _Phase.QUARANTINED
        self._open -= 1
        self._quarantined[chain.source] = reason
        if self._failure_budget is not None and len(self._quarantined) > self._failure_budget:
            self.stop(
                f"{len(self._quarantined)} sources failed, more than the failure budget of {self._failure_budget}; "
                f"last: {chain.source}: {reason}"
            )
