"""Cameras, videos and a copying layer of a few numbers, for tests of what is looked up along rays."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.agreement import leading
from pipeline.conditioning import ConditioningVideo
from pipeline.copying import Copying, sights

SIZE, FRAMES, DIM = 32, 4, 8
LENS = torch.tensor([0.9, 0.9, 0.5, 0.5])


def camera(*position: float, yaw: float = 0.0, frames: int = FRAMES, rows: int = 1) -> torch.Tensor:
    """(rows, frames, 3, 4): a camera that stands there, turned to the right by `yaw`."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    pose = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=torch.float32)
    return torch.cat([pose, torch.tensor(position)[:, None]], dim=1).expand(rows, frames, 3, 4)


def video(poses: torch.Tensor, latent: torch.Tensor | None = None, start: float = 0.0, seed: int = 0):
    rows, frames = poses.shape[:2]
    if latent is None:
        latent = torch.randn(rows, 3, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    times = start + torch.arange(frames).expand(rows, -1) / 12
    return ConditioningVideo(latent, poses, LENS.expand(rows, frames, 4), times)


def head(videos: int = 1, points: int = 1, depth: float | None = None, choose: int = -1) -> Copying:
    """A head that says the same of every cell: every point at `depth`, candidate number `choose` (-1: the own)."""
    made = Copying(DIM, (4, 8, 8), videos, points)
    made.initialise()
    with torch.no_grad():
        made.proj.weight.zero_()
        said = made.proj.bias.view(-1, videos * points + 1 + points)
        said[:, : videos * points + 1] = -20.0
        said[:, choose if choose >= 0 else videos * points] = 20.0
        if depth is not None:
            said[:, -points:] = np.log(depth)
    return made


def run(layer: Copying, target: ConditioningVideo, videos, sigma=1.0, own=None, lead=False, outlines=None):
    rows = len(target.latent)
    states = torch.zeros(rows, (SIZE // 8) ** 2, DIM)
    own = torch.zeros_like(target.latent) if own is None else own
    with torch.no_grad():
        leaders = leading(target) if lead else None
        said = layer.said(states, target.latent.shape[2:])
        sample, _ = layer(
            own,
            *said,
            target.latent,
            torch.as_tensor(sigma).expand(rows),
            sights(target, videos, outlines),
            leaders,
            outlines,
        )
        return sample
