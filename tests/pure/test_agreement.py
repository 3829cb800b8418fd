"""What the frames of a clip make up, each for itself, and what they agree on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.agreement import leading, settled
from pipeline.conditioning import ConditioningVideo
from pipeline.lookup import CELL, Paths, fine, look, project
from tests.rays import FRAMES, SIZE, camera, head, run, video


def pan(frames: int = 5, step: float = 0.06) -> ConditioningVideo:
    return video(torch.cat([camera(0.0, 0.0, 0.0, yaw=step * at, frames=1) for at in range(frames)], dim=1))


def agreed(clip: ConditioningVideo, made: torch.Tensor, depth: float = 3.0) -> torch.Tensor:
    depths = torch.full((made.shape[2], 1, SIZE // CELL, SIZE // CELL), depth)
    return settled(made, depths, leading(clip))


def test_frames_that_see_the_same_take_the_look_of_the_last():
    still = video(camera(0.0, 0.0, 0.0, frames=5))
    made = torch.randn(still.latent.shape, generator=torch.Generator().manual_seed(0)).mul(0.1)
    result = agreed(still, made)
    last = result[:, :, -1:, 1:-1, 1:-1]
    assert (last - made[:, :, -1:, 1:-1, 1:-1]).square().mean() < 0.02 * made.square().mean()
    assert (result[..., 1:-1, 1:-1] - last).square().mean() < 1e-3 * made.square().mean()


def test_a_point_looks_the_same_wherever_a_turning_camera_shows_it():
    clip, steps = pan(), torch.linspace(-1, 1, SIZE)
    smooth = torch.stack([torch.cos((2 + at) * steps)[:, None] * torch.sin(3 * steps + at) for at in range(5)])
    made = 0.5 * smooth.expand(1, 3, -1, -1, -1)

    def apart(frames: torch.Tensor, at: int = 3) -> torch.Tensor:
        """Between a frame and the last, where both show the same: which is known without any depth."""
        leaders = leading(clip)
        assert leaders.frames[0] == 4
        last = Paths(leaders.origin[:1], leaders.rays[:1])
        where, inside = project(last, torch.full((5, 1, SIZE // CELL, SIZE // CELL), 3.0))
        shown = look(fine(frames[:, :, 4]), where)[at, :, 0]
        mask = inside[at, 0].repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
        return (shown - frames[0, :, at])[:, mask].square().mean()

    assert apart(agreed(clip, made)) < 0.05 * apart(made)


def test_what_no_frame_that_leads_shows_stays_as_it_is():
    turned = [camera(0.0, 0.0, 0.0, yaw=yaw, frames=1) for yaw in (0.0, 0.0, 0.0, np.pi, 0.0)]
    away = video(torch.cat(turned, dim=1))
    made = torch.randn(away.latent.shape, generator=torch.Generator().manual_seed(0)).mul(0.1)
    assert torch.allclose(agreed(away, made)[:, :, 3], made[:, :, 3], atol=1e-6)


def test_a_thing_that_moves_goes_on_moving():
    still = video(camera(0.0, 0.0, 0.0, frames=5))
    made = torch.full(still.latent.shape, -1.5)
    for at in range(5):
        made[:, :, at, 8:14, 5 * at : 5 * at + 5] = 1.5
    result = agreed(still, made)
    assert (result - made).square().mean() < 0.02 * (made[:, :, 4:] - made).square().mean()


def test_a_frame_that_leads_is_its_own_to_the_border_and_so_is_a_clip_of_one():
    for frames, lead in ((1, 0), (5, 4)):
        clip = video(torch.cat([camera(0.1 * at, 0.0, 0.0, frames=1) for at in range(frames)], dim=1))
        last = torch.randn(1, 3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        made = torch.cat([torch.full((1, 3, frames - 1, SIZE, SIZE), 50.0), last], dim=2)
        assert torch.allclose(agreed(clip, made)[:, :, lead], made[:, :, lead], atol=1e-6)


def test_frames_agree_row_by_row_and_where_the_layer_says_that_the_points_are():
    """A plane 3 m away that a moving camera films: at that depth its frames agree already, at another they do not."""
    steps = torch.linspace(-1, 1, SIZE)
    poses = torch.cat([camera(0.15 * at, 0.0, 0.0, frames=1) for at in range(FRAMES)], dim=1)
    shifts = torch.stack([steps + 0.15 * at / 3.0 * 0.9 * 2 for at in range(FRAMES)])  # focal length .9 of the width
    plane = (0.5 * torch.sin(4 * shifts)).view(1, 1, FRAMES, 1, SIZE).expand(1, 3, -1, SIZE, -1)
    clip = replace(video(poses.expand(2, -1, -1, -1)), latent=torch.cat([plane, 0.5 * plane]))
    right, wrong = (run(head(depth=depth), clip, [], own=clip.latent, lead=True) for depth in (3.0, 1.2))
    inner = (..., slice(2, -2), slice(2, -2))
    assert (right - clip.latent)[inner].square().mean() < 0.05 * (wrong - clip.latent)[inner].square().mean()
    alone = replace(clip, **{name: each[1:] for name, each in vars(clip).items() if torch.is_tensor(each)})
    assert torch.allclose(run(head(depth=1.2), alone, [], own=alone.latent, lead=True)[0], wrong[1], atol=1e-6)


@pytest.mark.parametrize(("frames", "lead"), [(1, [0]), (2, [1, 0]), (5, [4, 0, 2]), (16, [15, 0, 8])])
def test_the_last_the_first_and_the_middle_frame_lead(frames, lead):
    assert leading(video(camera(0.0, 0.0, 0.0, frames=frames))).frames == lead
