"""Where tokens are: temporal ranges, rays, points on rays, and what merging makes of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cameras import over_token_frames, plucker, token_rays
from pipeline.merging import Compressor, fraction, least_responsive, mean_keys, merge, responsiveness
from pipeline.positions import frustum_places, frustum_rotary, grid_places, grid_rotary
from pipeline.tokenizers import Group, Tokens
from pipeline.trajectory import default_intrinsics, preset
from pipeline.transformer import ConditioningVideo, MemoryWanTransformer3DModel

TINY = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "freq_dim": 32, "ffn_dim": 32}
LENS = torch.tensor(default_intrinsics(1.5), dtype=torch.float32)


def tiny(**changes):
    return MemoryWanTransformer3DModel(**{**TINY, "num_layers": 1, **changes})


def path(name, frames):
    poses = preset(name, frames, LENS.numpy()).c2w
    return torch.tensor(poses, dtype=torch.float32)[None], LENS.expand(1, frames, 4)


# Ranges of the grid.


def offsets(model, source, memories, span=21):
    videos = [ConditioningVideo(torch.zeros(1), preceding=preceding) for preceding in memories]
    first = ConditioningVideo(torch.zeros(1)) if source else None
    return [offset for _, _, offset in model._places(first, videos, span)]


def test_the_preceding_segment_takes_the_range_of_a_source_that_is_not_there():
    assert offsets(tiny(), False, [True, False, False]) == [21, 42, 42]
    assert offsets(tiny(), True, [True, False]) == [21, 42, 42], "but not that of one that is"
    assert offsets(tiny(), False, [False, False]) == [42, 42], "and a dropped source leaves its range empty"


def test_reversed_ranges_lie_before_the_target():
    model = tiny(ranges="reversed")
    assert offsets(model, False, [True, False]) == [-21, -42]
    assert grid_places((2, 1, 1), (1, 1, 1), -21)[0, :, 0].tolist() == [-21, -20]


@given(st.integers(-50, 50), st.integers(0, 20), st.integers(0, 20))
def test_attention_on_the_grid_depends_on_differences_of_places_alone(shift, first, second):
    def product(places):
        cos, sin = grid_rotary(torch.tensor(places, dtype=torch.float64).view(1, 2, 3), (4, 4, 4))
        turns = torch.complex(cos[0, :, 0, ::2], sin[0, :, 0, ::2])
        return (turns[0] * turns[1].conj()).real

    there = product([[first + shift, 1, 2], [second + shift, 5, 1]])
    assert torch.allclose(there, product([[first, 1, 2], [second, 5, 1]]), atol=1e-4)


# Cameras.


def test_the_ray_of_the_middle_is_the_cameras_axis():
    poses, lens = path("pan_right", 5)
    _, rays = token_rays(poses, lens, (6, 9), (1, 2, 3), (5, 3, 3))
    assert torch.allclose(rays[0, :, 1, 1], poses[0, :, :, 2], atol=1e-6)
    assert torch.allclose(rays.norm(dim=-1), torch.ones(1, 5, 3, 3), atol=1e-6)


def test_a_ray_leads_through_its_pixel():
    poses, lens = path("arc_left", 3)
    origins, rays = token_rays(poses, lens, (6, 9), (1, 1, 1), (3, 6, 9))
    point = origins[0, 2] + 4 * rays[0, 2, 4, 7]
    seen = poses[0, 2, :, :3].T @ (point - poses[0, 2, :, 3])
    assert seen[0] / seen[2] * LENS[0] + LENS[2] == pytest.approx(7.5 / 9, abs=1e-5)
    assert seen[1] / seen[2] * LENS[1] + LENS[3] == pytest.approx(4.5 / 6, abs=1e-5)


def test_a_token_over_frames_has_the_mean_place_and_the_renormalised_mean_ray():
    poses, lens = path("arc_right", 4)
    origins, rays = token_rays(poses, lens, (2, 2), (4, 2, 2), (1, 1, 1))
    assert torch.allclose(origins[0, 0], poses[0, :, :, 3].mean(0), atol=1e-6)
    mean = poses[0, :, :, 2].mean(0)
    assert torch.allclose(rays[0, 0, 0, 0], mean / mean.norm(), atol=1e-6)


def test_the_moment_of_a_ray_is_the_same_from_each_of_its_points():
    poses, lens = path("translate_up", 2)
    origins, rays = token_rays(poses, lens, (2, 2), (1, 1, 1), (2, 2, 2))
    six = plucker(origins, rays)
    further = plucker(origins + 3 * rays[:, :, 0, 0], rays)
    assert torch.allclose(six[:, :, 0, 0], further[:, :, 0, 0], atol=1e-5)
    assert torch.allclose(six[..., 3:], rays)


def test_frames_that_padding_adds_repeat_the_last():
    values = torch.tensor([[0.0, 1.0, 5.0]])
    assert over_token_frames(values, 2).tolist() == [[0.5, 5.0]]


# Frustum.


def test_two_cameras_meet_where_their_rays_meet():
    # At 2 m depth two heads out of two: the rays of two cameras cross at the first head's depth.
    point = torch.tensor([0.3, -0.2, 2.0])
    origins = torch.tensor([[0.0, 0, 0], [1.0, 0.5, 0.0]])
    depth = (point - origins[1]).norm()
    away = (point - origins).norm(dim=-1)
    rays = (point - origins) / away[:, None]
    origins = point - depth * rays  # both at the same distance from the point
    places = frustum_places(origins[None], rays[None, :, None, None], torch.zeros(1, 2))
    cos, sin = frustum_rotary(places, 2, 32, (float(depth), 9.0))
    turns = torch.complex(cos, sin)[0]
    assert torch.allclose(turns[0, 0], turns[1, 0], atol=1e-4)
    assert not torch.allclose(turns[0, 1], turns[1, 1], atol=1e-2)


def test_frustum_places_know_time_up_to_a_horizon():
    origin, ray = torch.zeros(1, 4, 3), torch.tensor([0.0, 0, 1]).expand(1, 4, 1, 1, 3)
    cos, _ = frustum_rotary(frustum_places(origin, ray, torch.tensor([[0.0, 0.5, 40.0, 90.0]])), 2, 32, (1.0, 8.0))
    assert not torch.allclose(cos[0, 0], cos[0, 1], atol=1e-2)
    assert torch.equal(cos[0, 2], cos[0, 3])


@pytest.mark.parametrize("head_dim", [12, 32, 64, 128])
def test_every_channel_of_every_head_has_a_place(head_dim):
    places = torch.randn(2, 5, 7)
    cos, sin = frustum_rotary(places, 3, head_dim, (1.0, 8.0))
    assert cos.shape == sin.shape == (2, 5, 3, head_dim)
    assert torch.allclose(cos**2 + sin**2, torch.ones_like(cos), atol=1e-5)


# Merging.


def tokens(frames=(4, 3), grids=((3, 3), (4, 4)), dim=6):
    groups = [Group(2, 2, 2, False), *(Group(f, *grid, True) for f, grid in zip(frames, grids, strict=True))]
    count = sum(group.tokens for group in groups)
    states = torch.randn(1, count, dim, generator=torch.Generator().manual_seed(0))
    places = torch.cat([grid_places(group[:3], (1, 1, 1), 10 * i) for i, group in enumerate(groups)], dim=1)
    return Tokens(states, places, None, tuple(groups))


def test_the_share_merged_grows_with_the_number_of_memories_inside_the_papers_range():
    assert fraction(1) == fraction(2) == 0, "one or two memories are kept whole"
    shares = [fraction(count) for count in range(3, 100)]
    assert shares == sorted(shares) and shares[0] < shares[3] < shares[5] == shares[-1]
    assert min(shares) >= 0.3 and max(shares) <= 0.7


def test_the_least_responsive_frames_are_merged_and_the_source_never():
    given = tokens()
    scores = torch.tensor([[0.4, 0.1, 0.2, 0.3, 0.9, 0.7, 0.8]])
    selection = least_responsive(scores, given.groups, 0.5)
    assert selection[0] is None
    assert [[each.tolist() for each in pair] for pair in selection[1:]] == [[[[0, 3]], [[1, 2]]], [[[0]], [[1, 2]]]]
    merged = merge(given, selection, Compressor(6, (2, 2)))
    assert merged.groups == (
        Group(2, 2, 2, False), Group(2, 3, 3, True), Group(2, 2, 2, True), Group(1, 4, 4, True), Group(2, 2, 2, True),
    )  # fmt: skip
    assert torch.equal(merged.states[:, :8], given.states[:, :8])
    assert torch.equal(merged.states[:, 8:17], given.states[:, 8:17]), "a frame that is kept is kept as it is"


def test_discarding_leaves_only_what_is_kept():
    given = tokens()
    selection = least_responsive(torch.arange(7.0)[None], given.groups, 0.5)
    assert merge(given, selection, None).groups == (Group(2, 2, 2, False), Group(2, 3, 3, True), Group(1, 4, 4, True))


def test_the_compressor_starts_as_the_mean_of_what_it_replaces_and_sits_in_its_middle():
    given = next(part for part in tokens().split() if part.groups[0].rows == 4)
    small = Compressor(6, (2, 2))(given)
    grid = given.states.view(1, 3, 4, 4, 6)
    assert torch.allclose(small.states.view(1, 3, 2, 2, 6)[0, 1, 0, 1], grid[0, 1, :2, 2:].mean((0, 1)), atol=1e-6)
    assert small.places.view(3, 2, 2, 3)[1, 0, 1].tolist() == [21, 0.5, 2.5]


def test_responsiveness_is_the_papers_formula():
    queries, keys = torch.randn(1, 5, 1, 8), torch.randn(1, 4, 1, 8)
    expected = torch.softmax(queries[0, :, 0] @ keys[0, :, 0].T / math.sqrt(8), dim=-1).amax(0)
    assert torch.allclose(responsiveness(queries, keys)[0], expected, atol=1e-6)


def test_several_targets_of_one_encoding_are_answered_together():
    queries, keys = torch.randn(3, 5, 2, 8), torch.randn(1, 4, 2, 8)
    alone = torch.cat([responsiveness(query[None], keys) for query in queries])
    assert torch.allclose(responsiveness(queries, keys)[0], alone.amax(0), atol=1e-6)


def test_mean_keys_are_those_of_memory_frames():
    given = tokens(dim=8)
    keys = given.states.unflatten(2, (2, 4))
    means = mean_keys(keys, given.groups)
    assert means.shape == (1, 9, 2, 4)
    first, second = given.groups[:2]
    frame = slice(first.tokens + second.tokens // second.frames, first.tokens + 2 * second.tokens // second.frames)
    assert torch.allclose(means[0, first.frames + 1], keys[0, frame].mean(0), atol=1e-6)
