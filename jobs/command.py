"""What all commands have in common: exit codes, where they may write, and how they speak."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fsspec

from storage.location import fleeting

DONE, FAILED, USAGE = 0, 1, 2  # exit codes


class UsageError(ValueError):
    """A command that cannot start. One line, with the remedy."""


def writable_folder(url: str, create: bool) -> str:
    """The folder's absolute path or URL. Raises UsageError where results cannot be written."""
    if fleeting(url):
        raise UsageError(
            f"output folder {url} would live in one process alone, which then ends: name a folder or store"
        )
    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.protocol not in ("file", ("file", "local")):
        return url.rstrip("/")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output folder {url} is a file: choose another --out")
    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"output folder {url} cannot be made ({error.strerror}): choose another --out") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"output folder {url} is not writable: change its permissions or choose another --out")
    return str(folder.resolve())


def say(line: str) -> None:
    """To the person at the terminal; standard output stays free."""
    print(line, file=sys.stderr, flush=True)


def megabytes(size: float) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
