"""A cut changes the picture much more than what happens around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cuts import AROUND, CHANGE, THUMBNAIL, TIMES, find_cuts


def film(*changes: float) -> list[np.ndarray]:
    """Even frames whose levels change by so much from each to the next, up from dark ones and down from bright ones."""
    levels = [100.0]
    for change in changes:
        levels.append(levels[-1] + (change if levels[-1] < 128 else -change))
    return [np.full((*THUMBNAIL, 3), level, np.uint8) for level in levels]


@given(st.lists(st.sampled_from([0.0, 1.0, 3.0, 12.0, 13.0, 30.0, 60.0]), max_size=30))
def test_a_cut_is_twice_what_happens_around_it_but_for_one_more_cut(changes):
    expected = []
    for at, change in enumerate(changes):
        others = [each for to, each in enumerate(changes) if 0 < abs(to - at) <= 6]
        second = sorted(others, reverse=True)[1] if len(others) > 1 else 0.0
        if change > 12 and change > 2 * second:
            expected.append(at + 1)
    assert find_cuts(film(*changes)) == tuple(expected)


def test_the_frame_after_the_change_is_the_first_of_its_shot():
    assert find_cuts(film(0, 0, 40, 0, 0)) == (3,)
    assert find_cuts(film(40, 0, 0)) == (1,)
    assert find_cuts(film(0, 0, 40)) == (3,)


@pytest.mark.parametrize("frames", [0, 1])
def test_what_has_no_two_frames_has_no_cut(frames):
    assert find_cuts(film()[:frames]) == ()


def test_change_is_the_mean_over_pixels_and_colours_either_way():
    dark, bright = film(60)
    assert find_cuts([bright, dark]) == find_cuts([dark, bright]) == (1,)
    for share, cut in ((0.25, True), (0.15, False)):  # 15 and 9 levels
        partly = dark.copy()
        partly[:, : round(share * THUMBNAIL[1])] = bright[0, 0]
        assert find_cuts([dark, partly]) == ((1,) if cut else ())
    red = dark.copy()
    red[..., 0] += 60
    assert find_cuts([dark, red]) == (1,)  # 20 levels


def test_a_change_that_is_small_or_one_of_many_is_no_cut():
    assert find_cuts(film(0, 0, CHANGE, 0, 0)) == ()
    assert find_cuts(film(0, 0, CHANGE + 1, 0, 0)) == (3,)
    assert find_cuts(film(20, 30, 20)) == ()
    for much, cut in ((20, ()), (TIMES * 20 + 1, (4,))):
        assert find_cuts(film(20, 20, 20, much, 20, 20, 20)) == cut


def test_two_cuts_near_each_other_are_both_found_and_of_three_none():
    assert find_cuts(film(0, 0, 40, 0, 40, 0, 0)) == (3, 5)
    assert find_cuts(film(0, 0, 40, 0, 40, 0, 40, 0, 0)) == ()


def test_what_happens_far_away_does_not_count():
    def between(still: int) -> list[np.ndarray]:
        return film(30, 30, *[0] * still, 40, *[0] * still, 30, 30)

    assert AROUND + 3 in find_cuts(between(AROUND))
    assert AROUND + 2 not in find_cuts(between(AROUND - 1))
