"""What goes wrong with files and stores, in two kinds: what is wrong with the file, and what may pass by itself.

A missing file is missing at every attempt (`StorageError`); a connection that was reset may hold the next time, or on
another machine (`StorageFault`). Whoever decides about trying again needs to know nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from storage.location import WEB


class StorageError(ValueError):
    """A file or folder cannot be used as it is. One line: which, what was found, what was expected, what to do."""


class VideoError(StorageError):
    """A video cannot be read or written. One line: the file, what was found, what was expected, what to do."""


class StorageFault(OSError):
    """The disk, the network or the store did not do what it was asked; the file itself may be in order, and a later
    attempt or another machine may fare better. One line, as StorageError; `errno` is that of the cause, or None."""

    def __str__(self) -> str:
        return str(self.strerror)


def fault(url: str, failed: str, error: BaseException, remedy: str) -> StorageFault:
    """A StorageFault that keeps the errno and the words of its cause."""
    words = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, OSError):  # of a store's own kind, whose class says more than its words
        words = f"{type(error).__name__}: {words}"
    return StorageFault(getattr(error, "errno", None), f"{url}: {failed} ({words}); {remedy}")


@contextmanager
def answered(url: str) -> Iterator[None]:
    """A StorageFault where a web server cannot be reached, fails (5xx) or is in haste (408, 429), of which fsspec
    often says that it has no such file. What is wrong with the address, or with what was read, passes."""
    try:
        yield
    except Exception as error:  # aiohttp's own are no OSErrors where a server did answer
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        status = getattr(cause, "status", 500)
        told = isinstance(cause, (StorageFault, ValueError, ImportError))
        if cause is None or told or not url.startswith(WEB) or (status < 500 and status not in (408, 429)):
            raise
        said = "its server fails or does not answer"
        raise fault(url, said, cause, "check address and network, or try again later") from error


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turns what stores raise of kinds of their own, for networks and credentials, into a StorageFault."""
    try:
        with answered(url):
            yield
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:
        raise fault(url, "cannot be reached", error, "check the network and the credentials") from error


@contextmanager
def reading(url: str, kind: type[StorageError] = StorageError) -> Iterator[None]:
    """Turns whatever goes wrong on reading `url` into one line: `kind`, or a StorageFault."""
    try:
        with answered(url):
            yield
    except (StorageError, StorageFault):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        if url.startswith(WEB):
            raise kind(f"{url}: its server has no such file or does not give it away; check the address") from error
        raise kind(f"{url}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise kind(f"{url}: is a folder, expected a file; name a file inside it") from error
    except PermissionError as error:
        raise kind(f"{url}: no permission to read it; change its permissions or run as its owner") from error
    except (ValueError, ImportError) as error:  # no such kind of URL, or its package is missing
        raise kind(f"{url}: cannot be read: {error}") from error
    except Exception as error:  # stores raise classes of their own, also for networks and credentials
        raise fault(url, "cannot be read", error, "check the disk, the network and the credentials") from error
