"""Tokens of videos, and the convolutions that make them.

The dynamic tokenizers of Memory-V2V: a video that matters less is cut into coarser tokens. A kernel is a multiple of
the base patch (frames, rows, columns).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

Kernel = tuple[int, int, int]


class Group(NamedTuple):
    """A run of frames with one grid of tokens each. merges: whether its frames may be merged."""

    frames: int
    rows: int
    columns: int
    merges: bool

    @property
    def tokens(self) -> int:
        return self.frames * self.rows * self.columns


class Where(NamedTuple):
    """Of a video's tokens: places and cameras as in `Tokens`, and what is added to their states (B, F, h or 1, w or 1,
    D) for the cameras, if anything."""

    places: torch.Tensor
    added: torch.Tensor | None
    cameras: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Tokens:
    """A sequence of tokens, group after group, frame after frame.

    states (B, M, D); places (B or 1, M, 3 or 7), see `positions`; cameras (B, M, 12) poses, only where every block
    has a camera layer of its own.
    """

    states: torch.Tensor
    places: torch.Tensor
    cameras: torch.Tensor | None
    groups: tuple[Group, ...]

    def __len__(self) -> int:
        return self.states.shape[1]

    def having(self, states: torch.Tensor) -> Tokens:
        """The same tokens a block later."""
        return replace(self, states=states)

    def split(self) -> Iterator[Tokens]:
        """One `Tokens` per group."""
        start = 0
        for group in self.groups:
            part = slice(start, start + group.tokens)
            cameras = None if self.cameras is None else self.cameras[:, part]
            yield Tokens(self.states[:, part], self.places[:, part], cameras, (group,))
            start = part.stop

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """One sequence; neighbouring groups with the same grid become one."""
        groups: list[Group] = []
        for group in (group for part in parts for group in part.groups):
            if groups and groups[-1][1:] == group[1:]:
                group = group._replace(frames=groups.pop().frames + group.frames)
            groups.append(group)
        cameras = [part.cameras for part in parts if part.cameras is not None]
        rows = max(len(part.places) for part in parts)  # merged tokens are elsewhere in every row
        return cls(
            torch.cat([part.states for part in parts], dim=1),
            torch.cat([part.places.expand(rows, -1, -1) for part in parts], dim=1),
            torch.cat(cameras, dim=1) if cameras else None,
            tuple(groups),
        )


class Tokenizer(nn.Conv3d):
    """A convolution whose stride is its kernel, as the product of patches and weights that it is: several times
    faster on a CPU than a convolution with so large a kernel."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) to (B, D, F, h, w)."""
        for axis, size in zip((4, 3, 2), reversed(self.kernel_size), strict=True):
            latent = latent.unflatten(axis, (-1, size))
        patches = latent.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return F.linear(patches, self.weight.flatten(1), self.bias).movedim(-1, 1)


class Tokenizers(nn.ModuleDict):
    """One convolution per distinct kernel, named `1x2x2`."""

    def __init__(self, kernels: Iterable[Sequence[int]], patch: Kernel, channels: int, dim: int) -> None:
        super().__init__()
        for kernel in sorted({tuple(each) for each in kernels}):
            size: Any = tuple(k * p for k, p in zip(kernel, patch, strict=True))
            self[_name(kernel)] = Tokenizer(channels, dim, size, stride=size)

    def of(self, kernel: Sequence[int]) -> Any:
        """The one of a kernel (frames, rows, columns), in multiples of the base patch. Raises ValueError for others."""
        if _name(kernel) not in self:
            raise ValueError(f"no tokenizer {_name(kernel)}, this model has {', '.join(self)}")
        return self[_name(kernel)]

    @torch.no_grad()
    def initialise(self, base: nn.Conv3d) -> None:
        """Start as the base patch embedding of the average-pooled latent.

        Each base weight is repeated over the block it now covers and divided by the block's size. Where the base
        embeds a source beside the target (more channels than ours), the weights are the target's, which come first.
        """
        tokenizer: Any
        for name, tokenizer in self.items():
            weight = base.weight[:, : tokenizer.in_channels]
            for axis, multiple in enumerate(map(int, name.split("x"))):
                weight = weight.repeat_interleave(multiple, dim=2 + axis) / multiple
            tokenizer.weight.copy_(weight)
            tokenizer.bias.copy_(base.bias)


def unpatchify(tokens: torch.Tensor, patch: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """(B, N, patch * C) to (B, C, T, H, W), `shape` its T, H and W."""
    grid = [size // each for size, each in zip(shape, patch, strict=True)]
    tokens = tokens.unflatten(2, (*patch, -1)).unflatten(1, grid)
    return tokens.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def pad_to(latent: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """Repeat the last frame, row and column of (B, C, T, H, W) until the kernel divides it."""
    t, h, w = (-size % k for size, k in zip(latent.shape[2:], kernel, strict=True))
    return F.pad(latent, (0, w, 0, h, 0, t), mode="replicate") if t or h or w else latent


def _name(kernel: Sequence[int]) -> str:
    return "x".join(map(str, kernel))
