"""Copying along rays: what a pixel of the target shows may be in a conditioning video already, seen from elsewhere.

Tokens carry what a patch looks like, not its pixels. So beside what the network makes up itself, its last layer gets
candidates: a few points on every pixel's ray, at depths that the network says, as the source and the most relevant
memories show them. The network says how likely each candidate is, the noisy target what speaks for it, and the
result is their mean. What is remembered comes back as it was, for the price of a lookup.

And what a clip invents it invents once: a point that several of its frames make up, each for itself, takes the look of
one of them (`settled`). Without this no later turn could agree with all frames of an earlier one.

Letters in shapes: B batch, C channels, T latent frames, H W latent height and width, h w cells, V videos, P points of
a ray, N tokens of the target, D width of the model. For models that predict the clean sample and know rays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .cameras import token_rays
from .conditioning import ConditioningVideo
from .tokenizers import unpatchify

CELL = 2  # pixels a side that share depths and likelihoods
DEPTHS = (1.5, 12.0)  # metres along the optical axis: where the points of a ray begin, the first and the last
NEAREST, FARTHEST = 0.1, 100.0
# Whose look is taken, as shares of the clip's length. The last frame first: it is the farthest from what the source
# shows as often as any, and the next segment goes on from it.
LEADING = (1.0, 0.0, 0.5)
ALIKE = 1.0  # units of the latent: what differs by far more is not the same thing, but something that has moved


@dataclass(frozen=True, eq=False)
class Paths:
    """How the target's rays run through another video's cameras, one for every frame of the target.

    origin (B, T, 3) and rays (B, T, h, w, 3), in that camera: depth z of the target's pixel is the point origin + z
    ray. intrinsics (B, T, 4).
    """

    origin: torch.Tensor
    rays: torch.Tensor
    intrinsics: torch.Tensor


@dataclass(frozen=True, eq=False)
class Sight(Paths):
    """And what there is to see. frames (B, T, C, H, W): of the video, for every frame of the target the nearest in
    time."""

    frames: torch.Tensor


Leaders = dict[int, Paths]


def sights(target: ConditioningVideo, videos: Sequence[ConditioningVideo | None]) -> list[Sight | None]:
    """One for each video; None where there is none. A video may have fewer rows than the target, as `forward` says."""
    with torch.autocast(target.latent.device.type, enabled=False):  # positions are never rounded
        return _sights(target, videos)


def leading(target: ConditioningVideo) -> Leaders:
    """How the target's rays run through its own cameras at the frames LEADING: {frame: for all frames of the target}"""
    with torch.autocast(target.latent.device.type, enabled=False):
        origins, rays = _rays(target)
        frames = dict.fromkeys(round(share * (rays.shape[1] - 1)) for share in LEADING)
        return {at: _paths(origins, rays, target, torch.full(rays.shape[:2], at, device=rays.device)) for at in frames}


def _sights(target: ConditioningVideo, videos: Sequence[ConditioningVideo | None]) -> list[Sight | None]:
    origins, rays = _rays(target)
    found: list[Sight | None] = []
    for video in videos:
        if video is None:
            found.append(None)
            continue
        assert target.times is not None and video.times is not None
        shared = len(rays) // len(video.latent)
        times, latent = (each.repeat_interleave(shared, dim=0) for each in (video.times, video.latent))
        nearest = (target.times[:, :, None] - times[:, None]).abs().argmin(-1)  # (B, T)
        paths = _paths(origins, rays, video, nearest)
        row = torch.arange(len(rays), device=rays.device)[:, None]
        found.append(Sight(**vars(paths), frames=latent.movedim(2, 1)[row, nearest]))
    return found


def _rays(target: ConditioningVideo) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins (B, T, 3) and, of every cell, the ray (B, T, h, w, 3) whose multiple by a depth along the optical axis is
    the point at that depth."""
    assert target.poses is not None and target.intrinsics is not None
    _, _, frames, height, width = target.latent.shape
    cells = (frames, height // CELL, width // CELL)
    origins, rays = token_rays(target.poses, target.intrinsics, (height, width), (1, CELL, CELL), cells)
    return origins, rays / torch.einsum("bthwi,bti->bthw", rays, target.poses.float()[..., 2])[..., None]


def _paths(origins: torch.Tensor, rays: torch.Tensor, video: ConditioningVideo, frames: torch.Tensor) -> Paths:
    """Of `_rays` through the frames (B, T) of a video."""
    assert video.poses is not None and video.intrinsics is not None
    row = torch.arange(len(rays), device=rays.device)[:, None] // (len(rays) // len(video.latent))
    poses = video.poses[row, frames].float()
    into = poses[..., :3].transpose(-1, -2)
    return Paths(
        torch.einsum("btij,btj->bti", into, origins - poses[..., 3]),
        torch.einsum("btij,bthwj->bthwi", into, rays),
        video.intrinsics[row, frames].float(),
    )


class Copying(nn.Module):
    """The layer beside the model's own last one.

    A cell's part of `proj`, from the token it lies in: V P logits of points as videos show them, one of what the model
    makes up itself, P logarithms of depths. evidence: logarithms of how much the noisy target counts, and of how far,
    in units of the latent, a right candidate may be off.
    """

    def __init__(self, dim: int, patch: Sequence[int], videos: int, points: int) -> None:
        super().__init__()
        if patch[1] % CELL or patch[2] % CELL:
            raise ValueError(f"copying takes patches of a multiple of {CELL} rows and columns, got {tuple(patch)}")
        self.videos, self.points = videos, points
        self.cells = (patch[0], patch[1] // CELL, patch[2] // CELL)
        self.proj = nn.Linear(dim, math.prod(self.cells) * (videos * points + 1 + points))
        self.evidence = nn.Parameter(torch.empty(2))

    def initialise(self) -> None:
        """At first the model's own part prevails, and depths are the same everywhere."""
        nn.init.normal_(self.proj.weight, std=0.02)
        near, far = (math.log(each) for each in DEPTHS)
        depths = [near + (far - near) * index / max(1, self.points - 1) for index in range(self.points)]
        values = torch.tensor([0.0] * (self.videos * self.points) + [2.0] + depths)
        with torch.no_grad():
            self.proj.bias.copy_(values.repeat(math.prod(self.cells)))
            self.evidence.fill_(-1.0)

    def forward(
        self,
        states: torch.Tensor,
        own: torch.Tensor,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        seen: Sequence[Sight | None],
        leaders: Leaders | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """states (B, N, D) as the last layer gets them; own (B, C, T, H, W) what that makes of them; noisy (B, C, T, H,
        W) in noise of sigma (B,); leaders of `leading`, where what frames make up is to agree. Returns the sample, like
        `own`, and log depths (B, T, P, h, w), log metres along the optical axis."""
        with torch.autocast(own.device.type, enabled=False):
            count, channels, frames, height, width = own.shape
            logits, log_depths = self._said(states, frames, height // CELL, width // CELL)
            depths = log_depths.exp().clamp(NEAREST, FARTHEST)
            made = own.float()
            if leaders:
                made = settled(made, log_depths.mean(dim=1, keepdim=True).exp().clamp(NEAREST, FARTHEST), leaders)
            scores, candidates = [logits[:, -1:]], [_framewise(made)[:, :, None]]
            shown = [torch.ones_like(logits[:, -1:], dtype=torch.bool)]
            for video, sight in zip(logits[:, :-1].split(self.points, dim=1), seen, strict=False):
                if sight is not None:
                    where, inside = _project(sight, depths)
                    scores.append(video)
                    shown.append(inside)
                    candidates.append(_look(sight.frames.flatten(0, 1).float(), where))
            score, candidate = torch.cat(scores, dim=1), torch.cat(candidates, dim=2)  # (BT, J, h, w), (BT, C, J, H, W)
            level = sigma.float().repeat_interleave(frames).view(-1, 1, 1, 1)
            score = score + self._evidence(_framewise(noisy.float()), candidate, level)
            score = score.masked_fill(~torch.cat(shown, dim=1), -torch.inf)
            share = _finer(score.softmax(dim=1))
            mean = (share[:, None] * candidate).sum(dim=2).unflatten(0, (count, frames)).transpose(1, 2)
        return mean.to(own.dtype), log_depths.unflatten(0, (count, frames))

    def _said(self, states: torch.Tensor, frames: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B T, V P + 1, h, w) and log depths (B T, P, h, w)."""
        said = F.linear(states.float(), self.proj.weight.float(), self.proj.bias.float())
        said = _framewise(unpatchify(said, self.cells, (frames, rows, columns)))
        logits, log_depths = said.split([self.videos * self.points + 1, self.points], dim=1)
        return logits, log_depths

    def _evidence(self, noisy: torch.Tensor, candidate: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """(BT, J, h, w): log-likelihood of the noisy target, (1 - sigma) x + sigma noise, if x were the candidate."""
        weight, spread = self.evidence.exp().unbind()
        error = torch.addcmul(noisy[:, :, None], level[:, None] - 1, candidate).square().flatten(1, 2)
        error = F.avg_pool2d(error, CELL).unflatten(1, (noisy.shape[1], -1)).sum(dim=1)
        return -weight * error / (2 * (level**2 + ((1 - level) * spread) ** 2))


def settled(made: torch.Tensor, depths: torch.Tensor, leaders: Leaders) -> torch.Tensor:
    """What the frames of a clip make up each for itself, (B, C, T, H, W), after those that lead: where one of them
    shows a pixel's point, at depths (BT, 1, h, w), the pixel takes its look, as far as the two are alike already."""
    frames, alone = made.shape[2], _framewise(made)
    look, left = torch.zeros_like(alone), torch.ones_like(alone[:, :1])
    for frame, paths in leaders.items():
        where, inside = _project(paths, depths)
        shown = _look(made[:, :, frame].repeat_interleave(frames, dim=0), where)[:, :, 0]
        unlike = (shown - alone).square().mean(dim=1, keepdim=True) / (2 * ALIKE**2)
        share = (-unlike).exp() * _finer(inside.float())
        itself = (torch.arange(len(alone), device=made.device) % frames == frame)[:, None, None, None]
        shown, share = torch.where(itself, alone, shown), torch.where(itself, 1.0, share)
        look, left = look + left * share * shown, left * (1 - share)
    return (look + left * alone).unflatten(0, (len(made), frames)).transpose(1, 2)


def _framewise(video: torch.Tensor) -> torch.Tensor:
    """(B, C, T, H, W) to (B T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def _project(paths: Paths, depths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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


def _finer(cells: torch.Tensor) -> torch.Tensor:
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


def _look(frames: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """(BT, C, P, H, W): frames (BT, C, H, W) at places (BT, 2, P, h, w) of cells, those of pixels between them."""
    points = where.shape[2]
    places = _finer(where.flatten(1, 2))
    # grid_sample reads and writes beyond its memory where a place is no number, as in a training that diverges.
    places = places.nan_to_num(2.0)
    grid = places.unflatten(1, (2, points)).movedim(1, -1).flatten(1, 2)  # (BT, P H, W, 2)
    # Bicubic: a bilinear lookup takes an eighth off the sharpness of every turn, and of the next that copies it again.
    found = F.grid_sample(frames, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return found.unflatten(2, (points, -1))
