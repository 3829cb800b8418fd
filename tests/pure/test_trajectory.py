"""Trajectories: presets against ReCamMaster's own file, algebra of paths, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.trajectory import PRESETS, Trajectory, TrajectoryError, default_intrinsics, preset
from pipeline.trajectory_formats import read_recammaster

LENS = default_intrinsics(832 / 480)


def trajectories() -> st.SearchStrategy[Trajectory]:
    """Random rotations and positions of 1 to 6 frames."""

    def build(seed: int, length: int) -> Trajectory:
        random = np.random.default_rng(seed)
        rotation, _ = np.linalg.qr(random.normal(size=(length, 3, 3)))
        rotation *= np.sign(np.linalg.det(rotation))[:, None, None]
        pose = np.concatenate([rotation, random.normal(size=(length, 3, 1))], axis=2)
        return Trajectory(pose, LENS * random.uniform(0.8, 1.2, size=(length, 1)))

    return st.builds(build, st.integers(0, 2**32 - 1), st.integers(1, 6))


def angles(trajectory: Trajectory) -> tuple[float, float]:
    """Yaw to the right and pitch upwards of the last frame, degrees."""
    forward = trajectory.c2w[-1, :, 2]
    return float(np.degrees(np.arctan2(forward[0], forward[2]))), float(np.degrees(np.arcsin(-forward[1])))


@pytest.mark.parametrize(("name", "camera"), [(name, f"cam{i:02d}") for i, name in enumerate(PRESETS, 1)])
def test_a_preset_of_81_frames_is_recammasters_own(shared_data: Path, name: str, camera: str) -> None:
    text = (shared_data / "cameras" / "recammaster_extrinsics.json").read_text()
    published = read_recammaster(text, camera, LENS)
    np.testing.assert_allclose(preset(name, 81, LENS).c2w, published.c2w, atol=1e-4)


def test_a_pan_right_turns_the_view_axis_towards_plus_x() -> None:
    yaw, pitch = angles(preset("pan_right", 81, LENS))
    assert yaw == pytest.approx(19.876, abs=1e-3)
    assert pitch == pytest.approx(0)


def test_a_tilt_up_turns_the_view_axis_towards_minus_y() -> None:
    yaw, pitch = angles(preset("tilt_up", 81, LENS))
    assert (yaw, pitch) == (pytest.approx(0), pytest.approx(9.938, abs=1e-3))


@pytest.mark.parametrize("name", ["translate_up", "translate_down", "arc_left", "arc_right"])
def test_translations_and_arcs_keep_looking_at_the_point_four_metres_ahead(name: str) -> None:
    trajectory = preset(name, 33, LENS)
    aim = np.array([0, 0, 4]) - trajectory.c2w[:, :, 3]
    forward = trajectory.c2w[:, :, 2]
    np.testing.assert_allclose(forward, aim / np.linalg.norm(aim, axis=1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_any_length_and_starts_at_the_identity(name: str) -> None:
    for length in (1, 2, 5, 200):
        trajectory = preset(name, length, LENS)
        assert len(trajectory) == length
        np.testing.assert_allclose(trajectory.c2w[0], np.eye(3, 4), atol=1e-15)
    np.testing.assert_allclose(preset(name, 200, LENS).c2w[-1], preset(name, 2, LENS).c2w[-1], atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "meant"), [("pan_rigth", "pan_right"), ("Arc-Left", "arc_left"), ("zoomin", "zoom_in")]
)
def test_an_unknown_preset_names_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(TrajectoryError, match=f"did you mean '{meant}'"):
        preset(wrong, 81, LENS)


def test_default_intrinsics_have_square_pixels_and_the_field_of_view_asked_for() -> None:
    fx, fy, cx, cy = default_intrinsics(832 / 480, 52.7)
    assert fx * 832 == pytest.approx(fy * 480)
    assert np.degrees(2 * np.arctan(0.5 / fx)) == pytest.approx(52.7)
    assert (cx, cy) == (0.5, 0.5)
    with pytest.raises(TrajectoryError, match="aspect"):
        default_intrinsics(0)


# --- what is refused


def poses(length: int = 5) -> np.ndarray:
    return np.tile(np.eye(3, 4), (length, 1, 1))


def test_a_nan_is_refused_and_the_frame_named() -> None:
    c2w = poses()
    c2w[3, 1, 3] = np.nan
    with pytest.raises(TrajectoryError, match="frame 3.*finite"):
        Trajectory(c2w, LENS)


def test_a_scaled_rotation_is_refused_and_the_frame_named() -> None:
    c2w = poses()
    c2w[2, :, :3] *= 1.1
    with pytest.raises(TrajectoryError, match="frame 2.*orthonormal"):
        Trajectory(c2w, LENS)


def test_a_rotation_that_is_nearly_one_becomes_one_so_that_poses_compose() -> None:
    c2w = preset("arc_left", 5, LENS).c2w.copy()
    c2w[:, :, :3] *= 1.0004
    rough = Trajectory(c2w, LENS)
    assert np.allclose(rough.c2w, preset("arc_left", 5, LENS).c2w, atol=1e-12)
    assert np.allclose(rough.relative_to(rough.c2w[0]).relative_to(rough.c2w[2]).c2w[2], np.eye(3, 4))
    rounded = preset("arc_left", 5, LENS).c2w.round(6)
    assert np.array_equal(Trajectory(rounded, LENS).c2w, rounded), "six digits are as good as it gets"


def test_a_mirroring_pose_is_refused_and_the_frame_named() -> None:
    c2w = poses()
    c2w[4, 1, 1] = -1
    with pytest.raises(TrajectoryError, match="frame 4.*mirrors"):
        Trajectory(c2w, LENS)


def test_a_focal_length_of_zero_is_refused_and_the_frame_named() -> None:
    lenses = np.tile(LENS, (5, 1))
    lenses[1, 0] = 0
    with pytest.raises(TrajectoryError, match="frame 1.*focal"):
        Trajectory(poses(), lenses)


def test_wrong_lengths_and_shapes_are_refused() -> None:
    with pytest.raises(TrajectoryError, match=r"intrinsics have shape \(4, 4\).*5"):
        Trajectory(poses(), np.tile(LENS, (4, 1)))
    with pytest.raises(TrajectoryError, match="at least one"):
        Trajectory(np.empty((0, 3, 4)), LENS)
    with pytest.raises(TrajectoryError, match="c2w"):
        Trajectory([[1, 2], [3]], LENS)  # type: ignore[arg-type]
    with pytest.raises(TrajectoryError, match="no frame"):
        Trajectory(poses(), LENS)[5:9]


def test_a_trajectory_cannot_be_changed_through_the_array_it_was_made_from() -> None:
    c2w = poses()
    trajectory = Trajectory(c2w, LENS)
    c2w[0, 0, 3] = 7
    assert trajectory.c2w[0, 0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        trajectory.c2w[0, 0, 3] = 7


# --- algebra


@given(trajectories())
def test_relative_to_the_first_pose_starts_at_the_identity_and_comes_back(path: Trajectory) -> None:
    first = path.c2w[0]
    relative = path.relative_to(first)
    np.testing.assert_allclose(relative.c2w[0], np.eye(3, 4), atol=1e-9)
    back = relative.relative_to(Trajectory(poses(1), LENS).relative_to(first).c2w[0])
    np.testing.assert_allclose(back.c2w, path.c2w, atol=1e-9)


@given(trajectories(), trajectories(), trajectories())
def test_continuing_is_associative_and_repeats_no_pose(a: Trajectory, b: Trajectory, c: Trajectory) -> None:
    left, right = a.then(b).then(c), a.then(b.then(c))
    assert len(left) == len(a) + len(b) + len(c) - 2
    np.testing.assert_allclose(left.c2w, right.c2w, atol=1e-9)
    np.testing.assert_array_equal(left.c2w[: len(a)], a.c2w)


def test_a_pan_and_the_pan_back_return_to_the_origin() -> None:
    out = preset("pan_right", 41, LENS)
    there_and_back = out.then(out[::-1])
    assert len(there_and_back) == 81
    np.testing.assert_allclose(there_and_back.c2w[-1], np.eye(3, 4), atol=1e-12)


@given(trajectories())
def test_resampling_keeps_both_ends_and_the_frames_of_its_own_length(path: Trajectory) -> None:
    np.testing.assert_allclose(path.resampled(len(path)).c2w, path.c2w, atol=1e-7)
    longer = path.resampled(3 * len(path) + 1)
    np.testing.assert_allclose(longer.c2w[[0, -1]], path.c2w[[0, -1]], atol=1e-7)
    assert len(path.resampled(1)) == 1


def test_resampling_turns_at_constant_speed() -> None:
    ends = preset("pan_right", 2, LENS)
    np.testing.assert_allclose(ends.resampled(81).c2w, preset("pan_right", 81, LENS).c2w, atol=1e-12)


def test_a_half_turn_is_resampled_by_a_quarter_turn() -> None:
    c2w = poses(2)
    c2w[1, :, :3] = np.diag([-1, 1, -1])
    middle = Trajectory(c2w, LENS).resampled(3).c2w[1, :, 2]
    assert abs(middle[0]) == pytest.approx(1)


def test_travel_is_the_greatest_distance_from_the_origin() -> None:
    assert Trajectory.static(9, LENS).travel == 0
    out = preset("zoom_in", 41, LENS)
    assert out.then(out[::-1]).travel == pytest.approx(2 * 160 / 161)


def test_the_digest_is_stable_and_sees_every_frame_and_the_lens() -> None:
    path = preset("arc_left", 9, LENS)
    assert path.digest == Trajectory(path.c2w + 1e-12, path.intrinsics).digest
    assert (
        Trajectory(poses(2), [1, 1, 0.5, 0.5]).digest
        == Trajectory(-0.0 + poses(2), np.tile([1, 1, 0.5, 0.5], (2, 1))).digest
    )
    moved = path.c2w.copy()
    moved[8, 0, 3] += 1e-4
    others = [path[:8], path[::-1], Trajectory(moved, LENS), Trajectory(path.c2w, LENS * 1.01)]
    assert len({path.digest, *(other.digest for other in others)}) == 5
    pinned = "4ec9bee41a3be28cc04d116ea8fd2876f0ea0a1e6d609f166945ec8cb9b269d1"
    assert Trajectory.static(2, [1, 1, 0.5, 0.5]).digest == pinned  # changes with it change every edit id
