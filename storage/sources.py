"""What a person names on the command line becomes a list of sources: files, folders, globs, URLs, manifests.

A manifest is JSONL or Parquet with one source a row: `url`, and where wanted `trajectory` (the source's own camera, a
file), `shots` (a file) and `turns` (a list of what --turn takes: strings or mappings). Paths in it, also those in
turns, are relative to its own folder and stay inside: a manifest may come from somewhere else, and must not name this
machine's other files. URLs of other file systems (s3://...) are as they are. What is wrong with one entry is reported,
and the others go on.
"""

from __future__ import annotations

import glob
import io
import json
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec
import pyarrow.parquet as pq

from pipeline.trajectory import PRESETS
from pipeline.trajectory_formats import COLMAP
from storage.location import JOINED, WEB, local_path
from storage.turn_text import turn_mapping

VIDEOS = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".wmv",
    ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf", ".dv",
)  # fmt: skip
COMPANION = "._"  # how the names of what macOS keeps beside files of other systems begin
MANIFESTS = (".jsonl", ".ndjson", ".parquet")
COLUMNS = ("url", "trajectory", "shots", "turns")
FOUND = "auto"  # in the place of a file of shots: they are looked for
# File systems that a manifest may name. Not those that lead back to this machine: fsspec takes `c://` for a drive here,
# and `generic://`, `git://` and others read its files under another name.
STORES = (
    "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf", "hdfs", "webhdfs",
    "ftp", "sftp", "ssh", "smb", "memory",
)  # fmt: skip


@dataclass(frozen=True)
class SourceEntry:
    """One source to edit. url: a path or fsspec URL. trajectory, shots: paths or URLs of files, or None; shots may be
    FOUND. turns: the entry's own turns (strings or mappings), or None for those of the command. row: "manifest:row",
    where it is of one."""

    url: str
    trajectory: str | None = None
    shots: str | None = None
    turns: tuple[str | Mapping[str, Any], ...] | None = None
    row: str = field(default="", compare=False)


Problem = tuple[str, str]  # the input or "manifest:row", and a line on what is wrong with it


def expand(
    inputs: Sequence[str], unlike: Callable[[str], bool] = lambda url: False
) -> tuple[list[SourceEntry], list[Problem]]:
    """The sources that `inputs` name, in their order, and what could not be expanded.

    A file is taken whatever its name; a folder gives the videos in it (by extension, sorted, not below, nor what macOS
    keeps beside them); a pattern what it matches, sorted (`**` any depth of folders), but for what is `unlike` a
    source. Whether a file really is a video is for storage.video.probe to say."""
    entries: list[SourceEntry] = []
    problems: list[Problem] = []
    for name in inputs:
        try:
            for found in _expanded(name, unlike):
                (entries if isinstance(found, SourceEntry) else problems).append(found)  # type: ignore[arg-type]
        except (FileNotFoundError, NotADirectoryError):
            problems.append((name, "no such file or folder; check the path"))
        except PermissionError:
            problems.append((name, "no permission to read it; change its mode or run as its owner"))
        except (OSError, ValueError, ImportError) as error:
            problems.append((name, f"cannot be read: {_line(error)}"))
        except Exception as error:  # stores raise classes of their own, for credentials for one
            problems.append((name, f"cannot be read ({type(error).__name__}: {_line(error)}); check URL and access"))
    return entries, problems


def _expanded(name: str, unlike: Callable[[str], bool]) -> Iterator[SourceEntry | Problem]:
    path = local_path(name)
    if _is_pattern(name, path):
        matches = sorted(glob.glob(path, recursive=True)) if path is not None else _remote_glob(name)
        matches = [match for match in matches if not unlike(match)]
        if not matches:
            yield name, "the pattern matches nothing; check it, and quote it for the shell"
        for match in matches:
            yield from _named(match)
    else:
        yield from _named(name)


def _named(name: str) -> Iterator[SourceEntry | Problem]:
    """What one name stands for that is no pattern."""
    path = local_path(name)
    if _is_folder(name, path):
        videos = [child for child in _children(name, path) if child.lower().endswith(VIDEOS)]
        videos = [video for video in videos if not posixpath.basename(video).startswith(COMPANION)]
        if not videos:
            yield name, f"no video in this folder; expected files that end in {', '.join(VIDEOS)}"
        yield from map(_source, videos)
    elif path is not None and not stat.S_ISREG(os.stat(path).st_mode):
        yield name, "is no file, expected a video, a folder or a manifest; what a pipe holds has to be saved first"
    elif name.lower().endswith(MANIFESTS):
        yield from _manifest(name)
    else:
        yield _source(name)


def _source(name: str) -> SourceEntry | Problem:
    if JOINED in name and "://" not in name and os.path.lexists(name):
        return name, f"has '{JOINED}' in its name or its folder's, which stands between URLs: rename it"
    return SourceEntry(name)


def _is_pattern(name: str, path: str | None) -> bool:
    marks = "*[" if name.startswith(WEB) else "*?["
    if not any(mark in name for mark in marks):
        return False
    # A file that exists is itself, also with brackets in its name.
    if path is not None:
        return not os.path.lexists(path)
    fs, remote = fsspec.core.url_to_fs(name)
    return not fs.exists(remote)


def _is_folder(name: str, path: str | None) -> bool:
    if path is not None:
        return os.path.isdir(path)
    if name.startswith(WEB) and "?" in name:
        return False  # a question is no folder
    if posixpath.splitext(name)[1]:
        return False  # saves a request per file; a remote folder with a dot in its name can be given with a final slash
    fs, remote = fsspec.core.url_to_fs(name)
    return fs.isdir(remote)


def _children(name: str, path: str | None) -> list[str]:
    if path is not None:
        children = (os.path.join(name, child) for child in os.listdir(path))
        return sorted(child for child in children if _is_file_or_gone(local_path(child) or child))
    fs, remote = fsspec.core.url_to_fs(name)
    return sorted(fs.unstrip_protocol(about["name"]) for about in fs.ls(remote, detail=True) if about["type"] == "file")


def _is_file_or_gone(path: str) -> bool:
    """A link that leads nowhere is kept: what is missing is to be told."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _remote_glob(name: str) -> list[str]:
    fs, remote = fsspec.core.url_to_fs(name)
    return sorted(fs.unstrip_protocol(match) for match in fs.glob(remote))


def _manifest(name: str) -> Iterator[SourceEntry | Problem]:
    with fsspec.open(name, "rb") as file:
        data = file.read()
    count = 0
    for number, row in _rows(name, data):
        count += 1
        where = f"{name}:{number}"
        try:
            if isinstance(row, ValueError):
                raise row
            yield replace(_entry(row, name), row=where)
        except ValueError as error:
            yield where, _line(error)
    if not count:
        yield name, "the manifest has no rows; give one source a row, with a column url"


def _rows(name: str, data: bytes) -> Iterator[tuple[int, Any]]:
    """(number from 1, row): of the line in JSONL, of the row in Parquet. A ValueError in place of a broken row."""
    if name.lower().endswith(".parquet"):
        try:
            rows = pq.read_table(io.BytesIO(data)).to_pylist()
        except Exception as error:  # pyarrow has many kinds for a file that is not Parquet
            raise ValueError(f"not a Parquet file ({_line(error)})") from error
        yield from enumerate(rows, 1)
        return
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):  # other ends a string may hold
        if line.strip():
            try:
                yield number, json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"not JSON ({error}); each line is one object with a url")


def _entry(row: Any, manifest: str) -> SourceEntry:
    if not isinstance(row, Mapping):
        raise ValueError(f"is {type(row).__name__}, expected an object with the columns {', '.join(COLUMNS)}")
    unknown = sorted(set(row) - set(COLUMNS))
    if unknown:
        raise ValueError(f"unknown column {unknown[0]!r}; a manifest has {', '.join(COLUMNS)}")
    if not row.get("url"):
        raise ValueError("no url; every row names a video")
    turns = row.get("turns")
    if turns is not None:
        if not isinstance(turns, (list, tuple)) or not turns:
            raise ValueError(f"turns is {turns!r}, expected a list with at least one turn")
        wrong = [turn for turn in turns if not isinstance(turn, (str, Mapping))]
        if wrong:
            raise ValueError(f"turn {wrong[0]!r} is neither a string nor a mapping")
    urls = {
        column: FOUND if column == "shots" and row[column] == FOUND else _inside(row[column], column, manifest)
        for column in COLUMNS[:3]
        if row.get(column)
    }
    return SourceEntry(**urls, turns=None if turns is None else tuple(_turn(turn, manifest) for turn in turns))


def _turn(turn: str | Mapping[str, Any], manifest: str) -> str | Mapping[str, Any]:
    """The turn with its file inside the manifest's folder. A string that is no preset becomes a mapping, which says
    whether it is a file or a prompt: whoever reads it must not find that out by looking at this machine's files."""
    if isinstance(turn, str):
        turn = turn.strip()
        if turn in PRESETS:
            return turn
        turn = turn_mapping(turn)
    path = turn.get("trajectory")
    if path is None or path in PRESETS:
        return turn
    return {**turn, "trajectory": _inside(path, "trajectory of a turn", manifest)}


def _inside(path: Any, column: str, manifest: str) -> str:
    """The URL that a manifest's path means; ValueError where it leaves the manifest's folder."""
    if not isinstance(path, str):
        raise ValueError(f"{column} is {path!r}, expected a path or URL as a string")
    if JOINED in path:
        raise ValueError(f"{column} {path!r} chains file systems, which a manifest may not; name the file itself")
    store, mark, _ = path.partition("://")
    if mark and store in STORES:
        return path
    home = manifest.rpartition("/")[0]
    remedy = "put the file into the manifest's folder, or name it on the command line"
    if path.startswith(("file:", "local:", "/", "~")) or os.path.isabs(path):
        raise ValueError(f"{column} {path!r} is an absolute path, which a manifest may not name; {remedy}")
    if mark:
        raise ValueError(
            f"{column} {path!r} names the file system {store!r}, expected a path or one of {', '.join(STORES)}"
        )
    if ".." in path.replace("\\", "/").split("/"):
        raise ValueError(f"{column} {path!r} climbs out of the manifest's folder with '..'; {remedy}")
    joined = f"{home}/{path}" if home or manifest.startswith("/") else path
    here = local_path(manifest)
    if here is not None:
        root, named = os.path.realpath(os.path.dirname(here) or "."), local_path(joined) or joined
        for each in (named, *(os.path.join(named, name) for name in COLMAP)):
            if os.path.commonpath([root, os.path.realpath(each)]) != root:
                link = path if each == named else f"{path}/{os.path.basename(each)}"
                raise ValueError(f"{column} {link!r} is a link out of the manifest's folder; {remedy}")
    return joined


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
