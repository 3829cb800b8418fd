"""What a clip invents it invents once.

What the frames of a clip make up, each for itself, differs from frame to frame, and no later turn could agree with all
of them. So a point that several frames show takes the look of one: the first of those that lead and see it.

Letters in shapes as in `lookup`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .conditioning import ConditioningVideo
from .lookup import Paths, fine, finer, look, paths_through, project, rays_of
from .moved import followed

# Which frames lead, as shares of the clip's length. The last first: it is the farthest from what the source shows as
# often as any, and the next segment goes on from it.
LEADING = (1.0, 0.0, 0.5)
ALIKE = 1.0  # units of the latent: what differs by far more is not the same thing, but something that has moved
KNOWN = 0.3  # as ALIKE, of what a source shows


@dataclass(frozen=True, eq=False)
class Leaders(Paths):
    """How the target's rays run through its own cameras at frames of these numbers, L of them: origin (B L, T, 3) and
    rays (B L, T, 3, h, w)."""

    frames: list[int]


@dataclass(frozen=True, eq=False)
class MadeUp:
    """What is made up of a clip: share (B, 1, T, H, W) of every pixel, in 0..1; kept, like it: the share of what
    memories show; depths (BT, 1, h, w), metres along the optical axis, at which it lies; the frames that lead; and
    before (B, C, T, H, W), what a source that shares its rays shows there, None where none does."""

    share: torch.Tensor
    kept: torch.Tensor
    depths: torch.Tensor
    leaders: Leaders
    before: torch.Tensor | None


def leading(target: ConditioningVideo) -> Leaders:
    """The frames that lead."""
    with torch.autocast(target.latent.device.type, enabled=False):
        origins, rays = rays_of(target)
        count, length = rays.shape[:2]
        frames = list(dict.fromkeys(round(share * (length - 1)) for share in LEADING))
        at = torch.tensor(frames, device=rays.device).repeat(count)[:, None].expand(-1, length)
        origins, rays = (each.repeat_interleave(len(frames), dim=0) for each in (origins, rays))
        return Leaders(**vars(paths_through(origins, rays, target, at)), frames=frames)


def settled(
    made: torch.Tensor,
    depths: torch.Tensor,
    leaders: Leaders,
    known: torch.Tensor | None = None,
    alike: torch.Tensor | float = ALIKE,
    follow: bool = False,
) -> torch.Tensor:
    """What the frames of a clip make up each for itself, (B, C, T, H, W), after those that lead: where one of them
    shows a pixel's point, at depths (BT, 1, h, w), the pixel takes its look, as far as the two are alike already: in
    `known`, like made, or in this itself. alike: of a row (B, 1, 1, 1, 1, 1) or of all, as ALIKE. follow: what has
    moved in what is known is looked up where it has moved to (see `moved`)."""
    frames, channels = leaders.frames, made.shape[1]
    both = made if known is None else torch.cat([made, known], dim=1)
    clip = both.transpose(1, 2)  # (B, T, C, H, W)
    sizes = (len(clip), len(frames), clip.shape[1])
    depths = depths.unflatten(0, sizes[::2]).repeat_interleave(len(frames), dim=0).flatten(0, 1)
    where, inside = project(leaders, depths)
    shown = look(fine(clip[:, frames].flatten(0, 1)), where)[:, :, 0].unflatten(0, sizes)  # (B, L, T, C, H, W)
    shows = finer(inside.float()).unflatten(0, sizes)
    told = 0 if known is None else channels  # the first channel by which they are compared
    if follow:
        shown, shows = followed(shown, shows, clip[:, :, told:])
    unlike = (shown - clip[:, None])[:, :, :, told:].square().mean(dim=3, keepdim=True) / (2 * alike**2)
    clip, shown = clip[:, :, :channels], shown[:, :, :, :channels]
    share = (-unlike).exp() * shows
    for rank, frame in enumerate(frames):
        shown[:, rank, frame], share[:, rank, frame] = clip[:, frame], 1.0  # a frame looks like itself
    taken, left = torch.zeros_like(clip), torch.ones_like(clip[:, :, :1])
    for rank in range(len(frames)):
        taken, left = taken + left * share[:, rank] * shown[:, rank], left * (1 - share[:, rank])
    return (taken + left * clip).transpose(1, 2)
