"""Files and folders that are there whole or not at all.

A file grows under a temporary name beside its own, is flushed to the disk and then renamed; on an object store it is
put in one piece. Whoever reads it sees the old one or the new one, whenever the writer is killed. So does a folder.
"""

from __future__ import annotations

import os
import posixpath
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
from safetensors import SafetensorError

from storage.errors import StorageError, StorageFault, fault, reaching
from storage.location import local_path

ABANDONED = 3600.0  # seconds since something partial was last written to


class CallersError(Exception):
    """Carries an error that is not about writing past the handlers of what is; it arrives as its own cause."""


@contextmanager
def published(url: str) -> Iterator[str]:
    """A local path to write to; it becomes the file at `url` if the block ends well and vanishes if it does not.

    Raises StorageError where `url` cannot be written to, StorageFault where the disk is full or the store fails."""
    target = local_path(url)
    with _reported(url):
        if target is None:
            fs, remote = fsspec.core.url_to_fs(url)
            with tempfile.TemporaryDirectory(prefix="memory-v2v-") as folder:
                path = os.path.join(folder, posixpath.basename(remote))
                yield path
                with reaching(url):
                    fs.put_file(path, remote)
            return
        final = Path(target).absolute()
        final.parent.mkdir(parents=True, exist_ok=True)
        # Of a name of its own, so that two writers never share a file. What a killed one left is cleared here: also of
        # other files, which may never be written again.
        for stale in _abandoned(final.parent, r"\..+\.[0-9a-f]{12}\.partial"):
            stale.unlink(missing_ok=True)
        temporary = final.parent / f".{final.name}.{secrets.token_hex(6)}.partial"
        try:
            yield str(temporary)
            _flush(temporary)
            os.replace(temporary, final)
            _flush(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def published_folder(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill; it becomes `final` if the block ends well and vanishes if it does not.

    replace: exchange it for one that is there, which readers may find missing for a moment. Raises OSError, and
    without `replace` also where there is one with files in it."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for stale in _abandoned(final.parent, rf"\.{re.escape(final.name)}\.[a-z0-9_]{{8}}(\.old)?"):
        shutil.rmtree(stale, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        yield fresh
        _readable(fresh)
        old = fresh.with_name(fresh.name + ".old")
        if replace and final.exists():
            os.replace(final, old)
        os.replace(fresh, final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _abandoned(folder: Path, pattern: str) -> Iterator[Path]:
    """What killed writers left in a folder, under names as they give them. What is younger may be another writer's that
    is still at work."""
    for each in folder.iterdir():
        if not re.fullmatch(pattern, each.name):
            continue
        with suppress(FileNotFoundError):
            if time.time() - max(part.stat().st_mtime for part in (each, *each.rglob("*"))) > ABANDONED:
                yield each


def _readable(folder: Path) -> None:
    """Whoever may read the folder's place may read what was written to it. Temporary folders are their owner's alone,
    and so is what safetensors writes; links and what others link to keep their modes."""
    for each in (folder, *folder.rglob("*")):
        if each.is_symlink():
            continue
        if each.is_dir():
            os.chmod(each, 0o755)
        elif each.stat().st_nlink == 1:
            os.chmod(each, 0o644)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _reported(url: str) -> Iterator[None]:
    """Turns what the disk or store refuses into one line; leaves the caller's own errors alone."""
    try:
        yield
    except (StorageError, StorageFault):
        raise
    except CallersError as failed:
        assert failed.__cause__ is not None
        raise failed.__cause__ from None
    except PermissionError as error:
        raise StorageError(f"{url}: no permission to write it; change the folder's mode or choose another") from error
    except (NotADirectoryError, FileExistsError) as error:
        raise StorageError(f"{url}: a part of its path is a file, not a folder; choose another folder") from error
    except (OSError, SafetensorError) as error:  # the second is what safetensors says of a full disk
        raise fault(url, "cannot be written", error, "check the free space and the folder") from error
