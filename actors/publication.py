"""What is to be published: the files of a plan, each with the id that tells whether it is there already."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pipeline.fit import Fit
from pipeline.segments import Segment
from storage.video import VideoInfo


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TurnVideo:
    """One file to be published: a turn's edits, in the order of their segments.

    fingerprint, identity: of the source, whose sound it has, as in the plan."""

    url: str
    ids: tuple[str, ...]
    segments: tuple[Segment, ...]
    source: VideoInfo
    fingerprint: str
    identity: tuple[Any, ...]
    fit: Fit
    size: tuple[int, int]  # (H, W) of the published picture, even
    overlap: int
    crf: int
    audio: bool

    @property
    def video_id(self) -> str:
        """sha256 of the edits and the publish settings: written into the file and looked for on a second run."""
        sound = self.audio and self.source.audio
        return _digest({"edits": self.ids, "size": self.size, "overlap": self.overlap, "crf": self.crf, "audio": sound})


@dataclass(frozen=True)
class CompareVideo:
    """The source's `compare.mp4`: made from the published files alone."""

    url: str
    source: VideoInfo
    turns: tuple[TurnVideo, ...]
    labels: tuple[str, ...]

    @property
    def video_id(self) -> str:
        return _digest({"compare": [turn.video_id for turn in self.turns], "labels": self.labels})
