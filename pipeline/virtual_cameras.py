"""Virtual cameras inside real footage: they pan, tilt and zoom within the frame of the camera that filmed it.

A picture turned about its own centre of projection is a homography of it, whatever is in it and however far: so views
cut out of one frame have exact rotations and focal lengths between them, without a depth. They never travel. The world
is the filming camera's, frame by frame: where that one moves, the world does, for all views alike.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

from pipeline.trajectory import Trajectory, default_intrinsics

Array = NDArray[np.float64]
CAMERA_STREAM = 0x9A0
NARROWEST, WIDEST = 0.4, 0.85  # of the largest view that fits into the frame: what is left is room to turn
SAMPLES = 2  # per pixel and axis: frames come at the sharpness of the narrowest view, the widest has half of it


def least_width(aspect: float, frame_aspect: float, width: int) -> int:
    """Pixels that a frame must be wide for views of `width` and `aspect` not to be blown up."""
    return math.ceil(width / WIDEST * max(1.0, frame_aspect / aspect))


def virtual_cameras(
    seed: list[int], count: int, frames: int, rate: float, aspect: float, frame_aspect: float, sharpest: float
) -> list[Trajectory]:
    """`count` synchronised trajectories of `frames` poses that rotate about the filming camera's place and zoom; what
    they see lies inside its frame. The first, the source's, is still or hand-held; the others turn and zoom, some there
    and back again.

    rate: frames per second. aspect: width / height of the views; frame_aspect: of the footage, whose lens is taken to
    be `default_intrinsics`. sharpest: the narrowest that views may be, of the largest that fits: where pixels end.
    """
    random = np.random.default_rng([*seed, CAMERA_STREAM])
    frame = default_intrinsics(frame_aspect)
    fits = max(frame[0], frame[1] / aspect)  # focal length of the largest view, divided by its width
    narrowest = min(max(NARROWEST, sharpest), WIDEST)
    seconds = np.arange(frames) / rate
    result = []
    for number in range(count):
        start, stop = (_view(random, narrowest) for _ in range(2))
        if number == 0:
            view = np.tile(start, (frames, 1))
            if random.random() < 0.5:
                view[:, :2] += _shake(random, seconds)
        else:
            share = np.linspace(0.0, 1.0, frames)
            if random.random() < 0.3:  # and back to where it began
                share = 1 - np.abs(2 * share - 1)
            share = (share * share * (3 - 2 * share))[:, None]
            view = start + (stop - start) * share
            if random.random() < 0.5:
                view[:, :2] += 0.5 * _shake(random, seconds)
        result.append(_inside(view, fits, aspect, frame))
    return result


def cut_out(
    video: NDArray[np.uint8], path: Trajectory, frame_aspect: float, height: int, width: int
) -> NDArray[np.uint8]:
    """(T, height, width, 3) uint8: what a virtual camera sees of (T, h, w, 3) footage."""
    y, x = np.meshgrid(
        (np.arange(height * SAMPLES) + 0.5) / (height * SAMPLES),
        (np.arange(width * SAMPLES) + 0.5) / (width * SAMPLES),
        indexing="ij",
    )
    frame = default_intrinsics(frame_aspect)
    out = np.empty((len(video), height, width, 3), np.uint8)
    for number, picture in enumerate(video):
        at = _seen(path.c2w[number], path.intrinsics[number], frame, np.stack([x, y], axis=-1))
        grid = torch.tensor(2 * at - 1, dtype=torch.float32)[None]
        pixels = torch.tensor(picture, dtype=torch.float32).permute(2, 0, 1)[None]
        found = grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        mean = found.view(3, height, SAMPLES, width, SAMPLES).mean(dim=(2, 4))
        out[number] = mean.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return out


def _view(random: np.random.Generator, narrowest: float) -> Array:
    """(3,): yaw and pitch as shares of the room that there is, and how wide, of the largest view."""
    return np.array([*random.uniform(-1, 1, 2), random.uniform(narrowest, WIDEST)])


def _shake(random: np.random.Generator, seconds: Array) -> Array:
    """(T, 2) shares of the room: a hand that holds the camera."""
    waves = np.zeros((len(seconds), 2))
    for axis in range(2):
        for _ in range(2):
            speed, phase = 2 * math.pi * random.uniform(0.3, 1.4), random.uniform(0, 2 * math.pi)
            waves[:, axis] += random.uniform(0.02, 0.08) * (np.sin(speed * seconds + phase) - math.sin(phase))
    return waves


def _inside(view: Array, fits: float, aspect: float, frame: Array) -> Trajectory:
    """The path of (T, 3) views, its turns made smaller until all of every view lies inside the frame."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    focal = fits / view[:, 2]
    intrinsics = np.stack([focal, focal * aspect, np.full_like(focal, 0.5), np.full_like(focal, 0.5)], axis=-1)
    # How far the view's middle may go, in slopes; a turned view reaches further than this says, hence the loop.
    room = np.maximum(0.5 / frame[:2] - 0.5 / intrinsics[:, :2], 0.0)
    slopes = view[:, :2] * room
    while True:
        path = Trajectory(_turned(slopes), intrinsics)
        at = [_seen(pose, lens, frame, corners) for pose, lens in zip(path.c2w, intrinsics, strict=True)]
        if np.min(at) >= 0 and np.max(at) <= 1:
            return path
        slopes *= 0.93


def _turned(slopes: Array) -> Array:
    """(T, 3, 4) poses that look along (x, y, 1) of slopes (T, 2), without roll."""
    yaw = np.arctan(slopes[:, 0])
    pitch = np.arctan(slopes[:, 1] * np.cos(yaw))  # positive downwards
    c2w = np.zeros((len(slopes), 3, 4))
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    c2w[:, 0, 0], c2w[:, 0, 1], c2w[:, 0, 2] = cy, -sy * sp, sy * cp
    c2w[:, 1, 1], c2w[:, 1, 2] = cp, sp
    c2w[:, 2, 0], c2w[:, 2, 1], c2w[:, 2, 2] = -sy, -cy * sp, cy * cp
    return c2w


def _seen(pose: Array, lens: Array, frame: Array, places: Array) -> Array:
    """Where places (..., 2) of a view, 0 to 1 from edge to edge, lie in the frame, in the same measure."""
    rays = np.concatenate([(places - lens[2:]) / lens[:2], np.ones((*places.shape[:-1], 1))], axis=-1)
    turned = rays @ pose[:, :3].T
    seen: Array = turned[..., :2] / turned[..., 2:] * frame[:2] + frame[2:]
    return seen
