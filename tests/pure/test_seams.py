"""What a model makes up has no seams between its patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.agreement import leading, settled
from pipeline.outlines import DECIDED, outlines_of
from pipeline.seams import seamless
from tests.rays import camera, head, run, video

PATCHES = st.sampled_from([(2, 2), (4, 4), (8, 8), (8, 4)])


def pictures(patch: tuple[int, int], rows: int = 3, columns: int = 4, seed: int = 0) -> torch.Tensor:
    """(2, 3, H, W): so many patches of noise."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, rows * patch[0], columns * patch[1], generator=made)


def closed(line: np.ndarray, patch: int) -> np.ndarray:
    """A line of pixels, seam by seam."""
    result, reach = line.copy(), patch // 2
    for seam in range(patch, len(line), patch):
        steps = np.diff(line[seam - 2 : seam + 2])
        left_over = steps[1] - (steps[0] + steps[2]) / 2
        for away in range(reach):
            result[seam - 1 - away] += left_over / 2 * (1 - away / reach)
            result[seam + away] -= left_over / 2 * (1 - away / reach)
    return result


@given(patch=PATCHES, seed=st.integers(0, 99))
def test_rows_and_columns_give_way_seam_by_seam(patch, seed):
    made = pictures(patch, seed=seed)
    expected = np.apply_along_axis(closed, 2, made.double().numpy(), patch[0])
    expected = np.apply_along_axis(closed, 3, expected, patch[1])
    assert np.abs(seamless(made, patch).numpy() - expected).max() < 1e-5


@given(patch=PATCHES, seed=st.integers(0, 99))
def test_the_step_over_a_seam_is_as_steep_as_those_beside_it(patch, seed):
    made = pictures(patch, rows=1, seed=seed)
    before, after = made.diff(dim=-1), seamless(made, patch).diff(dim=-1)
    for seam in range(patch[1] - 1, made.shape[-1] - 1, patch[1]):
        wanted = (before[..., seam - 1] + before[..., seam + 1]) / 2
        assert torch.allclose(after[..., seam], wanted, atol=1e-5)


@given(patch=PATCHES, seed=st.integers(0, 99))
def test_the_mean_colour_stays(patch, seed):
    made = pictures(patch, seed=seed)
    assert torch.allclose(seamless(made, patch).mean((2, 3)), made.mean((2, 3)), atol=1e-5)


@given(patch=PATCHES, down=st.floats(-1, 1), right=st.floats(-1, 1))
def test_what_is_even_or_grows_evenly_stays_as_it_is(patch, down, right):
    rows, columns = torch.arange(3.0 * patch[0])[:, None], torch.arange(4.0 * patch[1])
    made = (0.3 + down * rows + right * columns).expand(1, 3, -1, -1)
    assert torch.allclose(seamless(made, patch), made, atol=1e-4)


def test_an_edge_within_a_patch_stays_as_sharp_as_it_is():
    made = torch.zeros(1, 3, 8, 24)
    made[..., 11:] = 1.0
    assert torch.allclose(seamless(made, (8, 8)), made)


def test_a_single_patch_and_the_outer_halves_of_the_outermost_stay():
    assert torch.equal(seamless(pictures((8, 8), 1, 1), (8, 8)), pictures((8, 8), 1, 1))
    made = pictures((8, 8), 1, 2)
    result = seamless(made, (8, 8))
    assert torch.allclose(result[..., :4], made[..., :4], atol=1e-6)
    assert torch.allclose(result[..., 12:], made[..., 12:], atol=1e-6)
    assert not torch.allclose(result[..., 4:12], made[..., 4:12], atol=0.1)


@pytest.mark.parametrize("outlined", [False, True])
def test_seams_close_in_use_where_outlines_are_not_the_sources(outlined):
    stays, moves = camera(0.0, 0.0, 0.0), camera(0.3, 0.0, 0.0)
    target, layer = video(torch.cat([stays, moves])), head(1)
    source, own = video(camera(0.0, 0.0, 0.0, rows=2), seed=1), video(camera(0.0, 0.0, 0.0, rows=2), seed=2).latent
    outlines = outlines_of(target, source) if outlined else None
    early = DECIDED + 0.01
    assert torch.equal(run(layer, target, [source], early, own, outlines=outlines), run(layer, target, [], 1.0, own))

    flat = seamless(own.transpose(1, 2).flatten(0, 1), (8, 8)).unflatten(0, (2, -1)).transpose(1, 2)
    expected = torch.stack([own[0] if outlined else flat[0], flat[1]])
    depths = layer.said(torch.zeros(2, 16, 8), target.latent.shape[2:])[1].mean(2).exp().flatten(0, 1)[:, None]
    expected = settled(expected, depths, leading(target))
    result = run(layer, target, [source], early, own, lead=True, outlines=outlines)
    assert torch.allclose(result, expected, atol=1e-5)
