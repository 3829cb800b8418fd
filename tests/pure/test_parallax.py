"""A camera that moves sees how far away things are, one that stands does not: scenes whose depth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from pipeline import transformer
from pipeline.conditioning import ConditioningVideo
from pipeline.parallax import parallax
from pipeline.scenes import random_scene, render
from pipeline.trajectory import default_intrinsics, preset
from tests.generated import moving_frames
from tests.rays import LENS, SIZE, camera
from tests.tiny import build_tiny

FRAMES = 8


@cache
def filmed(seed: int = 5) -> tuple[ConditioningVideo, torch.Tensor]:
    """A camera that goes to the right through a scene in which nothing moves, and the depths, log metres."""
    poses = torch.cat([camera(0.08 * frame, 0.0, 0.0, frames=1) for frame in range(FRAMES)], dim=1)
    lens, times = LENS.expand(1, FRAMES, 4), torch.arange(FRAMES)[None] / 12
    seen = render([random_scene(seed)], poses, lens, torch.zeros(1, FRAMES), SIZE, SIZE, samples=2)
    latent = (seen.colour.movedim(-1, 1).float() / 255 - 0.45) / 0.27
    return ConditioningVideo(latent, poses, lens, times), seen.depth.clamp(max=60).log()


@pytest.mark.parametrize("factor", [0.75, 0.87, 1.0, 1.15, 1.33])
@pytest.mark.parametrize("seed", [8, 10, 11, 12])
def test_what_is_too_near_or_too_far_by_one_factor_is_put_right(seed, factor):
    video, true = filmed(seed)
    near = true < math.log(8)
    found = parallax(true + math.log(factor), video)
    assert (found - true)[near].mean().abs() < 0.03 + 0.1 * abs(math.log(factor))


@pytest.mark.parametrize("seed", [10, 11, 12])
def test_every_place_is_put_right_by_itself(seed):
    video, true = filmed(seed)
    wrong = torch.zeros_like(true)
    wrong[..., : SIZE // 2], wrong[..., SIZE // 2 :] = 0.12, -0.12
    left = parallax(true + wrong, video) - true
    for part in (slice(2, SIZE // 2 - 2), slice(SIZE // 2 + 2, SIZE - 2)):
        near = true[..., part] < math.log(6)
        assert left[..., part][near].mean().abs() < 0.07


def test_a_camera_that_stands_or_turns_says_nothing():
    video, true = filmed()
    turning = torch.cat([camera(0.3, 0.0, 0.1, yaw=0.02 * frame, frames=1) for frame in range(FRAMES)], dim=1)
    for poses in (camera(0.0, 0.0, 0.0, frames=FRAMES), turning):
        assert parallax(true, replace(video, poses=poses)) is true


def test_frames_that_never_agree_say_nothing():
    video, true = filmed()
    noise = torch.randn(video.latent.shape, generator=torch.Generator().manual_seed(0))
    assert (parallax(true, replace(video, latent=noise)) - true).abs().mean() < 0.02


def test_rows_are_as_alone():
    videos, depths = zip(filmed(5), filmed(6), strict=True)
    together = ConditioningVideo(
        *(torch.cat([getattr(each, name) for each in videos]) for name in ("latent", "poses", "intrinsics", "times"))
    )
    found = parallax(torch.cat(depths) + 0.2, together)
    for row, (video, true) in enumerate(zip(videos, depths, strict=True)):
        assert torch.allclose(found[row], parallax(true + 0.2, video)[0], atol=1e-5)


def test_places_are_not_rounded_where_matrix_products_are():
    video, true = filmed()
    with torch.autocast("cpu", torch.bfloat16):
        inside = parallax(true + 0.2, video)
    assert torch.equal(inside, parallax(true + 0.2, video))


def test_the_source_of_an_edit_lies_where_its_own_frames_agree(monkeypatch):
    pipe = build_tiny()
    pipe.set_progress_bar_config(disable=True)
    given, whole = [], transformer.sights
    monkeypatch.setattr(transformer, "sights", lambda *a: given.append(a[1][0]) or whole(*a))
    lens = default_intrinsics(24 / 16)
    pipe(
        source=moving_frames(16, 16, 24), source_trajectory=preset("arc_right", 16, lens),
        target_trajectory=preset("arc_left", 16, lens), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    [video] = given
    said = pipe.transformer.depths(video.latent, video.intrinsics)
    assert torch.equal(video.surface, parallax(said, video)) and not torch.equal(video.surface, said)
