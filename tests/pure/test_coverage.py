"""Coverage bit sets against the paper's Algorithm 1, and the sphere they live on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import videofov
from pipeline.coverage import Sphere, coverage, fov_scores, pack, popcounts, visible
from pipeline.trajectory import PRESETS, Trajectory, default_intrinsics, preset
from tests.pure.test_trajectory import trajectories

LENS = default_intrinsics(832 / 480)
COARSE = videofov.grid(18, 36)


def bits(seed: int, rows: int, words: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(rows, 8 * words), dtype=np.uint8)


# --- the sphere


def test_the_spheres_points_are_unit_vectors_and_all_different() -> None:
    directions = Sphere().directions
    assert directions.shape == (4096, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert len(np.unique(directions.round(6), axis=0)) == 4096


@given(st.integers(0, 10_000), st.floats(0.1, 1.5))
def test_the_spheres_points_are_area_uniform(seed: int, opening: float) -> None:
    axis = np.random.default_rng(seed).normal(size=3)
    inside = (Sphere().directions @ (axis / np.linalg.norm(axis)) > np.cos(opening)).mean()
    assert inside == pytest.approx((1 - np.cos(opening)) / 2, abs=0.006)


@pytest.mark.parametrize("sphere", [{"points": 100}, {"points": 0}, {"radius": 0.0}, {"radius": float("nan")}])
def test_a_sphere_that_cannot_be_is_refused(sphere: dict) -> None:
    with pytest.raises(ValueError, match="sphere of"):
        Sphere(**sphere)


def test_what_a_level_camera_sees_is_a_short_run_of_words() -> None:
    for name in PRESETS:  # the scan reads only this run; a change of the points' order would cost its speed
        used = np.flatnonzero(coverage(preset(name, 81, LENS), Sphere()).view(np.uint64))
        assert used[-1] - used[0] < 10


# --- what is seen


def test_a_square_right_angled_camera_sees_a_sixth_of_the_sphere() -> None:
    path = Trajectory.static(1, default_intrinsics(1.0, hfov_degrees=90))
    assert popcounts(coverage(path, Sphere())[None])[0] / 4096 == pytest.approx(1 / 6, abs=0.004)


def test_only_what_is_in_front_is_seen() -> None:
    points = 20.0 * np.array([[0, 0, 1], [0, 0, -1], [1, 0, 0], [0.4, 0, 1], [0.6, 0, 1], [0, 0.27, 1], [0, 0.3, 1]])
    seen = visible(Trajectory.static(3, LENS), points)
    assert seen.tolist() == [True, False, False, True, False, True, False]


def test_bit_b_of_byte_i_is_point_8i_plus_b() -> None:
    sphere = Sphere(points=256)
    path = preset("pan_right", 5, LENS)
    unpacked = np.unpackbits(coverage(path, sphere), bitorder="little").astype(bool)
    np.testing.assert_array_equal(unpacked, visible(path, 20 * sphere.directions))


@given(trajectories(), st.sampled_from([0.5, 3.0, 20.0]))
def test_what_is_seen_is_what_algorithm_1_sees(path: Trajectory, radius: float) -> None:
    np.testing.assert_array_equal(visible(path, radius * COARSE), videofov.video_fov(path, radius * COARSE))


@given(trajectories())
def test_coverage_is_the_union_over_frames(path: Trajectory) -> None:
    sphere = Sphere(points=512)
    frames = [coverage(path[i : i + 1], sphere) for i in range(len(path))]
    np.testing.assert_array_equal(coverage(path, sphere), np.bitwise_or.reduce(frames))


# --- scores


@given(trajectories(), st.lists(trajectories(), min_size=1, max_size=4), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_scores_are_exactly_algorithm_1s_on_the_same_points(
    target: Trajectory, memories: list[Trajectory], blend: float
) -> None:
    first = target.c2w[0]
    reference = videofov.algorithm_1(target, memories, 20.0, blend, COARSE)
    packed = [pack(visible(path.relative_to(first), 20.0 * COARSE)) for path in [target, *memories]]
    assert fov_scores(packed[0], np.stack(packed[1:]), blend=blend).tolist() == reference.tolist()


@pytest.mark.parametrize(("rows", "words"), [(1, 1), (5, 3), (40_000, 2), (700, 64), (70, 1013)])
def test_bits_are_counted_as_an_unpacked_sum_counts_them(rows: int, words: int) -> None:
    memories, target = bits(rows, rows, words), bits(7, 1, words)[0]
    target[: len(target) // 3] = 0
    expected = np.bitwise_count(memories & target).sum(axis=1, dtype=np.int64)
    np.testing.assert_array_equal(popcounts(memories, target), expected)
    np.testing.assert_array_equal(popcounts(memories), np.unpackbits(memories, axis=1).sum(axis=1))
    counts = popcounts(memories)
    np.testing.assert_array_equal(fov_scores(target, memories, counts), fov_scores(target, memories))


def test_a_memory_of_the_same_view_scores_one_and_an_empty_target_nothing() -> None:
    memories = bits(1, 3, 64)
    assert fov_scores(memories[1], memories)[1] == 1.0
    assert fov_scores(np.zeros(512, np.uint8), memories).tolist() == [0, 0, 0]
    assert fov_scores(memories[0], memories[:0]).shape == (0,)


def test_coverages_of_different_spheres_are_refused() -> None:
    with pytest.raises(ValueError, match="same sphere"):
        fov_scores(bits(1, 1, 8)[0], bits(1, 3, 64))


def test_the_papers_example_needs_a_sphere_well_beyond_the_travel() -> None:
    def best_match(radius: float) -> str:
        rows = np.stack([coverage(preset(name, 81, LENS), Sphere(radius=radius)) for name in PRESETS])
        scores = fov_scores(rows[PRESETS.index("pan_right")], rows)
        scores[PRESETS.index("pan_right")] = -1
        return PRESETS[int(np.argmax(scores))]

    assert [best_match(radius) for radius in (20.0, 100.0)] == ["arc_left", "arc_left"]  # the paper's pair
    assert best_match(1.0) == "arc_right"  # the presets travel 2 m: they have left this sphere


def test_the_papers_grid_has_64800_points_and_is_not_area_uniform() -> None:
    grid = videofov.grid()
    assert grid.shape == (64_800, 3)
    assert (np.abs(grid[:, 1]) > np.sin(np.radians(60))).mean() == pytest.approx(1 / 3)  # of an area share of 0.134
