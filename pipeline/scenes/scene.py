"""A scene as data: a room or an open ground, the things in it, how they move, and the light.

Axes are those of a camera (x right, y down, z forward), units metres, times seconds. The middle of the scene is the
origin, its floor is at y = `half[1]`. Every thing is one unit ball, cube or upright cylinder, scaled, turned about the
vertical and moved to its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

SHAPES = ("ball", "box", "cylinder")
TEXTURES = ("plain", "checkered", "striped", "dotted", "marbled", "boards")
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """colours: two shades, linear mixtures of which the texture shows, sRGB in 0..1. scale: periods per metre."""

    texture: str
    colours: tuple[Colour, Colour]
    scale: float = 2.0


@dataclass(frozen=True)
class Motion:
    """Periodic. sway (3,): metres from side to side, up (bouncing four times a period) and towards; spin: turns per
    period about the vertical; swing: radians to either side about a pivot at the top end, as a pendulum does."""

    sway: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spin: int = 0
    swing: float = 0.0
    period: float = 4.0
    phase: float = 0.0


@dataclass(frozen=True)
class Thing:
    """shape: one of SHAPES. word: its colour's name. centre, size (half extents): metres, at rest. turn: radians."""

    shape: str
    word: str
    material: Material
    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    turn: float = 0.0
    motion: Motion = Motion()

    @property
    def radius(self) -> float:
        """Of a ball round the centre to keep clear: it holds the thing but for the far end of a sway towards."""
        reach = math.dist((0, 0, 0), self.size) + math.dist((0, 0, 0), self.motion.sway)
        return reach + 2 * self.size[1] * abs(math.sin(self.motion.swing))


@dataclass(frozen=True)
class Light:
    """position: of the lamp, or of a sun far away. power: of the lamp, falling with distance unless it is a sun.
    ambient: what shadows keep, by channel. fog: per metre, towards the sky's colour. snow: 0..1, whitens what faces up.
    """

    position: tuple[float, float, float]
    colour: Colour = (1.0, 1.0, 1.0)
    power: float = 1.0
    ambient: Colour = (0.4, 0.4, 0.4)
    sun: bool = False
    sky: tuple[Colour, Colour] = ((0.45, 0.62, 0.85), (0.80, 0.86, 0.92))
    fog: float = 0.0
    snow: float = 0.0


@dataclass(frozen=True)
class Scene:
    """half: half extents of the room; of an open ground only the height counts. walls: materials of a room's faces
    -x, +x, ceiling, floor, -z, +z; of an open ground the ground's alone."""

    half: tuple[float, float, float]
    walls: tuple[Material, ...]
    things: tuple[Thing, ...]
    light: Light
    seed: int = field(default=0, compare=False)

    @property
    def indoors(self) -> bool:
        return len(self.walls) == 6

    def at(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Centres (V, P, 3) and local-to-world rotations (V, P, 3, 3) of the P things at times (V,)."""
        device = times.device

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        motions = [each.motion for each in self.things]
        period, phase = column([each.period for each in motions]), column([each.phase for each in motions])
        angle = 2 * math.pi * (times[:, None] / period + phase)  # (V, P)
        sway = column([value for each in motions for value in each.sway]).view(-1, 3)
        swing = column([each.swing for each in motions]) * angle.sin()
        way = torch.stack([angle.sin(), -(2 * angle).sin().abs(), angle.cos() - 1], dim=-1)
        height = column([each.size[1] for each in self.things])
        # a pendulum hangs from the top end of the thing at rest
        hang = torch.stack([-swing.sin() * height, (swing.cos() - 1) * height, torch.zeros_like(swing)], dim=-1)
        centre = column([value for each in self.things for value in each.centre]).view(-1, 3) + sway * way
        turn = column([each.turn for each in self.things]) + angle * column([float(each.spin) for each in motions])
        cos, sin, zero, one = turn.cos(), turn.sin(), torch.zeros_like(turn), torch.ones_like(turn)
        about_y = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=-1).unflatten(-1, (3, 3))
        cos, sin = swing.cos(), swing.sin()
        about_z = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=-1).unflatten(-1, (3, 3))
        return centre + (about_y @ hang[..., None])[..., 0], about_y @ about_z
