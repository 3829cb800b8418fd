"""A small convolutional network that sees pixels, of a U's shape (Ronneberger, Fischer and Brox, 2015): every level
halves rows and columns on the way down, and takes what the same level had seen on the way up.

Letters in shapes: N pictures, C channels, D numbers that all of a picture is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 8  # of channels that are normalised together
HEAD = 32  # channels of an attention's head, where they divide the level's


class UNet(nn.Module):
    """inputs, outputs: channels of pictures that it takes and makes. widths: channels of the levels, in multiples of
    GROUPS. name: of the setting that says them. told: D. whole: how many of the levels, the lowest, see all of a
    picture at once."""

    def __init__(
        self, inputs: int, widths: Sequence[int], outputs: int, name: str, told: int = 0, whole: int = 0
    ) -> None:
        super().__init__()
        if any(width % GROUPS for width in widths):
            raise ValueError(f"{name} must be multiples of {GROUPS}, got {list(widths)}")
        self.multiple = 2 ** (len(widths) - 1)  # of rows and columns that it takes
        self.enter = nn.Conv2d(inputs, widths[0], 3, padding=1)
        sees = [rank >= len(widths) - whole for rank in range(len(widths))]
        levels = zip((widths[0], *widths), widths, sees, strict=False)
        self.down = nn.ModuleList(Level(before, after, told, each) for before, after, each in levels)
        self.bottom = Level(widths[-1], widths[-1], told, sees[-1])
        levels = zip(widths[:0:-1], widths[-2::-1], sees[-2::-1], strict=True)
        self.up = nn.ModuleList(Level(low + high, high, told, each) for low, high, each in levels)
        self.norm, self.leave = nn.GroupNorm(GROUPS, widths[0]), nn.Conv2d(widths[0], outputs, 3, padding=1)

    def operations(self, pixels: float) -> float:
        """Two per multiply-add, for one picture of so many pixels, about: convolutions alone."""
        parts = self._parts(pixels)
        return sum(2 * each.numel() * seen for part, seen in parts for each in part.parameters() if each.ndim == 4)

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
        self,
        pictures: torch.Tensor,
        lowest: Callable[[torch.Tensor], torch.Tensor] = lambda states: states,
        told: torch.Tensor | None = None,
        apart: bool = False,
    ) -> torch.Tensor:
        """Pictures (N, inputs, rows, columns) to (N, outputs, rows, columns), float32. lowest: what is done to the
        states of the last level before the bottom. told (N, D), in the dtype of the weights. apart: where levels see
        all of a picture, every place attends to itself alone."""
        # Channels last, as convolutions are fastest; what follows stays so.
        states = self.enter(pictures.to(self.enter.weight.dtype, memory_format=torch.channels_last))
        levels: list[torch.Tensor] = []
        for level in self.down:
            states = level(F.avg_pool2d(levels[-1], 2) if levels else states, told, apart)
            levels.append(states)
        levels.pop()
        states = self.bottom(lowest(states), told, apart)
        for level in self.up:
            states = level(torch.cat([F.interpolate(states, scale_factor=2.0), levels.pop()], dim=1), told, apart)
        made: torch.Tensor = self.leave(F.silu(self.norm(states)))
        return made.float()


class Level(nn.Module):
    """Two convolutions beside a shortcut (He et al., 2016), what they are given scaled and shifted by what all of a
    picture is told (Dumoulin et al., 2018), and behind them attention, where it sees all of a picture at once.
    channels: of what it is given."""

    def __init__(self, before: int, after: int, told: int = 0, whole: bool = False) -> None:
        super().__init__()
        self.channels = before + after
        # Not norm1 and norm2, which a loaded transformer keeps in float32: they are in its dtype as all else here is.
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, each) for each in (before, after))
        self.convolutions = nn.ModuleList(nn.Conv2d(each, after, 3, padding=1) for each in (before, after))
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.told = nn.ModuleList(nn.Linear(told, 2 * each) for each in (before, after)) if told else None
        self.whole = Whole(after) if whole else None

    def forward(self, states: torch.Tensor, told: torch.Tensor | None = None, apart: bool = False) -> torch.Tensor:
        """(N, channels, rows, columns); told (N, D) and apart as in `UNet.through`."""
        found = states
        for rank, (norm, convolution) in enumerate(zip(self.norms, self.convolutions, strict=True)):
            found = norm(found)
            if self.told is not None and told is not None:
                scale, shift = self.told[rank](told)[..., None, None].chunk(2, dim=1)
                found = found * (1 + scale) + shift
            found = convolution(F.silu(found))
        found = self.shortcut(states) + found
        return found if self.whole is None else self.whole(found, apart)


class Whole(nn.Module):
    """Attention of every place to all, or to itself alone, beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // math.gcd(width, HEAD)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.enter, self.leave = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, states: torch.Tensor, apart: bool = False) -> torch.Tensor:
        """(N, width, rows, columns)."""
        parts = self.enter(self.norm(states)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        query, key, value = parts.unbind(1)
        found = (value if apart else F.scaled_dot_product_attention(query, key, value)).transpose(-1, -2)
        left: torch.Tensor = self.leave(found.reshape(states.shape))
        return states + left
