"""Where an edit job's videos are, in a folder for each source, and how they are found again."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from typing import Any

import fsspec

from actors.publication import CompareVideo, TurnVideo
from jobs.chain import Chain
from jobs.config import EditConfig
from storage.errors import reaching
from storage.location import local_path

# Names of the files in a source's folder, and of what a killed publisher leaves beside them.
OURS = re.compile(r"\.?(turn-\d+-.*\.mp4|compare\.mp4)(\.[0-9a-f]+\.partial)?")


def turn_videos(chain: Chain, out: str, config: EditConfig) -> list[TurnVideo]:
    """The files that a chain's turns are published as."""
    size = chain.fit.shown if config.upscale == "source" else chain.fit.content[2:]
    return [
        TurnVideo(
            url=f"{out}/{chain.name}/turn-{turn + 1:02d}-{instruction.label}.mp4",
            ids=chain.turn_ids(turn),
            segments=chain.segments,
            source=chain.found,
            fingerprint=chain.fingerprint,
            identity=chain.identity,
            fit=chain.fit,
            size=size,
            overlap=config.overlap,
            crf=config.crf,
            audio=config.audio,
        )
        for turn, instruction in enumerate(chain.turns)
    ]


def compare_video(chain: Chain, videos: Sequence[TurnVideo], out: str) -> CompareVideo:
    """The file that shows them beside their source."""
    labels = tuple(f"{turn + 1} {instruction.label}" for turn, instruction in enumerate(chain.turns))
    return CompareVideo(f"{out}/{chain.name}/compare.mp4", chain.found, tuple(videos), labels)


def published_videos(chains: Sequence[Chain], out: str) -> list[tuple[Any, str]]:
    """(filesystem, path) of all these sources' videos; those of other plans and of other names that the source has had
    too, since a source's memories go together, and what killed publishers left of them."""
    filesystem, root = fsspec.core.url_to_fs(out)
    names = {chain.digits for chain in chains}
    with reaching(out):
        if not filesystem.isdir(root):
            return []
        # Listed and not matched: `out` may hold brackets.
        folders = [each["name"].rstrip("/") for each in filesystem.ls(root, detail=True) if each["type"] == "directory"]
        found = [
            (filesystem, path)
            for folder in folders
            if posixpath.basename(folder).rpartition("-")[2] in names
            for path in filesystem.ls(folder, detail=False)
        ]
    return [each for each in found if OURS.fullmatch(posixpath.basename(each[1]))]


def is_published(url: str, out: str) -> bool:
    """Whether a file is named as one of the videos of an edit job with this output folder, an absolute path or URL."""
    path = local_path(url)
    place, name = posixpath.split(url if path is None else os.path.realpath(path))
    return posixpath.dirname(place) == out and OURS.fullmatch(name) is not None
