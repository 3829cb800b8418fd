"""How far away what a memory shows is, so that it is a surface as the source is (see `surface`).

What a memory of the same moments shows of what the source sees lies where the source's surface says, since it was made
along that: a ray of the memory's camera meets it there. Of other moments it does so but for what moves. The rest was
made up, and nobody knows how far away it is. The network that says so of the source (see `depths`) says it here as
well, but its mistakes bend what is looked up along them. So there the surface has mostly its smooth shape, and goes on
from what is known beside it: lines stay lines, and things whole.

Letters in shapes: B batch, T latent frames, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .conditioning import ConditioningVideo
from .lookup import paths_through, rays_of
from .moments import nearest
from .outlines import means
from .surface import reached

SMOOTH = 0.8  # of the shape that the network says, in reciprocals of metres: planes stay planes
WINDOW = 4  # the width over it: windows of smoothing reach so far from their middles, twice
REACHES = (2, 6)  # as WINDOW: from the farthest on, what is left over by one is for the next
EVERY = 4  # the network is asked of every so many frames: of a smooth shape those between hardly differ
FARTHEST_OFF = 1.0  # log metres: a mistake of more, where the sky is known and not seen as such, counts as this much


def remembered(
    depths: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    memory: ConditioningVideo,
    known: Sequence[ConditioningVideo],
) -> torch.Tensor:
    """(B, T, H, W) float32, log metres along the memory's optical axes. depths: as `Depths.forward`. known:
    videos with surfaces, as many rows as the memory, of which the first says that a ray meets it."""
    assert memory.times is not None and memory.intrinsics is not None
    own = depths(memory.latent[:, :, ::EVERY], memory.intrinsics[:, ::EVERY]).float()
    with torch.autocast(own.device.type, enabled=False):  # positions are never rounded
        shape = _between(_smooth(own), memory.latent.shape[2])
        origins, rays = rays_of(memory, cell=1)
        row = torch.arange(len(rays), device=rays.device)[:, None]
        there, met = torch.zeros_like(shape), torch.zeros_like(shape, dtype=torch.bool)
        for video in known:
            assert video.surface is not None
            at = nearest(memory.times, video)
            paths = paths_through(origins, rays, video, at)
            log_depths, meets, _ = reached(paths, video.surface[row, at].flatten(0, 1))
            there = torch.where(met, there, log_depths.view_as(shape))
            met = met | meets.view_as(shape)
        return torch.where(met, there, _beside(shape, there, met))


def _smooth(log_depths: torch.Tensor) -> torch.Tensor:
    near = (-log_depths).exp().flatten(0, 1)[:, None]
    mean = means(near, near.shape[3] // WINDOW)
    return -torch.lerp(near, mean(mean(near)), SMOOTH).log().view_as(log_depths)


def _between(some: torch.Tensor, frames: int) -> torch.Tensor:
    """Of every EVERY-th frame to so many frames: linear between those, and after the last as there."""
    at = torch.arange(frames, device=some.device) / EVERY
    before = at.floor().long()
    after = (before + 1).clamp(max=some.shape[1] - 1)
    return torch.lerp(some[:, before], some[:, after], (at - before)[:, None, None])


def _beside(shape: torch.Tensor, there: torch.Tensor, met: torch.Tensor) -> torch.Tensor:
    """A shape, moved to where it goes on from what is known: by the mean of what it is off in the clip, and beside
    what is known by what it is off there, less and less with the distance."""
    weight = met.float()
    off = weight * (there - shape).clamp(-FARTHEST_OFF, FARTHEST_OFF)
    mean = off.sum(dim=(1, 2, 3), keepdim=True) / weight.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    weight, off = (each.flatten(0, 1)[:, None] for each in (weight, weight * (off - mean)))
    added = torch.zeros_like(off)
    for reach in REACHES:
        window = means(off, off.shape[3] // reach)
        left = torch.cat([weight * (off - added), weight], dim=1)
        near, share = window(window(left)).split(1, dim=1)
        added = added + near / share.clamp(min=0.25)  # beside a straight border it is a half, and none far from it
    return shape + mean + added.view_as(shape)
