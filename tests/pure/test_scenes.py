import numpy as np
import pytest
import torch

from pipeline.scenes import LIGHT_SIZE, render, render_clip, room
from pipeline.trajectory import Trajectory, default_intrinsics, preset

LENS = default_intrinsics(4 / 3)


@pytest.fixture(scope="module")
def clip():
    return render_clip(frames=6, height=48, width=64, seed=0)


def view(trajectory, seed=0, height=48, width=64, times=None):
    times = np.zeros(len(trajectory)) if times is None else times
    return render(room(seed), trajectory, times, height, width)


def test_a_clip_repeats_and_its_seed_decides_it(clip):
    assert clip.shape == (6, 48, 64, 3) and clip.dtype == np.uint8
    assert np.array_equal(clip, render_clip(frames=6, height=48, width=64, seed=0))
    assert not np.array_equal(clip, render_clip(frames=6, height=48, width=64, seed=1))


def test_a_longer_clip_begins_as_the_shorter_one(clip):
    assert np.array_equal(render_clip(frames=8, height=48, width=64, seed=0)[:6], clip)


def test_something_moves_and_most_stands_still(clip):
    changed = (clip[0].astype(int) - clip[5]).__abs__().max(axis=-1) > 8
    assert 0.01 < changed.mean() < 0.35


def test_the_picture_is_neither_dull_nor_burnt(clip):
    assert 70 < clip.mean() < 170 and clip.std() > 25
    assert (clip.min(axis=-1) == 255).mean() < 0.01


def test_depth_is_the_distance_to_the_back_wall_along_the_axis():
    # straight ahead, above everything that stands there, is the wall at 6 m: also off the axis, since this is depth
    _, depth = view(Trajectory.static(1, LENS))
    assert torch.allclose(depth[0, 8:12, 12:52], torch.tensor(6.0), atol=1e-4)


def test_walking_ahead_shortens_depth_by_the_way_walked():
    ahead = Trajectory(np.concatenate([np.eye(3), [[0], [0], [0.75]]], axis=1)[None], LENS)
    _, depth = view(ahead)
    assert torch.allclose(depth[0, 8:12, 20:44], torch.tensor(5.25), atol=1e-4)


def test_two_cameras_agree_on_the_same_points():
    # A pixel of the first view, moved by its depth into the second, is what the second sees there or lies behind it.
    path = preset("arc_left", 2, LENS)
    _, depth = view(path, height=96, width=128)
    fx, fy, cx, cy = LENS
    y, x = np.meshgrid((np.arange(96) + 0.25) / 96, (np.arange(128) + 0.25) / 128, indexing="ij")
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], axis=-1)
    world = (rays * depth[0].numpy()[..., None]) @ path.c2w[0, :, :3].T + path.c2w[0, :, 3]
    local = (world - path.c2w[1, :, 3]) @ path.c2w[1, :, :3]
    u, v = local[..., 0] / local[..., 2] * fx + cx, local[..., 1] / local[..., 2] * fy + cy
    inside = (u > 0.02) & (u < 0.98) & (v > 0.02) & (v < 0.98)
    assert inside.mean() > 0.3
    there = depth[1].numpy()[(v[inside] * 96).astype(int), (u[inside] * 128).astype(int)]
    behind = local[..., 2][inside] - there
    assert (np.abs(behind) < 0.12).mean() > 0.8
    assert (behind > -0.12).mean() > 0.97


def test_shadows_are_soft_because_the_lamp_has_an_extent():
    assert LIGHT_SIZE > 0
    colour, _ = view(Trajectory.static(1, LENS), height=96, width=128)
    floor = colour[0, 80:].mean(dim=-1)
    assert floor.max() - floor.min() > 0.15
