"""What a model makes up has no seams between its patches.

Every token makes up its own patch, and where nothing is known neighbours do not meet: the grid of patches shows. So in
use the step from the last pixel of a patch to the first of the next becomes as steep as the pixels beside it are, and
both patches give way by half of what is left over, less and less up to their middles. Never more is taken off a step
than there is, so what lies beside the grid stays; an edge of what is made up that lies exactly on it becomes soft.

Inside, too, patches have a faint pattern of their own, where nothing is known the same in all: it goes through the
filter of `outlines`, with what is made up itself to say what varies by more.
"""

from __future__ import annotations

import torch

from .outlines import guided

RADIUS = 3  # of the filter, as of `outlines`
PATTERN = 0.003  # variance in a window, in units of the latent: what varies by far more is no pattern of patches


def seamless(made: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    """What was made up in patches of so many rows and columns, without seams. It and the result (N, C, H, W)."""
    return _closed(_closed(made, patch[0], 2), patch[1], 3)


def even(made: torch.Tensor) -> torch.Tensor:
    """What was made up without the faint pattern of its patches. It and the result (N, C, H, W), float32."""
    return guided(made, RADIUS, PATTERN)(made)


def _closed(made: torch.Tensor, patch: int, dim: int) -> torch.Tensor:
    """Along one axis."""
    patches = made.movedim(dim, -1).unflatten(-1, (-1, patch)).clone()
    before, after = patches[..., :-1, :], patches[..., 1:, :]
    step = after[..., 0] - before[..., -1]
    beside = (before[..., -1] - before[..., -2] + after[..., 1] - after[..., 0]) / 2
    left_over = (step - beside).clamp(step.clamp(max=0), step.clamp(min=0))
    reach = patch // 2
    share = (1 - torch.arange(reach, device=made.device) / reach) / 2  # from the seam to the middle of a patch
    given = left_over[..., None] * share.to(made)
    before[..., -reach:] += given.flip(-1)
    after[..., :reach] -= given
    return patches.flatten(-2).movedim(-1, dim)
