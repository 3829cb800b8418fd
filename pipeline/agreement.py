"""What a clip invents it invents once.

What the frames of a clip make up, each for itself, differs from frame to frame, and no later turn could agree with all
of them. So a point that several frames show takes the look of one: the first of those that lead and see it.

Letters in shapes as in `lookup`.
"""

from __future__ import annotations

import torch

from .conditioning import ConditioningVideo
from .lookup import Paths, finer, framewise, look, paths_through, project, rays_of

# Which frames lead, as shares of the clip's length. The last first: it is the farthest from what the source shows as
# often as any, and the next segment goes on from it.
LEADING = (1.0, 0.0, 0.5)
ALIKE = 1.0  # units of the latent: what differs by far more is not the same thing, but something that has moved

Leaders = dict[int, Paths]


def leading(target: ConditioningVideo) -> Leaders:
    """How the target's rays run through its own cameras at the frames LEADING: {frame: for all frames of the target}"""
    with torch.autocast(target.latent.device.type, enabled=False):
        origins, rays = rays_of(target)
        frames = dict.fromkeys(round(share * (rays.shape[1] - 1)) for share in LEADING)
        return {
            at: paths_through(origins, rays, target, torch.full(rays.shape[:2], at, device=rays.device))
            for at in frames
        }


def settled(made: torch.Tensor, depths: torch.Tensor, leaders: Leaders) -> torch.Tensor:
    """What the frames of a clip make up each for itself, (B, C, T, H, W), after those that lead: where one of them
    shows a pixel's point, at depths (BT, 1, h, w), the pixel takes its look, as far as the two are alike already."""
    frames, alone = made.shape[2], framewise(made)
    taken, left = torch.zeros_like(alone), torch.ones_like(alone[:, :1])
    for frame, paths in leaders.items():
        where, inside = project(paths, depths)
        shown = look(made[:, :, frame].repeat_interleave(frames, dim=0), where)[:, :, 0]
        unlike = (shown - alone).square().mean(dim=1, keepdim=True) / (2 * ALIKE**2)
        share = (-unlike).exp() * finer(inside.float())
        itself = (torch.arange(len(alone), device=made.device) % frames == frame)[:, None, None, None]
        shown, share = torch.where(itself, alone, shown), torch.where(itself, 1.0, share)
        taken, left = taken + left * share * shown, left * (1 - share)
    return (taken + left * alone).unflatten(0, (len(made), frames)).transpose(1, 2)
