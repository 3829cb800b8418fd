"""Correspondence of two views: exact both ways, right in colour, and honest about what is hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scenes import (
    Light,
    Material,
    Motion,
    Scene,
    Thing,
    Views,
    correspondence,
    motions,
    paths,
    pose,
    random_scene,
    render,
    sampled,
)  # fmt: skip
from pipeline.trajectory import default_intrinsics

HEIGHT, WIDTH = 48, 64
LENS = torch.tensor(default_intrinsics(WIDTH / HEIGHT)).float()
GREY = Material("plain", ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))


def view(scene: Scene, c2w: np.ndarray, lens: torch.Tensor = LENS, time: float = 0.0, samples: int = 1) -> Views:
    shot = torch.tensor(c2w).float().view(1, 1, 3, 4)
    views = render([scene], shot, lens.view(1, 1, 4), torch.tensor([[time]]), HEIGHT, WIDTH, samples)
    return Views(views.colour[0, 0], views.depth[0, 0], views.objects[0, 0])


def pixels() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([x, y], dim=-1).float()


@given(seed=st.integers(0, 10_000), cameras=st.sampled_from([(0, 1), (0, 2), (2, 1)]), time=st.sampled_from([0.0, 0.7]))
def test_there_and_back_again_is_the_same_pixel_and_the_same_thing(
    seed: int, cameras: tuple[int, int], time: float
) -> None:
    scene = random_scene(seed)
    found = paths(scene, seed, 3, 2, 1.0, WIDTH / HEIGHT)
    (pose_a, lens_a), (pose_b, lens_b) = (
        (torch.tensor(found[each].c2w[1]).float(), torch.tensor(found[each].intrinsics[1]).float()) for each in cameras
    )
    a, b = view(scene, found[cameras[0]].c2w[1], lens_a), view(scene, found[cameras[1]].c2w[1], lens_b, time)
    where, seen = correspondence(a.depth, pose_a, lens_a, b.depth, pose_b, lens_b, a.objects, motions(scene, 0.0, time))
    if seen.float().mean() < 0.02:
        return
    back, _ = correspondence(b.depth, pose_b, lens_b, a.depth, pose_a, lens_a, b.objects, motions(scene, time, 0.0))
    error = (sampled(back, where) - pixels()).abs().amax(-1)[seen]
    error = error[torch.isfinite(error)]  # beside the sky there is nothing to come back from
    # Between four pixels that a much nearer view has far apart, the way back is not quite linear.
    assert error.median() < 0.05 and (error < 1).float().mean() > 0.97
    x, y = where[seen].round().long().unbind(-1)
    assert (b.objects[y, x] == a.objects[seen]).float().mean() > 0.97


@pytest.mark.parametrize("double", [False, True])
def test_cameras_as_a_trajectory_holds_them_will_do(double: bool) -> None:
    scene = random_scene(3)
    one, other = paths(scene, 3, 2, 1, 24.0, WIDTH / HEIGHT)
    a, b = view(scene, one.c2w[0]), view(scene, other.c2w[0])
    cameras = [torch.tensor(each.c2w[0]) for each in (one, other)]  # float64
    lens = LENS.double() if double else LENS
    where, seen = correspondence(a.depth, cameras[0], lens, b.depth, cameras[1], lens)
    single = correspondence(a.depth, cameras[0].float(), LENS, b.depth, cameras[1].float(), LENS)
    assert where.dtype == torch.float32 and torch.equal(where, single[0]) and torch.equal(seen, single[1])


def test_colours_agree_where_both_see() -> None:
    agree, total = 0.0, 0
    for seed in range(12):
        scene = random_scene(seed)
        found = paths(scene, seed, 3, 1, 24.0, WIDTH / HEIGHT)
        views = [view(scene, each.c2w[0], torch.tensor(each.intrinsics[0]).float(), samples=2) for each in found[::2]]
        (pose_a, lens_a), (pose_b, lens_b) = (
            (torch.tensor(each.c2w[0]).float(), torch.tensor(each.intrinsics[0]).float()) for each in found[::2]
        )
        a, b = views
        where, seen = correspondence(a.depth, pose_a, lens_a, b.depth, pose_b, lens_b, at=0.25)
        error = (sampled(b.colour, where) - a.colour.float()).abs().mean(-1)[seen]
        agree += float((error < 24).sum())
        total += int(seen.sum())
    assert total > 5000 and agree / total > 0.9


def test_a_view_corresponds_to_itself_pixel_by_pixel() -> None:
    scene = random_scene(1)
    [path] = paths(scene, 1, 1, 1, 24.0, WIDTH / HEIGHT)
    here = torch.tensor(path.c2w[0]).float()
    a = view(scene, path.c2w[0])
    where, seen = correspondence(a.depth, here, LENS, a.depth, here, LENS)
    assert torch.allclose(where, pixels(), atol=1e-3)
    assert seen[1:-1, 1:-1].float().mean() > 0.999


def test_what_stands_behind_something_is_not_seen() -> None:
    thing = Thing("box", "red", GREY, (0.0, 0.0, 2.0), (0.5, 0.5, 0.1))
    scene = Scene((3.0, 1.5, 4.0), (GREY,) * 6, (thing,), Light((0.0, -1.2, 0.0)))
    left, right = pose(np.array([-1.0, 0, 0]), 0.3, 0), pose(np.array([1.0, 0, 0]), -0.3, 0)
    a, b = view(scene, left), view(scene, right)
    where, seen = correspondence(a.depth, torch.tensor(left).float(), LENS, b.depth, torch.tensor(right).float(), LENS)
    x, y = where.round().long().unbind(-1)
    inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    over = torch.zeros_like(inside)
    over[inside] = (b.objects[y[inside], x[inside]] == 1) & (a.objects[inside] == 0)
    assert over.sum() > 30 and not (seen & over).any()
    assert seen[a.objects == 1].any()


def test_a_moving_thing_is_followed_and_without_its_motion_is_not_claimed() -> None:
    thing = Thing("ball", "red", GREY, (0.0, 0.9, 2.5), (0.5, 0.5, 0.5), motion=Motion(sway=(0.6, 0.0, 0.0)))
    scene = Scene((3.0, 1.5, 4.0), (GREY,) * 6, (thing,), Light((0.0, -1.2, 0.0)))
    here = torch.eye(3, 4)
    a, b = view(scene, np.eye(3, 4)), view(scene, np.eye(3, 4), time=1.0)
    where, seen = correspondence(a.depth, here, LENS, b.depth, here, LENS, a.objects, motions(scene, 0.0, 1.0))
    moving = a.objects == 1
    assert seen[moving].float().mean() > 0.6
    shift = (where - pixels())[moving & seen]
    # Nearer points of the ball shift further: by 0.6 m at 2 to 2.5 m.
    assert (shift[:, 0] > 0.6 / 2.6 * LENS[0] * WIDTH - 0.1).all() and (shift[:, 1].abs() < 0.1).all()
    _, still = correspondence(a.depth, here, LENS, b.depth, here, LENS)
    assert (b.objects[moving & still] == 1).all() and still[moving].float().mean() < 0.5
    with pytest.raises(ValueError, match="motions were given without objects_a"):
        correspondence(a.depth, here, LENS, b.depth, here, LENS, motions=motions(scene, 0.0, 1.0))


def test_batches_and_views_of_several_sizes_are_as_each_alone() -> None:
    scene = random_scene(5)
    found = [torch.tensor(each.c2w[:1]).float() for each in paths(scene, 5, 4, 1, 24.0, 4 / 3)]
    c2w = torch.cat(found)
    lens = LENS.expand(4, 4)
    large, small = (render([scene], c2w[None], lens[None], torch.zeros(1, 4), *size) for size in ((48, 64), (24, 32)))
    m = motions(scene, 0.0, 0.0)
    where, seen = correspondence(
        large.depth[0, :1], c2w[:1], lens[:1], small.depth[0], c2w, lens, large.objects[0, :1], m
    )
    assert where.shape == (4, 48, 64, 2) and seen.shape == (4, 48, 64)
    for number in range(4):
        alone = correspondence(
            large.depth[0, 0], c2w[0], LENS, small.depth[0, number], c2w[number], LENS, large.objects[0, 0], m
        )
        assert torch.allclose(where[number], alone[0], atol=1e-3, equal_nan=True)
        assert (seen[number] == alone[1]).float().mean() > 0.999
    assert sampled(small.colour[0], where).shape == (4, 48, 64, 3)
