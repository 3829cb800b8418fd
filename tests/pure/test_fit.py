"""Pictures go into the model's frame undistorted and come out whole, and cameras follow them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fit import AREA_SLACK, fit

sizes = st.tuples(st.integers(16, 2200), st.integers(16, 2200))
policies = st.sampled_from(["letterbox", "crop"])
multiples = st.sampled_from([2, 8, 16])
frames = st.one_of(st.none(), st.tuples(st.integers(2, 12), st.integers(2, 12)))


def fitted(source, policy, size, multiple, area=96 * 96):
    return fit(source, policy, size and (size[0] * multiple, size[1] * multiple), area, multiple)


@given(sizes, policies, frames, multiples)
def test_the_content_lies_inside_the_frame_and_is_even(source, policy, size, multiple):
    found = fitted(source, policy, size, multiple)
    top, left, h, w = found.content
    assert top >= 0 and left >= 0 and h >= 2 and w >= 2
    assert top + h <= found.height and left + w <= found.width
    assert not any(value % 2 for value in found.content)
    assert found.height % multiple == 0 and found.width % multiple == 0
    if policy == "crop":
        assert found.content == (0, 0, found.height, found.width), "crop leaves no margin"
        assert found.resize[0] >= found.height and found.resize[1] >= found.width
    else:
        assert found.content[2:] == found.resize, "letterbox loses nothing"
        assert h >= found.height - 1 or w >= found.width - 1 or multiple == 2


@given(sizes, policies, frames, multiples)
def test_what_is_shown_of_the_source_is_all_of_it_or_the_most_that_has_the_frames_aspect(
    source, policy, size, multiple
):
    found = fitted(source, policy, size, multiple)
    h, w = found.shown
    assert not h % 2 and not w % 2 and h <= source[0] and w <= source[1]
    if policy == "letterbox":
        assert (h, w) == (source[0] // 2 * 2, source[1] // 2 * 2)
    elif min(h, w) > 2:
        assert h >= source[0] - 1 or w >= source[1] - 1
        ratio = (h * found.width) / (w * found.height)
        assert abs(math.log(ratio)) <= math.log1p(4 / min(h, w)), "the picture is not stretched"


def test_of_a_wide_source_a_square_crop_shows_a_square():
    assert fit((360, 640), "crop", (96, 96)).shown == (360, 360)
    assert fit((360, 640), "letterbox", (96, 96)).shown == (360, 640)


@given(sizes, policies, multiples)
def test_the_aspect_ratio_is_kept_to_the_pixel(source, policy, multiple):
    found = fitted(source, policy, (1, 1), max(multiple, 8) * 8)
    ratio = found.resize[1] / found.resize[0] / (source[1] / source[0])
    assert abs(math.log(ratio)) <= math.log1p(1.01 / min(found.resize)) + 1e-9 or min(found.resize) <= 4


@given(sizes, st.integers(32 * 32, 200_000), multiples)
def test_the_chosen_size_is_about_the_area_and_near_the_aspect(source, area, multiple):
    found = fit(source, "letterbox", None, area, multiple)
    assert found.height * found.width <= area * AREA_SLACK
    aspect = source[1] / source[0]
    if 1 / 3 <= aspect <= 3:  # a long strip of few pixels has few sizes to choose from
        step = multiple / math.sqrt(area)
        assert found.height * found.width >= area * (1 - 4 * step)
        assert abs(math.log(found.width / found.height / aspect)) <= 2 * step + 0.02


def test_sizes_of_common_sources():
    def chosen(source, area=96 * 96, multiple=8):
        found = fit(source, area=area, multiple=multiple)
        return found.height, found.width

    assert chosen((720, 1280)) == (72, 128) and chosen((1920, 1080)) == (128, 72)
    assert chosen((480, 480)) == (96, 96) and chosen((272, 640)) == (64, 144)
    assert chosen((480, 832), 480 * 832, 16) == (480, 832)


@given(st.tuples(st.integers(16, 400), st.integers(16, 400)), policies, multiples, st.integers(0, 100))
def test_what_goes_in_comes_out(source, policy, multiple, seed):
    found = fitted(source, policy, (6, 4), multiple)
    resized = np.random.default_rng(seed).integers(1, 256, (2, *found.resize, 3), dtype=np.uint8)
    framed = found.apply(resized)
    assert framed.shape == (2, found.height, found.width, 3) and framed.dtype == np.uint8
    if policy == "letterbox":
        np.testing.assert_array_equal(found.unapply(framed), resized)
        top, left, h, w = found.content
        rows = np.clip(np.arange(found.height) - top, 0, h - 1)
        columns = np.clip(np.arange(found.width) - left, 0, w - 1)
        np.testing.assert_array_equal(framed, resized[:, rows][:, :, columns], "the outermost pixels go on")
    else:
        y, x = -found.offset[0], -found.offset[1]
        np.testing.assert_array_equal(framed, resized[:, y : y + found.height, x : x + found.width])
        assert found.unapply(framed).shape == framed.shape
        for room, start, size in zip(found.resize, (y, x), (found.height, found.width), strict=True):
            assert abs((room - size - start) - start) <= 1, "cut evenly on both sides"


@given(
    sizes, policies, frames, multiples,
    st.floats(0.3, 3), st.floats(0.3, 3), st.floats(0.2, 0.8), st.floats(0.2, 0.8), st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_a_pixel_keeps_its_ray(source, policy, size, multiple, fx, fy, cx, cy, u, v):
    """The ray of a point of the source's picture is the ray of the place where that point lands in the frame."""
    found = fitted(source, policy, size, multiple)
    before = np.array([(u - cx) / fx, (v - cy) / fy])
    x = found.offset[1] + u * found.resize[1]  # pixels of the model's frame
    y = found.offset[0] + v * found.resize[0]
    gx, gy, dx, dy = found.intrinsics(np.array([fx, fy, cx, cy]))
    after = np.array([(x / found.width - dx) / gx, (y / found.height - dy) / gy])
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)


def test_intrinsics_of_many_frames_and_of_an_exact_fit():
    many = np.tile([1.0, 1.5, 0.5, 0.5], (7, 1))
    assert fit((720, 1280)).intrinsics(many).shape == (7, 4)
    np.testing.assert_allclose(fit((720, 1280)).intrinsics(many), many)
    wide = fit((100, 200), "crop", (64, 64))  # the middle half of the width is left: twice the focal length
    np.testing.assert_allclose(wide.intrinsics(many[0]), [2.0, 1.5, 0.5, 0.5])


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (((720, 1280), "stretch"), "'stretch': it must be one of letterbox, crop"),
        (((720, 1280), "crop", (100, 96)), "100x96: the model takes multiples of 8"),
        (((720, 1280), "crop", (0, 96)), "0x96"),
        (((0, 1280),), "at least one pixel"),
        (((720, 1280), "crop", None, 9216, 7), "multiple is 7"),
        (((720, 1280), "crop", None, 50, 8), "area is 50: .* at least 64"),
    ],
)
def test_what_cannot_fit_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        fit(*arguments)


def test_frames_of_another_size_are_refused():
    found = fit((720, 1280), "letterbox", (96, 96))
    with pytest.raises(ValueError, match="resized to 54x96"):
        found.apply(np.zeros((1, 96, 96, 3), np.uint8))
    with pytest.raises(ValueError, match="the model's are 96x96"):
        found.unapply(np.zeros((1, 54, 96, 3), np.uint8))
