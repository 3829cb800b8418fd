"""Real footage for a data set: which pieces of which videos, found before any of them is cut out.

Every video is decoded once, small: that finds its cuts, which no piece crosses, and what is damaged in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from actors.footage import PieceTask
from jobs.config import SynthesizeConfig
from pipeline.cuts import THUMBNAIL, find_cuts
from pipeline.splits import PIECES, real_scene
from pipeline.virtual_cameras import least_width
from storage.fingerprint import file_digest
from storage.location import absolute
from storage.sources import expand
from storage.video import check_unchanged, identified, iter_frames, probe

THREADS = 4  # videos looked at together


@dataclass
class Footage:
    """pieces: in the order of the videos. problems: a line for every input that gives none, by its name. warnings:
    lines on those that give some."""

    pieces: list[PieceTask] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def look_at(inputs: Sequence[str], config: SynthesizeConfig) -> Footage:
    """The pieces of all videos that the inputs name: files, folders, patterns, manifests, as `memory-v2v edit` takes
    them."""
    entries, problems = expand(inputs)
    found = Footage(problems=dict(problems))

    def pieces(url: str) -> tuple[str, list[PieceTask], tuple[str, ...]] | str:
        try:
            return _pieces(url, config)
        except Exception as error:  # whatever is wrong with one video costs it alone
            line = " ".join(str(error).split())
            return line if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {line}"

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(pieces, [entry.url for entry in entries]))
    first: dict[str, str] = {}
    for entry, result in zip(entries, results, strict=True):
        if isinstance(result, str):
            found.problems[entry.url] = result
            continue
        fingerprint, made, notes = result
        if fingerprint in first:
            found.problems[entry.url] = f"holds the same bytes as {first[fingerprint]}, listed before it: remove one"
            continue
        first[fingerprint] = entry.url
        found.pieces += made
        found.warnings += [f"{entry.url}: {note}" for note in notes]
    return found


def _pieces(url: str, config: SynthesizeConfig) -> tuple[str, list[PieceTask], tuple[str, ...]]:
    """(fingerprint, pieces, notes) of one video; ValueError where it has no pieces."""
    known = identified(url)  # before all else, so that all is of one file
    info = probe(url)
    aspect, frame_aspect = config.width / config.height, info.width / info.height
    least = least_width(aspect, frame_aspect, config.width)
    if info.width < least:
        raise ValueError(
            f"is {info.width}x{info.height}, expected {least} pixels of width or more for views of "
            f"{config.width}x{config.height}: leave it out, or set height and width lower"
        )
    edges = [0, *find_cuts(iter_frames(url, THUMBNAIL)), info.frames]
    starts = [
        start
        for begin, end in zip(edges, edges[1:], strict=False)
        for start in range(begin, end - config.frames + 1, config.frames)
    ][: 1 << PIECES]
    if not starts:
        longest = max(end - begin for begin, end in zip(edges, edges[1:], strict=False))
        raise ValueError(
            f"its longest shot has {longest} frames, expected {config.frames} or more: leave it out, or lower frames"
        )
    fingerprint = file_digest(url)
    check_unchanged(url, known)
    pieces = [
        PieceTask(
            url=url,
            place=absolute(url),
            identity=known,
            scene=real_scene(fingerprint, piece),
            piece=piece,
            start=start,
            height=info.height,
            width=info.width,
            rate=float(info.rate),
            licence=config.licence,
        )
        for piece, start in enumerate(starts)
    ]
    return fingerprint, pieces, info.notes
