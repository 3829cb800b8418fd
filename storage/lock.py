"""Who uses a local library: an advisory lock (flock) on the file `<library>.lock` beside it.

The process that commits holds it in common with others of its kind; an erasure, or another sphere, takes it alone. It
is the kernel's, so it goes with the process, however that ends; the empty file stays. Object stores have no such lock:
there it is for the operator to stop all runs before.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from storage.location import local_path
from storage.memory import LibraryError

GRACE = 5.0  # seconds: a run that has ended a moment ago may have a process that is still ending


@contextmanager
def in_use(url: str) -> Iterator[None]:
    """The library is in use, and not erased from, during the block. Waits for an erasure under way to end.

    Where the place has no locks, or the file cannot be made, it goes without: an erasure there is refused."""
    try:
        handle = _opened(url)
    except OSError:
        handle = None
    try:
        if handle is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def alone(url: str, spared: str) -> Iterator[None]:
    """Nobody has the library `in_use` during the block. LibraryError where somebody still has it after GRACE seconds,
    which says what was `spared`, OSError where locks fail."""
    handle = _opened(url)
    last = time.monotonic() + GRACE
    try:
        while handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > last:
                    raise LibraryError(
                        f"another run is using the library {url}: {spared}; wait until it ends or stop it, then run "
                        "the same command again"
                    ) from error
                time.sleep(0.1)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _opened(url: str) -> int | None:
    path = local_path(url)
    if path is None:
        return None
    return os.open(f"{os.path.abspath(path)}.lock", os.O_RDWR | os.O_CREAT, 0o666)
