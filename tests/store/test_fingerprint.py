"""Fingerprints change with the content and with nothing else, and the cache can only save time."""

from __future__ import annotations

import hashlib
import os
import shutil

import fsspec
import pytest

from storage import fingerprint
from storage.errors import StorageError
from storage.fingerprint import file_digest, folder_digest
from storage.location import identity
from storage.video import VideoError, check_unchanged


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "memory-v2v" / "fingerprints"


@pytest.fixture
def reads(monkeypatch):
    """The URLs whose content was really read."""
    seen, real = [], fingerprint._hash
    monkeypatch.setattr(fingerprint, "_hash", lambda url: seen.append(url) or real(url))
    return seen


def test_the_digest_is_that_of_the_bytes_and_is_read_once(tmp_path, reads, cache):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 3_000_000)
    expected = hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert file_digest(str(path)) == file_digest(str(path)) == expected
    assert file_digest(f"file://{path}") == expected, "another name of the same file"
    assert reads == [str(path)] and len(os.listdir(cache)) == 1


def test_changed_content_of_the_same_length_is_noticed(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    before = file_digest(str(path))
    (tmp_path / "b.bin").write_bytes(b"two")
    os.utime(tmp_path / "b.bin", ns=(0, path.stat().st_mtime_ns))
    (tmp_path / "b.bin").replace(path)  # same length, same time: the inode tells
    assert file_digest(str(path)) != before


def test_a_damaged_cache_is_ignored(tmp_path, cache, reads):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    expected = file_digest(str(path))
    (entry,) = cache.iterdir()
    for damage in ("", "{", "[]", "null", '{"sha256": 5}', '{"sha256": "abc"}'):
        entry.write_text(damage)
        assert file_digest(str(path)) == expected
    assert len(reads) == 7


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_digest(str(tmp_path / "file")) == hashlib.sha256(b"").hexdigest()


def test_other_file_systems_are_hashed_and_missing_files_named(tmp_path):
    with fsspec.open("memory://prints/a.bin", "wb") as file:
        file.write(b"abc")
    assert file_digest("memory://prints/a.bin") == hashlib.sha256(b"abc").hexdigest()
    for url in (str(tmp_path / "none"), "memory://prints/none"):
        with pytest.raises(StorageError, match=f"{url}: no such file"):
            file_digest(url)
    with pytest.raises(StorageError, match="is a folder"):
        file_digest(str(tmp_path))


def test_a_file_that_grows_while_it_is_read_has_no_fingerprint(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    real = fingerprint._hash

    def reading(url):
        with open(url, "ab") as file:
            file.write(b"more")
        return real(url)

    monkeypatch.setattr(fingerprint, "_hash", reading)
    with pytest.raises(StorageError, match="changed while it was read"):
        file_digest(str(path))


def test_a_folder_s_digest_depends_on_names_and_contents_only(tmp_path):
    model = tmp_path / "model"
    (model / "vae").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "vae" / "weights").write_bytes(bytes(100))
    before = folder_digest(model)
    shutil.copytree(model, tmp_path / "elsewhere")
    (model / ".cache").mkdir()
    (model / ".cache" / "etag").write_text("of a hub")
    os.utime(model / "config.json", (0, 0))
    assert folder_digest(model) == folder_digest(tmp_path / "elsewhere") == before
    (model / "vae" / "weights").write_bytes(bytes(99) + b"\1")
    changed = folder_digest(model)
    (model / "vae" / "weights").write_bytes(bytes(100))
    (model / "vae" / "weights").rename(model / "vae" / "other")
    assert len({before, changed, folder_digest(model)}) == 3
    shutil.rmtree(model / "vae")
    (model / "vae").symlink_to(tmp_path / "elsewhere" / "vae")
    assert folder_digest(model) == before, "a linked component is a component"
    (tmp_path / "elsewhere" / "vae" / "weights").write_bytes(bytes(99) + b"\1")
    assert folder_digest(model) == changed
    with pytest.raises(StorageError, match="no such folder"):
        folder_digest(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="holds no files"):
        folder_digest(tmp_path / "empty")


def test_a_copy_with_the_same_time_is_the_same_file_elsewhere_and_another_time_is_not(tmp_path):
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    one.write_bytes(b"abc")
    shutil.copy2(one, two)
    check_unchanged(str(two), identity(str(one)))
    os.utime(two, (0, 0))
    with pytest.raises(VideoError, match="two.mp4: changed since it was planned"):
        check_unchanged(str(two), identity(str(one)))
