from __future__ import annotations

import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.scheduler import Assignment, Counts, Scheduler, SchedulerError


def run_to_the_end(scheduler: Scheduler) -> list[Assignment]:
    """Every execution succeeds and commits at once; returns the order of execution."""
    order = []
    while not scheduler.finished:
        round_ = scheduler.dispatch()
        assert round_, "the scheduler waits for nothing"
        for assignment in round_:
            scheduler.executed(assignment)
            scheduler.committed(assignment)
        order += round_
    return order


def scheduler_with(workers: int, **chains: int) -> Scheduler:
    scheduler = Scheduler()
    for source, length in chains.items():
        scheduler.submit(source, [f"{source}{i}" for i in range(length)], [1.0] * length)
    for worker in range(workers):
        scheduler.add_worker(f"w{worker}")
    return scheduler


def test_the_edits_of_a_source_run_in_order_each_after_its_parents_commit():
    scheduler = scheduler_with(1, a=3)
    [first] = scheduler.dispatch()
    assert first == Assignment("w0", "a", "a0", 1)
    assert scheduler.dispatch() == []
    scheduler.executed(first)
    assert scheduler.dispatch() == [], "the worker is free but the parent is not committed"
    scheduler.committed(first)
    assert [x.edit for x in run_to_the_end(scheduler)] == ["a1", "a2"]


def test_the_source_with_the_most_cost_left_goes_first_and_equals_in_the_order_of_submission():
    scheduler = Scheduler()
    scheduler.submit("short", ["s0", "s1"], [1, 1])
    scheduler.submit("dear", ["d0"], [5])
    scheduler.submit("other", ["o0", "o1"], [1, 1])
    scheduler.add_worker("w")
    assert [x.edit for x in run_to_the_end(scheduler)] == ["d0", "s0", "s1", "o0", "o1"]


def test_a_worker_keeps_its_source_until_that_chain_is_half_the_longest_waiting():
    scheduler = scheduler_with(1, a=4, b=4)
    assert [x.edit for x in run_to_the_end(scheduler)] == ["a0", "a1", "a2", "b0", "b1", "b2", "b3", "a3"]


def test_each_worker_goes_on_with_its_own_source():
    scheduler = scheduler_with(2, a=3, b=3)
    ran = run_to_the_end(scheduler)
    assert {(x.worker, x.source) for x in ran} == {("w0", "a"), ("w1", "b")}


def test_committed_edits_are_skipped_and_a_source_with_nothing_left_is_done_at_once():
    scheduler = Scheduler()
    scheduler.submit("a", ["a0", "a1", "a2"], [1, 1, 1], committed={"a0", "a1", "unrelated"})
    scheduler.submit("b", ["b0"], [1], committed={"b0"})
    scheduler.submit("c", [], [])
    assert scheduler.sources == Counts(done=2, left=1, failed=0, in_flight=0)
    assert scheduler.edits == Counts(done=3, left=1, failed=0, in_flight=0)
    scheduler.add_worker("w")
    assert [x.edit for x in run_to_the_end(scheduler)] == ["a2"]
    assert scheduler.sources.done == 3


def test_the_next_worker_takes_a_source_whose_worker_is_busy_elsewhere():
    scheduler = scheduler_with(1, a=2)
    [first] = scheduler.dispatch()
    scheduler.executed(first)
    scheduler.remove_worker("w0")
    scheduler.add_worker("w1")
    scheduler.committed(first)
    assert scheduler.dispatch() == [Assignment("w1", "a", "a1", 1)]


def test_a_failed_edit_is_retried_on_another_worker_and_waits_for_one_that_is_busy():
    scheduler = scheduler_with(2, a=2, b=1)
    on_a, on_b = scheduler.dispatch()
    scheduler.failed(on_a, "boom")
    assert scheduler.dispatch() == [], "w1 is healthy but busy: worth waiting for"
    scheduler.executed(on_b)
    assert scheduler.dispatch() == [Assignment("w1", "a", "a0", 2)]


def test_a_failed_edit_is_retried_on_the_same_worker_where_there_is_no_other():
    scheduler = scheduler_with(1, a=1)
    [first] = scheduler.dispatch()
    scheduler.failed(first, "boom")
    assert scheduler.dispatch() == [Assignment("w0", "a", "a0", 2)]


def test_an_edit_that_fails_more_often_than_the_retries_quarantines_its_source_with_the_last_error():
    scheduler = scheduler_with(1, a=2)
    for attempt in (1, 2, 3):
        [assignment] = scheduler.dispatch()
        assert assignment.attempt == attempt
        scheduler.failed(assignment, f"boom {attempt}")
    assert scheduler.finished
    assert scheduler.quarantined == {"a": "edit a0 failed 3 times, last: boom 3"}
    assert scheduler.edits == Counts(done=0, left=0, failed=2, in_flight=0)


def test_a_commit_resets_what_the_next_edit_may_fail():
    scheduler = scheduler_with(1, a=2)
    for edit in ("a0", "a1"):
        for _ in range(2):
            [assignment] = scheduler.dispatch()
            assert assignment.edit == edit
            scheduler.failed(assignment, "boom")
        [assignment] = scheduler.dispatch()
        scheduler.executed(assignment)
        scheduler.committed(assignment)
    assert scheduler.sources.done == 1


def test_bad_input_quarantines_at_once_and_is_not_held_against_the_worker():
    scheduler = Scheduler(breaker=1)
    scheduler.submit("a", ["a0"], [1])
    scheduler.add_worker("w")
    [assignment] = scheduler.dispatch()
    scheduler.failed(assignment, "truncated video", blame="source")
    assert scheduler.quarantined == {"a": "truncated video"}
    assert scheduler.sick_workers == []


def test_a_row_that_the_library_refuses_is_made_again_and_in_the_end_quarantined():
    scheduler = scheduler_with(1, a=1)
    for _ in range(3):
        [assignment] = scheduler.dispatch()
        scheduler.executed(assignment)
        scheduler.commit_failed(assignment, "bad row")
    assert "failed 3 times, last: bad row" in scheduler.quarantined["a"]


def test_a_worker_that_fails_on_three_sources_in_a_row_is_sick_before_it_has_ruined_one():
    scheduler = scheduler_with(1, a=2, b=2, c=2)
    for source in "abc":
        [assignment] = scheduler.dispatch()
        assert assignment.source == source
        scheduler.failed(assignment, "CUDA error")
    assert scheduler.sick_workers == ["w0"]
    assert scheduler.dispatch() == []
    assert scheduler.quarantined == {}
    scheduler.remove_worker("w0")
    scheduler.add_worker("w1")
    run_to_the_end(scheduler)
    assert scheduler.sources.done == 3


def test_a_success_in_between_clears_a_worker():
    scheduler = scheduler_with(1, a=3, b=3, c=3)
    for outcome in ("fail", "fail", "succeed", "fail", "fail"):
        [assignment] = scheduler.dispatch()
        if outcome == "fail":
            scheduler.failed(assignment, "boom")
        else:
            scheduler.executed(assignment)
            scheduler.committed(assignment)
    assert scheduler.sick_workers == []


def test_a_failure_that_is_the_workers_makes_it_sick_at_once_and_costs_the_source_no_retry():
    scheduler = Scheduler(retries=0)
    scheduler.submit("a", ["a0"], [1])
    scheduler.add_worker("w0")
    [assignment] = scheduler.dispatch()
    scheduler.failed(assignment, "device lost", blame="worker")
    assert scheduler.sick_workers == ["w0"]
    scheduler.remove_worker("w0")
    scheduler.add_worker("w1")
    assert scheduler.dispatch() == [Assignment("w1", "a", "a0", 2)]


def test_a_lost_workers_edit_runs_elsewhere_but_an_edit_that_kills_every_worker_is_quarantined():
    scheduler = Scheduler(losses=3)
    scheduler.submit("poison", ["p0"], [1])
    for life in range(3):
        scheduler.add_worker(f"w{life}")
        [assignment] = scheduler.dispatch()
        scheduler.worker_lost(assignment.worker)
        scheduler.worker_lost(assignment.worker)  # Ray reports a death more than once
    assert scheduler.quarantined == {"poison": "edit p0 took 3 workers with it, last: worker w2 died"}
    assert scheduler.finished


def test_a_worker_removed_on_purpose_costs_its_edit_nothing():
    scheduler = Scheduler(retries=0, losses=1)
    scheduler.submit("a", ["a0"], [1])
    scheduler.add_worker("w0")
    scheduler.dispatch()
    scheduler.remove_worker("w0")
    scheduler.add_worker("w1")
    run_to_the_end(scheduler)
    assert scheduler.sources.done == 1


def test_a_commit_that_outlives_its_worker_counts_and_the_edit_does_not_run_again():
    scheduler = scheduler_with(1, a=2)
    [first] = scheduler.dispatch()
    scheduler.worker_lost("w0")
    scheduler.committed(first)
    scheduler.add_worker("w1")
    assert scheduler.dispatch() == [Assignment("w1", "a", "a1", 1)]


def test_a_late_commit_lets_the_running_retry_come_to_its_end_before_the_next_edit():
    scheduler = scheduler_with(2, a=2)
    [first] = scheduler.dispatch()
    scheduler.worker_lost(first.worker)
    [retry] = scheduler.dispatch()
    scheduler.committed(first)
    scheduler.add_worker("w2")
    assert scheduler.dispatch() == []
    scheduler.failed(retry, "boom")  # of no importance any more
    [second] = scheduler.dispatch()
    assert second.edit == "a1" and scheduler.quarantined == {}
    scheduler.executed(second)
    assert scheduler.sources.done == 0, "the commit of the second edit is still to come"


def test_late_news_of_a_lost_execution_does_not_disturb_the_one_that_replaced_it():
    scheduler = scheduler_with(2, a=1)
    [first] = scheduler.dispatch()
    scheduler.worker_lost(first.worker)
    [retry] = scheduler.dispatch()
    scheduler.executed(first)
    scheduler.failed(first, "late")
    scheduler.commit_failed(first, "late")
    assert scheduler.edits.in_flight == 1 and scheduler.dispatch() == []
    scheduler.executed(retry)
    scheduler.committed(retry)
    assert scheduler.finished


def test_a_source_that_went_on_warm_and_failed_is_not_dispatched_twice():
    scheduler = scheduler_with(1, a=4, b=5)
    scheduler.submit("c", ["c0"], [9])
    [on_c] = scheduler.dispatch()
    scheduler.add_worker("w1")
    [on_b] = scheduler.dispatch()
    scheduler.executed(on_b)
    scheduler.committed(on_b)
    [warm] = scheduler.dispatch()  # past b's place in the queue, where an entry of it stays behind
    assert warm.edit == "b1"
    scheduler.failed(warm, "boom")
    [on_a] = scheduler.dispatch()
    assert on_a.source == "a"
    scheduler.executed(on_c)
    scheduler.committed(on_c)
    scheduler.failed(on_a, "boom")
    for worker in ("w2", "w3"):
        scheduler.add_worker(worker)
    assert sorted(x.source for x in scheduler.dispatch()) == ["a", "b"]


def test_news_told_twice_neither_frees_a_busy_worker_nor_fails_a_later_commit():
    scheduler = scheduler_with(1, a=3, b=1)
    [first] = scheduler.dispatch()
    scheduler.executed(first)
    scheduler.committed(first)
    [second] = scheduler.dispatch()
    scheduler.executed(first)
    scheduler.failed(first, "again")
    assert scheduler.dispatch() == [], "w0 is at work on the second edit"
    scheduler.executed(second)
    scheduler.commit_failed(first, "again")
    assert scheduler.edits.in_flight == 1, "the commit of the second edit is under way"
    scheduler.committed(second)
    assert scheduler.edits == Counts(done=2, left=2, failed=0, in_flight=0)


def test_more_failed_sources_than_the_budget_stop_the_run_and_what_is_in_flight_still_ends():
    scheduler = Scheduler(failure_budget=1)
    for source in "abcd":
        scheduler.submit(source, [f"{source}0"], [1])
    for worker in ("w0", "w1", "w2"):
        scheduler.add_worker(worker)
    on_a, on_b, on_c = scheduler.dispatch()
    scheduler.failed(on_a, "bad", blame="source")
    assert scheduler.stopped is None
    scheduler.failed(on_b, "bad", blame="source")
    assert scheduler.stopped is not None and "failure budget of 1" in scheduler.stopped
    assert not scheduler.finished, "c is in flight"
    assert scheduler.dispatch() == []
    scheduler.executed(on_c)
    scheduler.committed(on_c)
    assert scheduler.finished
    assert scheduler.sources == Counts(done=1, left=1, failed=2, in_flight=0)


def test_the_span_left_is_the_longest_chain_or_the_workers_share_whichever_is_more():
    scheduler = scheduler_with(0, a=6, b=2, c=1)
    assert scheduler.remaining_span == float("inf")
    scheduler.add_worker("w0")
    assert scheduler.remaining_span == scheduler.remaining_cost == 9.0
    for worker in range(1, 8):
        scheduler.add_worker(f"w{worker}")
    assert scheduler.remaining_span == 6.0
    run_to_the_end(scheduler)
    assert scheduler.remaining_span == 0.0


@pytest.mark.parametrize(
    ("submission", "says"),
    [
        (("a", ["x"], [1.0]), "submitted twice"),
        (("b", ["x"], []), "1 edits but 0 costs"),
        (("b", ["x"], [float("nan")]), "finite number >= 0"),
        (("b", ["x", "x"], [1.0, 1.0]), "lists an edit twice"),
        (("b", ["a0"], [1.0]), "share edit 'a0'"),
    ],
)
def test_a_submission_that_makes_no_sense_is_refused_by_name(submission, says):
    scheduler = scheduler_with(0, a=1)
    with pytest.raises(SchedulerError, match=says):
        scheduler.submit(*submission)


def test_ten_thousand_sources_are_scheduled_in_seconds():
    scheduler = Scheduler()
    for source in range(10_000):
        length = 1 + source % 4
        scheduler.submit(f"s{source}", [f"{source}-{i}" for i in range(length)], [1.0] * length)
    for worker in range(64):
        scheduler.add_worker(f"w{worker}")
    start = time.process_time()
    assert len(run_to_the_end(scheduler)) == 25_000
    assert time.process_time() - start < 5


class AnyWeather(RuleBasedStateMachine):
    """The scheduler against a small model of the world, in which executions fail, workers die, commits outlive them,
    news comes late or twice, and the whole run restarts from what the library holds."""

    @initialize(
        chains=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=5),
        workers=st.integers(1, 3),
    )
    def a_run(self, chains, workers):
        self.chains = {f"s{i}": [f"s{i}e{j}" for j in range(len(costs))] for i, costs in enumerate(chains)}
        self.costs = {f"s{i}": costs for i, costs in enumerate(chains)}
        self.library: list[str] = []  # what is committed, in order; the Librarian makes it a set
        self.next_worker = 0
        self.start(workers)

    def start(self, workers: int) -> None:
        self.scheduler = Scheduler(retries=2, breaker=2, losses=3)
        for source, edits in self.chains.items():
            self.scheduler.submit(source, edits, self.costs[source], committed=set(self.library))
        self.acknowledged = set(self.library)
        self.executing: dict[str, Assignment] = {}  # worker -> what it runs
        self.committing: list[Assignment] = []
        self.orphans: list[Assignment] = []  # of dead workers: their commit may have got through
        self.past: list[Assignment] = []  # nothing new can be said about them
        self.workers: set[str] = set()
        for _ in range(workers):
            self.add_worker()

    def add_worker(self) -> None:
        name = f"w{self.next_worker}"
        self.next_worker += 1
        self.scheduler.add_worker(name)
        self.workers.add(name)

    def commit(self, assignment: Assignment) -> None:
        if assignment.edit not in self.library:
            self.library.append(assignment.edit)
        self.acknowledged.add(assignment.edit)
        self.scheduler.committed(assignment)

    @rule()
    def dispatch(self):
        sick = set(self.scheduler.sick_workers)
        for assignment in self.scheduler.dispatch():
            assert assignment.worker in self.workers - sick - set(self.executing), "an idle healthy worker"
            busy = {x.source for x in [*self.executing.values(), *self.committing]}
            assert assignment.source not in busy, "at most one edit of a source in flight"
            edits = self.chains[assignment.source]
            parents = edits[: edits.index(assignment.edit)]
            assert set(parents) <= set(self.library), "never before its parent is committed"
            assert assignment.edit not in self.acknowledged, "each committed once"
            assert assignment.source not in self.scheduler.quarantined
            self.executing[assignment.worker] = assignment
            self.past.append(assignment)

    @precondition(lambda self: self.executing)
    @rule(data=st.data())
    def an_execution_ends(self, data):
        assignment = self.executing.pop(data.draw(st.sampled_from(sorted(self.executing))))
        self.scheduler.executed(assignment)
        if assignment.edit not in self.acknowledged:
            self.committing.append(assignment)

    @precondition(lambda self: self.committing)
    @rule(data=st.data(), works=st.sampled_from([True, True, True, False]), twice=st.booleans())
    def a_commit_ends(self, data, works, twice):
        assignment = self.committing.pop(data.draw(st.integers(0, len(self.committing) - 1)))
        if works:
            self.commit(assignment)
            if twice:
                self.scheduler.committed(assignment)
        else:
            self.scheduler.commit_failed(assignment, "refused")

    @precondition(lambda self: self.executing)
    @rule(data=st.data(), blame=st.sampled_from(["unknown", "unknown", "worker", "source"]))
    def an_execution_fails(self, data, blame):
        assignment = self.executing.pop(data.draw(st.sampled_from(sorted(self.executing))))
        self.scheduler.failed(assignment, "boom", blame=blame)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), on_purpose=st.booleans())
    def a_worker_goes(self, data, on_purpose):
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        self.workers.remove(worker)
        if worker in self.executing:
            self.orphans.append(self.executing.pop(worker))
        (self.scheduler.remove_worker if on_purpose else self.scheduler.worker_lost)(worker)

    @precondition(lambda self: self.orphans)
    @rule(data=st.data(), news=st.sampled_from(["committed", "executed", "failed", "commit_failed"]))
    def late_news(self, data, news):
        assignment = self.orphans.pop(data.draw(st.integers(0, len(self.orphans) - 1)))
        if news == "committed":
            self.commit(assignment)
            self.committing = [x for x in self.committing if x.edit != assignment.edit]
        elif news == "executed":
            self.scheduler.executed(assignment)
        else:
            getattr(self.scheduler, news)(assignment, "late")

    @precondition(lambda self: self.past)
    @rule(data=st.data(), news=st.sampled_from(["committed", "executed", "failed", "commit_failed"]))
    def old_news(self, data, news):
        assignment = self.past[data.draw(st.integers(0, len(self.past) - 1))]
        if assignment in [*self.executing.values(), *self.committing, *self.orphans]:
            return
        if news in ("committed", "executed"):
            if news == "executed" or assignment.edit in self.acknowledged:
                getattr(self.scheduler, news)(assignment)
        else:
            getattr(self.scheduler, news)(assignment, "again")

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def a_worker_comes(self):
        self.add_worker()

    @precondition(lambda self: self.workers)
    @rule(luck=st.integers(0, 9))
    def the_run_restarts(self, luck):
        if luck == 9:  # seldom, or no run would get far
            self.start(len(self.workers))

    @invariant()
    def the_counts_agree_with_the_world(self):
        if not hasattr(self, "scheduler"):
            return
        edits, sources = self.scheduler.edits, self.scheduler.sources
        assert edits.done + edits.left + edits.failed == sum(map(len, self.chains.values()))
        assert sources.done + sources.left + sources.failed == len(self.chains)
        assert edits.in_flight == len(self.executing) + len(self.committing)
        assert sources.failed == len(self.scheduler.quarantined)

    def teardown(self):
        """Good weather from here on: every source must end, and what is done must be in the library whole."""
        if not hasattr(self, "scheduler"):
            return
        for assignment in self.committing:
            self.commit(assignment)
        self.committing = []
        for _ in range(1_000):
            if self.scheduler.finished:
                break
            for worker in self.scheduler.sick_workers:
                self.scheduler.remove_worker(worker)
                self.workers.remove(worker)
            if not self.workers:
                self.add_worker()
            self.dispatch()
            for worker in list(self.executing):
                assignment = self.executing.pop(worker)
                self.scheduler.executed(assignment)
                if assignment.edit not in self.acknowledged:
                    self.commit(assignment)
        assert self.scheduler.finished, "not finished after a thousand rounds of success"
        for source, edits in self.chains.items():
            assert source in self.scheduler.quarantined or set(edits) <= set(self.library)


AnyWeather.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None, derandomize=True)
test_every_source_ends_whatever_the_weather = AnyWeather.TestCase
