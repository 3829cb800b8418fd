"""How a source picture goes into the model's frame, and how the model's picture comes out of it again.

`letterbox` keeps the whole picture and repeats its outermost pixels beyond it (black bars would be taken for walls, and
a camera that pans would film more of them); `crop` fills the frame and loses the borders. Both keep the aspect ratio.
The rectangle of the frame that holds picture is even in offset and size: H.264's 4:2:0 needs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

POLICIES = ("letterbox", "crop")
AREA_SLACK = 1.03  # a frame may be this much larger than asked for: 720p's 16:9 is worth 2 % more tokens
AREA_WEIGHT = 0.25  # 4 % fewer pixels are as bad as 1 % of wrong aspect, that is, of margins or lost borders


@dataclass(frozen=True)
class Fit:
    """A source of `source` (height, width) pixels is resized to `resize` and laid into a frame of height x width with
    its top left corner at `offset` (top, left; negative where the picture is cropped). All in pixels."""

    source: tuple[int, int]
    height: int
    width: int
    resize: tuple[int, int]
    offset: tuple[int, int]
    policy: str

    @property
    def content(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the frame's part that holds picture; all even."""
        top, left = max(0, self.offset[0]), max(0, self.offset[1])
        return top, left, min(self.height - top, self.resize[0]), min(self.width - left, self.resize[1])

    @property
    def shown(self) -> tuple[int, int]:
        """(height, width) of what the content shows of the source, in the source's pixels; made even."""
        h, w = self.source
        if self.policy == "crop":  # the most of it that has the frame's aspect; `resize` is rounded
            h, w = min(h, w * self.height // self.width), min(w, h * self.width // self.height)
        return max(2, h // 2 * 2), max(2, w // 2 * 2)

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """(..., h, w, 3) uint8 frames, already of the size `resize`, to (..., height, width, 3)."""
        if frames.shape[-3:-1] != self.resize:
            raise ValueError(f"frames are {frames.shape[-3]}x{frames.shape[-2]}, the fit needs them resized to "
                             f"{self.resize[0]}x{self.resize[1]} (height x width)")  # fmt: skip
        top, left, h, w = self.content
        y, x = top - self.offset[0], left - self.offset[1]
        if (h, w) == (self.height, self.width):
            return np.ascontiguousarray(frames[..., y : y + h, x : x + w, :])
        margins = [(top, self.height - top - h), (left, self.width - left - w), (0, 0)]
        margins = [(0, 0)] * (frames.ndim - 3) + margins
        return np.pad(frames[..., y : y + h, x : x + w, :], margins, mode="edge")

    def unapply(self, frames: np.ndarray) -> np.ndarray:
        """The content of (..., height, width, 3) frames: (..., h, w, 3), a view."""
        if frames.shape[-3:-1] != (self.height, self.width):
            raise ValueError(f"frames are {frames.shape[-3]}x{frames.shape[-2]}, the model's are "
                             f"{self.height}x{self.width} (height x width)")  # fmt: skip
        top, left, h, w = self.content
        return frames[..., top : top + h, left : left + w, :]

    def intrinsics(self, source: np.ndarray) -> np.ndarray:
        """(..., 4) normalised (fx/W, fy/H, cx/W, cy/H) of the source's picture to those of the model's frame.

        The source's u in [0, 1] lies at (left + u * w) / width of the frame; so focal lengths scale, centres also move.
        """
        (h, w), (top, left) = self.resize, self.offset
        scale = np.array([w / self.width, h / self.height, w / self.width, h / self.height])
        shift = np.array([0.0, 0.0, left / self.width, top / self.height])
        return np.asarray(source, np.float64) * scale + shift


def fit(
    source: tuple[int, int],
    policy: str = "letterbox",
    size: tuple[int, int] | None = None,
    area: int = 96 * 96,
    multiple: int = 8,
) -> Fit:
    """The fit of a source of (height, width) pixels as displayed.

    size: (height, width) of the model's frame; None chooses the multiples of `multiple` whose area is about `area`
    (at most 3 % above) and whose aspect is nearest to the source's. Raises ValueError for what is impossible.
    """
    if policy not in POLICIES:
        raise ValueError(f"fit policy is {policy!r}: it must be one of {', '.join(POLICIES)}")
    if min(source) < 1:
        raise ValueError(f"source picture is {source[0]}x{source[1]}: both sides must be at least one pixel")
    if multiple < 2 or multiple % 2:
        raise ValueError(f"multiple is {multiple}: it must be even, as published video (4:2:0) is")
    if size is None:
        size = _nearest(source[1] / source[0], area, multiple)
    height, width = size
    if min(size) < multiple or height % multiple or width % multiple:
        raise ValueError(f"size is {height}x{width}: the model takes multiples of {multiple}")
    ratio = (height / source[0], width / source[1])
    if policy == "crop":
        scale = max(ratio)
        resize = (max(height, round(source[0] * scale)), max(width, round(source[1] * scale)))
        offset = (-((resize[0] - height) // 2), -((resize[1] - width) // 2))
    else:
        scale = min(ratio)
        resize = (_even(source[0] * scale, height), _even(source[1] * scale, width))
        offset = ((height - resize[0]) // 4 * 2, (width - resize[1]) // 4 * 2)
    return Fit(source, height, width, resize, offset, policy)


def _even(value: float, most: int) -> int:
    return min(max(2, 2 * round(value / 2)), most)


def _nearest(aspect: float, area: int, multiple: int) -> tuple[int, int]:
    """(height, width): multiples of `multiple`, at most AREA_SLACK * area pixels, the best trade of aspect and area."""
    most = area * AREA_SLACK
    best: tuple[float, int, int] | None = None
    for height in range(multiple, int(most // multiple) + 1, multiple):
        for width in {max(1, math.floor(height * aspect / multiple)), math.ceil(height * aspect / multiple)}:
            width = min(width * multiple, int(most // height) // multiple * multiple)
            if width < multiple:
                continue
            wrong = abs(math.log(width / height / aspect)) + AREA_WEIGHT * abs(math.log(height * width / area))
            best = min(best, (wrong, height, width)) if best else (wrong, height, width)
    if best is None:
        raise ValueError(f"area is {area}: multiples of {multiple} make at least {multiple * multiple} pixels")
    return best[1], best[2]
