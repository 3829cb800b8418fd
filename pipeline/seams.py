"""What a model makes up has no seams between its patches.

Every token makes up its own patch, and where nothing is known neighbours do not meet: the grid of patches shows. So in
use the step from the last pixel of a patch to the first of the next becomes as steep as the pixels beside it are, and
both patches give way by half of what is left over, less and less up to their middles. Never more is taken off a step
than there is, so what lies beside the grid stays; an edge of what is made up that lies exactly on it becomes soft.
"""

from __future__ import annotations

import torch


def seamless(made: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    """What was made up in patches of so many rows and columns, without seams. It and the result (N, C, H, W)."""
    return _closed(_closed(made, patch[0], 2), patch[1], 3)


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
