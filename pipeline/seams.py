"""What a model makes up has no seams between its patches.

Every token makes up its own patch, and where nothing is known neighbours do not meet: the grid of patches shows. So in
use the step from the last pixel of a patch to the first of the next becomes as steep as the pixels beside it are, and
both patches give way by half of what is left over, less and less up to their middles. An edge of what is made up that
lies exactly on the grid becomes soft with it; others stay.
"""

from __future__ import annotations

import torch

STEP = (0.5, -1.5, 1.5, -0.5)  # of the pixels about a seam: their step over it, less the mean of those beside it


def seamless(made: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    """What was made up in patches of so many rows and columns, without seams. It and the result (N, C, H, W)."""
    over_rows, over_columns = (_closing(*each, made) for each in zip(made.shape[2:], patch, strict=True))
    return over_rows @ made @ over_columns.T


def _closing(length: int, patch: int, like: torch.Tensor) -> torch.Tensor:
    """(length, length): what every pixel becomes, of those along one axis."""
    reach = patch // 2
    share = (1 - torch.arange(reach) / reach) / 2  # from the seam to the middle of a patch
    given = torch.cat([share.flip(0), -share])[:, None] * torch.tensor(STEP)
    matrix = torch.eye(length)
    for seam in range(patch, length, patch):
        matrix[seam - reach : seam + reach, seam - 2 : seam + 2] += given
    return matrix.to(like)
