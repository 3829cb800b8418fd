"""What the library and the data set of clips do alike with Lance: open with small caches, and add rows exactly once."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from datetime import timedelta

import lance
import pyarrow as pa

from storage.errors import StorageFault

# Lance's own defaults are 6 + 1 GiB per process, and every editor and every loader opens one.
INDEX_CACHE = 16 << 20
METADATA_CACHE = 32 << 20

# Old versions: a reader needs its own while it opens it, or for one call; the rest is margin for a machine that swaps
# or a store that stalls. Each costs some 70 KB.
KEEP = timedelta(hours=1)


def opened(url: str) -> lance.LanceDataset | None:
    """What is at `url`, with caches of its own; None where there is nothing. Raises StorageFault."""
    session = lance.Session(index_cache_size_bytes=INDEX_CACHE, metadata_cache_size_bytes=METADATA_CACHE)
    try:
        return lance.dataset(url, session=session)
    except (ValueError, OSError) as error:  # Lance raises ValueError for "not found" and for much else
        if "was not found" in str(error):
            return None
        raise fault(
            url, "cannot be opened", error, "check path, permissions and credentials, or restore it from a copy"
        ) from error


def metadata_of(dataset: lance.LanceDataset) -> dict[str, str]:
    """What its schema was given."""
    return {key.decode(): value.decode() for key, value in (dataset.schema.metadata or {}).items()}


def insert(dataset: lance.LanceDataset, url: str, what: str, make: Callable[[], pa.Table]) -> None:
    """Add those of the rows whose `id` is not there yet: all of them, or none and a StorageFault, with errno ENOSPC of
    a full disk. what: "3 memories", or whatever they are. make: says the rows, once the latest version is open."""
    needed = 0
    try:
        dataset.checkout_latest()
        rows = make()
        needed = 2 * rows.nbytes
        dataset.merge_insert("id").when_not_matched_insert_all().execute(rows)
    except OSError as error:
        # Of a full disk Lance may only say that a blob came out too short; who catches this must know it is full.
        place = os.path.dirname(os.path.abspath(url))
        free = shutil.disk_usage(place).free if os.path.isdir(place) else None  # None: an object store
        code = errno.ENOSPC if free is not None and free < needed else error.errno
        space = "" if free is None else f" with {free / 1e6:.1f} MB free on its disk"
        remedy = "free space or mend the permissions and run the same command again, what was committed before is safe"
        raise fault(url, f"{what} could not be committed{space}", error, remedy, code) from error


def fault(url: str, failed: str, error: BaseException, remedy: str, code: int | None = None) -> StorageFault:
    """As `storage.errors.fault`, in Lance's words. code: an errno that says more than the error's own."""
    code = getattr(error, "errno", None) if code is None else code
    return StorageFault(code, f"{url}: {failed} ({line(error)}); {remedy}")


def line(error: BaseException) -> str:
    """What Lance says, in one line and without the place in its own source."""
    return re.split(r", (?:location: )?/", " ".join(str(error).split()))[0] or type(error).__name__
