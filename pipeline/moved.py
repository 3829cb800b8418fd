"""Where things have moved to, from how a source looks there: what an edit makes of them moves along.

Letters in shapes: B batch, L frames that lead, T frames, N and C channels, H W height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .outlines import means

STEPS = 6  # so many to each side are tried
STEP = 48  # the width over it, in pixels
WINDOW = 2  # steps from the middle of a window to its sides, in which things are to look the same
FARTHER = 0.02  # squared units of the latent by which what is as far away as can be must look more alike


def followed(shown: torch.Tensor, shows: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """shown (B, L, T, N, H, W): what frames that lead show along the rays of all frames, in its last C channels what is
    known of it, as known (B, T, C, H, W) is of these; shows (B, L, T, 1, H, W): whether they show it. Both, from beside
    it where that looks more like what is known."""
    sizes, (height, width) = shown.shape[:3], shown.shape[4:]
    step = max(1, width // STEP)
    reach = STEPS * step
    wanted = known[:, None].expand(-1, sizes[1], -1, -1, -1, -1).flatten(0, 2)
    around = F.pad(torch.cat([shows, shown], dim=3).flatten(0, 2), [reach] * 4, mode="replicate")
    told = around[:, -wanted.shape[1] :]
    mean = means(wanted, WINDOW * step)
    least = torch.full_like(wanted[:, 0], torch.inf)
    best = torch.zeros_like(least, dtype=torch.long)  # the first pixel of the padded picture's part that is taken
    for down in range(0, 2 * reach + 1, step):
        for right in range(0, 2 * reach + 1, step):
            there = told[:, :, down : down + height, right : right + width]
            far = ((down - reach) ** 2 + (right - reach) ** 2) / (2 * reach**2)
            off = mean((there - wanted).square().mean(dim=1)[:, None])[:, 0] + FARTHER * far
            best = torch.where(off < least, down * around.shape[3] + right, best)
            least = torch.minimum(off, least)
    at = best + (torch.arange(height)[:, None] * around.shape[3] + torch.arange(width)).to(best)
    found = around.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, around.shape[1], -1))
    found = found.view(*sizes, -1, height, width)
    return found[:, :, :, 1:], found[:, :, :, :1]
