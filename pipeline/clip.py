"""A clip: one camera's video of one variant of one scene, described without its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .trajectory import Trajectory

REAL = 1 << 62  # scenes of real footage are numbered above all seeds


@dataclass(frozen=True, eq=False)
class Clip:
    """One row of a data set of clips.

    row: where its pixels are. scene: the seed that decides everything in it (of real footage, from its content), by
    which splits are made. camera: 0 is the source's. variant: 0 as it was, 1 and above edited by `instruction`.
    rate: frames per second. trajectory: one pose per frame in the scene's world, shared by all clips of the scene.
    shots (T,) int32: shot of every frame; a training window lies within one. height, width: pixels. extended: frames
    at its end that a model made, which are shown as memory and never asked for.
    """

    row: int
    scene: int
    camera: int
    variant: int
    instruction: str
    rate: float
    trajectory: Trajectory
    shots: np.ndarray
    height: int
    width: int
    extended: int = 0

    def __len__(self) -> int:
        return len(self.trajectory)

    @property
    def real(self) -> bool:
        """Whether it was cut from real footage."""
        return self.scene >= REAL
