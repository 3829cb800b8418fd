"""Procedural scenes, ray cast in torch: a textured room, things standing in it and one thing that moves.

A scene is a handful of unit cubes and unit balls, each scaled, turned about the vertical and moved to its place; so one
intersection routine serves all of them and rays stay straight. Axes are those of a camera (x right, y down, z forward),
units metres, and the world is the frame of the camera at rest in `render_clip`. Everything follows from the seed.

    frames = render_clip(frames=48, height=192, width=256, seed=0)  # (48, 192, 256, 3) uint8

Letters in shapes: P primitives, V views, R rays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .trajectory import Trajectory, default_intrinsics

FRAMES_PER_SECOND = 24
BALL, CUBE = 0, 1
CHECKS, STRIPES, MARBLE, PLANKS = range(4)
LIGHT_SIZE = 0.45  # metres: half the edge of the square lamp; its extent is what makes the shadows soft


@dataclass(frozen=True, eq=False)
class Scene:
    """Primitives as columns; the first is the room, a cube seen from inside.

    shape (P,) BALL or CUBE; centre (P, 3); size (P, 3) half extents; turn (P,) radians about the vertical;
    sway (P, 3) amplitude of a periodic motion, zero for what stands still; texture (P,); colours (P, 2, 3) in 0..1;
    scale (P,) periods of the texture per metre; light (3,) centre of the lamp.
    """

    shape: torch.Tensor
    centre: torch.Tensor
    size: torch.Tensor
    turn: torch.Tensor
    sway: torch.Tensor
    texture: torch.Tensor
    colours: torch.Tensor
    scale: torch.Tensor
    light: torch.Tensor

    def at(self, time: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Centres (P, 3) and local-to-world rotations (P, 3, 3) at a time in seconds; motions repeat every 4 s."""
        phase = 2 * math.pi * time / 4
        # side to side, bouncing four times on the way, towards and away
        motion = torch.tensor([math.sin(phase), -abs(math.sin(2 * phase)), math.cos(phase)])
        turn = self.turn + phase * (self.sway[:, 0] != 0)
        zero, one = torch.zeros_like(turn), torch.ones_like(turn)
        rows = [turn.cos(), zero, turn.sin(), zero, one, zero, -turn.sin(), zero, turn.cos()]
        return self.centre + self.sway * motion, torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def room(seed: int) -> Scene:
    """A furnished room: floor 1.2 m below the camera, walls at 2.6 m, back wall at 6 m."""
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=random))

    floor = 1.2
    places = torch.tensor([[-1.75, 4.9], [1.7, 5.0], [0.1, 5.3], [-1.0, 4.2], [1.1, 4.1]])
    places = (places + 0.24 * (torch.rand(5, 2, generator=random) - 0.5))[torch.randperm(5, generator=random)]
    things = [(BALL, (2.6, 1.4, 4.0), (0.0, -0.2, 2.0), 0.0, (0.0, 0.0, 0.0))]
    for number, (x, z) in enumerate(places.tolist()):
        if number < 3:
            half = (uniform(0.25, 0.42), uniform(0.25, 0.7), uniform(0.25, 0.42))
        else:
            half = (uniform(0.28, 0.42),) * 3
        turn = uniform(-0.7, 0.7)
        things.append((CUBE if number < 3 else BALL, half, (x, floor - half[1], z), turn, (0.0, 0.0, 0.0)))
    things.append((BALL, (0.22,) * 3, (0.0, floor - 0.22, 3.4), 0.0, (1.15, 0.55, 0.2)))

    count = len(things)
    # hues a golden ratio apart never sit close together; the second colour of a texture is a darker relative
    hue = (uniform(0, 1) + torch.arange(count) * 0.618) % 1
    first = _colour(hue, saturation=0.62, value=0.9)
    second = _colour((hue + 0.07) % 1, saturation=0.75, value=0.5)
    first[0], second[0] = torch.tensor([0.93, 0.89, 0.82]), torch.tensor([0.80, 0.72, 0.62])
    texture = torch.randint(0, 3, (count,), generator=random)
    texture[0] = PLANKS
    return Scene(
        shape=torch.tensor([CUBE] + [thing[0] for thing in things[1:]]),
        centre=torch.tensor([thing[2] for thing in things]),
        size=torch.tensor([thing[1] for thing in things]),
        turn=torch.tensor([thing[3] for thing in things]),
        sway=torch.tensor([thing[4] for thing in things]),
        texture=texture,
        colours=torch.stack([first, second], dim=1),
        scale=torch.tensor([1.0] + [uniform(2.0, 3.5) for _ in things[1:]]),
        light=torch.tensor([uniform(-1.0, 1.0), -1.45, 2.6]),
    )


def render(
    scene: Scene, trajectory: Trajectory, times: np.ndarray, height: int, width: int, samples: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Colour (V, H, W, 3) in 0..1 and depth along the optical axis (V, H, W) in metres, one view per camera and time.

    samples: per pixel and axis; each of them looks at its own spot of the lamp. Depth is that of the first sample,
    never a mixture of two surfaces.
    """
    colours, depths = [], []
    for c2w, intrinsics, time in zip(trajectory.c2w, trajectory.intrinsics, times, strict=True):
        pose = torch.tensor(c2w, dtype=torch.float32)
        directions = _directions(intrinsics, height * samples, width * samples) @ pose[:, :3].T
        colour, distance = _shade(scene, pose[:, 3], directions.reshape(-1, 3), float(time), samples, width * samples)
        colour = colour.view(height, samples, width, samples, 3).mean(dim=(1, 3))
        colours.append(colour.clamp(0, 1) ** (1 / 2.2))
        depths.append(distance.view(height, samples, width, samples)[:, 0, :, 0])
    return torch.stack(colours), torch.stack(depths)


def render_clip(frames: int = 48, height: int = 192, width: int = 256, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8, 24 frames per second: the room `seed` filmed by a camera that stands still."""
    camera = Trajectory.static(frames, default_intrinsics(width / height))
    colour, _ = render(room(seed), camera, np.arange(frames) / FRAMES_PER_SECOND, height, width)
    return colour.mul(255).round().to(torch.uint8).numpy()


def _directions(intrinsics: np.ndarray, height: int, width: int) -> torch.Tensor:
    """(H, W, 3) through the pixels' centres with z = 1, so that distances along them are depths."""
    fx, fy, cx, cy = (float(each) for each in intrinsics)
    x = ((torch.arange(width) + 0.5) / width - cx) / fx
    y = ((torch.arange(height) + 0.5) / height - cy) / fy
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def _distances(
    scene: Scene,
    centre: torch.Tensor,
    rotation: torch.Tensor,
    origins: torch.Tensor,
    directions: torch.Tensor,
    first: int,
) -> torch.Tensor:
    """(P - first, R) multiples of `directions` (3, R) at which each primitive is met in front of `origins` (3, R or 1).

    Infinite where never. Components come first here: reductions over a trailing axis of three are several times slower.
    """
    hits = []
    for index in range(first, len(scene.shape)):
        # in the primitive's own frame it is a unit ball or cube, and the multiple stays what it was
        to_local = rotation[index].T / scene.size[index, :, None]
        o = to_local @ (origins - centre[index, :, None])
        d = to_local @ directions
        if scene.shape[index] == BALL:
            a, b, c = (d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - 1
            root = b * b - a * c
            near = (-b - root.clamp(min=0).sqrt()) / a
            hit = root > 0
        else:
            inverse = 1 / d
            middle, half = -o * inverse, inverse.abs()
            entry, leave = (middle - half).amax(0), (middle + half).amin(0)
            near = leave if index == 0 else entry
            hit = entry < leave
        hits.append(torch.where(hit & (near > 1e-3), near, torch.inf))
    return torch.stack(hits)


def _shade(
    scene: Scene, origin: torch.Tensor, directions: torch.Tensor, time: float, samples: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear colour (R, 3) and distance (R,) of rays from one origin, in rows of `stride`."""
    centre, rotation = scene.at(time)
    distance, index = _distances(scene, centre, rotation, origin[:, None], directions.T.contiguous(), 0).min(dim=0)
    points = origin + distance[:, None] * directions
    local = torch.einsum("ri,rij->rj", points - centre[index], rotation[index])
    unit = local / scene.size[index]
    axis = F.one_hot(unit.abs().argmax(-1), 3) * unit.sign()
    normal = torch.where((scene.shape[index] == BALL)[:, None], unit / scene.size[index], axis)
    normal[index == 0] *= -1
    normal = F.normalize(torch.einsum("rij,rj->ri", rotation[index], normal), dim=-1)

    # The samples of a pixel look at different parts of the lamp, those of its neighbour in between: soft shadows
    # for one ray per sample, and a fixed pattern, so nothing flickers.
    place = torch.arange(len(points))
    row, column = (
        (each % samples + each // samples % 2 / 2 + 0.25) / samples for each in (place // stride, place % stride)
    )
    lamp = scene.light + LIGHT_SIZE * torch.stack([2 * column - 1, torch.zeros(len(place)), 2 * row - 1], dim=-1)
    towards = lamp - points
    start = points + 2e-3 * normal
    shadows = _distances(scene, centre, rotation, start.T.contiguous(), towards.T.contiguous(), 1)
    blocked = (shadows < 1).any(dim=0)
    reach = towards.norm(dim=-1)
    facing = (normal * towards).sum(-1).clamp(min=0) / reach
    direct = torch.where(blocked, 0, facing) * 5.5 / (1 + 0.35 * reach**2)
    sky = 0.30 + 0.12 * -normal[:, 1]
    albedo = _albedo(scene, index, local, unit) ** 2.2
    return albedo * (sky + direct)[:, None] * 0.62, distance


def _albedo(scene: Scene, index: torch.Tensor, local: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """(R, 3) solid textures, evaluated at a primitive's own coordinates so that they move with it."""
    x, y, z = (local * scene.scale[index, None]).unbind(-1)
    wave = (2.1 * x + torch.sin(3.7 * y)).sin() + (2.9 * z + torch.sin(2.3 * x + 1)).sin() + (3.1 * y - 1.7 * z).sin()
    checks = ((x.floor() + y.floor() + z.floor()) % 2).clamp(0, 1)
    stripes = 0.5 + 0.5 * torch.tanh(4 * torch.sin(2 * math.pi * (y + 0.35 * x)))
    marble = 0.5 + 0.5 * torch.sin(3 * x + 2.2 * wave)
    # the room: boards on the floor, broad soft panels on the walls, a plain ceiling
    board = (x / 0.42).floor()
    grain = 0.5 + 0.2 * torch.sin(board * 12.9898) + 0.12 * torch.sin(9 * z + 5 * torch.sin(board * 4.1) + 2 * wave)
    gap = ((x / 0.42 - board) < 0.05) | (((z / 1.7 + board * 0.37) % 1) < 0.014)
    panel = 0.25 + 0.25 * torch.tanh(6 * torch.sin(2 * math.pi * (x + z) / 1.3)) + 0.05 * wave
    on_floor, on_ceiling = unit[:, 1] > 0.999, unit[:, 1] < -0.999
    planks = torch.where(on_floor, torch.where(gap, 1.6, 0.55 + grain), torch.where(on_ceiling, 0.0, panel))
    mix = torch.stack([checks, stripes, marble, planks])[scene.texture[index], torch.arange(len(index))]
    first, second = scene.colours[index].unbind(1)
    return (first + (second - first) * mix[:, None]).clamp(0.02, 1)


def _colour(hue: torch.Tensor, saturation: float, value: float) -> torch.Tensor:
    """(P, 3) RGB of hues in 0..1."""
    ramp = ((hue[:, None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6).clamp(0, 6)
    weight = torch.minimum(ramp, 4 - ramp).clamp(0, 1)
    return value - value * saturation * weight
