"""A moving camera is told from what moves in front of a still one."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.motion import THRESHOLD, motion, moves


def scene(seed: int = 0, height: int = 80, width: int = 300) -> np.ndarray:
    random = np.random.default_rng(seed)
    blocks = np.kron(random.integers(0, 256, (height // 10, width // 10, 3)), np.ones((10, 10, 1)))
    return (0.8 * blocks + 0.2 * random.integers(0, 256, blocks.shape)).astype(np.uint8)


def seen_from(xs: list[int], ys: list[int]) -> np.ndarray:
    picture = scene()
    return np.stack([picture[10 + y : 64 + y, 100 + x : 196 + x] for x, y in zip(xs, ys, strict=True)])


def test_a_still_camera_with_noise_and_something_passing_does_not_move():
    frames = seen_from([0] * 12, [0] * 12)
    frames = frames + np.random.default_rng(1).integers(0, 6, frames.shape, dtype=np.uint8)
    for t in range(12):
        frames[t, 20:50, 7 * t : 7 * t + 25] = (220, 30, 30)
    assert motion(frames) < THRESHOLD / 2 and not moves(frames)


@pytest.mark.parametrize("dx, dy", [(2, 0), (-3, 0), (0, 1), (2, -1)])
def test_a_pan_is_measured_and_moves(dx, dy):
    frames = seen_from([dx * t for t in range(8)], [dy * t for t in range(8)])
    assert moves(frames)
    assert motion(frames) == pytest.approx(np.hypot(dx / 96, dy / 54), abs=0.004)


def test_cuts_and_single_frames_and_black_say_nothing():
    different = np.stack([scene(seed)[:54, :96] for seed in range(8)])
    assert not moves(different[:1])
    assert not moves(np.zeros((5, 54, 96, 3), np.uint8))
    still = seen_from([0] * 12, [0] * 12)
    still[6:] = scene(5)[:54, :96]
    assert not moves(still), "one cut in a still video"
    assert not moves(np.random.default_rng(0).integers(0, 256, (8, 54, 96, 3), dtype=np.uint8)), "nothing is shared"


@pytest.mark.parametrize("name, moving", [("03_blocks", False), ("bikes", True), ("bt709_full_range", True)])
def test_real_cameras(clips, name, moving):
    from storage.video import probe, read_frames

    info = probe(str(clips / f"{name}.mp4"))
    every = range(0, min(info.frames, 60), 12)
    assert moves(np.concatenate([read_frames(info.url, n, n + 1, (54, 96)) for n in every])) == moving
