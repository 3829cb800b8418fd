"""What an exception means for a run: whose fault it is, and whether going on makes sense. Pure."""

from __future__ import annotations

import errno

from actors.scheduler import Blame
from storage.errors import StorageError
from storage.library import LibraryError


def disk_is_full(error: BaseException) -> bool:
    """No later edit would fare better, so the run stops instead of trying every source in vain."""
    cause = getattr(error, "cause", None) or error  # Ray wraps what an actor raised, without its number
    # Lance reports the operating system's error as text.
    return getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(cause)


def blame(error: BaseException) -> Blame:
    """Whose fault a failed edit is: of the `source`, of the `worker`, or `unknown` (tried again elsewhere)."""
    if isinstance(error, (StorageError, LibraryError)):
        return "source"
    # A CUDA context does not recover from an error: every later edit on that worker would fail too.
    if "CUDA error" in str(error) or "device-side assert" in str(error):
        return "worker"
    return "unknown"


def start_error(error: BaseException) -> str:
    """Why an actor could not start, as one line: Ray wraps what its constructor raised in text, whose last line is the
    exception itself."""
    return str(error).strip().splitlines()[-1].strip()


def one_line(error: BaseException) -> str:
    """The error as one line: its cause alone, without the remote traceback that Ray appends."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip()
    lines = text.splitlines() or [type(cause).__name__]
    told = isinstance(cause, (StorageError, LibraryError, OSError))  # ours, which name the thing and the remedy
    return lines[0] if told else f"{type(cause).__name__}: {lines[0]}"
