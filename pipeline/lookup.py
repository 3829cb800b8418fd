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
NEAREST, FARTHEST = 0.1, 100.0  # metres along the optical axis


@dataclass(frozen=True, eq=False)
class Paths:
    """How the target's rays run through cameras of another video, or of its own, one for every frame of the target.

    origin (B, T, 3) and rays (B, T, h, w, 3), in that camera: depth z of the target's pixel is the point origin + z
    ray. intrinsics (B, T, 4).
    """

    origin: torch.Tensor
    rays: torch.Tensor
    intrinsics: torch.Tensor


def rays_of(target: ConditioningVideo) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins (B, T, 3) and, of every cell, the ray (B, T, h, w, 3) whose multiple by a depth along the optical axis is
    the point at that depth."""
    assert target.poses is not None and target.intrinsics is not None
    _, _, frames, height, width = target.latent.shape
    cells = (frames, height // CELL, width // CELL)
    origins, rays = token_rays(target.poses, target.intrinsics, (height, width), (1, CELL, CELL), cells)
    return origins, rays / torch.einsum("bthwi,bti->bthw", rays, target.poses.float()[..., 2])[..., None]


def paths_through(origins: torch.Tensor, rays: torch.Tensor, video: ConditioningVideo, frames: torch.Tensor) -> Paths:
    """Of what `rays_of` gave, through the frames (B, T) of a video."""
    assert video.poses is not None and video.intrinsics is not None
    row = torch.arange(len(rays), device=rays.device)[:, None] // (len(rays) // len(video.latent))
    poses = video.poses[row, frames].float()
    into = poses[..., :3].transpose(-1, -2)
    return Paths(
        torch.einsum("btij,btj->bti", into, origins - poses[..., 3]),
        torch.einsum("btij,bthwj->bthwi", into, rays),
        video.intrinsics[row, frames].float(),
    )


def framewise(video: torch.Tensor) -> torch.Tensor:
    """(B, C, T, H, W) to (B T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def project(paths: Paths, depths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where points at depths (BT, P, h, w) lie in the video's frames, (BT, 2, P, h, w) with -1..1 from edge to edge,
    and whether they show them, (BT, P, h, w) bool."""
    rays = paths.rays.flatten(0, 1).movedim(-1, 1)[:, :, None]
    origin = paths.origin.flatten(0, 1)[:, :, None, None, None]
    x, y, z = (origin + depths[:, None] * rays).unbind(dim=1)
    fx, fy, cx, cy = paths.intrinsics.flatten(0, 1)[:, :, None, None, None].unbind(dim=1)
    ahead = z > NEAREST / 2
    z = z.clamp(min=NEAREST / 2)
    where = 2 * torch.stack([fx * x / z + cx, fy * y / z + cy], dim=1) - 1
    return where.clamp(-2, 2), ahead & (where.abs() < 1).all(dim=1)


def finer(cells: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) to pixels (N, C, H, W): bilinear between the middles of cells, CELL a side."""
    if not cells.is_cuda:
        return F.interpolate(cells, scale_factor=CELL, mode="bilinear")
    # torch's kernel for GPUs has a thread per pixel of one picture, which goes through all pictures: small ones by the
    # thousand take twenty times as long as they need.
    return halved(halved(cells, 2), 3)


def halved(cells: torch.Tensor, dim: int) -> torch.Tensor:
    """Linear between the middles of cells along one axis, at the middles of their halves; constant beyond the ends."""
    count = cells.shape[dim]
    before = torch.cat([cells.narrow(dim, 0, 1), cells.narrow(dim, 0, count - 1)], dim)
    after = torch.cat([cells.narrow(dim, 1, count - 1), cells.narrow(dim, count - 1, 1)], dim)
    return torch.stack([before.lerp(cells, 0.75), after.lerp(cells, 0.75)], dim + 1).flatten(dim, dim + 1)


def look(frames: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """(BT, C, P, H, W): frames (BT, C, H, W) at places (BT, 2, P, h, w) of cells, those of pixels between them."""
    points = where.shape[2]
    places = finer(where.flatten(1, 2))
    # grid_sample reads and writes beyond its memory where a place is no number, as in a training that diverges.
    places = places.nan_to_num(2.0)
    grid = places.unflatten(1, (2, points)).movedim(1, -1).flatten(1, 2)  # (BT, P H, W, 2)
    # Bicubic: a bilinear lookup takes an eighth off the sharpness of every turn, and of the next that copies it again.
    found = F.grid_sample(frames, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return found.unflatten(2, (points, -1))
