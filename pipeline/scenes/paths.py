"""Camera paths through a scene: synchronised cameras whose views overlap, in free space."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.trajectory import PRESETS, Trajectory, compose, default_intrinsics, preset

from .scene import Scene

Array = NDArray[np.float64]
CLEAR = 0.25  # metres between a camera and the walls or things


def paths(scene: Scene, seed: int, count: int, frames: int, rate: float, aspect: float) -> list[Trajectory]:
    """`count` synchronised trajectories of `frames` poses in the scene's world; the first is the source camera's.

    The source stands still, is held by hand or moves smoothly, from a start at random. Of the others every second
    starts where the source does (the ten presets over the whole clip, or there and back again), the rest have a start
    of their own from which they see some of what it sees. rate: frames per second. aspect: width / height.
    """
    random = np.random.default_rng([seed, 0xCA3])
    seconds = np.arange(frames) / rate
    lens = default_intrinsics(aspect, float(random.uniform(48, 66)))
    start = _start(scene, random)
    motion = [_still, _hand_held, _smooth][int(random.integers(3))]
    result = [_free(scene, start, motion(random, seconds), lens)]
    order = [str(each) for each in random.permutation(list(PRESETS))]
    for number in range(1, count):
        own = lens if random.random() < 0.7 else default_intrinsics(aspect, float(random.uniform(42, 75)))
        if number % 2:
            path = preset(order[number // 2 % len(order)], frames, own).c2w
            if random.random() < 0.3 and frames > 1:  # and back to where it began
                back = preset(order[number // 2 % len(order)], frames - frames // 2, own).c2w[::-1]
                path = np.concatenate([preset(order[number // 2 % len(order)], frames // 2, own).c2w, back])
            result.append(_free(scene, start, path, own))
        else:
            other = _beside(scene, random, start)
            motion = [_still, _hand_held, _smooth, _smooth][int(random.integers(4))]
            result.append(_free(scene, other, motion(random, seconds), own))
    return result


def free(scene: Scene, positions: Array) -> bool:
    """Whether cameras at (T, 3) stay clear of the walls, the floor and everything that may come by."""
    x, y, z = scene.half
    reach = np.array([x, y, z] if scene.indoors else [6.0, y, 6.0]) - CLEAR
    if (np.abs(positions) > reach).any():
        return False
    return all(
        np.linalg.norm(positions - np.array(each.centre), axis=1).min() > each.radius + 0.1 for each in scene.things
    )


def _start(scene: Scene, random: np.random.Generator) -> Array:
    """A pose (3, 4) towards one side of the scene that looks across it."""
    x, y, z = scene.half if scene.indoors else (3.4, scene.half[1], 3.4)
    for _ in range(60):
        angle = random.uniform(0, 2 * math.pi)
        place = np.array([0.72 * x * math.cos(angle), random.uniform(-0.35, 0.25) * y, 0.72 * z * math.sin(angle)])
        yaw = math.atan2(-place[0], -place[2]) + random.uniform(-0.5, 0.5)
        found = pose(place, yaw, random.uniform(-0.34, -0.04))
        if free(scene, place[None]):
            return found
    return pose(np.array([0.0, -0.5 * y, 0.0]), 0.0, 0.0)


def _beside(scene: Scene, random: np.random.Generator, start: Array) -> Array:
    """A pose near another that looks at a point before it."""
    focus = start[:, 3] + start[:, 2] * random.uniform(2, 3.5)
    for _ in range(60):
        place = start[:, 3] + random.uniform(-1.5, 1.5, 3) * (1, 0.35, 1)
        way = focus - place
        yaw = math.atan2(way[0], way[2]) + random.uniform(-0.35, 0.35)
        pitch = math.atan2(-way[1], math.hypot(way[0], way[2])) + random.uniform(-0.12, 0.12)
        if free(scene, place[None]):
            return pose(place, yaw, pitch)
    return start


def pose(place: Array, yaw: float, pitch: float) -> Array:
    """(3, 4) camera-to-world at a place; yaw about the vertical, positive to the right, then pitch, positive up."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return np.concatenate([about_y @ about_x, np.asarray(place)[:, None]], axis=1)


def _free(scene: Scene, start: Array, path: Array, lens: Array) -> Trajectory:
    """The path from a start, its travel halved until it is clear of everything."""
    path = path.copy()
    for _ in range(6):
        placed = compose(start, path)
        if free(scene, placed[:, :, 3]):
            return Trajectory(placed, lens)
        path[:, :, 3] *= 0.5
    path[:, :, 3] = 0
    return Trajectory(compose(start, path), lens)


def _still(random: np.random.Generator, seconds: Array) -> Array:
    return np.tile(np.eye(3, 4), (len(seconds), 1, 1))


def _hand_held(random: np.random.Generator, seconds: Array) -> Array:
    return _waves(random, seconds, (0.3, 1.4), 0.03, 0.018)


def _smooth(random: np.random.Generator, seconds: Array) -> Array:
    return _waves(random, seconds, (0.05, 0.25), 0.6, 0.3)


def _waves(
    random: np.random.Generator, seconds: Array, hertz: tuple[float, float], metres: float, radians: float
) -> Array:
    """Poses (T, 3, 4) from the identity on: two sine waves in each of x, y, z, yaw and pitch."""
    offsets = np.zeros((5, len(seconds)))
    for row in offsets:
        for _ in range(2):
            speed, phase = 2 * math.pi * random.uniform(*hertz), random.uniform(0, 2 * math.pi)
            row += random.uniform(0.3, 1) * (np.sin(speed * seconds + phase) - math.sin(phase)) / 2
    x, y, z, yaw, pitch = offsets
    return np.stack(
        [
            pose(metres * np.array([x[i], 0.35 * y[i], z[i]]), radians * yaw[i], 0.4 * radians * pitch[i])
            for i in range(len(seconds))
        ]
    )
