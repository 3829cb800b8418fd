"""Copying along rays: against scenes whose depth is known, and as a part of the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.conditioning import ConditioningVideo
from pipeline.copying import Copying, sights
from pipeline.lookup import CELL, fine, halved, look, project
from pipeline.memory_cache import MemoryCache
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.mini import TRANSFORMER
from pipeline.outlines import outlines_of
from pipeline.scenes import random_scene, render
from pipeline.scenes.correspondence import correspondence
from pipeline.training.objective import depth_error
from pipeline.transformer import MemoryWanTransformer3DModel
from tests.rays import DIM, FRAMES, LENS, SIZE, camera, head, run, video
from tests.tiny import TINY_TRANSFORMER, build_tiny


def test_from_the_same_camera_a_video_comes_back_whole_whatever_the_depth():
    known = video(camera(0.0, 0.0, 0.0))
    target = video(camera(0.0, 0.0, 0.0), seed=1)
    for depth in (0.5, 3.0, 40.0):
        result = run(head(depth=depth, choose=0), target, [known])
        # between the middles of the outermost cells, where their places are interpolated and not held
        assert torch.allclose(result[..., 1:-1, 1:-1], known.latent[..., 1:-1, 1:-1], atol=1e-3)


def test_where_the_source_shows_all_a_memory_is_copied_as_far_as_the_source_looks_as_it_did_then():
    stays, moves = camera(0.0, 0.0, 0.0), camera(0.01, 0.0, 0.0)
    own, memory = video(stays, seed=2).latent, video(stays, start=1.0, seed=3)
    source = video(stays, torch.full_like(own, 0.2))
    then = source.latent.clone()
    then[..., SIZE // 2 :] += 0.5  # on the right something has moved
    layer = head(videos=2, depth=3.0, choose=1)  # the memory, wherever it may be
    for target, made_from, right in (
        (video(stays), source.latent, True),
        (video(stays), then, False),
        (video(stays), None, True),  # nobody knows
        (video(moves), then, True),  # what lies beyond the source's view is nowhere else
    ):
        known = replace(memory, source=made_from)
        result = run(layer, target, [source, known], 0.7, own, outlines=outlines_of(target, source))
        copied = run(layer, target, [None, memory], 0.7, own)
        same = (result - copied).abs().amax((0, 1, 2, 3)) < 0.01
        left, other = same[: SIZE // 2 - 4], same[SIZE // 2 + 4 :]
        assert left.all() and bool(other.any()) == bool(other.all()) == right
        trained = sights(target, [source, known])[1]
        assert not trained.dated, "in training all are candidates"


def test_what_a_memory_was_made_from_has_its_size():
    model = build_tiny().transformer
    target, memory = video(camera(0.0, 0.0, 0.0)), video(camera(0.0, 0.0, 0.0))
    wrong = replace(memory, source=memory.latent[:, :, :2])
    with pytest.raises(ValueError, match="memory 0 was made from a latent of .* expected its own"):
        model(
            target.latent, torch.tensor([500.0]), torch.zeros(1, 4, model.config.text_dim), memories=[wrong],
            target_poses=target.poses, target_intrinsics=target.intrinsics, target_times=target.times,
        )  # fmt: skip


def test_points_lie_where_the_exact_correspondence_of_a_scene_says():
    scene, lens = random_scene(5), torch.tensor([0.9, 1.1, 0.47, 0.54])
    poses = torch.stack([camera(0.0, 0.0, 0.0)[0, 0], camera(0.4, -0.1, 0.2, yaw=0.1)[0, 0]])[None]
    seen = render([scene], poses, lens.expand(1, 2, 4), torch.zeros(1, 2), SIZE, SIZE)
    cells = torch.nn.functional.avg_pool2d(seen.depth, 1, CELL)  # of the pixel at the upper left of every cell
    where, _ = correspondence(cells[0, 1], poses[0, 1], lens, seen.depth[0, 0], poses[0, 0], lens)
    first, second = (ConditioningVideo(torch.zeros(1, 3, 1, SIZE, SIZE), each[None, None], lens.expand(1, 1, 4),
                     torch.zeros(1, 1)) for each in poses[0])  # fmt: skip
    [sight] = sights(second, [first])
    assert sight is not None
    places, inside = project(sight, cells[0, 1].nan_to_num(posinf=50.0)[None, None])
    found = (places[0, :, 0].movedim(0, -1) + 1) / 2 * SIZE - 0.5
    known = inside[0, 0] & torch.isfinite(cells[0, 1])
    assert known.float().mean() > 0.3
    assert (found - where)[known].abs().max() < 2e-3


def test_with_the_right_depth_another_view_of_a_scene_is_what_the_target_shows():
    scene = random_scene(5)
    poses = torch.stack([camera(0.0, 0.0, 0.0)[0, 0], camera(0.15, 0.0, 0.0)[0, 0]])[None]
    seen = render([scene], poses, LENS.expand(1, 2, 4), torch.zeros(1, 2), SIZE, SIZE, samples=2)
    pictures = seen.colour[0].permute(0, 3, 1, 2).float() / 255  # (2, 3, H, W)
    first, second = (
        ConditioningVideo(picture[None, :, None], pose[None, None], LENS.expand(1, 1, 4), torch.zeros(1, 1))
        for picture, pose in zip(pictures, poses[0], strict=True)
    )
    [sight] = sights(second, [first])
    assert sight is not None
    depth = seen.depth[0, 1, ::CELL, ::CELL].clamp(max=50.0)
    copied = look(sight.frames[0], project(sight, depth[None, None])[0])[0, :, 0]
    truth, still = pictures[1], pictures[0]
    assert (copied - truth).square().mean() < 0.3 * (still - truth).square().mean()


@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.05])
def test_what_a_video_does_not_show_is_left_to_the_model_whatever_speaks_against_that(sigma):
    own = torch.full((1, 3, FRAMES, SIZE, SIZE), 0.7)
    target = video(camera(0.0, 0.0, 0.0))
    behind = video(camera(0.0, 0.0, 0.0, yaw=np.pi))
    layer = head(depth=3.0, choose=0)
    layer.evidence.data[:] = torch.tensor([1.0, -3.0])
    assert torch.allclose(run(layer, target, [behind], sigma, own), own, atol=1e-6)
    assert torch.allclose(run(layer, target, [None], sigma, own), own, atol=1e-6)


def test_places_are_not_rounded_where_matrix_products_are():
    target, known = video(camera(0.37, 0.1, -0.2, yaw=0.3)), video(camera(0.0, 0.0, 0.0))
    with torch.autocast("cpu", torch.bfloat16):
        [inside] = sights(target, [known])
    [outside] = sights(target, [known])
    assert inside is not None and outside is not None
    assert torch.equal(inside.rays, outside.rays) and torch.equal(inside.origin, outside.origin)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 2), (8, 12)])
def test_halved_along_both_axes_is_torchs_bilinear_interpolation(shape):
    cells = torch.randn(4, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.nn.functional.interpolate(cells, scale_factor=2, mode="bilinear")
    assert torch.allclose(halved(halved(cells, 2), 3), expected, atol=1e-12)
    assert torch.allclose(halved(halved(cells, 3), 2), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 2), (8, 12)])
def test_fine_frames_are_torchs_bicubic_interpolation_up_to_the_border(shape):
    frames = torch.randn(4, 3, *shape, generator=torch.Generator().manual_seed(0))
    size = [2 * each - 1 for each in shape]
    expected = torch.nn.functional.interpolate(frames, size=size, mode="bicubic", align_corners=True)
    assert torch.allclose(fine(frames), expected, atol=1e-5)
    assert torch.equal(fine(frames)[..., ::2, ::2], frames)


def test_halfway_between_pixels_a_lookup_is_bicubic_and_at_them_it_is_what_is_there():
    rows, columns = SIZE, SIZE // 2 * 3
    frames = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(0))
    tall, wide = ((torch.arange(size // CELL) + 0.5) * CELL / size * 2 - 1 for size in (rows, columns))  # of cells
    for x, y in ((0.0, 0.0), (0.5, 0.0), (0.5, -0.5)):
        places = torch.stack(torch.meshgrid(tall + 2 * y / rows, wide + 2 * x / columns, indexing="ij")[::-1])
        found = look(fine(frames), places[None, :, None].expand(2, -1, -1, -1, -1))[:, :, 0]
        moved = torch.tensor([[1.0, 0.0, 2 * x / columns], [0.0, 1.0, 2 * y / rows]])
        grid = F.affine_grid(moved.expand(2, 2, 3), frames.shape, align_corners=False)
        wanted = F.grid_sample(frames, grid, mode="bicubic", padding_mode="border", align_corners=False)
        inner = (..., slice(3, -3), slice(3, -3))
        assert torch.allclose(found[inner], wanted[inner], atol=1e-4)


def test_the_noisy_target_speaks_for_what_it_was_made_of():
    truth, other = video(camera(0.0, 0.0, 0.0), seed=1), video(camera(0.0, 0.0, 0.0), seed=2)
    layer = head(videos=2, depth=3.0)
    layer.proj.bias.data.view(-1, 4)[:, :3] = 0.0  # no opinion
    layer.evidence.data[:] = torch.tensor([1.0, -2.0])
    noise = torch.randn(truth.latent.shape, generator=torch.Generator().manual_seed(3))

    def error(sigma: float) -> float:
        noisy = replace(truth, latent=(1 - sigma) * truth.latent + sigma * noise)
        return float((run(layer, noisy, [other, truth], sigma) - truth.latent)[..., 1:-1, 1:-1].square().mean())

    assert error(0.1) < 0.02 < 0.5 < error(1.0), "noise alone says nothing"


@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_a_result_lies_between_its_candidates(sigma):
    layer = Copying(DIM, (4, 8, 8), 2, 3)
    layer.initialise()
    target = video(camera(0.1, 0.0, 0.0))
    known = [video(camera(0.0, 0.0, 0.0), seed=1), video(camera(0.3, 0.0, 0.0), seed=2)]
    # of one colour each, since a bicubic lookup goes a little beyond what it looks up
    own = torch.rand(1, 3, FRAMES, 1, 1).mul(2).sub(1).expand(target.latent.shape)
    bounded = [replace(each, latent=torch.rand(1, 3, 1, 1, 1).mul(2).sub(1).expand_as(each.latent)) for each in known]
    candidates = torch.stack([own, *(each.latent for each in bounded)])
    result = run(layer, target, bounded, sigma, own)
    assert (result <= candidates.amax(0) + 1e-5).all() and (result >= candidates.amin(0) - 1e-5).all()


def test_of_another_time_the_nearest_frame_is_looked_at():
    target = video(camera(0.0, 0.0, 0.0))
    before = video(camera(0.0, 0.0, 0.0), start=-FRAMES / 12, seed=1)
    [now, last] = sights(target, [video(camera(0.0, 0.0, 0.0), seed=2), before])
    assert now is not None and last is not None
    assert torch.equal(last.frames[0], fine(before.latent[:, :, -1]).expand(FRAMES, -1, -1, -1))
    assert torch.equal(now.frames[0], fine(video(camera(0.0, 0.0, 0.0), seed=2).latent[0].movedim(1, 0)))


def test_targets_of_one_scene_share_its_videos():
    known = video(torch.cat([camera(0.0, 0.0, 0.0), camera(0.5, 0.0, 0.0)]))
    poses = torch.cat([camera(x, 0.0, 0.0) for x in (0.1, 0.2, 0.3, 0.4)])
    together = run(head(depth=3.0, choose=0), video(poses), [known])
    for row in range(4):
        one = ConditioningVideo(*(each[row // 2, None] for each in vars(known).values() if torch.is_tensor(each)))
        alone = run(head(depth=3.0, choose=0), video(poses[row, None]), [one])
        assert torch.allclose(together[row], alone[0], atol=1e-6)


# In the model.


def model(**changed):
    torch.manual_seed(0)
    return MemoryWanTransformer3DModel(**{**TRANSFORMER, **TINY_TRANSFORMER, **changed}).eval()


def call(memories: int = 4, **changed):
    target = video(camera(0.1, 0.0, 0.0), seed=9)
    words = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(8))
    return {
        "hidden_states": target.latent, "timestep": torch.tensor([600.0]),
        "encoder_hidden_states": words, "source": video(camera(0.0, 0.0, 0.0)),
        "memories": [video(camera(0.2 * rank, 0.0, 0.0), seed=rank) for rank in range(memories)],
        "target_poses": target.poses, "target_intrinsics": target.intrinsics, "target_times": target.times,
        "merge": "off", **changed,
    }  # fmt: skip


@torch.no_grad()
def test_a_cache_keeps_the_videos_that_are_copied_from():
    network, given = model(), call()
    plain, cache = network(**given).sample, MemoryCache()
    assert torch.equal(network(**given, cache=cache).sample, plain)
    assert torch.equal(network(**{**given, "source": None, "memories": ()}, cache=cache).sample, plain)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_guidance_comes_before_copying(attention):
    network = model()
    asked, nothing = call(attention=attention), call(attention=attention, encoder_hidden_states=torch.zeros(1, 5, 32))
    said = network(**asked, raw=True)
    assert said.sample is said.own and said.logits.shape == (1, FRAMES, 3 * 3 + 1, SIZE // CELL, SIZE // CELL)
    for scale, same in ((0.0, nothing), (1.0, asked)):
        result = network(**nothing, toward=(said, scale))
        expected = network(**same)
        assert torch.allclose(result.sample, expected.sample, atol=1e-5)
        assert torch.allclose(result.logits, expected.logits, atol=1e-5)
    # What is far more likely with the words than without becomes certain, and no brighter than it is.
    network.copying.proj.weight.zero_()
    network.copying.proj.bias.view(-1, 13)[:, :10] = 0.0
    less = network(**nothing, raw=True)
    more = replace(less, logits=less.logits.clone())
    more.logits[:, :, 0] += 5.0
    copied = network(**nothing, toward=(more, 20.0)).sample
    network.copying.proj.bias.view(-1, 13)[:, 0] = 100.0
    assert torch.allclose(copied, network(**nothing).sample, atol=1e-5)


@torch.no_grad()
def test_a_memory_beyond_those_copied_from_reaches_the_target_by_its_tokens_alone():
    network, given = model(copied_videos=2, depth_widths=()), call()
    changed = [*given["memories"]]
    changed[3] = video(camera(0.6, 0.0, 0.0), seed=50)
    network.copying.proj.weight.zero_()
    network.copying.proj.bias.view(-1, 2 * 3 + 1 + 3)[:, 6] = -50.0  # nothing of the model's own
    before, after = network(**given).sample, network(**{**given, "memories": changed}).sample
    assert torch.equal(before, after)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_memories_that_are_copied_from_keep_their_tokens_where_others_merge(attention):
    network = model(merge_at=(0.0,))
    for memories, same in ((2, True), (3, False)):
        given = call(memories, attention=attention)
        merged = network(**{**given, "merge": "merge"}, merge_share=0.6).sample
        assert torch.equal(merged, network(**given).sample) == same
    cache = MemoryCache()
    network(**call(5, merge="merge"), cache=cache)
    assert cache.responsiveness[0].shape == (1, 3 * FRAMES // 4), "of five memories, two are copied from"


def test_the_depths_come_with_the_sample_and_gradients_reach_the_whole_layer():
    network = model()
    result = network(**call())
    assert result.log_depths.shape == (1, FRAMES, 3, SIZE // CELL, SIZE // CELL)
    result.sample.square().mean().backward()
    for name, parameter in network.copying.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_weights_that_are_no_numbers_give_no_numbers_and_do_not_crash():
    network = model()
    network.copying.proj.weight.data[:] = torch.nan
    result = network(**call()).sample
    assert result.isnan().all()
    result.sum().backward()


def test_a_model_without_rays_cannot_copy():
    with pytest.raises(ValueError, match="copied_videos needs the rays of positions='frustum', got positions='grid'"):
        model(positions="grid")
    with pytest.raises(ValueError, match="expected source='tokens' and source_camera='own', got source='channels'"):
        model(source="channels")
    with pytest.raises(ValueError, match="patches of a multiple of 2"):
        Copying(DIM, (4, 3, 3), 1, 1)


def test_a_pipeline_that_predicts_velocities_does_not_copy():
    parts = build_tiny().components
    with pytest.raises(ValueError, match="copies along rays and predicts the sample, got prediction='velocity'"):
        MemoryV2VPipeline(**parts, prediction="velocity")


@torch.no_grad()
def test_frames_agree_where_the_model_is_used_and_are_taught_each_for_itself():
    network = model()
    used = network(**call()).sample
    taught = network.train()(**call()).sample
    assert not torch.allclose(used, taught, atol=1e-4)
    network.eval()
    assert torch.equal(network(**call()).own, network.train()(**call()).own), "and say the same"


# What training says of the depths.


def test_depths_are_right_where_one_point_of_the_ray_is_and_unknown_ones_count_nothing():
    depths = torch.full((2, FRAMES, SIZE, SIZE), 4.0)
    depths[0, :, : SIZE // 2] = torch.nan
    log_depths = torch.full((2, FRAMES, 3, SIZE // CELL, SIZE // CELL), 4.0).log()
    assert torch.equal(depth_error(log_depths, depths), torch.zeros(2))
    log_depths[:, :, 1:] += 1
    assert torch.allclose(depth_error(log_depths, depths), torch.tensor([0.5, 1.0]) * 0.1 * 2 / 3)
    log_depths[:, :, 0] += 1
    assert torch.allclose(depth_error(log_depths, depths), torch.tensor([0.5, 1.0]) * 1.1)


def test_the_sky_is_far_and_a_depth_is_that_of_a_pixel_beside_the_middle_of_its_cell():
    depths = torch.full((1, FRAMES, SIZE, SIZE), 2.0)
    depths[..., CELL // 2 :: CELL, CELL // 2 :: CELL] = torch.inf
    near, far = (torch.full((1, FRAMES, 1, SIZE // CELL, SIZE // CELL), each).log() for each in (2.0, 100.0))
    assert depth_error(far, depths).item() == 0 and depth_error(near, depths).item() > 3
