"""Content hashes of files and folders: what edit ids are made of.

Hashing a film takes seconds, so results are kept in $XDG_CACHE_HOME/memory-v2v/fingerprints, one small file each, under
the name of what would change if the content did: URL, size, time of modification (or the store's etag), inode. The
cache only saves time: where it cannot be read or written, or holds nonsense, the content is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import fsspec

from storage.errors import StorageError, reading
from storage.location import identity, local_path

CHUNK = 1 << 20
DIGEST = re.compile(r"[0-9a-f]{64}")


def file_digest(url: str) -> str:
    """sha256 (hex) of a file's bytes, at a path or fsspec URL. Raises StorageError naming it where it cannot be read,
    StorageFault where the disk or the network fails."""
    with reading(url):
        before = identity(url)
        key = _key(url, before)
        digest = _recall(key)
        if digest is None:
            digest = _hash(url)
            # A file that changed under the reading has no fingerprint worth keeping, nor one worth an edit.
            if identity(url) != before:
                raise StorageError(f"{url}: it changed while it was read; wait until it is complete and run again")
            _remember(key, digest)
        return digest


def folder_digest(path: str | os.PathLike[str]) -> str:
    """sha256 (hex) over the relative names and contents of all files below a local folder (a model's, say).

    Hidden files and folders are left out: they are what hubs and tools keep beside a model. Linked ones count as if
    they were there: who loads the model follows links. Times, owners and the folder's own name do not count. Raises
    StorageError where there is no such folder or nothing in it."""
    root = Path(path)
    if not root.is_dir():
        raise StorageError(f"{root}: no such folder; check the path")
    files = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
    names = sorted(
        file.relative_to(root).as_posix()
        for file in files
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    )
    if not names:
        raise StorageError(f"{root}: the folder holds no files; check the path")
    lines = [[name, file_digest(str(root / name))] for name in names]
    return hashlib.sha256(json.dumps(lines, ensure_ascii=True).encode()).hexdigest()


def check_folder(path: str | os.PathLike[str], digest: str) -> None:
    """StorageError where a folder's content no longer has the digest that it had when a run was planned. To be asked
    after loading from it, so that nothing is loaded that came later."""
    if folder_digest(path) != digest:
        raise StorageError(f"{path}: changed since the run was planned; run the command again when nobody writes to it")


def _hash(url: str) -> str:
    state = hashlib.sha256()
    with fsspec.open(url, "rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def _key(url: str, known: tuple[Any, ...]) -> str | None:
    """The name of the cache's file; None where nothing but size tells whether the content changed."""
    if not known[1]:
        return None
    path = local_path(url)
    name = os.path.realpath(path) if path is not None else url
    return hashlib.sha256(json.dumps([name, *known], default=str).encode()).hexdigest()


def cache_folder() -> Path:
    """Where this application keeps what it can make again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "memory-v2v"


def _folder() -> Path:
    return cache_folder() / "fingerprints"


def _recall(key: str | None) -> str | None:
    if key is None:
        return None
    try:
        digest = json.loads((_folder() / key).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) and DIGEST.fullmatch(digest) else None


def _remember(key: str | None, digest: str) -> None:
    if key is None:
        return
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{key}.{secrets.token_hex(4)}"
        try:
            temporary.write_text(json.dumps({"sha256": digest}))
            os.replace(temporary, folder / key)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        pass  # a full or closed cache costs time, never a run
