"""How far away what a video shows is, from how it looks: a small convolutional network beside the transformer.

The transformer's tokens see patches and say depths of a patch or a part of one; what is looked up along these comes out
torn (see `surface`). This network sees pixels (see `unet`). What it looks for has the size in pixels that it had in
training, so pictures of all sizes are brought to one area. Frames are seen one by one, but for the mean over all of
them, at the bottom: how large the room is they say together.

Letters in shapes: B batch, C channels, T latent frames, H W latent height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .cameras import slopes
from .unet import UNet

TYPICAL = math.log(3.0)  # log metres: what an untrained network says of everything


class Depths(UNet):
    """widths: channels of the levels. area: pixels of the pictures that it looks at."""

    def __init__(self, channels: int, widths: Sequence[int], area: int) -> None:
        super().__init__(channels + 2, widths, 1, "depth_widths")
        self.area = area
        self.common = nn.Linear(widths[-1], widths[-1])

    @torch.no_grad()
    def initialise(self) -> None:
        """At first everything is about TYPICAL."""
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.weight)
        nn.init.constant_(self.leave.bias, TYPICAL)

    def forward(self, shown: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W) float32, log metres along the optical axis, of what a video shows, (B, C, T, H, W), through a
        lens (B, T, 4), focal lengths and centre divided by the frame's size."""
        rows, frames, size = len(shown), shown.shape[2], shown.shape[3:]

        def together(states: torch.Tensor) -> torch.Tensor:
            common: torch.Tensor = self.common(states.mean(dim=(2, 3)).unflatten(0, (rows, frames)).mean(dim=1))
            return states + common.repeat_interleave(frames, dim=0)[..., None, None]

        seen = self._seen(*size)
        pictures = _resized(shown.transpose(1, 2).flatten(0, 1).float(), seen)
        lens = torch.stack(slopes(intrinsics.float(), seen, (1, 1), seen), dim=2).flatten(0, 1)
        found = self.through(torch.cat([pictures, lens], dim=1), together)
        return _resized(found, size)[:, 0].unflatten(0, (rows, frames))

    def _seen(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that it looks at."""
        scale = math.sqrt(self.area / (height * width)) / self.multiple
        rows, columns = (max(1, round(side * scale)) * self.multiple for side in (height, width))
        return rows, columns


def _resized(pictures: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if pictures.shape[2:] == tuple(size):
        return pictures
    return F.interpolate(pictures, tuple(size), mode="bilinear", align_corners=False, antialias=True)
