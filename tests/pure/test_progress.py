from __future__ import annotations

import io

from actors.scheduler import Scheduler
from jobs.progress import Progress, duration


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


def test_off_a_terminal_lines_come_seldom_and_stay() -> None:
    stream = io.StringIO()
    progress, scheduler = Progress(stream), Scheduler()
    for _ in range(100):
        progress(scheduler)
    assert stream.getvalue() == ""
    progress.close(scheduler)
    assert stream.getvalue().count("\n") == 1 and "\r" not in stream.getvalue()


def test_on_a_terminal_one_line_is_drawn_over_and_over() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress, scheduler = Progress(stream), Scheduler()
    progress.last -= 1
    progress(scheduler)
    assert stream.getvalue().startswith("\r") and "\n" not in stream.getvalue()


def test_an_unknown_time_is_a_question_mark() -> None:
    assert (duration(3725), duration(float("inf")), duration(5)) == ("1:02:05", "?", "0:00:05")
