"""Where the points that one view sees lie in another, and whether the other sees them too: exact, from depth.

where, seen = correspondence(depth_a, c2w_a, intrinsics_a, depth_b, c2w_b, intrinsics_b)
same = sampled(colour_b, where)  # b's picture as a would see it, right where `seen`

Views are those of `render`; where b's moment is another than a's, things have moved, which `motions` takes into
account. Works on the device of what it is given and over any leading dimensions (... in shapes), which broadcast.
"""

from __future__ import annotations

import torch
from torch.nn.functional import grid_sample

from .scene import Scene

# Of a point's depth. Inverse depth is interpolated, in which a plane is exact and a curved thing nearly so; between two
# surfaces it fits neither, so that the last pixel before an edge counts as unseen rather than as either.
TOLERANCE = 0.01


def correspondence(
    depth_a: torch.Tensor,
    c2w_a: torch.Tensor,
    intrinsics_a: torch.Tensor,
    depth_b: torch.Tensor,
    c2w_b: torch.Tensor,
    intrinsics_b: torch.Tensor,
    objects_a: torch.Tensor | None = None,
    motions: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
    at: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(where, seen): for every pixel of a, where in b its point lies, and whether both views see it there.

    depth (..., H, W): metres along the optical axis, infinite for the sky, of which nothing corresponds;
    c2w (..., 3, 4); intrinsics (..., 4) divided by the size. The views may differ in size. objects_a (..., H, W) and
    motions (..., N, 3, 4): what a's pixels show, and how each object moves from a's moment to b's (see `motions`);
    without them all stands still. tolerance: of the point's depth in b against what b sees. at: where in a pixel depth
    was measured, 0.5 / samples of `render`. Computed in depth_a's dtype, whatever the cameras have.
    where (..., H, W, 2): x and y in pixels of b, whole numbers in the middles of its pixels; not finite for the sky.
    seen (..., H, W) bool.
    """
    c2w_b, intrinsics_b, depth_b = (each.to(depth_a) for each in (c2w_b, intrinsics_b, depth_b))
    points = _world(depth_a, c2w_a, intrinsics_a, at)
    if motions is not None:
        if objects_a is None:
            raise ValueError("motions were given without objects_a, expected both: which pixel moves with which object")
        points = _moved(points, objects_a, motions)
    height, width = depth_b.shape[-2:]
    rotation, origin = c2w_b[..., :3], c2w_b[..., 3]
    local = (points - origin[..., None, None, :]) @ rotation[..., None, :, :]
    ahead = local[..., 2]
    focal, middle = intrinsics_b[..., None, None, :2], intrinsics_b[..., None, None, 2:]
    share = local[..., :2] / ahead[..., None] * focal + middle  # 0..1 from edge to edge
    size = torch.tensor([width, height], dtype=points.dtype, device=points.device)
    inside = ((share * size - at >= 0) & (share * size - at <= size - 1)).all(-1)
    found = sampled((1 / depth_b)[..., None], share * size - at)[..., 0]
    seen = inside & (ahead > 0) & torch.isfinite(ahead) & ((found * ahead - 1).abs() <= tolerance)
    return share * size - 0.5, seen


def sampled(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """(..., H, W, C): values (..., h, w, C) of a view b at the places that `correspondence` gives, bilinear, those of
    the border beyond it."""
    leading = torch.broadcast_shapes(values.shape[:-3], where.shape[:-3])
    height, width = values.shape[-3:-1]
    pixels = values.to(where.dtype).expand(*leading, *values.shape[-3:]).reshape(-1, *values.shape[-3:])
    places = where.expand(*leading, *where.shape[-3:]).reshape(-1, *where.shape[-3:])
    size = torch.tensor([width, height], dtype=where.dtype, device=where.device)
    grid = ((places + 0.5) * 2 / size - 1).nan_to_num(2.0, 2.0, -2.0)
    found = grid_sample(pixels.movedim(-1, 1), grid, padding_mode="border", align_corners=False).movedim(1, -1)
    return found.reshape(*leading, *found.shape[1:])


def motions(scene: Scene, time_a: float, time_b: float) -> torch.Tensor:
    """(1 + P, 3, 4) rigid maps of the world from one moment to another, by the numbers in `Views.objects`: the
    surroundings, which stay, then the P things."""
    centres, rotations = scene.at(torch.tensor([time_a, time_b]))
    turn = rotations[1] @ rotations[0].transpose(-1, -2)
    travel = centres[1] - (turn @ centres[0][..., None])[..., 0]
    return torch.cat([torch.eye(3, 4)[None], torch.cat([turn, travel[..., None]], dim=-1)])


def _world(depth: torch.Tensor, c2w: torch.Tensor, intrinsics: torch.Tensor, at: float) -> torch.Tensor:
    """(..., H, W, 3) points in the world, metres."""
    height, width = depth.shape[-2:]
    x = ((torch.arange(width, dtype=depth.dtype, device=depth.device) + at) / width).expand(height, width)
    y = ((torch.arange(height, dtype=depth.dtype, device=depth.device) + at) / height)[:, None].expand(height, width)
    focal, middle = intrinsics[..., None, None, :2].to(depth), intrinsics[..., None, None, 2:].to(depth)
    flat = (torch.stack([x, y], dim=-1) - middle) / focal
    rays = torch.cat([flat, torch.ones_like(flat[..., :1])], dim=-1) * depth[..., None]
    c2w = c2w.to(depth)
    return rays @ c2w[..., None, :, :3].transpose(-1, -2) + c2w[..., None, None, :, 3]


def _moved(points: torch.Tensor, objects: torch.Tensor, motions: torch.Tensor) -> torch.Tensor:
    """The points, each moved with its object. The sky's number lies beyond the motions; it has no point to move."""
    count = motions.shape[-3]
    chosen = torch.where(objects < count, objects, 0).long()
    leading = torch.broadcast_shapes(objects.shape[:-2], motions.shape[:-3])
    flat = motions.to(points).reshape(*motions.shape[:-2], 12).expand(*leading, count, 12)
    index = chosen.flatten(-2).expand(*leading, -1)[..., None].expand(*leading, chosen.shape[-2] * chosen.shape[-1], 12)
    each = flat.gather(-2, index).unflatten(-1, (3, 4)).unflatten(-3, chosen.shape[-2:])
    return (each[..., :3] @ points[..., None])[..., 0] + each[..., 3]
