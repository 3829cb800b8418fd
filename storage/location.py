"""Where files are: paths and fsspec URLs."""

from __future__ import annotations

import os
from typing import Any

import fsspec

JOINED = "::"  # between two URLs of a chain
WEB = ("http://", "https://")  # where a question mark is part of the address


def local_path(url: str) -> str | None:
    """The path of a local file (a path, or a file: URL); None for what fsspec has to open."""
    if url.startswith(("file://", "local://")):
        return fsspec.core.strip_protocol(url)
    return None if "://" in url or JOINED in url else url


def absolute(url: str) -> str:
    """The same place for processes that run elsewhere: a local path from the root on, a URL as it is."""
    path = local_path(url)
    return url if path is None else os.path.abspath(path)


def fleeting(url: str) -> bool:
    """Whether what is written there ends with the process: fsspec's `memory://`, also at the end of a chain."""
    return url.rpartition(JOINED)[2].startswith("memory:")


def identity(url: str) -> tuple[Any, ...]:
    """What changes when a file is replaced: (size, modification time or etag ..., inode). Raises FileNotFoundError."""
    path = local_path(url)
    if path is not None:
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns, status.st_ino
    fs, path = fsspec.core.url_to_fs(url)
    about = fs.info(path)
    stamps = (about.get(name) for name in ("ETag", "etag", "LastModified", "last_modified", "mtime", "created"))
    return about.get("size"), next((str(stamp) for stamp in stamps if stamp), ""), 0
