"""A clip made longer: where its camera goes, what the model is shown, and what of it stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.extension import extended, onward
from pipeline.trajectory import Trajectory, default_intrinsics
from tests.tiny import build_tiny

LENGTH = 16  # of the tiny model's segments


def path(frames: int) -> Trajectory:
    c2w = np.tile(np.eye(3, 4), (frames, 1, 1))
    c2w[:, 0, 3] = np.arange(frames)
    return Trajectory(c2w, default_intrinsics(1.0))


@given(st.integers(1, 30), st.integers(1, 80), st.data())
def test_the_camera_goes_back_the_way_it_came_and_never_beyond_its_last_shot(frames, added, data) -> None:
    first = data.draw(st.integers(0, frames - 1))
    at = onward(path(frames), added, first).c2w[:, 0, 3]
    assert len(at) == frames + added and (at[:frames] == np.arange(frames)).all()
    assert (at[frames - 1 :] >= first).all() and (at[frames:] < frames).all()
    steps = abs(np.diff(at[frames - 1 :]))
    assert (steps == (1 if first < frames - 1 else 0)).all()
    if added >= frames - 1 - first:
        assert at[frames - 1 + frames - 1 - first] == first


@pytest.fixture(scope="module")
def pipe():
    made = build_tiny()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 16, 16, 3), np.uint8)


def longer(pipe, video, frames, k=2, first=0):
    return extended(pipe, video, path(len(video)), 12.0, frames=frames, k=k, seed=lambda number: number, first=first)


def test_the_model_is_shown_the_segment_before_then_earlier_ones_of_the_same_shot(pipe, video, monkeypatch) -> None:
    calls = []

    class Watched(type(pipe)):
        def __call__(self, **given):
            calls.append(given)
            return super().__call__(**given)

    monkeypatch.setattr(pipe, "__class__", Watched)
    made, cameras = longer(pipe, video, 3 * LENGTH, k=3, first=2)
    shown = [[(each.start, each.preceding) for each in call["memories"]] for call in calls]
    assert shown == [
        [(-16, True), (-32, False)],
        [(-16, True), (-32, False), (-48, False)],
        [(-16, True), (-32, False), (-48, False)],
    ]
    for number, call in enumerate(calls):
        start = len(video) + number * LENGTH
        assert "source" not in call and "prompt" not in call
        origin = cameras.c2w[start]
        assert np.allclose(call["target_trajectory"].c2w[0], np.eye(3, 4))
        for memory in call["memories"]:
            at = start + memory.start
            assert torch.equal(memory.latent, pipe.encode(made[at : at + LENGTH]))
            assert np.allclose(memory.trajectory.c2w, cameras[at : at + LENGTH].relative_to(origin).c2w)


def test_what_was_there_stays_and_a_longer_extension_begins_like_a_shorter_one(pipe, video) -> None:
    short, short_cameras = longer(pipe, video, 5)
    long, long_cameras = longer(pipe, video, 40)
    assert len(short) == len(short_cameras) == 42 and len(long) == len(long_cameras) == 77
    assert (long[:37] == video).all() and (long[:42] == short).all()
    assert (long_cameras.c2w[:42] == short_cameras.c2w).all()
    assert (long[37:53] != long[53:69]).any()  # each segment has noise of its own
