"""Algorithm 1 of Memory-V2V (arXiv 2601.16296), VideoFOV retrieval, as the paper has it.

A reference to read and to compare with, not what runs: `pipeline/coverage.py` gives the same scores on the same points
some ten thousand times faster. One slip of the paper is put right: with camera-to-world R, the map into the camera is
R^T (p - t).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.trajectory import Trajectory


def grid(rows: int = 180, columns: int = 360) -> NDArray[np.float64]:
    """(rows * columns, 3) unit directions at the cell centres of a latitude-longitude grid: M = 64,800 by default."""
    latitude = np.radians((np.arange(rows) + 0.5) * 180 / rows - 90)[:, None]
    longitude = np.radians((np.arange(columns) + 0.5) * 360 / columns - 180)[None, :]
    x, y, z = np.cos(latitude) * np.sin(longitude), np.sin(latitude), np.cos(latitude) * np.cos(longitude)
    return np.stack(np.broadcast_arrays(x, y, z), axis=-1).reshape(-1, 3)


def video_fov(trajectory: Trajectory, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """F_video: (M,) whether any frame sees each point (M, 3), both in the same world, metres."""
    columns = np.ascontiguousarray(points.T)
    seen = np.zeros(len(points), dtype=bool)
    for pose, (fx, fy, cx, cy) in zip(trajectory.c2w, trajectory.intrinsics, strict=True):
        x, y, z = pose[:, :3].T @ (columns - pose[:, 3:])
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = fx * x / z + cx, fy * y / z + cy
        seen |= (z > 0) & (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    return seen


def score(target: NDArray[np.bool_], memory: NDArray[np.bool_], blend: float = 0.5) -> float:
    """s = blend |A n B| / |A u B| + (1 - blend) |A n B| / |A|, A = target, B = memory; 0 for an empty target."""
    common, union, size = int((target & memory).sum()), int((target | memory).sum()), int(target.sum())
    return blend * (common / union) + (1 - blend) * (common / size) if size else 0.0


def algorithm_1(
    target: Trajectory,
    memories: Sequence[Trajectory],
    radius: float,
    blend: float = 0.5,
    directions: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """(N,) relevance of each memory to the target, on a sphere of `radius` metres round the target's first camera.

    The paper takes the k memories of greatest score. All trajectories are given in one world."""
    points = radius * (grid() if directions is None else directions)
    first = target.c2w[0]
    wanted = video_fov(target.relative_to(first), points)
    return np.array([score(wanted, video_fov(memory.relative_to(first), points), blend) for memory in memories])
