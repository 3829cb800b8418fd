"""What the consistency benchmark edits: held-out scenes with overlapping turns, and long clips with instructions.

All is exact: which pixels of two turns show the same point of the scene at the same moment, whether the source ever saw
it, and what the edit should have looked like. Seeds lie far above those that training draws from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.scenes import PairedEdit, Scene, free, paths, random_scene, render, seen_edit
from pipeline.scenes.correspondence import correspondence, motions
from pipeline.trajectory import Trajectory, compose, default_intrinsics, preset
from storage.video import probe, read_frames

FIRST_SEED = 1 << 39
RATE = 12.0
TIMES = (3, 7, 11, 15)  # frames of a segment in which it is measured
LOOK = 32  # pixels a side of the views by which cases are chosen
SHARED = 0.04  # share of the pixels that two turns must share and the source never saw
SEGMENTS = 13  # of a long clip: 208 frames


@dataclass(frozen=True, eq=False)
class Filmed:
    """frames (T, H, W, 3) uint8; depth (T, H, W); objects (T, H, W) uint8."""

    frames: torch.Tensor
    depth: torch.Tensor
    objects: torch.Tensor


def film(scene: Scene, path: Trajectory, size: int, first: int = 0) -> Filmed:
    """What a camera sees, `size` pixels a side, colours averaged over four rays as training's are."""
    views = (
        torch.tensor(path.c2w, dtype=torch.float32)[None],
        torch.tensor(path.intrinsics, dtype=torch.float32)[None],
        (first + torch.arange(len(path)))[None] / RATE,
    )
    fine = render([scene], *views, 2 * size, 2 * size).colour[0].permute(0, 3, 1, 2).float()
    exact = render([scene], *views, size, size)
    frames = F.avg_pool2d(fine, 2).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return Filmed(frames, exact.depth[0], exact.objects[0])


@dataclass(frozen=True, eq=False)
class CameraCase:
    """A source and four turns of one segment: three that overlap beyond what the source sees, then the first again."""

    scene: Scene
    source: Trajectory
    turns: tuple[Trajectory, ...]
    size: int

    @cached_property
    def views(self) -> list[Filmed]:
        """The source, then every turn as it truly looks."""
        return [film(self.scene, each, self.size) for each in (self.source, *self.turns)]

    @cached_property
    def slow(self) -> list[tuple[Trajectory, Filmed]]:
        """A camera that stands still, and the beginning of a pan over a clip of SEGMENTS segments: a long video's first
        segment, in which next to nothing changes."""
        lens = self.source.intrinsics[0]
        moves = (Trajectory.static(16, lens), preset("pan_right", 16 * SEGMENTS, lens)[:16])
        seen = [Trajectory(compose(self.source.c2w[0], each.c2w), lens) for each in moves]
        return [(move, film(self.scene, each, self.size)) for move, each in zip(moves, seen, strict=True)]

    @property
    def frames(self) -> torch.Tensor:
        """(16, H, W, 3) uint8 of the source."""
        return self.views[0].frames

    @cached_property
    def unseen(self) -> list[torch.Tensor]:
        """By turn, (TIMES, H, W) bool: pixels whose point the source saw in none of its frames."""
        result = []
        for turn in range(1, len(self.views)):
            seen = torch.stack([self._meet(turn, TIMES, 0, (moment,) * len(TIMES))[1] for moment in range(0, 16, 3)])
            sky = torch.isinf(self.views[turn].depth[list(TIMES)])
            result.append(~seen.any(0) & ~sky)
        return result

    @cached_property
    def seen(self) -> list[torch.Tensor]:
        """By turn, (TIMES, H, W) bool: pixels whose point the source sees at that moment."""
        return [self._meet(turn, TIMES, 0, TIMES)[1] for turn in range(1, len(self.views))]

    def shared(self, one: int, other: int) -> list[tuple[tuple[int, ...], torch.Tensor, torch.Tensor]]:
        """Of turns counted from 0: (frames of the other, where in it, mask) for the frames TIMES of the one; the mask
        has the points that both show and the source never saw."""
        found = []
        for shift in range(len(TIMES)):
            moments = TIMES[shift:] + TIMES[:shift]
            where, both = self._meet(one + 1, TIMES, other + 1, moments)
            found.append((moments, where, both & self.unseen[one]))
        return found

    def _meet(
        self, one: int, at: tuple[int, ...], other: int, moments: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        paths_ = (self.source, *self.turns)

        def camera(index: int, frames: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            path = paths_[index]
            return (
                self.views[index].depth[list(frames)],
                torch.tensor(path.c2w[list(frames)], dtype=torch.float32),
                torch.tensor(path.intrinsics[list(frames)], dtype=torch.float32),
            )

        moved = torch.stack([motions(self.scene, a / RATE, b / RATE) for a, b in zip(at, moments, strict=True)])
        return correspondence(
            *camera(one, at), *camera(other, moments), self.views[one].objects[list(at)], moved, tolerance=0.03
        )


def camera_cases(count: int, size: int) -> Iterator[CameraCase]:
    """The first `count` scenes from FIRST_SEED on whose turns share enough that the source never saw."""
    seed = FIRST_SEED
    while count:
        case = _camera_case(seed, LOOK)
        seed += 1
        if case is None:
            continue
        pixels = len(TIMES) * len(TIMES) * LOOK * LOOK
        pairs = ((0, 1), (0, 2), (1, 2))
        if all(sum(int(mask.sum()) for *_, mask in case.shared(*pair)) >= SHARED * pixels for pair in pairs):
            count -= 1
            yield CameraCase(case.scene, case.source, case.turns, size)


def _camera_case(seed: int, size: int) -> CameraCase | None:
    random = np.random.default_rng([seed, 0xC0])
    scene = random_scene(seed)
    [source] = paths(scene, seed, 1, 16, RATE, 1.0)
    start, side = source.c2w[0], float(random.choice([-1.0, 1.0]))
    far = math.radians(random.uniform(30, 42))
    beside = side * random.uniform(0.2, 0.5)
    turns = [Trajectory(compose(start, path), source.intrinsics[0]) for path in _turns(side * far, beside)]
    if not all(free(scene, turn.c2w[:, :, 3]) for turn in turns):
        return None
    return CameraCase(scene, source, tuple(turns), size)


def _turns(far: float, beside: float) -> list[np.ndarray]:
    """Local poses (16, 3, 4) of four turns to one side: a pan by `far` radians; one from `beside` (metres) that starts
    further round; a return from there; the pan again."""
    share = np.linspace(0, 1, 16)
    pan = _turned(share * far, np.zeros(16), np.zeros(16))
    other = _turned(far * (0.45 + 0.6 * share), beside * np.ones(16), 0.3 * share)
    back = _turned(far * (1.1 - share), beside * 0.5 * (1 - share), -0.2 * share)
    return [pan, other, back, pan]


@dataclass(frozen=True, eq=False)
class FootageCase:
    """A segment of a real video and turns like those of a `CameraCase`. The camera is taken to stand still with the
    usual lens; nobody knows what turns should show. frames (16, H, W, 3) uint8."""

    frames: np.ndarray
    source: Trajectory
    turns: tuple[Trajectory, ...]


def footage_case(url: str, size: int, far: float = 0.5, beside: float = 0.3) -> FootageCase:
    """The middle of the picture, a square of `size` pixels a side, about RATE frames per second from the first frame
    on."""
    video = probe(url)
    every = max(1, round(float(video.rate) / RATE))
    scale = size / min(video.height, video.width)
    height, width = (max(size, round(side * scale)) for side in (video.height, video.width))
    frames = read_frames(url, 0, 16 * every, (height, width))[::every]
    top, left = (height - size) // 2, (width - size) // 2
    lens = default_intrinsics(1.0)
    turns = tuple(Trajectory(path, lens) for path in _turns(far, beside))
    return FootageCase(frames[:, top : top + size, left : left + size].copy(), Trajectory.static(16, lens), turns)


def _turned(yaw: np.ndarray, right: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """(T, 3, 4) local poses: radians to the right, metres to the right and ahead."""
    cos, sin, zero, one = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    rows = [[cos, zero, sin, right], [zero, one, zero, zero], [-sin, zero, cos, ahead]]
    return np.moveaxis(np.array([[np.broadcast_to(v, yaw.shape) for v in row] for row in rows]), -1, 0)


@dataclass(frozen=True, eq=False)
class TextCase:
    """A clip of SEGMENTS segments and its edit. mask (T, H, W) bool: where the edited thing is, after the edit."""

    edit: PairedEdit
    path: Trajectory
    source: torch.Tensor
    wanted: torch.Tensor
    mask: torch.Tensor


def text_cases(count: int, size: int) -> Iterator[TextCase]:
    """The first `count` scenes whose edit gives a thing another look that shows in every segment."""
    seed = FIRST_SEED + (1 << 20)
    while count:
        scene, frames = random_scene(seed), 16 * SEGMENTS
        [path] = paths(scene, seed, 1, frames, RATE, 1.0)
        edit = seen_edit(scene, seed, path, RATE)
        seed += 1
        if edit.kind not in ("recolour", "retexture", "replace"):
            continue
        small = film(edit.scene, path, LOOK).objects == edit.thing + 1
        if small.unflatten(0, (SEGMENTS, 16)).float().mean((1, 2, 3)).min() < 0.02:
            continue
        count -= 1
        wanted = film(edit.scene, path, size)
        yield TextCase(edit, path, film(scene, path, size).frames, wanted.frames, wanted.objects == edit.thing + 1)
