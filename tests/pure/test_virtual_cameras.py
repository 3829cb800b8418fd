"""Virtual cameras inside real footage: what they see lies in the frame, and is where their rotations say."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cuts import find_cuts
from pipeline.trajectory import default_intrinsics
from pipeline.virtual_cameras import cut_out, least_width, virtual_cameras
from tests.generated import moving_frames

ASPECTS = st.sampled_from([0.5, 0.75, 1.0, 4 / 3, 16 / 9, 2.4])


def project(path, number: int, frame: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Where places (..., 2) of a view lie in the frame, by the definition of cameras: rays out, turned, and back in."""
    lens = path.intrinsics[number]
    rays = np.concatenate([(places - lens[2:]) / lens[:2], np.ones((*places.shape[:-1], 1))], axis=-1)
    world = rays @ path.c2w[number, :, :3].T
    return world[..., :2] / world[..., 2:] * frame[:2] + frame[2:]


@given(seed=st.integers(0, 1 << 60), aspect=ASPECTS, frame_aspect=ASPECTS, sharpest=st.floats(0, 1))
def test_views_rotate_and_zoom_inside_the_frame_and_never_travel(
    seed: int, aspect: float, frame_aspect: float, sharpest: float
) -> None:
    cameras = virtual_cameras([seed], 4, 9, 24.0, aspect, frame_aspect, sharpest)
    edge = np.array([[x, y] for x in (0, 0.5, 1) for y in (0, 0.5, 1)])
    frame = default_intrinsics(frame_aspect)
    for path in cameras:
        assert (path.c2w[:, :, 3] == 0).all() and (path.c2w[:, 1, 2] < 1).all()
        assert np.allclose(path.intrinsics[:, 1] / path.intrinsics[:, 0], aspect), "pixels are not square"
        for number in range(9):
            at = project(path, number, frame, edge)
            assert at.min() >= -1e-9 and at.max() <= 1 + 1e-9
    again = virtual_cameras([seed], 2, 9, 24.0, aspect, frame_aspect, sharpest)
    assert all(np.array_equal(a.c2w, b.c2w) for a, b in zip(again, cameras, strict=False)), "more cameras change others"


def test_cameras_differ_and_those_beside_the_source_move() -> None:
    cameras = virtual_cameras([3], 6, 24, 24.0, 1.0, 16 / 9, 0.4)
    starts = {tuple(path.c2w[0, :, 2]) for path in cameras}
    assert len(starts) == 6
    turns = [np.degrees(np.arccos(np.clip((path.c2w[:, :, 2] @ path.c2w[0, :, 2]).min(), -1, 1))) for path in cameras]
    assert max(turns[1:]) > 5 and sum(turn > 1 for turn in turns[1:]) >= 4
    zooms = [path.intrinsics[:, 0].max() / path.intrinsics[:, 0].min() for path in cameras]
    assert zooms[0] == 1 and max(zooms) > 1.2


def test_two_views_show_the_same_thing_in_the_same_direction() -> None:
    # The footage is a map of its own places, so that a view's colours say where in the frame each of its pixels looked.
    height, width = 180, 320
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    picture = np.stack([255 * x, 255 * y, np.zeros_like(x)], axis=-1).round().astype(np.uint8)
    video = np.stack([picture] * 3)
    frame = default_intrinsics(width / height)
    places = np.stack(np.meshgrid((np.arange(32) + 0.5) / 32, (np.arange(24) + 0.5) / 24), axis=-1)
    for path in virtual_cameras([1], 3, 3, 24.0, 4 / 3, width / height, 0.4):
        view = cut_out(video, path, width / height, 24, 32)
        assert view.shape == (3, 24, 32, 3) and view.dtype == np.uint8
        for number in range(3):
            expected = 255 * project(path, number, frame, places)
            assert np.abs(view[number, ..., :2] - expected).max() < 1.5


def test_fine_patterns_become_grey_and_no_moire() -> None:
    stripes = np.zeros((1, 96, 128, 3), np.uint8)
    stripes[:, :, ::2] = 255
    [path] = virtual_cameras([0], 1, 1, 24.0, 1.0, 4 / 3, 0.85)
    view = cut_out(stripes, path, 4 / 3, 40, 40)
    assert abs(float(view.mean()) - 127.5) < 3 and view.std() < 45


def test_the_least_width_lets_the_widest_view_have_a_pixel_of_the_frame_for_each_of_its_own() -> None:
    for aspect, frame_aspect in ((1.0, 16 / 9), (16 / 9, 1.0), (0.5, 0.5)):
        width = least_width(aspect, frame_aspect, 64)
        frame = default_intrinsics(frame_aspect)
        for path in virtual_cameras([5], 3, 2, 24.0, aspect, frame_aspect, 1.0):
            assert frame[0] * width / path.intrinsics[:, 0].max() >= 64 - 1e-6


# ---- cuts


def test_hard_cuts_are_found_where_they_are() -> None:
    shots = [moving_frames(count, 27, 48, seed) for seed, count in enumerate((20, 3, 30))]
    assert find_cuts(np.concatenate(shots)) == (20, 23)


def test_motion_and_gradual_changes_are_no_cuts() -> None:
    moving = moving_frames(40, 27, 48)
    assert find_cuts(moving) == find_cuts(np.roll(moving, 3, axis=2)) == ()
    fade = (moving * np.linspace(1, 0, 40)[:, None, None, None]).astype(np.uint8)
    assert find_cuts(fade) == ()
    assert find_cuts([]) == find_cuts(moving[:1]) == ()
