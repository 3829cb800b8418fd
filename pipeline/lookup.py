"""Points of a target's rays, looked up in the frames of other cameras.

A pixel's ray and a depth are a point; where another camera shows it, its frame says how it looks from there. Pixels
come in cells of CELL x CELL, which share a depth; places between the middles of cells are interpolated.

Letters in shapes: B batch, C channels, T latent frames, H W latent height and width, h w cells, P points of a ray.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .cameras import token_rays
from .conditioning import ConditioningVideo

CELL = 2  # pixels a side
NEAR, FAR = 0.59375, 0.09375  # a cubic halfway between pixels: of the two beside it and, taken off, of those beyond
NEAREST, FARTHEST = 0.1, 100.0  # metres along the optical axis


@dataclass(frozen=True, eq=False)
class Paths:
    """How the target's rays run through cameras of another video, or of its own, one for every frame of the target.

    origin (B, T, 3) and rays (B, T, 3, h, w), in homogeneous coordinates of that camera's picture: depth z of the
    target's pixel is shown at (u / d, v / d) of (u, v, d) = origin + z ray, -1..1 from edge to edge, d metres away.
    """

    origin: torch.Tensor
    rays: torch.Tensor


def rays_of(target: ConditioningVideo, cell: int = CELL) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins (B, T, 3) and, of every cell of so many pixels a side, the ray (B, T, h, w, 3) whose multiple by a depth
    along the optical axis is the point at that depth."""
    assert target.poses is not None and target.intrinsics is not None
    _, _, frames, height, width = target.latent.shape
    cells = (frames, height // cell, width // cell)
    origins, rays = token_rays(target.poses, target.intrinsics, (height, width), (1, cell, cell), cells)
    return origins, rays / torch.einsum("bthwi,bti->bthw", rays, target.poses.float()[..., 2])[..., None]


def paths_through(origins: torch.Tensor, rays: torch.Tensor, video: ConditioningVideo, frames: torch.Tensor) -> Paths:
    """Of what `rays_of` gave, through the frames (B, T) of a video."""
    assert video.poses is not None and video.intrinsics is not None
    row = torch.arange(len(rays), device=rays.device)[:, None] // (len(rays) // len(video.latent))
    poses, intrinsics = video.poses[row, frames].float(), video.intrinsics[row, frames].float()
    lens = torch.zeros_like(poses[..., :3])
    lens[..., 0, 0], lens[..., 1, 1] = (2 * intrinsics[..., :2]).unbind(-1)
    lens[..., 0, 2], lens[..., 1, 2] = (2 * intrinsics[..., 2:] - 1).unbind(-1)
    lens[..., 2, 2] = 1
    into = lens @ poses[..., :3].transpose(-1, -2)
    return Paths(
        torch.einsum("btij,btj->bti", into, origins - poses[..., 3]),
        torch.einsum("btij,bthwj->btihw", into, rays).contiguous(),
    )


def framewise(video: torch.Tensor) -> torch.Tensor:
    """(B, C, T, H, W) to (B T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def project(paths: Paths, depths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where points at depths (BT, P, h, w) lie in the video's frames, (BT, 2, P, h, w) with -1..1 from edge to edge,
    and whether they show them, (BT, P, h, w) bool."""
    origin, rays = paths.origin.flatten(0, 1)[..., None, None, None], paths.rays.flatten(0, 1)[:, :, None]
    where, away = seen(torch.addcmul(origin, depths[:, None], rays))
    # Not even in a training that diverges: grid_sample reads and writes beyond its memory where a place is no number.
    return where.clamp(-2, 2).nan_to_num(2.0), (outside(where, away) < 0)[:, 0]


def seen(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of points (BT, 3, ...) in homogeneous coordinates of a camera's picture, as `Paths` has them, where in it they
    lie, (BT, 2, ...), and how far away, (BT, 1, ...)."""
    where, away = points.split([2, 1], dim=1)
    return where / away.clamp(min=NEAREST / 2), away


def outside(where: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
    """(BT, 1, ...): below 0 where the picture shows what `seen` gave."""
    return torch.maximum(where.abs().amax(dim=1, keepdim=True) - 1, NEAREST / 2 - away)


def finer(cells: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) to pixels (N, C, H, W): bilinear between the middles of cells, CELL a side."""
    # torch's own interpolation of small pictures by the thousand takes twice as long on a CPU, twenty times on a GPU.
    return halved(halved(cells, 3), 2)


def halved(cells: torch.Tensor, dim: int) -> torch.Tensor:
    """Linear between the middles of cells along one axis, at the middles of their halves; constant beyond the ends."""
    count = cells.shape[dim]
    before = torch.cat([cells.narrow(dim, 0, 1), cells.narrow(dim, 0, count - 1)], dim)
    after = torch.cat([cells.narrow(dim, 1, count - 1), cells.narrow(dim, count - 1, 1)], dim)
    return torch.stack([before.lerp(cells, 0.75), after.lerp(cells, 0.75)], dim + 1).flatten(dim, dim + 1)


def fine(frames: torch.Tensor) -> torch.Tensor:
    """Frames (N, C, H, W) as `look` takes them: their pixels and, bicubic, what lies halfway between these, (N, C,
    2 H - 1, 2 W - 1). A bilinear lookup in the frames themselves takes an eighth off the sharpness of every turn, and
    of the next that copies it again; a bicubic one costs four times a bilinear one in these."""
    return _with_halfway(_with_halfway(frames.float(), 3), 2)


def _with_halfway(pixels: torch.Tensor, dim: int) -> torch.Tensor:
    """Pixels and what lies halfway between neighbours along one axis; beyond the ends all is as there."""
    # torch's own interpolation takes six times as long on a CPU.
    count = pixels.shape[dim]
    wide = torch.cat([pixels.narrow(dim, 0, 1), pixels, pixels.narrow(dim, count - 1, 1)], dim)
    one, two, three, four = (wide.narrow(dim, start, count - 1) for start in range(4))
    shape = [*pixels.shape[:dim], 2 * count - 1, *pixels.shape[dim + 1 :]]
    both = pixels.new_empty(shape).movedim(dim, 0)
    both[::2] = pixels.movedim(dim, 0)
    both[1::2] = ((two + three) * NEAR - (one + four) * FAR).movedim(dim, 0)
    return both.movedim(0, dim)


def look(frames: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """(M, C, P, H, W): `fine` frames at places (M, 2, P, h, w) of cells, those of pixels between them; places must be
    numbers (`project` sees to that). M may be several times the number of frames: as many for each, in turn."""
    places = _between_middles(where, frames)
    return _found(frames, finer(places.flatten(1, 2)).unflatten(1, places.shape[1:3]))


def look_at(frames: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """As `look`, at places (M, 2, P, H, W) of pixels."""
    return _found(frames, _between_middles(where, frames))


def _between_middles(where: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Places (M, 2, P, h, w) in `fine` frames with -1..1 from the middle of the first pixel to that of the last."""
    rows, columns = frames.shape[2:]
    return torch.stack([where[:, 0] * (columns + 1) / (columns - 1), where[:, 1] * (rows + 1) / (rows - 1)], dim=1)


def _found(frames: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    points = places.shape[2]
    grid = places.movedim(1, -1)  # (M, P, H, W, 2)
    grid = grid.flatten(1, 2).unflatten(0, (len(frames), -1))
    found = F.grid_sample(frames, grid.flatten(1, 2), padding_mode="border", align_corners=True)
    return found.unflatten(2, (grid.shape[1], points, -1)).transpose(1, 2).flatten(0, 1)
