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

from .lookup import CELL, Paths, look_at, outside, seen

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
    # Finite, since grid_sample reads beyond its memory where a place is no number.
    origin, rays = (each.flatten(0, 1).nan_to_num(0.0, 0.0, 0.0) for each in (paths.origin, paths.rays))
    origin = origin[..., None, None]

    def behind(where: torch.Tensor, away: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of points that the video sees there and so far away, how far they lie behind the surface, and how far away
        that is, log metres."""
        grid = where.movedim(1, -1)
        there = F.grid_sample(surfaces[:, None], grid, "nearest", padding_mode="border", align_corners=False)
        distance = away.clamp(min=NEAREST / 4).log()
        return distance - there, distance

    # Comparing takes longer than arithmetic on a CPU: of several numbers the greatest is compared.
    begin, end = math.log(NEAREST), math.log(FARTHEST)
    step = (end - begin) / (PLACES - 1)
    places = torch.tensor([begin + place * step for place in range(PLACES)])
    passed = torch.full_like(rays[:, :1], end)
    met = torch.zeros_like(passed, dtype=torch.bool)
    before, count = ~met, met.byte()
    for depth in places.exp().tolist():
        where, away = seen(torch.add(origin, rays, alpha=depth))
        deep, distance = behind(where, away)
        hidden, out = deep > 0, outside(where, away)
        # Before a target that stands behind the source one place may be far from the next: so deep it may get anyway.
        crossed = torch.maximum(deep - (distance - passed).clamp(min=THICK), out) < 0
        met = met | (~before & hidden & crossed)
        count = count + ~met  # the places before it meets the surface
        before, passed = hidden, distance
    met = met | ((out < 0) & ~before)  # it ends in the sky
    near = torch.cat([places - step, places.new_tensor([end])]).to(rays.device)[count.int()]
    far = torch.where(near < end, near + step, near)
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        hidden = behind(*seen(torch.addcmul(origin, middle.exp(), rays)))[0] > 0
        near, far = torch.where(hidden, near, middle), torch.where(hidden, middle, far)
    log_depths = (near + far) / 2
    where, away = seen(torch.addcmul(origin, log_depths.exp(), rays))
    return log_depths, met & (outside(where, away) < 0), where.clamp(-2, 2)[:, :, None]
