"""What an edit makes of things moves along with them."""

from __future__ import annotations

import torch

from pipeline.agreement import KNOWN, leading, settled
from pipeline.moved import STEPS, followed
from tests.rays import FRAMES, SIZE, camera, video

ALL = slice(None)


def clips(shift: int) -> tuple[torch.Tensor, torch.Tensor, list[slice]]:
    """A source (1, 3, FRAMES, SIZE, SIZE) in which a striped thing goes so many pixels to the right in every frame,
    what frames make of it each for itself, which only the last does right, and the columns of the thing."""
    generator = torch.Generator().manual_seed(0)
    source = 0.2 * torch.randn(1, 3, 1, SIZE, SIZE, generator=generator).repeat(1, 1, FRAMES, 1, 1)
    thing = 2 + torch.randn(3, 8, 8, generator=generator)
    made, places = source.clone(), []
    for frame in range(FRAMES):
        places.append(slice(6 + shift * frame, 14 + shift * frame))
        source[0, :, frame, 10:18, places[-1]] = thing
        made[0, :, frame, 10:18, places[-1]] = -thing if frame == FRAMES - 1 else 0.0
    return source, made, places


def test_what_has_moved_takes_the_look_that_it_has_where_it_has_moved_to():
    target = video(camera(0.0, 0.0, 0.0))
    leaders, depths = leading(target), torch.full((FRAMES, 1, SIZE // 2, SIZE // 2), 4.0)
    leaders = type(leaders)(leaders.origin[:1], leaders.rays[:1], leaders.frames[:1])  # the last frame alone
    source, made, places = clips(2)
    stays, follows = (settled(made, depths, leaders, source, KNOWN, follow=each) for each in (False, True))
    for frame, columns in enumerate(places):
        inside = (0, ALL, frame, slice(11, 17), slice(columns.start + 1, columns.stop - 1))
        assert torch.allclose(follows[inside], -source[inside], atol=1e-3)
        assert frame == FRAMES - 1 or not torch.allclose(stays[inside], -source[inside], atol=0.5)
        beside = (0, ALL, frame, slice(22, -2), slice(2, -2))
        assert torch.allclose(follows[beside], made[beside], atol=1e-3)


def test_what_nobody_shows_is_left_as_it_is():
    target = video(camera(0.0, 0.0, 0.0))
    depths = torch.full((FRAMES, 1, SIZE // 2, SIZE // 2), 4.0)
    source, made, places = clips(2)
    source[0, :, 1, 10:18, places[1]] += 3.0  # in this frame it looks as in no other
    found = settled(made, depths, leading(target), source, KNOWN, follow=True)
    inside = (0, ALL, 1, slice(11, 17), slice(places[1].start + 1, places[1].stop - 1))
    assert torch.allclose(found[inside], made[inside], atol=0.01)


def test_where_nothing_has_moved_nothing_is_looked_up_elsewhere():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(1, FRAMES, 3, SIZE, SIZE, generator=generator)
    shown = torch.randn(1, 1, FRAMES, 5, SIZE, SIZE, generator=generator)
    shown[:, 0, :, 2:] = known
    shows = torch.rand(1, 1, FRAMES, 1, SIZE, SIZE, generator=generator)
    found = followed(shown, shows, known)
    assert torch.equal(found[0], shown) and torch.equal(found[1], shows)
    flat = followed(torch.zeros_like(shown), shows, torch.zeros_like(known))
    assert torch.equal(flat[1], shows), "and not where all places look alike"


def test_things_are_followed_as_far_as_steps_reach_on_larger_pictures_in_longer_ones():
    for size in (SIZE, 3 * 48):
        step = max(1, size // 48)
        source = torch.zeros(1, 1, 3, size, size)
        source[..., size // 2 :, size // 2 :] = 1.0
        for steps in (STEPS, -STEPS, STEPS + 3):
            moved = source.roll(steps * step, dims=-1)
            shown, _ = followed(moved[:, None], torch.ones_like(moved[:, None, :, :1]), source)
            middle = (..., slice(size // 2 - 2 * step, size // 2 + 2 * step))
            assert torch.equal(shown[:, 0][middle], source[middle]) == (abs(steps) <= STEPS)
