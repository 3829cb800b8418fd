"""Seams between patches: what is closed, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.outlines import outlines_of
from pipeline.seams import seamless
from tests.rays import FRAMES, SIZE, camera, head, run, video


def stairs(edge: int, columns: int = 16) -> torch.Tensor:
    """(1, 1, 8, columns): black, and white from a column on."""
    return (torch.arange(columns) >= edge).float().expand(1, 1, 8, -1)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([2, 4, 8, 16]), st.floats(-2, 2), st.floats(-2, 2))
def test_what_rises_evenly_has_no_seams(rows: int, columns: int, patch: int, down: float, right: float):
    y, x = torch.arange(rows * patch)[:, None], torch.arange(columns * patch)
    even = (0.3 + down * y / SIZE + right * x / SIZE).expand(1, 3, -1, -1)
    assert torch.allclose(seamless(even, (patch, patch)), even, atol=1e-5)


EIGHTHS = [0, 0, 0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 8, 8]


@pytest.mark.parametrize(("patch", "closed"), [(8, [each / 8 for each in EIGHTHS]), (2, [0] * 7 + [0.5] * 2 + [1] * 7)])
def test_of_two_colours_that_meet_each_gives_way_up_to_the_middle_of_its_patch(patch: int, closed: list[float]):
    expected = torch.tensor(closed).expand(1, 1, 8, -1)
    assert torch.allclose(seamless(stairs(8), (8, patch)), expected)
    assert torch.allclose(seamless(stairs(8).mT, (patch, 8)), expected.mT)


@pytest.mark.parametrize("edge", [5, 6, 7, 9, 10, 11])
def test_an_edge_beside_a_seam_stays(edge: int):
    assert torch.equal(seamless(stairs(edge), (8, 8)), stairs(edge))


def test_what_is_upside_down_or_mirrored_stays_so():
    made = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    for dims in ((2,), (3,), (2, 3)):
        assert torch.allclose(seamless(made.flip(dims), (8, 16)).flip(dims), seamless(made, (8, 16)), atol=1e-6)


def test_one_patch_is_left_as_it_is_and_nothing_is_written_into_what_is_given():
    made = torch.randn(1, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    before = made.clone()
    assert not torch.equal(seamless(made, (8, 8)), made) and torch.equal(made, before)
    assert torch.equal(seamless(made, (8, 16)), made)


def test_in_use_what_is_made_up_has_no_seams_and_in_training_it_is_as_it_was():
    colours = torch.randn(1, 3, 1, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    own = colours.repeat_interleave(8, 3).repeat_interleave(8, 4).expand(-1, -1, FRAMES, -1, -1)
    target = video(camera(0.0, 0.0, 0.0))
    assert torch.equal(run(head(), target, [None], own=own), own)
    used = run(head(), target, [None], own=own, lead=True)
    assert torch.allclose(used[:, :, -1], seamless(own[:, :, -1], (8, 8)), atol=1e-5)


def test_where_the_source_shows_the_outlines_seams_are_left_to_these():
    both = torch.cat([camera(0.0, 0.0, 0.0), camera(0.01, 0.0, 0.0)])
    target, source = video(both), video(camera(0.0, 0.0, 0.0, rows=2))
    own = torch.randn(2, 3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).expand(-1, -1, FRAMES, -1, -1)
    outlines = outlines_of(target, source)
    assert outlines is not None
    used = run(head(), target, [None], own=own, lead=True, outlines=outlines)  # in noise alone
    assert torch.allclose(used[0, :, -1], own[0, :, -1], atol=1e-5)
    assert torch.allclose(used[1, :, -1], seamless(own[1:, :, -1], (8, 8))[0], atol=1e-5)
