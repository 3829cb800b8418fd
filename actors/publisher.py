"""The Publisher: turns committed latents into video files, off the edits' critical path."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from actors.publication import CompareVideo, TurnVideo
from actors.setup import Setup
from pipeline.pixels import load_codec
from pipeline.segments import Segment, assemble
from storage.fingerprint import check_folder
from storage.publish import Panel, Used, video_id_of, write_compare, write_video
from storage.video import check_unchanged


class Publisher:
    """Decodes and writes. Plain Python; holds the codec only, never the transformer."""

    def __init__(self, setup: Setup):
        torch.set_num_threads(setup.settings["threads"])
        self.codec = load_codec(setup.model, setup.device)
        check_folder(setup.model, setup.model_digest)
        self.library = setup.open_library()

    def publish(self, video: TurnVideo) -> str:
        """Write a turn's file unless it is there already; its URL. Raises OSError, LibraryError, VideoError."""
        if video_id_of(video.url) != video.video_id:
            if video.audio and video.source.audio:
                check_unchanged(video.source.url, video.identity)
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
        check_unchanged(video.source.url, video.turns[0].identity)
        # Where every possible memory is to be seen: (turn, segment, the frame in the segment's middle).
        place = {
            id: (turn, segment.index + 1, (segment.keep + segment.stop) // 2)
            for turn, published in enumerate(video.turns, 1)
            for id, segment in zip(published.ids, published.segments, strict=True)
        }
        used = self.library.memories_used(list(place), video.turns[0].fingerprint)
        panels = [
            Panel(
                label=label,
                url=turn.url,
                used=tuple(
                    Used(segment.keep, segment.stop, tuple(place[memory] for memory in used[id]))
                    for id, segment in zip(turn.ids, turn.segments, strict=True)
                ),
            )
            for label, turn in zip(video.labels, video.turns, strict=True)
        ]
        write_compare(video.url, video.source, panels, video_id=video.video_id, audio=video.turns[0].audio)
        return video.url

    def _pieces(self, video: TurnVideo) -> Iterator[tuple[Segment, np.ndarray]]:
        for id, segment in zip(video.ids, video.segments, strict=True):
            memory = self.library.read([id], video.fingerprint)[0]
            yield segment, video.fit.unapply(self.codec.decode(memory.latent.float()).numpy())


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    image = torch.nn.functional.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    return image[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
