"""A small convolutional network that sees pixels, of a U's shape (Ronneberger, Fischer and Brox, 2015): every level
halves rows and columns on the way down, and takes what the same level had seen on the way up.

Letters in shapes: N pictures, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 8  # of channels that are normalised together


class UNet(nn.Module):
    """inputs, outputs: channels of pictures that it takes and makes. widths: channels of the levels, in multiples of
    GROUPS. name: of the setting that says them."""

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int, name: str) -> None:
        super().__init__()
        if any(width % GROUPS for width in widths):
            raise ValueError(f"{name} must be multiples of {GROUPS}, got {list(widths)}")
        self.multiple = 2 ** (len(widths) - 1)  # of rows and columns that it takes
        self.enter = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(map(Level, (widths[0], *widths), widths))
        self.bottom = Level(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            Level(low + high, high) for low, high in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.norm, self.leave = nn.GroupNorm(GROUPS, widths[0]), nn.Conv2d(widths[0], outputs, 3, padding=1)

    def operations(self, pixels: float) -> float:
        """Two per multiply-add, for one picture of so many pixels, about: convolutions alone."""
        parts = self._parts(pixels)
        return sum(2 * size * seen for part, seen in parts for size in map(torch.numel, part.parameters()))

    def kept(self, pixels: float) -> float:
        """Numbers that a training keeps of one such picture for the way back, about: what norms, activations and
        convolutions of levels are given."""
        return sum(3 * part.channels * seen for part, seen in self._parts(pixels) if isinstance(part, Level))

    def _parts(self, pixels: float) -> list[tuple[nn.Module, float]]:
        """Those with convolutions, each with how many pixels it sees of a picture."""
        parts = [(0, self.enter), *enumerate(self.down), (len(self.up), self.bottom)]
        parts += [*zip(reversed(range(len(self.up))), self.up, strict=True), (0, self.leave)]
        return [(part, pixels / 4**depth) for depth, part in parts]

    def through(
        self, pictures: torch.Tensor, lowest: Callable[[torch.Tensor], torch.Tensor] = lambda states: states
    ) -> torch.Tensor:
        """Pictures (N, inputs, rows, columns) to (N, outputs, rows, columns), float32. lowest: what is done to the
        states of the last level before the bottom."""
        states = self.enter(pictures.to(self.enter.weight.dtype))
        levels: list[torch.Tensor] = []
        for level in self.down:
            states = level(F.avg_pool2d(levels[-1], 2) if levels else states)
            levels.append(states)
        levels.pop()
        states = self.bottom(lowest(states))
        for level in self.up:
            states = level(torch.cat([F.interpolate(states, scale_factor=2.0), levels.pop()], dim=1))
        made: torch.Tensor = self.leave(F.silu(self.norm(states)))
        return made.float()


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
        """(N, channels, rows, columns)."""
        found = states
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            found = convolution(F.silu(norm(found)))
        shortcut: torch.Tensor = self.shortcut(states)
        return shortcut + found
