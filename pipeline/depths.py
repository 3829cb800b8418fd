"""How far away what a video shows is, from how it looks: a small convolutional network beside the transformer.

The transformer's tokens see patches and say depths of a patch or a part of one; what is looked up along these comes out
torn (see `surface`). This network sees pixels. It has a U's shape (Ronneberger, Fischer and Brox, 2015): every level
halves rows and columns on the way down, and takes what the same level had seen on the way up. What it looks for has
the size in pixels that it had in training, so pictures of all sizes are brought to one area. Frames are seen one by
one, but for the mean over all of them, at the bottom: how large the room is they say together.

Letters in shapes: B batch, C channels, T latent frames, H W latent height and width, F = B T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .cameras import slopes

GROUPS = 8  # of channels that are normalised together
TYPICAL = math.log(3.0)  # log metres: what an untrained network says of everything


class Depths(nn.Module):
    """widths: channels of the levels, in multiples of GROUPS. area: pixels of the pictures that it looks at."""

    def __init__(self, channels: int, widths: Sequence[int], area: int) -> None:
        super().__init__()
        if any(width % GROUPS for width in widths):
            raise ValueError(f"depth_widths must be multiples of {GROUPS}, got {list(widths)}")
        self.area, self.multiple = area, 2 ** (len(widths) - 1)
        self.enter = nn.Conv2d(channels + 2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(map(Level, (widths[0], *widths), widths))
        self.common = nn.Linear(widths[-1], widths[-1])
        self.bottom = Level(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            Level(low + high, high) for low, high in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.norm, self.leave = nn.GroupNorm(GROUPS, widths[0]), nn.Conv2d(widths[0], 1, 3, padding=1)

    @property
    def operations(self) -> float:
        """Two per multiply-add, for one picture, about: convolutions alone, in pictures of `area`."""
        return sum(2 * size * pixels for part, pixels in self._parts() for size in map(torch.numel, part.parameters()))

    @property
    def kept(self) -> float:
        """Numbers that a training keeps of one picture for the way back, about: what norms, activations and
        convolutions of levels are given."""
        return sum(3 * part.channels * pixels for part, pixels in self._parts() if isinstance(part, Level))

    def _parts(self) -> list[tuple[nn.Module, float]]:
        """Those with convolutions, each with how many pixels it sees of a picture."""
        parts = [(0, self.enter), *enumerate(self.down), (len(self.up), self.bottom)]
        parts += [*zip(reversed(range(len(self.up))), self.up, strict=True), (0, self.leave)]
        return [(part, self.area / 4**depth) for depth, part in parts]

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
        seen = self._seen(*size)
        pictures = _resized(shown.transpose(1, 2).flatten(0, 1).float(), seen)
        lens = torch.stack(slopes(intrinsics.float(), seen, (1, 1), seen), dim=2).flatten(0, 1)
        states = torch.cat([pictures, lens], dim=1)
        states = self.enter(states.to(self.enter.weight.dtype))
        levels: list[torch.Tensor] = []
        for level in self.down:
            states = level(F.avg_pool2d(levels[-1], 2) if levels else states)
            levels.append(states)
        levels.pop()
        common = self.common(states.mean(dim=(2, 3)).unflatten(0, (rows, frames)).mean(dim=1))
        states = self.bottom(states + common.repeat_interleave(frames, dim=0)[..., None, None])
        for level in self.up:
            states = level(torch.cat([F.interpolate(states, scale_factor=2.0), levels.pop()], dim=1))
        return _resized(self.leave(F.silu(self.norm(states))).float(), size)[:, 0].unflatten(0, (rows, frames))

    def _seen(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that it looks at."""
        scale = math.sqrt(self.area / (height * width)) / self.multiple
        rows, columns = (max(1, round(side * scale)) * self.multiple for side in (height, width))
        return rows, columns


class Level(nn.Module):
    """Two convolutions beside a shortcut (He et al., 2016). channels: of what they are given."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.channels = before + after
        # Not norm1 and norm2, which a loaded transformer keeps in float32: they are in its dtype as all else here is.
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, each) for each in (before, after))
        self.convolutions = nn.ModuleList(nn.Conv2d(each, after, 3, padding=1) for each in (before, after))
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(F, channels, rows, columns)."""
        found = states
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            found = convolution(F.silu(norm(found)))
        shortcut: torch.Tensor = self.shortcut(states)
        return shortcut + found


def _resized(pictures: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if pictures.shape[2:] == tuple(size):
        return pictures
    return F.interpolate(pictures, tuple(size), mode="bilinear", align_corners=False, antialias=True)
