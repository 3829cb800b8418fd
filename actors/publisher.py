"""The Publisher: turns committed latents into video files, off the edits' critical path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from actors.setup import Setup
from pipeline.codec import load_codec
from pipeline.fit import Fit
from pipeline.segments import Segment, assemble
from storage.publish import Compared, video_id_of, write_compare, write_video
from storage.video import VideoInfo


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TurnVideo:
    """One file to be published: a turn's edits, in the order of their segments."""

    url: str
    ids: tuple[str, ...]
    segments: tuple[Segment, ...]
    source: VideoInfo
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


class Publisher:
    """Decodes and writes. Plain Python; holds the codec only, never the transformer."""

    def __init__(self, setup: Setup):
        torch.set_num_threads(setup.settings["threads"])
        self.codec = load_codec(setup.model, setup.device)
        self.library = setup.open_library()

    def publish(self, video: TurnVideo) -> str:
        """Write a turn's file unless it is there already; its URL. Raises OSError, LibraryError, VideoError."""
        if video_id_of(video.url) != video.video_id:
            frames = assemble(self._pieces(video), video.overlap)
            if video.size != video.fit.content[2:]:
                frames = (_resize(frame, video.size) for frame in frames)
            write_video(
                video.url, frames, source=video.source, video_id=video.video_id, crf=video.crf, audio=video.audio
            )
        return video.url

    def compare(self, video: CompareVideo) -> str:
        """Write a source's comparison unless it is there already; its URL. The turns' files must be published."""
        if video_id_of(video.url) == video.video_id:
            return video.url
        # Where every possible memory is to be seen: its turn, and the frame in its middle.
        place = {
            id: (index, segment) for index, turn in enumerate(video.turns) for id, segment in zip(turn.ids, turn.segments, strict=True)
        }
        rows = self.library.memories_used(list(place))
        turns = [
            Compared(
                label=label,
                url=turn.url,
                segments=turn.segments,
                memories=[[place[used] for used in rows[id]] for id in turn.ids],
            )
            for label, turn in zip(video.labels, video.turns, strict=True)
        ]
        write_compare(video.url, video.source, turns, video_id=video.video_id)
        return video.url

    def _pieces(self, video: TurnVideo) -> Iterator[tuple[Segment, np.ndarray]]:
        for id, segment in zip(video.ids, video.segments, strict=True):
            memory = self.library.read([id])[0]
            yield segment, video.fit.unapply(self.codec.decode(memory.latent.float()).numpy())


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    image = torch.nn.functional.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    return image[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
