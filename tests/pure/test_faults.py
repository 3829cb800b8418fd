from __future__ import annotations

import errno

import pytest
from ray.exceptions import RayTaskError

from actors.faults import blame, disk_is_full, one_line
from actors.training_on_ray import cause
from storage.library import LibraryError
from storage.video import VideoError


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (VideoError("a.mp4: frame 3 does not decode"), "source"),
        (LibraryError("lacks 1 of 2 memories"), "source"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "worker"),
        (RuntimeError("something"), "unknown"),
        (MemoryError(), "unknown"),
    ],
)
def test_bad_input_is_the_sources_fault_and_a_broken_device_the_workers(error: Exception, whose: str) -> None:
    assert blame(error) == whose


def test_a_full_disk_is_known_by_its_number_and_by_its_words() -> None:
    assert disk_is_full(OSError(errno.ENOSPC, "x"))
    assert disk_is_full(VideoError("cannot be written (No space left on device)"))
    assert not disk_is_full(OSError(errno.EACCES, "x"))


def test_what_a_training_process_ended_with_is_told_by_the_last_exception_of_its_traceback() -> None:
    told = """Training failed due to worker errors:
[Rank 0 Error Snippet]:
Traceback (most recent call last):
  File "checkpoints.py", line 40, in save
OSError: [Errno 28] torch could not write: [enforce fail at inline_container.cc:672]

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "training.py", line 90, in _process
storage.errors.StorageFault: out/step-00000003.pt: cannot be written (No space left); check the free space
"""
    assert cause(RuntimeError(told)) == "out/step-00000003.pt: cannot be written (No space left); check the free space"
    assert cause(RuntimeError("Traceback:\n  x\nValueError: a.b: c\n")) == "a.b: c"
    assert cause(RuntimeError("it ended")) == "it ended" and cause(RuntimeError()) == "RuntimeError"


def test_a_full_disk_is_known_through_what_ray_makes_of_it() -> None:
    error = RayTaskError("Librarian.commit", "traceback", OSError(errno.ENOSPC, "blob range")).as_instanceof_cause()
    assert disk_is_full(error)
    assert not disk_is_full(RayTaskError("f", "traceback", OSError(errno.EIO, "x")).as_instanceof_cause())


def test_an_error_is_told_in_one_line_by_its_cause_and_its_kind_where_that_helps() -> None:
    assert one_line(VideoError("a.mp4: empty\nfile")) == "a.mp4: empty"
    assert one_line(RuntimeError("shape mismatch\ntraceback")) == "RuntimeError: shape mismatch"
    assert one_line(MemoryError()) == "MemoryError: MemoryError"
    wrapped = RuntimeError("ray::Editor.edit() ...")
    wrapped.cause = VideoError("a.mp4: gone")  # type: ignore[attr-defined]
    assert one_line(wrapped) == "a.mp4: gone"
