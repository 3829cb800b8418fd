"""How far away things are is seen by a camera that moves, from how they shift against one another.

The network for depths (see `depths`) looks at pictures, and a room that is twice as large and twice as far away looks
the same. But where a source's camera moves, one of its frames shows at the right depth what another shows, and at the
wrong one something else. So what the network says is moved by the factors that make its frames agree, as likely as the
network is to be off by so much: first by one for all of the clip, then by one for every place. What moves by itself
while the camera does is taken for nearer or farther than it is, by FACTORS at most each time; where the camera stands
nothing is learned.

Letters in shapes: B batch, T latent frames, H W latent height and width.
"""

from __future__ import annotations

import torch

from .conditioning import ConditioningVideo
from .lookup import FARTHEST, NEAREST, fine, framewise, look_at, paths_through, project, rays_of
from .outlines import means

FACTORS = torch.linspace(-0.4, 0.4, 13)  # log: those that are tried
# Standard deviations of what the network is off, log metres: of all of a clip, and of a place beside that.
CLIP, PLACE = 0.3, 0.1
WINDOW = 16  # the width over it: windows reach so far from their middles, twice
OTHER = 0.05  # squared units of the latent: what is off by more shows something else, and how much more says nothing
WEIGHT = 1600.0  # log-likelihood, by squared units of the latent that the pixels of a window are off in the mean


def parallax(log_depths: torch.Tensor, video: ConditioningVideo) -> torch.Tensor:
    """What the network says of a video, (B, T, H, W) float32, log metres along the optical axis, as its frames say."""
    assert video.poses is not None
    if torch.equal(video.poses[..., 3], video.poses[:, :1, :, 3].expand_as(video.poses[..., 3])):
        return log_depths

    def over_clip(off: torch.Tensor) -> torch.Tensor:
        return off.mean(dim=(2, 3, 4), keepdim=True)

    def over_windows(off: torch.Tensor) -> torch.Tensor:
        mean = means(log_depths.flatten(0, 1)[:, None], max(1, log_depths.shape[3] // WINDOW))
        return mean(mean(off.flatten(0, 2)[:, None])).view_as(off)

    with torch.autocast(log_depths.device.type, enabled=False):  # positions are never rounded
        for spread, over in ((CLIP, over_clip), (PLACE, over_windows)):
            log_depths = log_depths + _likely(over(_off(log_depths, video)), spread)
    return log_depths


def _likely(off: torch.Tensor, spread: float) -> torch.Tensor:
    """The mean of FACTORS by which what is seen is off by so much (FACTORS, ...), each as likely as it makes that."""
    factors = FACTORS.to(off).view(-1, *[1] * (off.ndim - 1))
    return (factors * (-WEIGHT * off - (factors / spread).square() / 2).softmax(dim=0)).sum(dim=0)


def _off(log_depths: torch.Tensor, video: ConditioningVideo) -> torch.Tensor:
    """(FACTORS, B, T, H, W): by how much a pixel looks otherwise in the frame that is half of the clip away, if it is
    farther away than said by each of the factors; squared, the mean over channels."""
    rows, count = log_depths.shape[:2]
    at = (torch.arange(count, device=log_depths.device) + count // 2) % count
    paths = paths_through(*rays_of(video, cell=1), video, at.expand(rows, -1))
    shown = framewise(video.latent.float())
    frames = fine(framewise(video.latent[:, :, at]))
    off, shows = [], []
    for factor in FACTORS.tolist():
        depths = (log_depths + factor).flatten(0, 1)[:, None].exp().clamp(NEAREST, FARTHEST)
        where, inside = project(paths, depths)
        squared = (look_at(frames, where)[:, :, 0] - shown).square().mean(dim=1)
        off.append(squared.clamp(max=OTHER).view_as(log_depths))
        shows.append(inside[:, 0].view_as(log_depths))
    values, known = torch.stack(off), torch.stack(shows)
    # A factor that leads out of the picture is as likely as the others are in the mean.
    mean = (values * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)
    return torch.where(known, values, mean)
