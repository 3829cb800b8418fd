"""An edit that keeps the camera keeps most outlines.

What a token makes up is a blurred patch, and some of a new colour runs over onto what stands beside a thing. Where
target and source share every ray, the source shows where things end. So there what is made up goes through a guided
filter (He, Sun and Tang, 2010): in every window it becomes the linear map of the source's colours that comes nearest to
it, and a pixel takes the mean of what the maps of its windows make of it.

What is made up also ends where a thing of the source ends. How much of a pixel is made up and not copied goes through
the same filter, over wider windows, and is driven to all or nothing: what runs over onto a floor that is copied
elsewhere is copied, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .conditioning import ConditioningVideo

RADIUS = 3  # pixels from the middle of a window to its sides
EDGE = 0.03  # variance of the source in a window, in units of the latent: what varies by far less is no outline
# Noise level from which on outlines are the source's. In more, what is made up may still take another shape.
DECIDED = 0.6
REACH = 8  # as RADIUS, of what share is made up: as far as a patch of `mini` runs over
PLAIN = 0.01  # as EDGE
ROUNDS = 3  # so often it is filtered and
STEEP = 12.0  # made steeper: the slope of a sigmoid, four times the one at a half
SURE = 1e-6  # the less likely a source is than this, the less it is copied for what is beside it: not at all at 1e-10
NOTHING = 1e-9  # a share
CERTAIN = 0.3  # as DECIDED: in more noise an edit must still be free to spread


@dataclass(frozen=True, eq=False)
class Outlines:
    """shown: what the source shows, for every row of the target's batch, (B, C, T, H, W), float32. shared: (B,), in
    which of them it shows in its every pixel what the target's shows."""

    shown: torch.Tensor
    shared: torch.Tensor


def outlines_of(target: ConditioningVideo, source: ConditioningVideo | None) -> Outlines | None:
    """None where no row has any. A source may have fewer rows than the target, as the transformer's `forward` says."""
    if source is None or source.latent.shape[1:] != target.latent.shape[1:]:
        return None
    copies = len(target.latent) // len(source.latent)
    same = torch.ones(len(target.latent), dtype=torch.bool, device=target.latent.device)
    for name in ("poses", "intrinsics", "times"):
        ours, theirs = getattr(target, name), getattr(source, name)
        if ours is None or theirs is None:
            return None
        same &= (ours == theirs.repeat_interleave(copies, dim=0)).flatten(1).all(dim=1)
    return Outlines(source.latent.float().repeat_interleave(copies, dim=0), same) if same.any() else None


def bounded(shares: torch.Tensor, points: int, shown: torch.Tensor) -> torch.Tensor:
    """Shares of candidates in every pixel (N, J, H, W), what is made up first and so many points of the source behind
    it: these divide between them what memories leave, and now all or nothing within the outlines of what is shown
    (N, C, H, W), but where a source is SURE not to be right. What is remembered has outlines and stays."""
    own, source, memories = shares.tensor_split([1, 1 + points], dim=1)
    copied = source.sum(dim=1, keepdim=True)
    left = (own + copied).clamp(min=1e-30)
    # Where memories leave nothing a pixel has no say in what its neighbours are.
    within, filtered = (own + NOTHING) / (own + copied + 2 * NOTHING), guided(shown, REACH, PLAIN)
    for _ in range(ROUNDS):
        within = torch.sigmoid(STEEP * (filtered(within) - 0.5))
    parts = torch.cat([within, source * (1 - within) / copied.maximum(SURE * left)], dim=1)
    return torch.cat([parts * (left / parts.sum(dim=1, keepdim=True)), memories], dim=1)


def outlined(made: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """What was made up, with the outlines of what is shown. Both and the result (N, C, H, W), float32."""
    return guided(shown, RADIUS, EDGE)(made)


def guided(shown: torch.Tensor, radius: int, edge: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The guided filter of what is shown (N, C, H, W), in windows that reach `radius` pixels from their middles: takes
    and gives (N, M, H, W); all are float32."""
    mean = means(shown, radius)
    centre = mean(shown)

    def spread(values: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C, M): how what is shown varies with values in every window."""
        products = mean((shown[:, :, None] * values[:, None]).flatten(1, 2)).unflatten(1, (shown.shape[1], -1))
        return (products - centre[:, :, None] * middle[:, None]).movedim((1, 2), (-2, -1))

    factors = torch.linalg.lu_factor(spread(shown, centre) + edge * torch.eye(shown.shape[1], device=shown.device))

    def filtered(values: torch.Tensor) -> torch.Tensor:
        middle = mean(values)
        slopes = torch.linalg.lu_solve(*factors, spread(values, middle)).movedim((-2, -1), (1, 2))
        offsets = middle - (slopes * centre[:, :, None]).sum(dim=1)
        slopes, offsets = mean(slopes.flatten(1, 2)).view_as(slopes), mean(offsets)
        return (slopes * shown[:, :, None]).sum(dim=1) + offsets

    return filtered


def means(like: torch.Tensor, radius: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Over windows that reach `radius` pixels from their middles, of (N, C, H, W) of the rows, columns and device of
    `like`, float32."""
    over_rows, over_columns = (_window(size, radius, like.device) for size in like.shape[2:])
    # As products of matrices: torch's own pooling takes ten times as long.
    return lambda values: over_rows @ values @ over_columns.T


def _window(size: int, radius: int, device: torch.device) -> torch.Tensor:
    """(size, size): row i gives the mean over the pixels no farther than `radius` from i."""
    at = torch.arange(size, device=device)
    near = ((at[:, None] - at).abs() <= radius).float()
    return near / near.sum(dim=1, keepdim=True)
