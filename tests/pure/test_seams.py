"""Seams between patches: what is closed, and what is left alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.agreement import ALIKE, KNOWN, leading, settled
from pipeline.outlines import CERTAIN, DECIDED, guided, outlines_of
from pipeline.seams import PATTERN, RADIUS, beside, even, seamless
from tests.rays import FRAMES, SIZE, camera, head, run, video

PATCHES = st.sampled_from([(2, 2), (4, 4), (8, 8), (8, 4)])


def pictures(patch: tuple[int, int], rows: int = 3, columns: int = 4, seed: int = 0) -> torch.Tensor:
    """(2, 3, H, W): so many patches of noise."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, rows * patch[0], columns * patch[1], generator=made)


def closed_line(line: np.ndarray, patch: int) -> np.ndarray:
    """A line of pixels, seam by seam."""
    result, reach = line.copy(), patch // 2
    for seam in range(patch, len(line), patch):
        steps = np.diff(line[seam - 2 : seam + 2])
        left_over = np.clip(steps[1] - (steps[0] + steps[2]) / 2, min(steps[1], 0), max(steps[1], 0))
        for away in range(reach):
            result[seam - 1 - away] += left_over / 2 * (1 - away / reach)
            result[seam + away] -= left_over / 2 * (1 - away / reach)
    return result


def stairs(edge: int, columns: int = 16) -> torch.Tensor:
    """(1, 1, 8, columns): black, and white from a column on."""
    return (torch.arange(columns) >= edge).float().expand(1, 1, 8, -1)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([2, 4, 8, 16]), st.floats(-2, 2), st.floats(-2, 2))
def test_what_rises_evenly_has_no_seams(rows: int, columns: int, patch: int, down: float, right: float):
    y, x = torch.arange(rows * patch)[:, None], torch.arange(columns * patch)
    even = (0.3 + down * y / SIZE + right * x / SIZE).expand(1, 3, -1, -1)
    assert torch.allclose(seamless(even, (patch, patch)), even, atol=1e-5)


@given(patch=PATCHES, seed=st.integers(0, 99))
def test_rows_and_columns_give_way_seam_by_seam(patch, seed):
    made = pictures(patch, seed=seed)
    expected = np.apply_along_axis(closed_line, 2, made.double().numpy(), patch[0])
    expected = np.apply_along_axis(closed_line, 3, expected, patch[1])
    assert np.abs(seamless(made, patch).numpy() - expected).max() < 1e-5


@given(patch=PATCHES, seed=st.integers(0, 99))
def test_the_step_over_a_seam_is_as_steep_as_those_beside_it_but_never_turned_round_nor_raised(patch, seed):
    made = pictures(patch, rows=1, seed=seed)
    before, after = made.diff(dim=-1), seamless(made, patch).diff(dim=-1)
    for seam in range(patch[1] - 1, made.shape[-1] - 1, patch[1]):
        wanted, step = (before[..., seam - 1] + before[..., seam + 1]) / 2, before[..., seam]
        wanted = wanted.clamp(step.clamp(max=0), step.clamp(min=0))
        assert torch.allclose(after[..., seam], wanted, atol=1e-5)


@given(patch=PATCHES, seed=st.integers(0, 99))
def test_the_mean_colour_stays(patch, seed):
    made = pictures(patch, seed=seed)
    assert torch.allclose(seamless(made, patch).mean((2, 3)), made.mean((2, 3)), atol=1e-5)


def test_the_outer_halves_of_the_outermost_patches_stay():
    made = pictures((8, 8), 1, 2)
    result = seamless(made, (8, 8))
    assert torch.allclose(result[..., :4], made[..., :4], atol=1e-6)
    assert torch.allclose(result[..., 12:], made[..., 12:], atol=1e-6)
    assert not torch.allclose(result[..., 4:12], made[..., 4:12], atol=0.1)


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


def test_a_faint_pattern_of_patches_goes_and_edges_stay():
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    faint = 0.02 * torch.cos(x * math.pi / 4) * torch.cos(y * math.pi / 4)  # the same in all patches of 8x8
    edge = torch.where(x < 13, -0.5, 0.5)
    made = torch.stack([faint, edge + faint])[:, None].expand(-1, 3, -1, -1)
    flat, stepped = even(made)
    assert flat.std() < 0.2 * faint.std()
    assert (stepped[0] - edge).abs().max() < 0.06 and stepped[0, :, 13].min() - stepped[0, :, 12].max() > 0.9
    for channel in made.unbind(1):
        assert torch.allclose(
            even(channel[:, None]), guided(channel[:, None], RADIUS, PATTERN)(channel[:, None]), atol=1e-5
        )


def halves(left: torch.Tensor | float, right: torch.Tensor | float = 0.0) -> torch.Tensor:
    """(1, 3, 96, 96) of two values side by side."""
    return torch.where(torch.arange(96) < 48, torch.as_tensor(left), torch.as_tensor(right)).expand(1, 3, 96, 96)


def test_what_is_made_up_goes_on_from_what_is_shown_and_is_itself_far_from_there():
    share = halves(1.0)[:, :1]
    made = halves(0.3, 0.3)
    added = beside(made, made + 0.1, share)[0, 0]
    assert (added[:, 48] - 0.1).abs().max() < 0.01 and 0.01 < added[48, 64] < 0.05 and added[:, 80:].max() < 1e-6
    assert (added[:, 49:].diff(dim=1) <= 1e-6).all() and added.min() > -1e-6 and added.max() < 0.11
    assert added[0].diff().abs().max() < 0.02, "no step of its own"
    assert torch.equal(beside(made, made + 0.1, torch.zeros_like(share)), torch.zeros_like(made))
    assert beside(made, made, share).abs().max() == 0


def test_what_is_made_up_goes_on_from_stripes_too():
    stripes = halves(0.1 * torch.sin(2 * math.pi * torch.arange(96) / 24)[:, None], 0.0)
    share = halves(1.0)[:, :1]
    left_over = (stripes[..., 47] - beside(torch.zeros_like(stripes), stripes, share)[..., 48]).abs().max()
    assert left_over < 0.05


def test_rows_of_other_noise_and_cameras_are_made_as_alone():
    cameras = [camera(beside, 0.0, 0.0) for beside in (0.6, 0.3, 50.0, -0.6)]
    sigmas, made = torch.tensor([0.9, 0.6, 0.3, 0.1]), torch.Generator().manual_seed(0)
    shown, own = torch.randn(2, 4, 3, FRAMES, SIZE, SIZE, generator=made)
    layer = head(choose=0)
    with torch.no_grad():
        layer.proj.bias.view(-1, 3)[:, 0] = 0.0
        layer.proj.bias.view(-1, 3)[:, 1] = 0.2  # neither of the two is certain
    away = torch.full((4, FRAMES, SIZE, SIZE), math.log(2.0))

    def rows(of: slice) -> torch.Tensor:
        sources = replace(video(camera(0.0, 0.0, 0.0, rows=4)[of], shown[of]), surface=away[of])
        return run(layer, video(torch.cat(cameras[of]), shown[of]), [sources], sigmas[of], own[of], lead=True)

    together = rows(slice(0, 4))
    for row in range(4):
        assert torch.allclose(together[row], rows(slice(row, row + 1))[0], atol=1e-5)


def test_what_stands_before_it_is_not_gone_on_from():
    share = halves(1.0)[:, :1]
    far, near = (beside(halves(0.0), halves(0.0) + off, share)[..., 48:].abs().max() for off in (2.0, 0.2))
    assert far < 1e-3 and near > 0.15


def test_where_the_source_ends_there_is_no_seam_once_little_noise_is_left():
    target = video(camera(0.6, 0.0, 0.0))
    shown = torch.full((1, 3, FRAMES, SIZE, SIZE), 0.2)
    source = replace(video(camera(0.0, 0.0, 0.0), shown), surface=torch.full((1, FRAMES, SIZE, SIZE), math.log(2.0)))
    own = shown - 0.1

    def step(sigma: float, lead: bool = True) -> float:
        return float(run(head(choose=0), target, [source], sigma, own, lead).diff(dim=-1).abs().max())

    assert step(CERTAIN + 0.01) > 0.04 and step(CERTAIN, lead=False) > 0.04
    assert step(CERTAIN) < 0.02


def test_in_use_what_is_made_up_has_no_seams_and_in_training_it_is_as_it_was():
    colours = torch.randn(1, 3, 1, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    own = colours.repeat_interleave(8, 3).repeat_interleave(8, 4).expand(-1, -1, FRAMES, -1, -1)
    target = video(camera(0.0, 0.0, 0.0))
    assert torch.equal(run(head(), target, [None], own=own), own)
    closed = seamless(own[:, :, -1], (8, 8))
    for sigma, expected in ((DECIDED + 0.01, closed), (DECIDED, even(closed))):
        used = run(head(), target, [None], sigma, own, lead=True)
        assert torch.allclose(used[:, :, -1], expected, atol=1e-5)


@pytest.mark.parametrize("outlined", [False, True])
def test_seams_close_before_frames_agree_and_where_outlines_are_not_the_sources(outlined):
    stays, moves = camera(0.0, 0.0, 0.0), camera(0.3, 0.0, 0.0)
    target, layer = video(torch.cat([stays, moves])), head(1)
    source, own = video(camera(0.0, 0.0, 0.0, rows=2), seed=1), video(camera(0.0, 0.0, 0.0, rows=2), seed=2).latent
    outlines = outlines_of(target, source) if outlined else None
    early = DECIDED + 0.01
    assert torch.equal(run(layer, target, [source], early, own, outlines=outlines), run(layer, target, [], 1.0, own))

    flat = seamless(own.transpose(1, 2).flatten(0, 1), (8, 8)).unflatten(0, (2, -1)).transpose(1, 2)
    expected = torch.stack([own[0] if outlined else flat[0], flat[1]])
    depths = layer.said(torch.zeros(2, 16, 8), target.latent.shape[2:])[1].mean(2).exp().flatten(0, 1)[:, None]
    if outlined:  # there, frames agree where the source looks the same
        rows = torch.tensor([True, False]).view(2, 1, 1, 1, 1, 1)
        known = torch.where(rows[..., 0], source.latent, expected)
        expected = settled(expected, depths, leading(target), known, torch.where(rows, KNOWN, ALIKE))
    else:
        expected = settled(expected, depths, leading(target))
    result = run(layer, target, [source], early, own, lead=True, outlines=outlines)
    assert torch.allclose(result, expected, atol=1e-5)
