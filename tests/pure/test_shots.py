"""Shots: exact labels, all cameras cut together, and a return shows what was there."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.renderer import scene_rows
from pipeline.scenes import Filming, paths, random_scene, random_shots, shot_numbers, shot_paths

FILMING = {
    "height": 24, "width": 24, "cameras": 3, "edits": 1, "edited_cameras": 2, "rates": (12.0,),
    "channels": ("depth", "objects"), "samples": 1, "licence": "CC0-1.0",
}  # fmt: skip
WORDS = ["make the red cylinder grey", "remove the red box", "turn the pink ball blue"]
POSES = "f4a5a8197f6be8a2"
MEANS = [165.4, 155.8, 161.8, 165.4, 155.8, 113.0, 116.6, 121.8, 125.2, 125.4, 110.5, 115.4, 114.3, 108.5, 112.9]


@given(seed=st.integers(0, 1 << 40), frames=st.integers(1, 700), share=st.floats(0, 1))
def test_shots_fill_the_clip_and_returns_are_to_earlier_ones(seed: int, frames: int, share: float) -> None:
    count = 1 + int(share * (max(1, frames // 4) - 1))
    shots = random_shots(seed, frames, count)
    assert shots == random_shots(seed, frames, count) and len(shots) == count
    assert (shots[0].start, shots[0].viewpoint, shots[-1].stop) == (0, seed, frames)
    assert all(a.stop == b.start for a, b in zip(shots, shots[1:], strict=False))
    assert min(shot.stop - shot.start for shot in shots) >= frames / count / 2 - 1
    viewpoints = [shot.viewpoint for shot in shots]
    for number in range(1, count):
        assert viewpoints[number] != viewpoints[number - 1]
        assert (viewpoints[number] in viewpoints[:number]) == (number % 2 == 0)


def test_too_many_shots_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="shots=13 in clips of 48 frames, expected 1 to 12"):
        Filming(**FILMING, frames=48, shots=13)


def test_one_shot_is_what_it_was_before_there_were_several() -> None:
    scene = random_scene(6)
    plain, shot = paths(scene, 6, 4, 10, 12.0, 1.5), shot_paths(scene, random_shots(6, 10, 1), 4, 12.0, 1.5)
    assert all(np.array_equal(a.c2w, b.c2w) and np.array_equal(a.intrinsics, b.intrinsics)
               for a, b in zip(plain, shot, strict=True))  # fmt: skip


def test_a_data_set_of_this_generator_keeps_its_bytes() -> None:
    # What GENERATOR "1" stands for. If this changes, data sets can no longer be gone on with: raise GENERATOR.
    rows = [row for seed in (0, 1, 2) for row in scene_rows(seed, Filming(**FILMING, frames=4))]
    poses = b"".join((row.trajectory.c2w.round(9) + 0.0).tobytes() for row in rows)
    assert [row.instruction for row in rows if row.variant and row.camera == 0] == WORDS
    assert hashlib.sha256(poses).hexdigest()[:16] == POSES
    assert [round(float(row.video.mean()), 1) for row in rows] == pytest.approx(MEANS, abs=0.2)


def test_a_long_clip_cuts_all_cameras_together_and_a_return_sees_the_same_place() -> None:
    rows = scene_rows(3, Filming(**FILMING, frames=200, shots=5))
    shots = random_shots(3, 200, 5)
    for row in rows:
        assert row.video.shape[0] == len(row.trajectory) == 200
        assert row.shots.dtype == np.int32 and np.array_equal(row.shots, shot_numbers(shots))
    for cut in [shot.start for shot in shots[1:]]:
        for row in rows:
            steps = np.linalg.norm(np.diff(row.trajectory.c2w[:, :, 3], axis=0), axis=1)
            turn = np.abs(row.trajectory.c2w[cut] - row.trajectory.c2w[cut - 1]).max()
            assert turn > 0.05, f"no cut at {cut} of {row.id}"
            assert np.delete(steps, [shot.start - 1 for shot in shots[1:]]).max() < 0.2, "a cut inside a shot"
    assert shots[2].viewpoint == shots[0].viewpoint
    first, again = shots[0].start, shots[2].start
    for row in rows:
        assert np.array_equal(row.trajectory.c2w[first], row.trajectory.c2w[again])
        still = (row.objects[first] == 0) & (row.objects[again] == 0)
        assert still.mean() > 0.1
        assert np.array_equal(row.depth[first][still], row.depth[again][still])


def test_time_goes_on_through_cuts() -> None:
    # The same shot at another time shows what moves somewhere else.
    seed = next(seed for seed in range(50) if any(each.motion.sway != (0, 0, 0) for each in random_scene(seed).things))
    rows = scene_rows(seed, Filming(**(FILMING | {"edits": 0}), frames=36, shots=3))
    shots = random_shots(seed, 36, 3)
    changed = [(row.objects[shots[0].start] != row.objects[shots[2].start]).any() for row in rows]
    assert any(changed)
