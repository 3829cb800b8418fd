"""Every frame is in a segment, no segment crosses a cut, and putting them together gives every frame once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.segments import Segment, assemble, blend_weights, segments


@st.composite
def cuttings(draw):
    frames = draw(st.integers(1, 200))
    length = draw(st.integers(1, 40))
    overlap = draw(st.integers(0, length - 1))
    cuts = sorted(draw(st.sets(st.integers(1, frames - 1), max_size=5))) if frames > 1 else []
    return frames, length, overlap, cuts


@given(cuttings())
def test_segments_cover_every_frame_in_order_and_stay_in_their_shot(case):
    frames, length, overlap, cuts = case
    found = segments(*case)
    edges = [0, *cuts, frames]
    assert [segment.index for segment in found] == list(range(len(found)))
    assert [frame for segment in found for frame in range(segment.keep, segment.stop)] == list(range(frames))
    for segment in found:
        first, end = edges[segment.shot], edges[segment.shot + 1]
        assert first <= segment.start <= segment.keep < segment.stop <= end
        assert segment.frames == min(length, end - first), "full, unless the whole shot is shorter"
        assert segment.keep == first or segment.keep - segment.start >= overlap
    assert len(found) <= sum(1 + max(0, -(-(b - a - length) // (length - overlap))) for a, b in zip(edges, edges[1:]))  # noqa: B905


def test_the_tail_window_is_shifted_back_and_full():
    assert segments(50, 16, 0) == [
        Segment(0, 0, 0, 16, 0), Segment(1, 0, 16, 32, 16), Segment(2, 0, 32, 48, 32), Segment(3, 0, 34, 50, 48),
    ]  # fmt: skip
    assert [(s.start, s.stop, s.keep) for s in segments(48, 20, 4)] == [(0, 20, 0), (16, 36, 20), (28, 48, 36)]
    assert segments(16, 16, 4) == [Segment(0, 0, 0, 16, 0)], "a source of one window is one segment"
    assert [(s.shot, s.start, s.stop) for s in segments(30, 16, 2, [5])] == [(0, 0, 5), (1, 5, 21), (1, 14, 30)]


@given(cuttings())
def test_what_is_cut_and_put_together_is_what_it_was(case):
    frames, overlap = case[0], case[2]
    video = np.random.default_rng(frames).integers(0, 256, (frames, 2, 2, 3), dtype=np.uint8)
    padding = video[:1]
    pieces = ((s, np.concatenate([video[s.start : s.stop], padding])) for s in segments(*case))
    np.testing.assert_array_equal(np.stack(list(assemble(pieces, overlap))), video)


def test_a_fade_rises_evenly_from_the_earlier_to_the_later_segment():
    first, second = segments(12, 8, 4)
    dark, light = np.zeros((8, 2, 2, 3), np.uint8), np.full((8, 2, 2, 3), 100, np.uint8)
    joined = [int(frame[0, 0, 0]) for frame in assemble([(first, dark), (second, light)], 4)]
    assert joined == [0, 0, 0, 0, 20, 40, 60, 80, 100, 100, 100, 100]
    hard = [int(frame[0, 0, 0]) for frame in assemble([(first, dark), (second, light)], 0)]
    assert hard == [0] * 8 + [100] * 4
    np.testing.assert_allclose(blend_weights(4), [0.2, 0.4, 0.6, 0.8], rtol=1e-6)


@given(cuttings())
def test_brightness_never_leaves_the_range_of_the_segments_and_cuts_stay_hard(case):
    frames, _, overlap, cuts = case
    found = segments(*case)
    pieces = [(s, np.full((s.frames, 1, 1, 3), 10 * (s.index % 2) + 100 * (s.shot % 2), np.uint8)) for s in found]
    joined = [int(frame[0, 0, 0]) for frame in assemble(iter(pieces), overlap)]
    assert len(joined) == frames
    for shot, (first, end) in enumerate(zip([0, *cuts], [*cuts, frames], strict=True)):
        assert all(0 <= value - 100 * (shot % 2) <= 10 for value in joined[first:end])


def test_putting_together_streams():
    """Frames come out as soon as no later segment can touch them."""
    taken = []

    def pieces():
        for segment in segments(40, 10, 2):
            taken.append(segment.index)
            yield segment, np.zeros((10, 1, 1, 3), np.uint8)

    stream = assemble(pieces(), 2)
    for _ in range(8):
        next(stream)
    assert taken == [0]
    next(stream)
    assert taken == [0, 1]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((0, 16, 0), "at least one frame"),
        ((10, 0, 0), "segment length is 0"),
        ((10, 4, 4), "overlap is 4: .* less than the segment length 4"),
        ((10, 4, -1), "overlap is -1"),
        ((10, 4, 0, [0]), "boundary 0 .* between 1 and 9"),
        ((10, 4, 0, [10]), "boundary 10"),
        ((10, 4, 0, [3, 12]), "boundary 12 in a source of 10 frames"),
        ((10, 4, 0, [6, 3]), "boundary 3 follows 6"),
        ((10, 4, 0, [3, 3]), "boundary 3 follows 3"),
    ],
)
def test_what_cannot_be_cut_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        segments(*arguments)


def test_a_missing_or_short_segment_is_refused():
    first, second, third = segments(30, 10, 0)
    ten = np.zeros((10, 1, 1, 3), np.uint8)
    with pytest.raises(ValueError, match="segment 2 continues at frame 20, but 10 is next"):
        list(assemble([(first, ten), (third, ten)], 0))
    with pytest.raises(ValueError, match="segment 1 has 9 frames instead of 10"):
        list(assemble([(first, ten), (second, ten[:9])], 0))
