"""An edit that keeps the camera takes its outlines from the source."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.conditioning import ConditioningVideo
from pipeline.mini import build_mini
from pipeline.outlines import CERTAIN, DECIDED, EDGE, PLAIN, RADIUS, REACH, bounded, outlined, outlines_of
from pipeline.trajectory import default_intrinsics, preset
from tests.generated import moving_frames
from tests.rays import camera, head, run, video


def pictures(count: int = 2, rows: int = 12, columns: int = 10, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, rows, columns, generator=torch.Generator().manual_seed(seed))


def reference(made: np.ndarray, shown: np.ndarray, radius: int = RADIUS, edge: float = EDGE) -> np.ndarray:
    """Window by window in float64, as the paper's equations 5, 6 and 8 for pictures with colours say."""
    channels, rows, columns = shown.shape

    def window(row: int, column: int) -> tuple[slice, slice]:
        return (
            slice(max(0, row - radius), row + radius + 1),
            slice(max(0, column - radius), column + radius + 1),
        )

    maps = np.empty((rows, columns, len(made), channels + 1))
    for row in range(rows):
        for column in range(columns):
            x, y = (each[:, *window(row, column)].reshape(len(each), -1) for each in (shown, made))
            centred = x - x.mean(axis=1, keepdims=True)
            own = centred @ centred.T / x.shape[1] + edge * np.eye(channels)
            slopes = np.linalg.solve(own, centred @ y.T / x.shape[1]).T
            maps[row, column] = np.column_stack([slopes, y.mean(axis=1) - slopes @ x.mean(axis=1)])
    result = np.empty_like(made)
    for row in range(rows):
        for column in range(columns):
            mean = maps[window(row, column)].mean(axis=(0, 1))
            result[:, row, column] = mean[:, :-1] @ shown[:, row, column] + mean[:, -1]
    return result


@pytest.mark.parametrize("size", [(12, 10), (7, 16), (4, 5)])
def test_it_is_the_guided_filter_as_published_window_by_window(size):
    made, shown = pictures(1, *size), pictures(1, *size, seed=1)
    expected = reference(made[0].double().numpy(), shown[0].double().numpy())
    assert np.abs(outlined(made, shown)[0].numpy() - expected).max() < 1e-5


def test_the_share_goes_through_it_three_times_over_wider_windows_and_becomes_steeper_each_time():
    own, shown = pictures(1, 24, 20, 1).sigmoid(), pictures(1, 24, 20, seed=1)
    within = own[0].double().numpy()
    for _ in range(3):
        within = 1 / (1 + np.exp(-12 * (reference(within, shown[0].double().numpy(), REACH, PLAIN) - 0.5)))
    assert 0.1 < within.mean() < 0.9 and within.std() > 0.1  # it is not all one
    result = bounded(torch.cat([own, 1 - own], dim=1), 1, shown)
    assert np.abs(result[0, :1].numpy() - within).max() < 1e-3


def test_what_is_made_up_ends_where_a_thing_of_the_source_ends():
    shown = torch.full((1, 3, 32, 32), -0.4)
    shown[:, :, 8:24, 8:24] = torch.tensor([0.8, -0.2, -0.6])[:, None, None]
    own = torch.zeros(1, 1, 32, 32)
    own[:, :, 6:27, 4:27] = 0.8  # runs over by up to four pixels
    own[:, :, 14:16, 14:16] = 0.2  # and has a hole
    result = bounded(torch.cat([own, 1 - own], dim=1), 1, shown)[:, 0]
    thing = shown[:, 0] > 0
    assert (result[thing] > 0.95).all() and (result[~thing] < 0.05).all()


def test_what_is_remembered_stays_and_points_of_the_source_divide_theirs_as_they_did():
    shares, shown = pictures(2, 16, 16, 5).mul(2).softmax(dim=1), pictures(2, 16, 16, seed=1)
    shares[:, 3:, 12:] = 0  # of memories that look elsewhere
    shares = shares / shares.sum(dim=1, keepdim=True)
    result = bounded(shares, 2, shown)
    assert torch.equal(result[:, 3:], shares[:, 3:]) and (result >= 0).all()
    assert torch.allclose(result.sum(dim=1), torch.ones(2, 16, 16), atol=1e-6)
    assert torch.allclose(result[:, 1] * shares[:, 2], result[:, 2] * shares[:, 1], atol=1e-6)
    scaled = shares / shares[:, :3].sum(dim=1, keepdim=True)
    alone = bounded(scaled[:, :3], 2, shown)
    assert torch.allclose(result[:, :3] / shares[:, :3].sum(dim=1, keepdim=True), alone, atol=1e-4)


def test_shares_of_next_to_nothing_lose_nothing():
    shown = pictures(1, 16, 16, seed=1)
    for rest in (0.0, 1e-30, 1e-7):
        shares = torch.tensor([1 - rest, rest, 0.0])[:, None, None].repeat(1, 1, 16, 16)
        shares[:, :, 4:8] = torch.tensor([rest, rest, 1 - 2 * rest])[:, None, None]  # all is remembered
        shares[:, :, 8:12] = torch.tensor([rest, 1 - rest, 0.0])[:, None, None]
        result = bounded(shares, 1, shown)
        assert torch.allclose(result.sum(dim=1), torch.ones(1, 16, 16), atol=1e-5)
    assert (bounded(torch.tensor([1.0, 0.0])[:, None, None].repeat(1, 1, 16, 16), 1, shown)[:, 0] == 1).all()


def test_other_numbers_of_channels_and_every_frame_for_itself():
    made, shown = pictures(3, channels=4), pictures(3, channels=4, seed=1)
    together = outlined(made, shown)
    for at in range(3):
        assert torch.allclose(together[at : at + 1], outlined(made[at : at + 1], shown[at : at + 1]), atol=1e-6)


def test_a_blurred_thing_of_another_colour_gets_the_edge_it_has_in_the_source():
    shown = torch.full((1, 3, 24, 24), -0.4)
    shown[:, :, 6:18, 6:18] = torch.tensor([0.8, -0.2, -0.6])[:, None, None]
    wanted = shown.clone()
    wanted[:, :, 6:18, 6:18] = torch.tensor([-0.5, 0.1, 0.9])[:, None, None]
    made = F.avg_pool2d(wanted, 5, 1, 2, count_include_pad=False)
    result = outlined(made, shown)
    assert (result - wanted).square().mean() < 0.65 * (made - wanted).square().mean()

    def step(picture: torch.Tensor) -> float:
        """In blue, at the middle of the upper edge: as a share of that of what is wanted."""
        return float((picture[0, 2, 6, 12] - picture[0, 2, 5, 12]) / (wanted[0, 2, 6, 12] - wanted[0, 2, 5, 12]))

    assert step(made) < 0.25 and step(result) > 0.5


def test_a_grid_of_patches_goes_where_the_source_is_smooth():
    made = pictures(1, 3, 3).mul(0.1).repeat_interleave(8, -1).repeat_interleave(8, -2)

    def seams(picture: torch.Tensor) -> torch.Tensor:
        return (picture[..., 1:] - picture[..., :-1])[..., 7::8].abs().mean()

    assert seams(outlined(made, torch.zeros_like(made))) < 0.2 * seams(made)


def test_the_source_itself_and_one_colour_stay_as_they_are():
    shown = pictures().mul(2)
    assert (outlined(shown, shown) - shown).square().mean() < 1e-3
    assert torch.allclose(outlined(torch.full_like(shown, 0.3), shown), torch.full_like(shown, 0.3), atol=1e-6)


def test_target_and_source_share_outlines_if_they_share_rays_and_times():
    source = video(camera(0.0, 0.0, 0.0), seed=1)
    target = video(camera(0.0, 0.0, 0.0), seed=2)
    outlines = outlines_of(target, source)
    assert torch.equal(outlines.shown, source.latent) and outlines.shared.tolist() == [True]
    assert outlines_of(target, replace(source, latent=source.latent.half())).shown.dtype == torch.float32
    others = [
        None,
        video(camera(0.01, 0.0, 0.0)),
        video(camera(0.0, 0.0, 0.0), start=1.0),
        video(camera(0.0, 0.0, 0.0, frames=2)),
        replace(source, intrinsics=source.intrinsics * 1.01),
        replace(source, latent=source.latent[..., :-8]),
        replace(source, poses=None, intrinsics=None),
        replace(source, times=None),
    ]
    assert all(outlines_of(target, each) is None for each in others)


@pytest.mark.parametrize("level", [DECIDED, CERTAIN])
def test_every_row_of_a_batch_has_its_own_outlines_or_none(level):
    stays, moves = camera(0.0, 0.0, 0.0), camera(0.01, 0.0, 0.0)
    source, layer = video(camera(0.0, 0.0, 0.0, rows=2), seed=1), head(1)
    with torch.no_grad():
        layer.proj.bias.fill_(0.0)  # some of every candidate
    target = video(torch.cat([stays, moves, stays, stays]))  # two of each source
    own = torch.randn(target.latent.shape, generator=torch.Generator().manual_seed(2))
    outlines = outlines_of(target, source)
    assert outlines.shared.tolist() == [True, False, True, True]
    together = run(layer, target, [source], level, own, outlines=outlines)
    for row in range(4):
        alone, shown = (
            ConditioningVideo(each.latent[at], each.poses[at], each.intrinsics[at], each.times[at])
            for each, at in ((target, slice(row, row + 1)), (source, slice(row // 2, row // 2 + 1)))
        )
        made = run(layer, alone, [shown], level, own[row : row + 1], outlines=outlines_of(alone, shown))
        assert torch.allclose(together[row], made[0], atol=1e-5)


def test_what_is_made_up_takes_outlines_once_its_shape_is_decided():
    target, layer = video(camera(0.0, 0.0, 0.0)), head(1)
    source, own = video(camera(0.0, 0.0, 0.0), seed=1), video(camera(0.0, 0.0, 0.0), seed=2).latent
    late, early = DECIDED, DECIDED + 0.01
    outlines = outlines_of(target, source)
    with_them = run(layer, target, [source], late, own, outlines=outlines)
    expected = outlined(own.transpose(1, 2).flatten(0, 1), source.latent.transpose(1, 2).flatten(0, 1))
    assert torch.allclose(with_them, expected.unflatten(0, (1, -1)).transpose(1, 2), atol=1e-5)
    assert torch.equal(
        run(layer, target, [source], early, own, outlines=outlines), run(layer, target, [source], early, own)
    )


def test_how_much_is_made_up_has_outlines_once_an_edit_is_certain(monkeypatch):
    target, layer = video(camera(0.0, 0.0, 0.0)), head(1)
    source, own = video(camera(0.0, 0.0, 0.0), seed=1), video(camera(0.0, 0.0, 0.0), seed=2).latent
    with torch.no_grad():
        layer.proj.bias.fill_(0.0)  # some of every candidate
    given: list[torch.Tensor] = []

    def watched(shares: torch.Tensor, points: int, shown: torch.Tensor) -> torch.Tensor:
        given.append(shares)
        return bounded(shares, points, shown)

    monkeypatch.setattr("pipeline.copying.bounded", watched)
    for level in (CERTAIN + 0.01, CERTAIN):
        for outlines in (None, outlines_of(target, source)):
            run(layer, target, [source], level, own, outlines=outlines)
    assert len(given) == 1 and torch.allclose(given[0].sum(dim=1), torch.ones(()), atol=1e-5)


def test_shares_are_of_what_is_made_up_then_of_the_source_then_of_memories_and_decide(monkeypatch):
    stays = camera(0.0, 0.0, 0.0)
    target, source, memory = (video(stays, torch.full((1, 3, 4, 32, 32), grey)) for grey in (0.0, 0.5, -0.5))
    own, layer = torch.full_like(target.latent, 0.25), head(2, points=2)
    looks = [0.25, 0.5, 0.5, -0.5, -0.5]
    for place, look in enumerate(looks):

        def decided(shares: torch.Tensor, points: int, shown: torch.Tensor, place: int = place) -> torch.Tensor:
            assert points == 2 and shares.shape[1] == len(looks) and (shown == 0.5).all()
            return (torch.arange(len(looks)) == place).float()[:, None, None].expand_as(shares)

        monkeypatch.setattr("pipeline.copying.bounded", decided)
        result = run(layer, target, [source, memory], CERTAIN, own, outlines=outlines_of(target, source))
        assert torch.allclose(result, torch.full_like(result, look), atol=1e-5)


def test_what_is_copied_takes_none():
    target, layer = video(camera(0.0, 0.0, 0.0)), head(1, choose=0)
    source, own = video(camera(0.0, 0.0, 0.0), seed=1), video(camera(0.0, 0.0, 0.0), seed=2).latent
    with_them, without = (
        run(layer, target, [source], 0.5, own, outlines=each) for each in (outlines_of(target, source), None)
    )
    assert torch.allclose(with_them, without, atol=1e-6)


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_an_edit_has_outlines_if_it_keeps_the_camera(attention, monkeypatch):
    given: list[torch.Tensor] = []
    monkeypatch.setattr("pipeline.copying.outlined", lambda made, shown: given.append(shown) or made)
    pipe = build_mini(
        transformer={"num_layers": 1, "ffn_dim": 32, "num_attention_heads": 2}, num_inference_steps=4, shift=1.0
    )
    pipe.set_progress_bar_config(disable=True)
    source = moving_frames(16, 16, 24)
    arc = preset("arc_left", 16, default_intrinsics(24 / 16))
    for words in ({"prompt": "turn the red box blue", "guidance_scale": 2.0}, {"source_trajectory": arc}):
        pipe(source=source, attention=attention, generator=torch.Generator().manual_seed(0), **words)
    assert len(given) == 2 * 2, "at two noise levels of 1, .75, .5 and .25"
    expected = pipe.encode(source).movedim(0, 1)
    assert all(torch.equal(each, expected) for each in given)
    pipe(source=source, attention=attention, target_trajectory=arc)
    assert len(given) == 4, "where the camera moves the source's outlines are elsewhere"
