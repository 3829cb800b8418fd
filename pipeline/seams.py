"""What a model makes up has no seams between its patches.

Every token makes up its own patch, and where nothing is known neighbours do not meet: the grid of patches shows. So in
use the step from the last pixel of a patch to the first of the next becomes as steep as the pixels beside it are, and
both patches give way by half of what is left over, less and less up to their middles. Never more is taken off a step
than there is, so what lies beside the grid stays; an edge of what is made up that lies exactly on it becomes soft.

Inside, too, patches have a faint pattern of their own, where nothing is known the same in all: where a window varies
by no more than that does, a pixel becomes its mean, once the noise is no more than `outlines.DECIDED`.

And what is made up has no seam where what the source shows ends: there it goes on from that. By how much the two differ
where the source shows what is made up as well is known, and is taken off beside it, less and less with the distance, in
every frame by itself and once the noise is no more than `outlines.CERTAIN`.
"""

from __future__ import annotations

import torch

from .outlines import means

RADIUS = 3  # pixels from the middle of a window to its sides
PATTERN = 0.003  # variance in a window, in units of the latent: what varies by far more is no pattern of patches
REACHES = (16, 6, 2)  # as RADIUS: from the farthest on, what is left over by one is for the next
ALIKE = 0.3  # units of the latent: what differs by far more is another thing, such as one that stands before it


def seamless(made: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    """What was made up in patches of so many rows and columns, without seams. It and the result (N, C, H, W)."""
    return _closed(_closed(made, patch[0], 2), patch[1], 3)


def even(made: torch.Tensor) -> torch.Tensor:
    """What was made up without the faint pattern of its patches. It and the result (N, C, H, W), float32: every channel
    through a guided filter (see `outlines`) of itself."""
    mean = means(made, RADIUS)
    centre = mean(made)
    varies = (mean(made.square()) - centre.square()).clamp(min=0)  # below it where products are rounded
    kept = varies / (varies + PATTERN)
    return mean(kept) * made + mean((1 - kept) * centre)


def beside(made: torch.Tensor, shown: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """What is to be added to what was made up, so that it goes on from what is shown in its place with these shares
    (N, 1, H, W). The others and the result (N, C, H, W), float32."""
    added = torch.zeros_like(made)
    for reach in REACHES:
        mean = means(made, reach)
        off = shown - made - added
        certain = share * (-off.square().mean(dim=1, keepdim=True) / (2 * ALIKE**2)).exp()
        near, weight = mean(mean(torch.cat([certain * off, certain], dim=1))).split([made.shape[1], 1], dim=1)
        added = added + near / weight.clamp(min=0.5)  # beside a straight border it is a half, and none far from it
    return added


def _closed(made: torch.Tensor, patch: int, dim: int) -> torch.Tensor:
    """Along one axis."""
    patches = made.movedim(dim, -1).unflatten(-1, (-1, patch)).clone()
    before, after = patches[..., :-1, :], patches[..., 1:, :]
    step = after[..., 0] - before[..., -1]
    usual = (before[..., -1] - before[..., -2] + after[..., 1] - after[..., 0]) / 2
    left_over = (step - usual).clamp(step.clamp(max=0), step.clamp(min=0))
    reach = patch // 2
    share = (1 - torch.arange(reach, device=made.device) / reach) / 2  # from the seam to the middle of a patch
    given = left_over[..., None] * share.to(made)
    before[..., -reach:] += given.flip(-1)
    after[..., :reach] -= given
    return patches.flatten(-2).movedim(-1, dim)
