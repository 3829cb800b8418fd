"""Trajectory files: round trips, conventions, and errors that name the frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from pipeline.trajectory import Trajectory, TrajectoryError, default_intrinsics, preset
from pipeline.trajectory_formats import (
    parse_trajectory,
    read_colmap,
    read_json,
    read_recammaster,
    write_colmap,
    write_json,
    write_recammaster,
)
from tests.pure.test_trajectory import trajectories

LENS = default_intrinsics(16 / 9)
CAMERAS = "1 PINHOLE 640 360 600 600 320 180\n"


# --- ours


@given(trajectories())
def test_our_json_comes_back_exactly(path: Trajectory) -> None:
    back = parse_trajectory(write_json(path))
    np.testing.assert_array_equal(back.c2w, path.c2w)
    np.testing.assert_array_equal(back.intrinsics, path.intrinsics)


def ours(**changes: object) -> str:
    content = json.loads(write_json(preset("pan_right", 4, LENS)))
    return json.dumps({**content, **changes})


@pytest.mark.parametrize("pose", [[[1, 0], [0, 1]], None, "here", [[1, 0, 0, "a"]] * 3, [[1, 0, 0, 0]] * 4])
def test_our_json_names_the_frame_whose_pose_is_no_3x4(pose: object) -> None:
    good = np.eye(3, 4).tolist()
    with pytest.raises(TrajectoryError, match="frame 2"):
        read_json(ours(c2w=[good, good, pose, good]))


def test_our_json_with_nan_names_the_frame() -> None:
    bad = np.eye(3, 4).tolist()
    bad[0][3] = float("nan")
    with pytest.raises(TrajectoryError, match="frame 1.*finite"):
        read_json(ours(c2w=[np.eye(3, 4).tolist(), bad]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", "expected an object"),
        ("{}", "expected"),
        (ours(version=2), "version 2"),
        (ours(c2w=[]), "c2w"),
        (ours(intrinsic=1), "unknown key 'intrinsic'"),
    ],
)
def test_a_file_that_is_no_trajectory_says_what_was_found(text: str, says: str) -> None:
    with pytest.raises(TrajectoryError, match=says):
        parse_trajectory(text)


# --- ReCamMaster


@given(trajectories())
def test_recammasters_json_comes_back_relative_to_its_first_frame(path: Trajectory) -> None:
    back = parse_trajectory(write_recammaster(path), intrinsics=path.intrinsics)
    np.testing.assert_allclose(back.c2w, path.relative_to(path.c2w[0]).c2w, atol=1e-9)


def test_unreal_forward_right_and_up_become_z_x_and_minus_y() -> None:
    def moved(x: float, y: float, z: float) -> np.ndarray:
        line = "[1 0 0 0] [0 1 0 0] [0 0 1 0] [{} {} {} 1] "
        text = json.dumps({"frame0": {"cam01": line.format(0, 0, 0)}, "frame1": {"cam01": line.format(x, y, z)}})
        return read_recammaster(text, "cam01", LENS).c2w[1, :, 3]

    np.testing.assert_allclose(moved(100, 0, 0), [0, 0, 1])
    np.testing.assert_allclose(moved(0, 100, 0), [1, 0, 0])
    np.testing.assert_allclose(moved(0, 0, 100), [0, -1, 0])


def test_recammasters_own_file_holds_ten_cameras_of_81_frames(shared_data: Path) -> None:
    text = (shared_data / "cameras" / "recammaster_extrinsics.json").read_text()
    assert len(parse_trajectory(text, intrinsics=LENS, camera="cam10")) == 81
    with pytest.raises(TrajectoryError, match="cam01, cam02"):
        parse_trajectory(text, intrinsics=LENS)
    with pytest.raises(TrajectoryError, match="frame 0: no camera 'cam11'"):
        parse_trajectory(text, intrinsics=LENS, camera="cam11")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda frames: frames.pop("frame2"), "frame 2: missing"),
        (lambda frames: frames["frame1"].clear(), "frame 1: no camera"),
        (lambda frames: frames["frame3"].update(cam01="[1 0 0 0] [0 1 0 0]"), "frame 3.*four rows"),
        (lambda frames: frames["frame3"].update(cam01="[nan 0 0 0] [0 1 0 0] [0 0 1 0] [0 0 0 1]"), "frame 3.*finite"),
        (
            lambda frames: frames["frame2"].update(cam01="[2 0 0 0] [0 1 0 0] [0 0 1 0] [0 0 0 1]"),
            "frame 2.*orthonormal",
        ),
        (lambda frames: frames.update(note="x"), "'note'"),
    ],
)
def test_recammasters_json_names_the_bad_frame(change, says: str) -> None:
    frames = json.loads(write_recammaster(preset("pan_right", 5, LENS)))
    change(frames)
    with pytest.raises(TrajectoryError, match=says):
        read_recammaster(json.dumps(frames), "cam01", LENS)


# --- COLMAP


@given(trajectories())
def test_colmaps_text_comes_back(path: Trajectory) -> None:
    back = read_colmap(*write_colmap(path, 640, 360))
    np.testing.assert_allclose(back.c2w, path.c2w, atol=1e-8)
    np.testing.assert_allclose(back.intrinsics, path.intrinsics, atol=1e-9)
    relative = read_colmap(*write_colmap(path, 640, 360), relative=True)
    np.testing.assert_allclose(relative.c2w[0], np.eye(3, 4), atol=1e-8)


def test_colmaps_quaternions_are_world_to_camera() -> None:
    half = np.sqrt(0.5)  # a quarter turn about y: the world's x axis lies on the camera's -z axis
    path = read_colmap(CAMERAS, f"1 {half} 0 {half} 0 0 0 5 1 a.png\n\n")
    np.testing.assert_allclose(path.c2w[0, :, :3].T @ [1, 0, 0], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(path.c2w[0, :, 3], [5, 0, 0], atol=1e-12)  # C = -R^T t
    np.testing.assert_allclose(path.intrinsics[0], [600 / 640, 600 / 360, 0.5, 0.5])


def test_colmaps_images_come_in_the_order_of_their_names_and_their_points_are_skipped() -> None:
    images = (
        "# a comment\n1 1 0 0 0 0 0 -10 1 frame10.png\n1.5 2.5 -1 3.5 4.5 7\n"
        "2 1 0 0 0 0 0 -2 1 frame2.png\n\n3 1 0 0 0 0 0 -1 1 a name 1.png\n"
    )
    np.testing.assert_allclose(read_colmap(CAMERAS, images).c2w[:, 2, 3], [1, 2, 10])


@pytest.mark.parametrize(
    ("cameras", "focal"),
    [("1 SIMPLE_PINHOLE 640 360 500 320 180", 500), ("1 SIMPLE_RADIAL 640 360 600 320 180 0.01", 600)],
)
def test_colmaps_single_focal_models_have_square_pixels(cameras: str, focal: float) -> None:
    lens = read_colmap(cameras, "1 1 0 0 0 0 0 0 1 a.png").intrinsics[0]
    np.testing.assert_allclose(lens, [focal / 640, focal / 360, 0.5, 0.5])


@pytest.mark.parametrize(
    ("cameras", "images", "says"),
    [
        ("1 SIMPLE_RADIAL 640 360 600 320 180 0.3", "1 1 0 0 0 0 0 0 1 a.png", "image_undistorter"),
        ("1 FISHEYE 640 360 600", "1 1 0 0 0 0 0 0 1 a.png", "line 1: camera model 'FISHEYE'"),
        ("1 PINHOLE 640 360 600", "1 1 0 0 0 0 0 0 1 a.png", "takes 4 parameters"),
        (CAMERAS, "1 1 0 0 0 0 0 0 2 a.png", "camera 2"),
        (CAMERAS, "1 0 0 0 0 0 0 0 1 a.png", "line 1: image 'a.png' has no rotation"),
        (CAMERAS, "1 1 0 0 0 0 0 nan 1 a.png", "'a.png'"),
        (CAMERAS, "1 1 0 0 0 0 0 0 1 a.png\n\n2 1 0 0 0 0 0 0 1 a.png", "line 3.*twice"),
        (CAMERAS, "# nothing\n", "no image"),
        (CAMERAS, "hello", "line 1.*IMAGE_ID"),
    ],
)
def test_colmaps_errors_name_the_line(cameras: str, images: str, says: str) -> None:
    with pytest.raises(TrajectoryError, match=says):
        read_colmap(cameras, images)
