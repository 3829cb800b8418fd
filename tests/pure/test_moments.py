"""Which frame of a memory is looked at: against a scan in float64, and what must hold of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.copying import sights
from pipeline.lookup import fine, framewise, rays_of
from pipeline.moments import DEPTHS, PLACES, nearest, showing, shown
from tests.rays import FRAMES, SIZE, camera, head, run, video


def panning(*yaws: float) -> torch.Tensor:
    """(1, T, 3, 4): a camera that is turned to the right by so many radians, frame by frame."""
    return torch.cat([camera(0.0, 0.0, 0.0, yaw=yaw, frames=1) for yaw in yaws], dim=1)


def test_what_frames_show_of_each_other_is_what_a_scan_of_their_points_counts():
    target = video(torch.cat([panning(0.1, 0.4), panning(0.9, -0.3)]))
    memory = video(torch.cat([panning(0.0, 0.3, 0.8), camera(0.4, 0.1, -0.9, yaw=0.2, frames=3)]))
    found = shown(*rays_of(target), memory)
    cells = SIZE // 2
    for row in range(2):
        for frame in range(2):
            for other in range(3):
                here, there = (each.poses[row, at].double().numpy() for each, at in ((target, frame), (memory, other)))
                count = 0
                for y in (int(share * cells) for share in PLACES):
                    for x in (int(share * cells) for share in PLACES):
                        local = np.array([((x + 0.5) / cells - 0.5) / 0.9, ((y + 0.5) / cells - 0.5) / 0.9, 1.0])
                        for depth in DEPTHS:
                            point = here[:, :3] @ (depth * local) + here[:, 3]
                            right, down, away = there[:, :3].T @ (point - there[:, 3])
                            inside = abs(0.9 * right / away) < 0.5 and abs(0.9 * down / away) < 0.5
                            count += bool(away > 0.05 and inside)
                assert found[row, frame, other] == pytest.approx(count / (len(PLACES) ** 2 * len(DEPTHS)), abs=0.02)


def test_a_frame_looks_where_a_memory_was_looking_there_too_and_a_source_just_then():
    there_and_back = video(panning(0.0, 0.3, 0.6, 0.9))
    back = video(panning(0.9, 0.6, 0.3, 0.0))
    assert showing(back.times, *rays_of(back), there_and_back).tolist() == [[3, 2, 1, 0]]
    assert nearest(back.times, there_and_back).tolist() == [[0, 1, 2, 3]]
    memory = sights(back, [None, there_and_back])[1]
    source = sights(back, [there_and_back])[0]
    assert memory is not None and source is not None
    pictures = fine(framewise(there_and_back.latent))
    preceding = sights(back, [None, replace(there_and_back, preceding=True)])[1]
    assert preceding is not None and torch.equal(preceding.frames, memory.frames)
    assert torch.equal(memory.frames[0], pictures.flip(0)) and torch.equal(source.frames[0], pictures)


def test_of_frames_that_show_as_much_the_nearest_in_time_is_taken():
    stays = video(camera(0.0, 0.0, 0.0))
    for start in (-1.0, -0.05, 0.0, 1 / 12, 0.1, 1.0):
        memory = video(camera(0.0, 0.0, 0.0), start=start)
        assert torch.equal(showing(stays.times, *rays_of(stays), memory), nearest(stays.times, memory))


def test_showing_a_little_more_is_worth_a_second_and_not_five():
    target, memory = video(panning(0.4)), video(panning(0.0, 0.4))  # the first shows six tenths of it
    for seconds, best in ((0.0, 1), (1.0, 1), (5.0, 0)):
        later = replace(memory, times=torch.tensor([[0.0, seconds]]))
        assert showing(target.times, *rays_of(target), later).tolist() == [[best]]


def test_what_is_far_away_counts_too():
    target = video(camera(0.0, 0.0, 0.0, frames=1))
    aside = video(torch.cat([camera(2.0, 0.0, 0.0, frames=1), camera(2.0, 0.0, 0.0, yaw=np.pi, frames=1)], dim=1))
    found = shown(*rays_of(target), aside)
    assert found[0, 0, 0] > 0.2 and not found[0, 0, 1]  # from two metres aside nothing near is shown


def test_targets_that_share_a_memory_choose_as_each_alone():
    targets = video(torch.cat([panning(0.8, 0.1), panning(0.2, 0.5), panning(0.0, 0.0), panning(0.4, 0.9)]))
    memories = video(torch.cat([panning(0.0, 0.3, 0.6), panning(0.9, 0.4, 0.1)]))
    together = showing(targets.times, *rays_of(targets), memories)
    for row in range(4):
        one, other = (
            replace(
                each, latent=each.latent[at], poses=each.poses[at], intrinsics=each.intrinsics[at], times=each.times[at]
            )
            for each, at in ((targets, slice(row, row + 1)), (memories, slice(row // 2, row // 2 + 1)))
        )
        assert torch.equal(together[row : row + 1], showing(one.times, *rays_of(one), other))


def test_what_was_seen_at_another_moment_comes_back():
    memory, target = video(panning(0.0, 0.3, 0.6, 0.9)), video(panning(0.9, 0.9, 0.9, 0.9))
    again = run(head(videos=2, depth=3.0, choose=1), target, [None, memory])
    assert torch.allclose(
        again[..., 2:-2, 2:-2], memory.latent[:, :, 3:, 2:-2, 2:-2].expand(-1, -1, FRAMES, -1, -1), atol=1e-3
    )
