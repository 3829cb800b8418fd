"""Which frame of a memory a frame of the target looks at: the one that shows most of what it shows.

A memory of the same moments may have been looking elsewhere just then, and there sooner or later. Of frames that show
about as much the nearest in time is taken, since things move.

Letters in shapes as in `lookup`.
"""

from __future__ import annotations

import torch

from .conditioning import ConditioningVideo
from .lookup import paths_through, project

SECONDS = 3.0  # away in time weigh as much as showing nothing rather than everything
PLACES = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the picture's height and width: the rays that are asked about
DEPTHS = (1.5, 3.0, 8.0)  # metres along the optical axis: and the points on them


def nearest(times: torch.Tensor, video: ConditioningVideo) -> torch.Tensor:
    """(B, T) int64: for times (B, T) of the target, the frames of a video that are nearest. The video may have fewer
    rows than the target, as `MemoryWanTransformer3DModel.forward` says."""
    return _away(times, video).argmin(-1)


def showing(times: torch.Tensor, origins: torch.Tensor, rays: torch.Tensor, video: ConditioningVideo) -> torch.Tensor:
    """(B, T) int64: of the target's `rays_of`, as `nearest`, but the frames that show most."""
    return (_away(times, video) / SECONDS - shown(origins, rays, video)).argmin(-1)


def shown(origins: torch.Tensor, rays: torch.Tensor, video: ConditioningVideo) -> torch.Tensor:
    """(B, T, T'): the share of what each frame of the target may show that each of a video's T' shows. Origins and rays
    as `rays_of` gives them."""
    (count, frames), others = origins.shape[:2], video.latent.shape[2]
    rows, columns = ([int(share * size) for share in PLACES] for size in rays.shape[2:4])
    few = rays[:, :, rows][:, :, :, columns].repeat_interleave(others, dim=1)
    pairs = torch.arange(others, device=rays.device).repeat(count, frames)
    paths = paths_through(origins.repeat_interleave(others, dim=1), few, video, pairs)
    depths = rays.new_tensor(DEPTHS)[:, None, None].expand(pairs.numel(), -1, len(rows), len(columns))
    _, inside = project(paths, depths)
    return inside.flatten(1).float().mean(1).view(count, frames, others)


def _away(times: torch.Tensor, video: ConditioningVideo) -> torch.Tensor:
    """(B, T, T') seconds."""
    assert video.times is not None
    row = torch.arange(len(times), device=times.device) // (len(times) // len(video.times))
    return (times[:, :, None] - video.times[row][:, None]).abs()
