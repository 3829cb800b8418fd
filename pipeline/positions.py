"""Rotary positions: where a token is, and the factors that its queries and keys are turned by.

Two kinds of place. On the *grid* a token has a time, a row and a column, in units of the base patch (Wan's own
positions; on integers the factors equal its table). In the *frustum* it has a camera ray and a time in seconds, and
every head looks at another point of that ray: attention then meets tokens of different cameras where their rays meet,
at any resolution and with any tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

Rotary = tuple[torch.Tensor, torch.Tensor]

# Frustum places in radians per metre and per second: the slowest turns less than once over what a scene or a segment
# and its past span, the fastest tells apart neighbouring tokens.
SPACE = (0.35, 7.0)
TIME = (0.1, 10.0)
HORIZON = 5.0  # seconds: as far as a training clip reaches; what is farther away in time is all alike


def grid_places(
    counts: Sequence[int], kernel: Sequence[int], offset: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """(1, tokens, 3) float64: time, row and column of the centres of counts[0] x counts[1] x counts[2] tokens.

    A token that covers several patches (`kernel`, in patches) sits at their centre: averaging their factors would not
    be a rotation. `offset` shifts time.
    """
    axes = [
        torch.arange(count, dtype=torch.float64, device=device) * size + (size - 1) / 2
        for count, size in zip(counts, kernel, strict=True)
    ]
    axes[0] = axes[0] + offset
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(1, -1, 3)


def grid_rotary(places: torch.Tensor, dims: Sequence[int]) -> Rotary:
    """Factors (B, tokens, 1, sum of dims) for places (B, tokens, 3); `dims`: channels for time, rows and columns."""
    pairs = [
        get_1d_rotary_pos_embed(
            dim,
            places[..., axis].reshape(-1),
            use_real=True,
            repeat_interleave_real=True,
            freqs_dtype=torch.float64,
        )
        for axis, dim in enumerate(dims)
    ]
    cos, sin = (torch.cat(tables, dim=-1).view(*places.shape[:2], 1, -1) for tables in zip(*pairs, strict=True))
    return cos, sin


def frustum_places(origins: torch.Tensor, rays: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """(B, tokens, 7) float32: camera position in metres, unit ray, signed seconds from the segment's start.

    origins (B, F, 3), rays (B, F, h, w, 3), times (B, F).
    """
    rows, columns = rays.shape[2:4]
    frame = torch.cat([origins, times[..., None]], dim=-1)[:, :, None, None].expand(-1, -1, rows, columns, -1)
    return torch.cat([frame[..., :3], rays, frame[..., 3:]], dim=-1).flatten(1, 3)


def frustum_rotary(places: torch.Tensor, heads: int, head_dim: int, depths: Sequence[float]) -> Rotary:
    """Factors (B, tokens, heads, head_dim) for places (B, tokens, 7).

    Head h turns by the point o + r_h d, its depths r_h spaced evenly in logarithm over `depths` (nearest, farthest,
    metres). Of the head's pairs of channels three quarters encode x, y and z, the rest time.
    """
    place = places.float()
    ray = torch.nn.functional.normalize(place[..., 3:6], dim=-1)  # a merged token's is the mean of unit rays
    near, far = depths
    depth = _geometric(near, far, heads, place.device)
    points = place[:, :, None, :3] + depth[:, None] * ray[:, :, None]
    pairs = head_dim // 2
    per_axis = pairs // 4
    space = points[..., None] * _geometric(*SPACE, per_axis, place.device)
    time = place[..., 6].clamp(-HORIZON, HORIZON)[..., None] * _geometric(*TIME, pairs - 3 * per_axis, place.device)
    angles = torch.cat([space.flatten(-2), time[:, :, None].expand(-1, -1, heads, -1)], dim=-1)
    angles = angles.repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def _geometric(first: float, last: float, count: int, device: torch.device) -> torch.Tensor:
    if count == 1:
        return torch.full((1,), (first * last) ** 0.5, device=device)
    return first * (last / first) ** (torch.arange(count, device=device) / (count - 1))
