"""What the source shows is a surface: against planes and scenes whose depth is known, and as a part of the model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pipeline import transformer
from pipeline.conditioning import ConditioningVideo
from pipeline.copying import Sight, sights
from pipeline.mini import build_mini, seeded
from pipeline.scenes import random_scene, render
from pipeline.surface import FARTHEST, THICK, Met
from pipeline.trajectory import default_intrinsics, preset
from tests.generated import moving_frames
from tests.rays import FRAMES, LENS, SIZE, camera, head, run, video


def at(source: ConditioningVideo, metres: float | torch.Tensor) -> ConditioningVideo:
    """The source, what it shows being so far away."""
    away = torch.as_tensor(metres, dtype=torch.float32).expand(len(source.latent), *source.latent.shape[2:])
    return replace(source, surface=away.log())


def met(target: ConditioningVideo, source: ConditioningVideo) -> Met:
    [found] = sights(target, [source])
    assert isinstance(found, Met)
    return found


@pytest.mark.parametrize("metres", [1.0, 3.0, 20.0])
def test_rays_meet_a_wall_where_it_is_and_see_it_from_there(metres):
    x = torch.linspace(-1, 1, SIZE)
    source = at(video(camera(0.0, 0.0, 0.0), x.expand(1, 3, FRAMES, SIZE, SIZE)), metres)
    beside = 0.2 * metres
    found = met(video(camera(beside, 0.0, 0.0)), source)
    shift = 2 * float(LENS[0]) * beside / metres * SIZE / (SIZE - 1)  # of a ramp from -1 to 1
    inside = x + shift < 1 - 2 / SIZE
    assert torch.allclose(found.shown[:, :, :, inside], (x + shift)[inside].expand(FRAMES, 3, SIZE, -1), atol=0.02)
    assert found.meets[..., inside].all() and not found.meets[..., x + shift > 1 + 2 / SIZE].any()
    assert (found.over_cells[found.mostly] - math.log(metres)).abs().max() < 0.02


def test_what_is_nearer_hides_what_is_behind_it_and_stays_whole():
    away = torch.full((SIZE, SIZE), 8.0)
    away[8:24, 12:20] = 2.0
    latent = torch.zeros(1, 3, FRAMES, SIZE, SIZE)
    latent[..., 8:24, 12:20] = 1.0
    found = met(video(camera(-0.2, 0.0, 0.0)), at(video(camera(0.0, 0.0, 0.0), latent), away))
    near, far = (round(float(LENS[0]) * SIZE * 0.2 / each) for each in (2.0, 8.0))  # so many pixels to the right
    assert (near, far) == (3, 1)
    shown = found.shown[0, 0]
    assert (shown[9:23, 12 + near + 1 : 20 + near - 1] > 0.95).all(), "all of the thing, where it is from here"
    assert (shown[:, 20 + near + 2 : -far] < 0.05).all() and (shown[:7] < 0.05).all(), "and nothing of it elsewhere"


def test_what_passes_behind_the_edge_of_a_thing_is_not_shown_but_a_little_behind_it_is_its_side():
    def found(log_metres: float) -> torch.Tensor:
        """Which columns are met, beside a thing two metres away before a wall so much farther away."""
        away = torch.full((SIZE, SIZE), 2 * math.exp(log_metres))
        away[:, 12:20] = 2.0
        meets = met(video(camera(1.0, 0.0, 0.0)), at(video(camera(0.0, 0.0, 0.0)), away)).meets
        assert (meets == meets[:1, :, :1]).all()
        return meets[0, 0, 0]

    def shift(metres: float) -> float:
        return float(LENS[0]) * SIZE / metres

    near, far = 2 * math.exp(THICK), 2 * math.exp(2 * THICK)  # rays that pass the thing's edge there, and the wall
    hidden = slice(math.ceil(20 - shift(near)), math.floor(20 - shift(far)))
    assert hidden.stop - hidden.start == 2
    beside = slice(hidden.stop + 2, math.floor(SIZE - shift(far)))
    columns = found(2 * THICK)
    assert not columns[hidden].any() and columns[beside].all() and columns[: math.ceil(20 - shift(2.0)) + 1].all()
    assert found(THICK / 3)[: math.floor(SIZE - shift(2 * math.exp(THICK / 3)))].all()


@pytest.mark.parametrize("back", [0.5, 1.0, 2.0, 3.0])
def test_a_wall_is_met_however_near_it_is_when_the_camera_draws_back_from_it(back):
    target, source = video(camera(0.0, 0.0, -back)), video(camera(0.0, 0.0, 0.0))
    for metres in torch.linspace(0.5, 2.5, 40).tolist():
        found = met(target, at(source, metres))
        place = ((torch.arange(SIZE) + 0.5) / SIZE - 0.5) * (metres + back) / metres
        inside = place.abs() < 0.5 - 1 / SIZE
        assert found.meets[..., inside[:, None] & inside].all(), metres


def test_with_the_true_depths_another_view_of_a_scene_is_what_the_target_shows():
    scene = random_scene(5)
    poses = torch.stack([camera(0.0, 0.0, 0.0)[0, 0], camera(0.3, 0.0, 0.1)[0, 0]])[None]
    seen = render([scene], poses, LENS.expand(1, 2, 4), torch.zeros(1, 2), SIZE, SIZE, samples=2)
    pictures = seen.colour[0].permute(0, 3, 1, 2).float() / 255
    first, second = (
        ConditioningVideo(picture[None, :, None], pose[None, None], LENS.expand(1, 1, 4), torch.zeros(1, 1))
        for picture, pose in zip(pictures, poses[0], strict=True)
    )
    found = met(second, at(first, seen.depth[0, 0].clamp(max=FARTHEST)))
    where = found.meets[0].expand(3, -1, -1)
    assert where.float().mean() > 0.6
    error, still = ((each - pictures[1])[where].square().mean() for each in (found.shown[0], pictures[0]))
    assert error < 0.25 * still


def test_the_sky_is_met_and_nothing_where_the_source_looks_elsewhere():
    sky = at(video(camera(0.0, 0.0, 0.0)), FARTHEST)
    assert met(video(camera(0.1, 0.0, 0.0)), sky).meets[..., 2:-2].all()
    own = torch.full((1, 3, FRAMES, SIZE, SIZE), 0.7)
    away = video(camera(0.1, 0.0, 0.0, yaw=math.pi))
    assert not met(away, sky).meets.any()
    assert torch.allclose(run(head(choose=0), away, [sky], 0.3, own), own, atol=1e-6)


def test_the_source_is_copied_where_it_is_met_and_a_memory_is_looked_up_at_that_depth():
    target, own = video(camera(0.3, 0.0, 0.0)), torch.full((1, 3, FRAMES, SIZE, SIZE), 0.7)
    source, memory = at(video(camera(0.0, 0.0, 0.0), seed=1), 2.0), video(camera(-0.1, 0.0, 0.0), seed=2)
    found = met(target, source)
    assert 0.5 < found.meets.float().mean() < 0.95
    layer = head(points=2, depth=9.0, choose=0)  # it would be looked up elsewhere
    result = run(layer, target, [source], 0.5, own)[0].transpose(0, 1)
    inside = torch.nn.functional.max_pool2d((~found.meets).float(), 5, 1, 2)[:, 0] == 0
    assert torch.allclose(result.movedim(1, -1)[inside], found.shown.movedim(1, -1)[inside], atol=1e-4)
    outside = torch.nn.functional.max_pool2d(found.meets.float(), 5, 1, 2)[:, 0] == 0
    assert (result.movedim(1, -1)[outside] == 0.7).all()
    remembered = run(head(videos=2, points=2, depth=9.0, choose=2), target, [source, memory], 0.5, own)
    expected = run(head(videos=2, points=2, depth=2.0, choose=2), target, [None, memory], 0.5, own)
    there = inside.expand(1, 3, -1, -1, -1)
    assert (remembered - expected)[there].square().mean() < 0.1 * expected[there].square().mean()


def test_surfaces_are_of_the_moment_in_which_the_source_is_looked_up():
    source = video(camera(0.0, 0.0, 0.0))
    metres = [8.0, 6.0, 4.0, 2.0]
    target = video(camera(0.1, 0.0, 0.0))
    backwards = replace(target, times=target.times.flip(1))
    found = met(backwards, at(source, torch.tensor(metres)[:, None, None]))
    for frame, away in enumerate(reversed(metres)):
        assert torch.equal(found.shown[frame], met(backwards, at(source, away)).shown[frame])


def test_rows_of_sources_and_several_targets_of_each_are_met_as_alone():
    source = at(video(camera(0.0, 0.0, 0.0, rows=2)), torch.tensor([2.0, 6.0])[:, None, None, None])
    targets = video(
        torch.cat([camera(0.1, 0.0, 0.0), camera(-0.1, 0.0, 0.0), camera(0.2, 0.0, 0.0)] + [camera(0.3, 0.0, 0.0)])
    )
    together = met(targets, source)
    for row in range(4):
        target, shown = (
            ConditioningVideo(each.latent[at], each.poses[at], each.intrinsics[at], each.times[at], surface=surface)
            for each, at, surface in (
                (targets, slice(row, row + 1), None),
                (source, slice(row // 2, row // 2 + 1), source.surface[row // 2][None]),
            )
        )
        alone = met(target, shown)
        assert torch.allclose(together.shown[row * FRAMES : (row + 1) * FRAMES], alone.shown, atol=1e-5)


@pytest.mark.parametrize(("beside", "metres"), [(1.0, 2.0), (1.5, 2.0), (1.5, 5.3)])
def test_no_strip_is_lost_where_rays_enter_the_picture(beside, metres):
    found = met(video(camera(beside, 0.0, 0.0)), at(video(camera(0.0, 0.0, 0.0)), metres))
    place = (torch.arange(SIZE) + 0.5) / SIZE + float(LENS[0]) * beside / metres  # in the source, 0..1
    assert (found.meets.all(dim=(0, 1, 2)) == (place < 1)).all()


def test_what_lies_in_front_of_the_picture_of_the_source_is_met_as_far_as_that_reaches():
    found = met(video(camera(0.0, 0.0, -1.0)), at(video(camera(0.0, 0.0, 0.0)), 4.0))
    place = ((torch.arange(SIZE) + 0.5) / SIZE - 0.5) * 5 / 4 + 0.5
    inside = (place > 0) & (place < 1)
    assert (found.meets.all(dim=(0, 1)) == (inside[:, None] & inside)).all()


def test_an_edit_with_matrix_products_in_bfloat16_meets_its_source():
    pipe, arc = small_mini(), preset("arc_left", 16, default_intrinsics(24 / 16))
    with torch.autocast("cpu", torch.bfloat16):
        made = pipe(source=moving_frames(16, 16, 24), target_trajectory=arc)
    assert made.latents.isfinite().all()


def test_places_are_not_rounded_where_matrix_products_are():
    target, source = video(camera(0.37, 0.1, -0.2, yaw=0.3)), at(video(camera(0.0, 0.0, 0.0)), 3.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = met(target, source)
    outside = met(target, source)
    assert all(torch.equal(getattr(inside, name), getattr(outside, name)) for name in vars(outside))


def small_mini(**transformer):
    small = {"num_layers": 1, "ffn_dim": 32, "num_attention_heads": 2, "depth_widths": (8, 16)}
    pipe = build_mini(transformer=small | transformer, num_inference_steps=2, shift=1.0)
    if (depths := pipe.transformer.depths) is not None:  # an untrained one says the same of everything
        with seeded(0):
            torch.nn.init.normal_(depths.leave.weight, std=0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_an_edit_asks_once_how_far_away_its_source_is_if_the_camera_moves(attention, monkeypatch):
    pipe, asked, met = small_mini(), [], []
    one, whole = type(pipe.transformer.depths).forward, transformer.sights
    monkeypatch.setattr(type(pipe.transformer.depths), "forward", lambda *a: asked.append(a[1:]) or one(*a))
    monkeypatch.setattr(transformer, "sights", lambda *a: met.append(a[1][0]) or whole(*a))
    source, arc = moving_frames(16, 16, 24), preset("arc_left", 16, default_intrinsics(24 / 16))
    for words in ({"target_trajectory": arc}, {"target_trajectory": arc, "prompt": "make it night"}):
        pipe(source=source, attention=attention, generator=torch.Generator().manual_seed(0), **words)
        [(shown, intrinsics)], [video] = asked, met
        assert torch.equal(shown[0], pipe.encode(source)) and intrinsics.shape == (1, 16, 4)
        assert torch.equal(video.surface, pipe.transformer.depths(shown, intrinsics))
        asked.clear(), met.clear()
    pipe(source=source, attention=attention, generator=torch.Generator().manual_seed(0), prompt="make it night")
    pipe(num_frames=16, height=16, width=24, attention=attention, target_trajectory=arc)
    assert not asked and all(each is None or each.surface is None for each in met)


def test_a_surface_that_is_known_already_is_taken_as_it_is(monkeypatch):
    model = small_mini().transformer
    monkeypatch.setattr(type(model.depths), "forward", None)
    shown = torch.rand(1, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    target, source = video(camera(0.4, 0.0, 0.0)), video(camera(0.0, 0.0, 0.0), shown)
    view = {
        "target_poses": target.poses, "target_intrinsics": target.intrinsics, "target_times": target.times
    }  # fmt: skip
    near, far = (
        model(
            target.latent, torch.tensor([500.0]), torch.zeros(1, 4, model.config.text_dim),
            source=at(source, metres), **view,
        ).sample
        for metres in (1.0, 8.0)
    )  # fmt: skip
    assert not torch.allclose(near, far, atol=0.1)


def test_in_training_and_in_models_that_do_not_know_depths_the_source_is_looked_up_along_its_rays(monkeypatch):
    kinds = []
    monkeypatch.setattr(transformer, "sights", lambda *a: kinds.append(sights(*a)[0]) or sights(*a))
    target, source = video(camera(0.4, 0.0, 0.0)), video(camera(0.0, 0.0, 0.0))
    known, without = small_mini().transformer, small_mini(depth_widths=()).transformer
    for model, training in ((known, False), (known, True), (without, False)):
        model.train(training)(
            target.latent, torch.tensor([500.0]), torch.zeros(1, 4, model.config.text_dim), source=source,
            target_poses=target.poses, target_intrinsics=target.intrinsics, target_times=target.times,
        )  # fmt: skip
    assert [type(each) for each in kinds] == [Met, Sight, Sight] and without.depths is None


def test_the_transformer_refuses_a_surface_of_another_size():
    model = small_mini().transformer
    source = at(video(camera(0.0, 0.0, 0.0)), 2.0)
    target = video(camera(0.1, 0.0, 0.0))
    with pytest.raises(
        ValueError, match=r"the source has a surface of shape \(1, 4, 32, 16\), expected \(1, 4, 32, 32"
    ):
        model(
            target.latent, torch.tensor([500.0]), torch.zeros(1, 4, model.config.text_dim),
            source=replace(source, surface=source.surface[..., :16]), target_poses=target.poses,
            target_intrinsics=target.intrinsics, target_times=target.times,
        )  # fmt: skip
