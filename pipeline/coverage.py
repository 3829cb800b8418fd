"""Coverage: which points of a sphere around the scene a trajectory sees, as a set of bits.

The paper's VideoFOV asks the same question anew for every pair of videos; here it is asked once, when a memory is
stored, on a fixed sphere in the source's world. Ranking memories is then an AND and a count of bits, exact to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.trajectory import Trajectory

# Bytes of a scan's working set: memories, their intersection and its counts together stay in a core's own cache.
_CHUNK_BYTES = 1 << 18
_BLOCK_ROWS = 1 << 15  # and so do the numbers that become a score


@dataclass(frozen=True)
class Sphere:
    """`points` area-uniform points (a multiple of 64) at `radius` metres around the origin of the source's world.

    The radius stands for the distance of what is filmed: far beyond the camera's travel, as with the paper's own
    examples; at r = 1 m the presets, which travel 2 m, would leave the sphere and rank wrongly.
    """

    points: int = 4096
    radius: float = 20.0

    def __post_init__(self) -> None:
        if self.points < 64 or self.points % 64:
            raise ValueError(f"sphere of {self.points} points; expected a positive multiple of 64 (whole words)")
        if not 0 < self.radius < np.inf:
            raise ValueError(f"sphere of radius {self.radius} m; expected a positive number of metres")

    @property
    def directions(self) -> NDArray[np.float64]:
        """(points, 3) unit vectors, read-only, a Fibonacci lattice round the vertical axis: each stands for the same
        area, unlike the paper's latitude-longitude grid."""
        return _fibonacci(self.points)

    @property
    def bytes(self) -> int:
        """Size of one coverage."""
        return self.points // 8


def coverage(trajectory: Trajectory, sphere: Sphere) -> NDArray[np.uint8]:
    """(points / 8,) packed bits: the points of `sphere` that any frame of `trajectory` sees (F_video of the paper).

    The trajectory is in the source's world. Bit b of byte i is point 8 i + b."""
    return pack(visible(trajectory, sphere.radius * sphere.directions))


def visible(trajectory: Trajectory, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(M,) whether any frame sees each of `points` (M, 3), metres, in the trajectory's world.

    A point is visible when its depth is positive and it projects to [0, 1) x [0, 1) of the image. Both together are
    four half-spaces per frame: with (x, y, z) in the camera, x fx + z cx >= 0 > x fx + z (cx - 1), and the same in y;
    their difference is z > 0. So one product of small matrices decides all, without a division."""
    rotation, position = trajectory.c2w[:, :, :3], trajectory.c2w[:, :, 3]
    sides = []
    for axis in (0, 1):
        focal, centre = trajectory.intrinsics[:, axis, None], trajectory.intrinsics[:, axis + 2, None]
        for shift in (0, 1):
            normal = focal * rotation[:, :, axis] + (centre - shift) * rotation[:, :, 2]
            offset = -(normal * position).sum(axis=1, keepdims=True)
            sides.append(np.concatenate([normal, offset], axis=1).T)  # (4, T): homogeneous plane of each frame
    left, right, top, bottom = sides
    seen = np.empty(len(points), dtype=bool)
    step = max(1, _CHUNK_BYTES // (8 * len(trajectory)))
    for start in range(0, len(points), step):
        chunk = points[start : start + step]
        chunk = np.concatenate([chunk, np.ones((len(chunk), 1))], axis=1)
        inside = chunk @ left >= 0
        inside &= chunk @ right < 0
        inside &= chunk @ top >= 0
        inside &= chunk @ bottom < 0
        inside.any(axis=1, out=seen[start : start + step])
    return seen


def pack(seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(..., M) booleans to packed bits, filled with zeros to whole 64-bit words."""
    packed = np.packbits(seen, axis=-1, bitorder="little")
    missing = -packed.shape[-1] % 8
    return np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, missing)]) if missing else packed


def fov_scores(
    target: NDArray[np.uint8],
    memories: NDArray[np.uint8],
    counts: NDArray[np.integer] | None = None,
    blend: float = 0.5,
) -> NDArray[np.float64]:
    """(N,) scores of the paper's VideoFOV retrieval, s = blend |A n B| / |A u B| + (1 - blend) |A n B| / |A|.

    A = `target` (B,) uint8 packed bits, B = each row of `memories` (N, B); `counts` (N,) is |B| where it is already
    known (see `popcounts`), which halves the work. Computed from whole numbers, so it is exact. An empty target
    scores 0 everywhere."""
    size = int(popcounts(target[None])[0])
    if not size:
        return np.zeros(len(memories))
    scores = np.empty(len(memories))
    for start in range(0, len(memories), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        common = popcounts(memories[block], target).astype(np.float64)
        union = size + (popcounts(memories[block]) if counts is None else counts[block]) - common
        scores[block] = blend * (common / union) + (1 - blend) * (common / size)
    return scores


def popcounts(rows: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None) -> NDArray[np.int64]:
    """(N,) number of bits set in each of `rows` (N, B) uint8, after AND with `mask` (B,) where given."""
    if rows.shape[1] % 8 or (mask is not None and mask.shape != rows.shape[1:]):
        raise ValueError(
            f"coverage of {rows.shape[1]} bytes against {None if mask is None else mask.shape}; expected equal sizes, "
            "whole words of 8 bytes: were both made with the same sphere?"
        )
    words = np.ascontiguousarray(rows).view(np.uint64)
    wanted = None
    if mask is not None:
        wanted = np.ascontiguousarray(mask).view(np.uint64)
        # The sphere orders its points so that a camera sees a short run of words: the others need not be read.
        used = np.flatnonzero(wanted)
        run = slice(used[0], used[-1] + 1) if len(used) else slice(0)
        words, wanted = words[:, run], wanted[run]
    width = words.shape[1]
    step = max(1, min(len(rows), _CHUNK_BYTES // (8 * max(width, 1))))
    repeated = None if wanted is None else np.tile(wanted, (step, 1))  # a long inner loop, where AND is fast
    both = np.empty((step, width), dtype=np.uint64)
    ones = np.empty((step, width), dtype=np.uint8)
    wide, unit = np.empty((step, width), dtype=np.float32), np.ones(width, dtype=np.float32)
    total = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), step):
        chunk = words[start : start + step]
        n = len(chunk)
        if repeated is not None:
            chunk = np.bitwise_and(chunk, repeated[:n], out=both[:n])
        np.bitwise_count(chunk, out=ones[:n])
        # Rows are summed as a product with ones: whole numbers below 2^24 are exact in float32 in any order, and
        # numpy's own sum of bytes takes longer than all the rest.
        wide[:n] = ones[:n]
        np.matmul(wide[:n], unit, out=total[start : start + n])
    return total.astype(np.int64)


@lru_cache(maxsize=8)
def _fibonacci(points: int) -> NDArray[np.float64]:
    index = np.arange(points)
    height = 1 - (2 * index + 1) / points
    around = index * np.pi * (3 - np.sqrt(5))  # the golden angle
    ring = np.sqrt(1 - height**2)
    directions = np.stack([ring * np.sin(around), height, ring * np.cos(around)], axis=1)
    # The order is free, so it serves the scan: the belt that level cameras see comes first, round the vertical axis
    # from behind (-z) to behind, so that what one camera sees is a short run of bits; the two caps follow.
    azimuth = np.arctan2(directions[:, 0], directions[:, 2])
    directions = directions[np.lexsort([azimuth, np.abs(height) > 0.5])]
    directions.setflags(write=False)
    return directions
