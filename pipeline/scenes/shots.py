"""Long takes cut into shots: new viewpoints, and returns to earlier ones, as films are made.

Time goes on through all shots. All synchronised cameras cut at the same frames, and a return films from where the
earlier shot did, with every camera: what was seen there before must be there again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.trajectory import Trajectory

from .paths import paths
from .scene import Scene

LEAST_FRAMES = 4  # of a shot, on average
SHOT_STREAM = 0x5407  # what is drawn here must not follow what else is drawn from the same seed


@dataclass(frozen=True)
class Shot:
    """Frames [start, stop) between two cuts. viewpoint: seed of the paths of all cameras; shots that share it are the
    same views again."""

    start: int
    stop: int
    viewpoint: int


def check_shots(frames: int, count: int) -> None:
    """ValueError where so few frames cannot be cut into so many shots."""
    most = max(1, frames // LEAST_FRAMES)
    if not 1 <= count <= most:
        raise ValueError(
            f"shots={count} in clips of {frames} frames, expected 1 to {most}: a shot has {LEAST_FRAMES} frames or more"
        )


def random_shots(seed: int, frames: int, count: int) -> list[Shot]:
    """`count` shots of half the average length or more, to a frame. The first has the viewpoint of the scene itself;
    from the third on every second returns to that of an earlier shot, never to that of the shot just before."""
    check_shots(frames, count)
    random = np.random.default_rng([seed, SHOT_STREAM])
    cuts = (np.arange(1, count) + random.uniform(-0.25, 0.25, count - 1)) * frames / count
    edges = [0, *np.rint(cuts).astype(int).tolist(), frames]
    viewpoints = [seed]
    for number in range(1, count):
        if number % 2 == 0:
            earlier = [each for each in dict.fromkeys(viewpoints) if each != viewpoints[-1]]
            viewpoints.append(earlier[int(random.integers(len(earlier)))])
        else:
            viewpoints.append(int(random.integers(1 << 31, 1 << 62)))
    return [Shot(*each) for each in zip(edges[:-1], edges[1:], viewpoints, strict=True)]


def shot_paths(scene: Scene, shots: list[Shot], count: int, rate: float, aspect: float) -> list[Trajectory]:
    """As `paths`: `count` synchronised trajectories through all shots, in the scene's world."""
    takes = [paths(scene, shot.viewpoint, count, shot.stop - shot.start, rate, aspect) for shot in shots]
    return [
        Trajectory(np.concatenate([take.c2w for take in camera]), np.concatenate([take.intrinsics for take in camera]))
        for camera in zip(*takes, strict=True)
    ]


def shot_numbers(shots: list[Shot]) -> np.ndarray:
    """(T,) int32: the shot of every frame, counted from 0."""
    lengths = [shot.stop - shot.start for shot in shots]
    return np.repeat(np.arange(len(shots), dtype=np.int32), lengths)
