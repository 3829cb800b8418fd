"""The log of a training, and who reads it while it grows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from pipeline.training.log import Log, follow


def test_a_follower_is_told_every_line_once_also_of_a_training_that_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    told: list[dict[str, object]] = []

    def meanwhile():
        """What happens between one look and the next; what has been told by then."""
        log = Log(path, 1)
        log.write({"step": 2, "loss": 0.5})
        yield
        assert [line["step"] for line in told] == [2], "what was there before is not told"
        with path.open("a") as file:
            file.write('{"step": 3')
        yield
        assert len(told) == 1, "nor half a line"
        again = Log(path, 1)  # killed, and begun again at step 1
        again.write({"step": 1, "resumed": 1})
        again.write({"step": 2, "loss": 0.4321})
        yield
        assert [line["step"] for line in told[1:]] == [1, 2]
        Log(path, 0)
        yield
        Log(path, 0).write({"step": 1, "loss": 0.9})
        yield
        assert told[3:] == [{"step": 1, "loss": 0.9}]

    Log(path, 0).write({"step": 1, "loss": 0.7})
    turns = meanwhile()
    follow(path, told.append, SimpleNamespace(wait=lambda every: next(turns, "ended") == "ended"))  # type: ignore[arg-type]
    assert len(told) == 4
