from __future__ import annotations

import io

from actors.scheduler import Scheduler
from jobs.progress import Display, Progress, duration
from jobs.train import TrainingProgress
from pipeline.training import log as training_log


def test_a_line_tells_done_left_failed_rate_and_time_to_go() -> None:
    scheduler = Scheduler()
    scheduler.submit("a", ["1", "2", "3", "4"], [1.0] * 4, committed={"1"})
    scheduler.add_worker("w")
    progress = Progress(io.StringIO())
    assert progress.line(scheduler, progress.began).startswith("1 edits done, 3 left, 0 failed | 0/1 videos")
    for _ in range(2):
        [assignment] = scheduler.dispatch()
        scheduler.executed(assignment)
        scheduler.committed(assignment)
    line = progress.line(scheduler, progress.began + 10)
    assert line == "3 edits done, 1 left, 0 failed | 0/1 videos | 0.20 edits/s | ETA 0:00:05"


def test_a_run_that_only_publishes_again_has_no_rate() -> None:
    scheduler = Scheduler()
    scheduler.submit("a", ["1", "2"], [1.0] * 2, committed={"1", "2"})
    progress = Progress(io.StringIO())
    progress(scheduler)
    assert progress.line(scheduler, progress.began + 10) == "2 edits done, 0 left, 0 failed | 1/1 videos"


def test_off_a_terminal_lines_come_seldom_and_stay() -> None:
    stream = io.StringIO()
    progress, scheduler = Progress(stream), Scheduler()
    for _ in range(100):
        progress(scheduler)
    assert stream.getvalue() == ""
    progress.close(scheduler)
    assert stream.getvalue().count("\n") == 1 and "\r" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_drawn_over_and_over() -> None:
    stream = Terminal()
    progress, scheduler = Progress(stream), Scheduler()
    progress.next -= 1
    progress(scheduler)
    assert stream.getvalue().startswith("\r") and "\n" not in stream.getvalue()


def test_a_line_that_takes_long_to_say_is_said_seldom(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("jobs.progress.time.monotonic", lambda: clock[0])

    class Slow(Display):
        def line(self, state: object, now: float) -> str:
            clock[0] += 0.2
            return "."

    stream = Terminal()
    display = Slow(stream)
    for _ in range(1000):
        clock[0] += 0.01
        display(None)
    assert 5 * 0.8 < stream.getvalue().count(".") < 5 * 1.2, "a tenth of ten seconds and of what it takes itself"


def test_an_unknown_time_is_a_question_mark() -> None:
    assert (duration(3725), duration(float("inf")), duration(5)) == ("1:02:05", "?", "0:00:05")


def test_the_time_a_training_still_takes_goes_by_its_steps_however_many_targets_they_have(
    tmp_path, monkeypatch, capsys
) -> None:
    clock = [0.0]
    monkeypatch.setattr(training_log.time, "monotonic", lambda: clock[0])
    log = training_log.Log(tmp_path / "log.jsonl", 0, TrainingProgress(steps=50))
    for step in range(1, 21):
        clock[0] += 3.0
        log.step(step, 64 if step % 2 else 16, {"loss": 0.5})
    assert capsys.readouterr().err == "step 20/50 | loss 0.5000 | 13.3 targets/s | ETA 0:01:30\n"
