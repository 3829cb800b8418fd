"""Scenes and their views as two tables of numbers: cheap to make, to hand to another process and to render on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .scene import SHAPES, TEXTURES, Material, Scene
from .views import Views

THINGS = 12  # at most, of a scene
CAMERA, PLACE = 16, 15  # numbers of a view: of its camera, and of each thing in it
MATERIAL = 8
LIGHT = 24  # numbers of a scene before its things' shapes and its materials
STATIC = LIGHT + THINGS + (THINGS + 6) * MATERIAL


class Packed(NamedTuple):
    """views (V, CAMERA + THINGS PLACE) and scenes (S, STATIC) float32; which (V,) int32: the scene of a view."""

    views: torch.Tensor
    scenes: torch.Tensor
    which: torch.Tensor

    @classmethod
    def of(cls, parts: Sequence[Packed]) -> Packed:
        """All of them one after another."""
        before, which = 0, []
        for each in parts:
            which.append(each.which + before)
            before += len(each.scenes)
        views, scenes = torch.cat([each.views for each in parts]), torch.cat([each.scenes for each in parts])
        return cls(views, scenes, torch.cat(which))

    def to(self, device: torch.device | str) -> Packed:
        return Packed(*(each.to(device) for each in self))


def pack(scene: Scene, c2w: torch.Tensor, intrinsics: torch.Tensor, times: torch.Tensor) -> Packed:
    """One scene's views: c2w (V, 3, 4), intrinsics (V, 4), times (V,), all on the CPU. Raises ValueError for too many
    things."""
    if len(scene.things) > THINGS:
        raise ValueError(f"scene {scene.seed} has {len(scene.things)} things, expected at most {THINGS}")
    count = len(times)
    views = torch.zeros(count, CAMERA + THINGS * PLACE)
    views[:, 0:3], views[:, 3:12] = c2w[:, :, 3], c2w[:, :, :3].flatten(1)
    views[:, 12:16] = intrinsics
    if scene.things:
        centres, rotations = scene.at(times.float())
        sizes = torch.tensor([each.size for each in scene.things]).expand(count, -1, -1)
        places = torch.cat([centres, rotations.flatten(2), sizes], dim=2).flatten(1)
        views[:, CAMERA : CAMERA + places.shape[1]] = places
    light = scene.light
    numbers = [
        *scene.half, float(scene.indoors), float(light.sun), *light.position, *light.colour, light.power,
        *light.ambient, *light.sky[0], *light.sky[1], light.fog, light.snow, float(len(scene.things)),
    ]  # fmt: skip
    assert len(numbers) == LIGHT
    shapes = [float(SHAPES.index(each.shape)) for each in scene.things]
    numbers += shapes + [0.0] * (THINGS - len(shapes))
    for each in scene.things:
        numbers += _material(each.material)
    numbers += [0.0] * (MATERIAL * (THINGS - len(scene.things)))
    for wall in scene.walls:
        numbers += _material(wall)
    numbers += [0.0] * (STATIC - len(numbers))
    return Packed(views, torch.tensor([numbers]), torch.zeros(count, dtype=torch.int32))


def _material(material: Material) -> list[float]:
    first, second = material.colours
    return [float(TEXTURES.index(material.texture)), material.scale, *first, *second]


def cast(packed: Packed, scenes: int, height: int, width: int, samples: int) -> Views:
    """The views of so many scenes, as `render` gives them, on the tables' device, which is a GPU."""
    from .render_kernel import cast  # Triton comes with torch's builds for GPUs only

    pictures = cast(packed, height, width, samples)
    return Views(*(each.unflatten(0, (scenes, -1)) for each in pictures))
