"""Copying along rays: what a pixel of the target shows may be in a conditioning video already, seen from elsewhere.

Tokens carry what a patch looks like, not its pixels. So beside what the network makes up itself, its last layer gets
candidates: a few points on every pixel's ray, at depths that the network says, as the source and the most relevant
memories show them. The network says how likely each candidate is, the noisy target what speaks for it, and the
result is their mean. What is remembered comes back as it was, for the price of a lookup.

A memory is looked at in the frames that show most, whenever they were, the source in those of the same moment. In use
a pixel is looked up in a source of another camera where its ray meets what that shows, if it is known how far away that
is, and in the first memory that it meets, as the other candidate (`surface`). Where target and source share their rays,
the source shows all there is, and when. What a memory of another moment shows there may have moved on since: in use it
is a candidate as far as the source looked then as it looks now.

Letters in shapes as in `lookup`, and V videos, N tokens of the target, D width of the model. For models that predict
the clean sample and know rays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .agreement import ALIKE, KNOWN, Leaders, MadeUp, settled
from .conditioning import ConditioningVideo
from .lookup import CELL, FARTHEST, NEAREST, Paths, fine, finer, framewise, look, paths_through, project, rays_of
from .moments import nearest, showing
from .outlines import CERTAIN, DECIDED, Outlines, bounded, outlined
from .seams import beside, even, seamless
from .surface import Met, first, meet
from .tokenizers import unpatchify

# Logits by which a memory is likelier than the network says where a ray meets it and not the source: that has learned
# with memories that are looked up along depths only roughly known, and noise has too much of a say, so edges fray.
MEMORY = 2.0
UNCHANGED = 0.1  # units of the latent: a source that looks otherwise by far more shows something else by now
DEPTHS = (1.5, 12.0)  # metres along the optical axis: where the points of a ray begin, the first and the last


@dataclass(frozen=True, eq=False)
class Sight(Paths):
    """Paths through a video, and what it shows. frames (B, T, C, 2 H - 1, 2 W - 1): for every frame of the target the
    one that `moments` says, `fine`. Behind them, where it is `dated`, what they were made from, 2 C channels in all."""

    frames: torch.Tensor
    dated: bool


def sights(
    target: ConditioningVideo, videos: Sequence[ConditioningVideo | None], outlines: Outlines | None = None
) -> list[Sight | Met | None]:
    """One for each video, the source's place first; None where there is none. A video may have fewer rows than the
    target, as `forward` says. outlines: of `outlines_of`, for rows that share their rays with the source. Where none
    does, and surfaces are known, it is what the target's rays meet, of all memories the first in the first's place."""
    with torch.autocast(target.latent.device.type, enabled=False):  # positions are never rounded
        return _sights(target, videos, outlines)


def _sights(
    target: ConditioningVideo, videos: Sequence[ConditioningVideo | None], outlines: Outlines | None
) -> list[Sight | Met | None]:
    origins, rays = rays_of(target)
    of_pixels = rays_of(target, cell=1) if any(video and video.surface is not None for video in videos) else None
    found: list[Sight | Met | None] = []
    for place, video in enumerate(videos):
        if video is None:
            found.append(None)
            continue
        assert target.times is not None and video.times is not None
        # The source in the same moment: no other video shows what moves where it is just then.
        at = showing(target.times, origins, rays, video) if place else nearest(target.times, video)
        shown, dated = video.latent, False
        if outlines is not None and video.source is not None:
            shown, dated = torch.cat([shown, video.source], dim=1), True
        row = torch.arange(len(rays), device=rays.device) // (len(rays) // len(video.latent))
        # A video of another time is looked at in few of its frames.
        used, where = (row[:, None] * video.times.shape[1] + at).unique(return_inverse=True)
        frames = fine(framewise(shown)[used])[where]
        if video.surface is not None and of_pixels is not None and outlines is None:
            paths = paths_through(*of_pixels, video, at)
            found.append(meet(paths, video.surface[row[:, None], at].flatten(0, 1), frames.flatten(0, 1)))
        else:
            found.append(Sight(**vars(paths_through(origins, rays, video, at)), frames=frames, dated=dated))
    if mets := [each for each in found[1:] if isinstance(each, Met)]:
        assert len(mets) == len(found) - 1  # all memories, or none
        found[1 : 1 + len(mets)] = [first(mets), *[None] * (len(mets) - 1)]
    return found


class Precise(nn.Linear):
    """A linear layer in float32, whatever the model is in: what it says are places. Called and not read, so that
    adapters and offloading see it."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(states.float(), self.weight.float(), self.bias.float())


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
        self.patch = (patch[1], patch[2])
        self.cells = (patch[0], patch[1] // CELL, patch[2] // CELL)
        self.proj = Precise(dim, math.prod(self.cells) * (videos * points + 1 + points))
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

    def said(self, states: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of states (B, N, D) as the last layer gets them, for a target of shape (T, H, W): logits (B, T, V P + 1, h,
        w), and log depths (B, T, P, h, w), log metres along the optical axis."""
        said = self.proj(states)
        cells = (shape[0], shape[1] // CELL, shape[2] // CELL)
        count = self.videos * self.points + 1
        logits, log_depths = unpatchify(said, self.cells, cells).transpose(1, 2).split([count, self.points], dim=2)
        return logits.contiguous(), log_depths.contiguous()

    def forward(
        self,
        own: torch.Tensor,
        logits: torch.Tensor,
        log_depths: torch.Tensor,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        seen: Sequence[Sight | Met | None],
        leaders: Leaders | None = None,
        outlines: Outlines | None = None,
    ) -> tuple[torch.Tensor, MadeUp | None]:
        """The sample, and what of it is made up, where frames agree and the source is met or has outlines. own (B, C,
        T, H, W): what the model's own last layer makes; logits and log_depths as `said`; noisy (B, C, T, H, W) in noise
        of sigma (B,); leaders of `leading`, where what frames make up is to agree and have no seams; outlines of
        `outlines_of`, where the source has them."""
        with torch.autocast(own.device.type, enabled=False):
            count, frames = len(own), own.shape[2]
            met = seen[0] if seen and isinstance(seen[0], Met) else None
            for sight in reversed(seen):  # what a ray meets lies there, first of all what the source shows
                if isinstance(sight, Met):
                    said = log_depths.flatten(0, 1)
                    log_depths = torch.where(sight.mostly, sight.over_cells, said).view_as(log_depths)
            depths = log_depths.flatten(0, 1).exp().clamp(NEAREST, FARTHEST)
            noisy = framewise(noisy.float()).contiguous()
            level = sigma.float().repeat_interleave(frames).view(-1, 1, 1, 1)
            shared = torch.zeros_like(level, dtype=torch.bool)
            if outlines is not None:
                shared = outlines.shared.repeat_interleave(frames).view_as(level)
            made = self._made(own.float(), log_depths, level, shared, leaders, outlines)
            candidates = [made[:, :, None]]  # (BT, C, points, H, W) each
            *videos, alone = logits.flatten(0, 1).split([self.points] * self.videos + [1], dim=1)
            scores = [alone + self._evidence(noisy, candidates[0], level)]
            missed: list[tuple[int, torch.Tensor]] = []  # candidates that are made up where rays meet nothing
            for place, (score, sight) in enumerate(zip(videos, seen, strict=False)):
                if isinstance(sight, Met):
                    found = torch.where(sight.meets, sight.shown, made)[:, :, None]
                    score, inside = _of_met(videos[place:], sight), sight.mostly
                    if place and met is not None:
                        score = score + MEMORY * ~met.mostly
                    missed.append((len(scores), ~sight.meets))
                elif sight is not None:
                    where, inside = project(sight, depths)
                    found = look(sight.frames.flatten(0, 1), where)
                    if sight.dated:
                        assert outlines is not None  # see `sights`
                        found, then = found.chunk(2, dim=1)
                        off = _over_cells(framewise(outlines.shown)[:, :, None] - then)
                        score = score - shared * off / (2 * UNCHANGED**2)
                else:
                    continue
                candidates.append(found)
                score = score + self._evidence(noisy, found, level)
                scores.append(score.masked_fill(~inside, -torch.inf))
            shares = finer(torch.cat(scores, dim=1).softmax(dim=1))
            if outlines is not None and (certain := shared & (level <= CERTAIN)).any():
                shares = torch.where(certain, bounded(shares, self.points, framewise(outlines.shown)), shares)
            shares = shares.split([len(each[0]) for each in scores], dim=1)
            sample = torch.zeros_like(made)
            for share, each in zip(shares, candidates, strict=True):
                for point in range(share.shape[1]):
                    sample = sample + share[:, None, point] * each[:, :, point]
            made_up, invented = None, shares[0]
            if met is not None and leaders is not None:
                for place, where in missed:
                    invented = invented + shares[place] * where
                if (certain := level <= CERTAIN).any():
                    sample = sample + certain * invented * beside(made, met.shown, shares[1] * met.meets)
            if leaders is not None and (met is not None or shared.all()):
                share = invented.unflatten(0, (count, frames)).transpose(1, 2)
                before = None if outlines is None else outlines.shown
                remembered = sum((each.sum(dim=1, keepdim=True) for each in shares[2:]), torch.zeros_like(invented))
                kept = remembered.unflatten(0, (count, frames)).transpose(1, 2)
                made_up = MadeUp(share, kept, _middle(log_depths), leaders, before)
            return sample.unflatten(0, (count, frames)).transpose(1, 2).to(own.dtype), made_up

    def _made(
        self,
        own: torch.Tensor,
        log_depths: torch.Tensor,
        level: torch.Tensor,
        shared: torch.Tensor,
        leaders: Leaders | None,
        outlines: Outlines | None,
    ) -> torch.Tensor:
        """(BT, C, H, W): what the model makes up itself, as it comes to be a candidate. level and shared (BT, 1, 1, 1):
        sigma, and whether the source sees with the target's rays."""
        sizes, made = log_depths.shape[:2], framewise(own)
        if outlines is not None and (decided := shared & (level <= DECIDED)).any():
            made = torch.where(decided, outlined(made, framewise(outlines.shown)), made)
        if leaders is None:  # in training: each patch is taught as it is
            return made
        if not shared.all():
            smooth = seamless(made, self.patch)
            if (decided := level <= DECIDED).any():
                smooth = torch.where(decided, even(smooth), smooth)
            made = torch.where(shared, made, smooth)
        clip = made.unflatten(0, sizes).transpose(1, 2)
        if outlines is None:
            return framewise(settled(clip, _middle(log_depths), leaders))
        rows = outlines.shared.view(-1, 1, 1, 1, 1, 1)  # where the source shows what has moved
        known = torch.where(rows[..., 0], outlines.shown, clip)
        return framewise(settled(clip, _middle(log_depths), leaders, known, torch.where(rows, KNOWN, ALIKE)))

    def _evidence(self, noisy: torch.Tensor, candidate: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """(BT, J, h, w): log-likelihood of the noisy target, (1 - sigma) x + sigma noise, if x were the candidate."""
        weight, spread = self.evidence.exp().unbind()
        error = _over_cells(torch.addcmul(noisy[:, :, None], level[:, None] - 1, candidate))
        return -weight * error / (2 * (level**2 + ((1 - level) * spread) ** 2))


def _of_met(videos: Sequence[torch.Tensor], met: Met) -> torch.Tensor:
    """(BT, 1, h, w): of logits (BT, P, h, w) of every video, those of what rays meet, as much of each as they do."""
    shares = met.shares / met.shares.sum(dim=1, keepdim=True).clamp(min=CELL**-2)
    said = torch.stack([video.logsumexp(dim=1) for video in videos[: shares.shape[1]]], dim=1)
    return (said + shares.log()).logsumexp(dim=1, keepdim=True)


def _middle(log_depths: torch.Tensor) -> torch.Tensor:
    """(B, T, P, h, w), log metres, to (BT, 1, h, w), metres, of all points of a ray."""
    return log_depths.flatten(0, 1).mean(dim=1, keepdim=True).exp().clamp(NEAREST, FARTHEST)


def _over_cells(errors: torch.Tensor) -> torch.Tensor:
    """(N, C, P, H, W) to (N, P, h, w): squared, summed over channels, the mean over cells."""
    squared = torch.linalg.vecdot(errors, errors, dim=1)
    # torch's own pooling takes five times as long on a CPU.
    parts = [squared[..., row::CELL, column::CELL] for row in range(CELL) for column in range(CELL)]
    return sum(parts[1:], parts[0]) / CELL**2
