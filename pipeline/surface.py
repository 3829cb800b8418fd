"""What videos show is a surface, and the target's rays meet it.

What tokens say of the target's depths is a blurred picture: a thing that is looked up along it comes out torn. But how
the source looks is known to the pixel. So in use a network of its own says how far away is what the source shows (see
`depths`), and a pixel of the target is looked up where its ray first goes behind that surface, but not where it has
passed behind the edge of a thing: what is there the source does not show. What goes behind it nowhere is not shown
either. Memories are surfaces, too (see `remembered`), which a ray may meet that does not meet the source.

Letters in shapes as in `lookup`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from .lookup import CELL, Paths, away, look_at, project

NEAREST, FARTHEST = 0.4, 60.0  # metres along the optical axis: between them a ray is followed
PLACES = 32  # on it, each as many times as far away as the one before
THICK = 0.3  # log metres: a ray that comes to be farther behind the surface in one place has passed behind a thing
HALVINGS = 4  # of what lies between the two that the surface is between


@dataclass(frozen=True, eq=False)
class Met:
    """What the target's rays meet first of V videos. shown (BT, C, H, W): how it looks there. by (BT, V, H, W) bool:
    which video they meet. log_depths (BT, 1, H, W): logarithms of metres along the target's optical axis, there."""

    shown: torch.Tensor
    by: torch.Tensor
    log_depths: torch.Tensor

    @cached_property
    def meets(self) -> torch.Tensor:
        """(BT, 1, H, W) bool: whether they meet any."""
        return self.by.any(dim=1, keepdim=True)

    @cached_property
    def shares(self) -> torch.Tensor:
        """(BT, V, h, w), 0 to 1: of a cell's pixels, those that meet each video."""
        return F.avg_pool2d(self.by.float(), CELL)

    @cached_property
    def mostly(self) -> torch.Tensor:
        """(BT, 1, h, w) bool: whether half of a cell's pixels or more meet any."""
        return self.shares.sum(dim=1, keepdim=True) >= 0.5

    @cached_property
    def over_cells(self) -> torch.Tensor:
        """(BT, 1, h, w): log_depths of a cell, the mean over its pixels that meet any."""
        known = self.shares.sum(dim=1, keepdim=True).clamp(min=CELL**-2)
        return F.avg_pool2d(self.log_depths * self.meets, CELL) / known


def meet(paths: Paths, surfaces: torch.Tensor, frames: torch.Tensor) -> Met:
    """The target's rays, of pixels and not of cells, with what a video shows in the frame that each is looked up in:
    its surface (BT, H', W') and its picture, `fine` (BT, C, 2 H' - 1, 2 W' - 1)."""
    log_depths, meets, where = reached(paths, surfaces)
    return Met(look_at(frames, where)[:, :, 0], meets, log_depths)


def first(found: Sequence[Met]) -> Met:
    """Of several videos the first that a ray meets."""
    met = found[0]
    for other in found[1:]:
        met = Met(
            torch.where(met.meets, met.shown, other.shown),
            torch.cat([met.by, other.by & ~met.meets], dim=1),
            torch.where(met.meets, met.log_depths, other.log_depths),
        )
    return met


def reached(paths: Paths, surfaces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of rays and surfaces as in `meet`: log depths along the rays' own optical axes (BT, 1, H, W), whether they meet
    the surface there, and where in the video's frames, (BT, 2, 1, H, W)."""

    def behind(log_depths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of points (BT, 1, H, W) of the rays how far they lie behind the surface and how far away, log metres, as the
        video sees it, and which lie in its picture."""
        depths = log_depths.exp()
        where, inside = project(paths, depths)
        there = F.grid_sample(
            surfaces[:, None], where[:, :, 0].movedim(1, -1), "nearest", padding_mode="border", align_corners=False
        )
        distance = away(paths, depths).clamp(min=NEAREST / 4).log()
        return distance - there, distance, inside

    begin, end = math.log(NEAREST), math.log(FARTHEST)
    step = (end - begin) / (PLACES - 1)
    near = torch.full_like(paths.rays.flatten(0, 1)[:, :1], end)
    met = torch.zeros_like(near, dtype=torch.bool)
    before, inside, passed = torch.ones_like(met), met, near
    for place in range(PLACES):
        log_depths = torch.full_like(near, begin + place * step)
        deep, distance, inside = behind(log_depths)
        hidden = deep > 0
        # Before a target that stands behind the source one place may be far from the next: so deep it may get anyway.
        crossed = ~before & hidden & inside & ~met & (deep < (distance - passed).clamp(min=THICK))
        near, met = torch.where(crossed, log_depths - step, near), met | crossed
        before, passed = hidden, distance
    met = met | (inside & ~before)  # it ends in the sky
    far = torch.where(near < end, near + step, near)
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        hidden = behind(middle)[0] > 0
        near, far = torch.where(hidden, near, middle), torch.where(hidden, middle, far)
    log_depths = (near + far) / 2
    where, inside = project(paths, log_depths.exp())
    return log_depths, met & inside, where
