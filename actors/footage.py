"""A piece of real footage as a scene: what virtual cameras inside its frame see, as clips like any others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.scenes import Filming
from pipeline.virtual_cameras import NARROWEST, WIDEST, cut_out, least_width, virtual_cameras

if TYPE_CHECKING:
    from storage.clip_row import ClipRow


@dataclass(frozen=True)
class PieceTask:
    """Frames [start, start + frames) of a video, the `piece`-th of it. url: as it was named, which the rows say; place:
    the same for processes that run elsewhere. identity: of the file when its content was hashed. scene: its number,
    from the content. height, width: of the video, pixels. rate: frames per second."""

    url: str
    place: str
    identity: tuple[Any, ...]
    scene: int
    piece: int
    start: int
    height: int
    width: int
    rate: float
    licence: str

    @property
    def name(self) -> str:
        return f"{self.url} from frame {self.start} on"

    def clips(self, filming: Filming) -> int:
        return filming.cameras

    def rows(self, filming: Filming) -> list[ClipRow]:
        """One per camera, in order."""
        # Here and not at the top: Lance, which these bring in, must not be there before Ray has forked.
        from storage.clip_row import ClipRow
        from storage.video import check_unchanged, read_frames

        check_unchanged(self.place, self.identity)
        aspect, frame_aspect = filming.width / filming.height, self.width / self.height
        # The frame as wide as the narrowest view needs it, which is as wide as it comes at most.
        native = least_width(aspect, frame_aspect, filming.width)
        width = min(self.width, round(native * WIDEST / NARROWEST))
        size = (max(1, round(width / frame_aspect)), width)
        video = read_frames(self.place, self.start, self.start + filming.frames, size)
        sharpest = WIDEST * native / width
        seed = [self.scene & (1 << 32) - 1, self.scene >> 32]
        shape = (filming.frames, filming.height, filming.width)
        unknown = np.full(shape, np.nan, np.float32) if "depth" in filming.channels else None
        cameras = virtual_cameras(seed, filming.cameras, filming.frames, self.rate, aspect, frame_aspect, sharpest)
        return [
            ClipRow(
                scene=self.scene,
                camera=camera,
                variant=0,
                kind="real",
                instruction="",
                rate=self.rate,
                trajectory=path,
                shots=np.zeros(filming.frames, np.int32),
                licence=self.licence,
                source=self.url,
                video=cut_out(video, path, frame_aspect, filming.height, filming.width),
                depth=unknown,
            )
            for camera, path in enumerate(cameras)
        ]
