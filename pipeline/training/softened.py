"""Pictures with soft parts, drawn or of the model's own edits (`edited`), from which a network learns to paint details
(see `pipeline.details`)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

# Standard deviations of the blur, the least and the most, of the width: a model smears sideways, since cameras turn.
SOFT_ACROSS = (0.02, 0.26)
SOFT_DOWN = (0.0, 0.2)  # of the height
MISSED = 0.1  # units of the latent: by how much a soft part's colour may be off, at most as a standard deviation
EVEN = 0.02  # added to sigma squared, by which errors are divided
KNOWN = 0.05  # weight of what is not made up at all


class Pictures(NamedTuple):
    """clean (N, C, H, W); before, like it, what instructions changed there, None where there were none; covered: of
    `edited` ones what the edit shows, like clean, and how far it is made up, (N, 1, H, W)."""

    clean: torch.Tensor
    before: torch.Tensor | None = None
    covered: tuple[torch.Tensor, torch.Tensor] | None = None


class Softened(NamedTuple):
    """As `Details.forward` takes them, N pictures: noisy, shown and source (N, C, H, W), share (N, 1, H, W), sigma
    (N,)."""

    noisy: torch.Tensor
    shown: torch.Tensor
    share: torch.Tensor
    source: torch.Tensor
    sigma: torch.Tensor


def softened(pictures: Pictures, generator: torch.Generator) -> Softened:
    """Pictures with soft parts, in noise of any level: those of an edit, or drawn ones."""
    clean, before, covered = pictures
    drawn: dict[str, Any] = {"generator": generator, "device": clean.device}
    shown, share = _drawn(clean, drawn) if covered is None else covered
    sigma = 1 - torch.rand(len(clean), **drawn)  # never 0
    noise = torch.randn(clean.shape, **drawn)
    noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1))
    return Softened(noisy, shown, share, shown if before is None else before, sigma)


def detail_error(found: torch.Tensor, clean: torch.Tensor, softened: Softened) -> torch.Tensor:
    """Mean squared error (N,) of pictures where they were made soft, in units of what noise hides."""
    weight = softened.share + KNOWN
    error = ((found - clean).square().mean(dim=1, keepdim=True) * weight).flatten(1).sum(dim=1)
    return error / weight.flatten(1).sum(dim=1) / (softened.sigma**2 + EVEN)


def _drawn(clean: torch.Tensor, drawn: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures with parts of them blurred and of another colour, and their share (N, 1, H, W)."""
    count, _, height, width = clean.shape
    share = _parts(count, height, width, drawn)
    rows, columns = (
        _blur(size, size * (least + (most - least) * torch.rand(count, **drawn) ** 2))  # more of what is less soft
        for size, (least, most) in ((height, SOFT_DOWN), (width, SOFT_ACROSS))
    )
    soft = rows[:, None] @ clean @ columns[:, None].transpose(-1, -2)
    missed = torch.randn(count, clean.shape[1], 1, 1, **drawn) * torch.rand(count, 1, 1, 1, **drawn)
    return torch.lerp(clean, soft + MISSED * missed, share), share


def _parts(count: int, height: int, width: int, drawn: dict[str, Any]) -> torch.Tensor:
    """(N, 1, H, W) in 0..1: all that lies to one side of a steep line, as when a camera turns, or a band beside it,
    as what a thing had hidden."""
    leans, side, begins, band, wide, steep = torch.rand(6, count, 1, 1, **drawn)
    angle = (leans - 0.5) * math.pi / 3 + math.pi * (side < 0.5)
    down, across = (
        torch.arange(size, device=angle.device).view(shape) - (size - 1) / 2
        for size, shape in ((height, (-1, 1)), (width, (1, -1)))
    )
    far = (across * angle.cos() + down * angle.sin()) / width - 0.7 * (begins - 0.5)  # of the width, beyond the line
    steep = width * torch.exp(3 * (steep - 0.75))  # of the share at the line, from a tenth to two a pixel
    share = torch.sigmoid(steep * far)
    other = torch.sigmoid(steep * (0.1 + 0.3 * wide - far))
    return (share * torch.where(band < 0.5, other, 1.0))[:, None]


def _blur(size: int, spread: torch.Tensor) -> torch.Tensor:
    """(N, size, size): row i gives a Gaussian mean around i, of standard deviations (N,) in pixels."""
    at = torch.arange(size, device=spread.device)
    near = torch.exp(-(at[:, None] - at).square() / (2 * spread.view(-1, 1, 1).clamp(min=0.1).square()))
    return near / near.sum(dim=2, keepdim=True)
