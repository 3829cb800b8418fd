"""What the network is told of cameras: mean poses and rays of tokens.

Shapes: B batch, T latent frames, F token frames (runs of `size` latent frames), h w tokens of a frame. Poses are
(B, T, 3, 4) camera-to-world in metres, OpenCV axes; intrinsics (B, T, 4) are (fx/W, fy/H, cx/W, cy/H).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def over_token_frames(values: torch.Tensor, size: int) -> torch.Tensor:
    """Mean over runs of `size` frames, (B, T, ...) to (B, F, ...).

    Frames that padding adds repeat the last one's value, as they repeat its picture. For a linear camera layer the
    mean of the poses is the mean of the embeddings.
    """
    if size == 1:
        return values
    short = -values.shape[1] % size
    last = values[:, -1:].expand(-1, short, *values.shape[2:])
    return torch.cat([values, last], dim=1).unflatten(1, (-1, size)).mean(dim=2)


def slopes(
    intrinsics: torch.Tensor, picture: Sequence[int], kernel: Sequence[int], counts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the centre ray of every token goes to the right and down for a metre forward, (B, T, h, w) each. Of rows
    and columns picture: the latent's; kernel: those under a token; counts: of tokens."""
    rows, columns = (
        (torch.arange(count, device=intrinsics.device) + 0.5) * size / extent
        for count, size, extent in zip(counts, kernel, picture, strict=True)
    )
    fx, fy, cx, cy = intrinsics[..., None, None].unbind(2)
    x = ((columns - cx) / fx).expand(-1, -1, counts[0], -1)
    y = ((rows[:, None] - cy) / fy).expand(-1, -1, -1, counts[1])
    return x, y


def token_rays(
    poses: torch.Tensor,
    intrinsics: torch.Tensor,
    picture: Sequence[int],
    kernel: Sequence[int],
    counts: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean camera position (B, F, 3) and unit centre ray (B, F, h, w, 3) of tokens.

    picture: height and width of the latent; kernel: latent frames, rows and columns under a token; counts: (F, h, w).
    A token over several frames has their mean position and the renormalised mean of their rays.
    """
    poses, intrinsics = poses.float(), intrinsics.float()
    x, y = slopes(intrinsics, picture, kernel[1:], counts[1:])
    rays = F.normalize(torch.stack([x, y, torch.ones_like(x)], dim=-1), dim=-1)
    rays = torch.einsum("btij,bthwj->bthwi", poses[..., :3], rays)
    return over_token_frames(poses[..., 3], kernel[0]), F.normalize(over_token_frames(rays, kernel[0]), dim=-1)


def plucker(origins: torch.Tensor, rays: torch.Tensor) -> torch.Tensor:
    """(B, F, h, w, 6): moment o x d and direction d of token rays."""
    return torch.cat([torch.linalg.cross(origins[:, :, None, None].expand_as(rays), rays), rays], dim=-1)
