"""Seams between patches: what is closed, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.seams import seamless
from tests.rays import FRAMES, SIZE, camera, head, run, video


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([4, 8, 16]), st.floats(-2, 2), st.floats(-2, 2))
def test_what_rises_evenly_has_no_seams(rows: int, columns: int, patch: int, down: float, right: float):
    y, x = torch.arange(rows * patch)[:, None], torch.arange(columns * patch)
    even = (0.3 + down * y / SIZE + right * x / SIZE).expand(1, 3, -1, -1)
    assert torch.allclose(seamless(even, (patch, patch)), even, atol=1e-5)


def test_patches_of_one_colour_each_meet_and_keep_their_mean_and_their_middles():
    made = (
        torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)
    )
    closed = seamless(made, (8, 8))
    for dim in (2, 3):
        before, after = (each.diff(dim=dim).abs() for each in (made, closed))
        seams = torch.arange(7, made.shape[dim] - 1, 8)
        assert after.index_select(dim, seams).mean() < 0.3 * before.index_select(dim, seams).mean()
    assert torch.allclose(closed[..., 3::8, 3::8][..., :1, :1], made[..., 3::8, 3::8][..., :1, :1], atol=0.8)
    assert closed.mean().item() == pytest.approx(made.mean().item(), abs=1e-4)


def test_one_patch_is_left_as_it_is():
    made = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(seamless(made, (8, 8)), made)


def test_in_use_what_is_made_up_has_no_seams_and_in_training_it_is_as_it_was():
    colours = torch.randn(1, 3, 1, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    own = colours.repeat_interleave(8, 3).repeat_interleave(8, 4).expand(-1, -1, FRAMES, -1, -1)
    target = video(camera(0.0, 0.0, 0.0))
    assert torch.equal(run(head(), target, [None], own=own), own)
    used = run(head(), target, [None], own=own, lead=True)
    assert torch.allclose(used[:, :, -1], seamless(own[:, :, -1], (8, 8)), atol=1e-5)
