"""Scenes at random: every number follows from the seed."""

from __future__ import annotations

import colorsys
import math

import numpy as np

from .scene import SHAPES, Colour, Light, Material, Motion, Scene, Thing

# What a colour word means: ranges of hue (turns), saturation and value, wide enough that a word leaves the shade open.
WORDS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-0.02, 0.015), (0.8, 1.0), (0.65, 1.0)),
    "orange": ((0.06, 0.085), (0.85, 1.0), (0.85, 1.0)),
    "yellow": ((0.135, 0.165), (0.75, 1.0), (0.85, 1.0)),
    "green": ((0.28, 0.40), (0.65, 1.0), (0.45, 0.9)),
    "cyan": ((0.48, 0.53), (0.6, 1.0), (0.75, 1.0)),
    "blue": ((0.58, 0.65), (0.7, 1.0), (0.55, 1.0)),
    "purple": ((0.74, 0.79), (0.6, 0.95), (0.5, 0.85)),
    "pink": ((0.88, 0.93), (0.4, 0.6), (0.9, 1.0)),
    "white": ((0.0, 1.0), (0.0, 0.05), (0.92, 1.0)),
    "grey": ((0.0, 1.0), (0.0, 0.06), (0.4, 0.55)),
    "black": ((0.0, 1.0), (0.0, 0.2), (0.04, 0.12)),
    "brown": ((0.05, 0.075), (0.6, 0.75), (0.35, 0.48)),
}
PATTERNS = ("checkered", "striped", "dotted", "marbled")


def random_scene(seed: int) -> Scene:
    """A room (7 of 10) or an open ground with four to eight things, told apart by colour and shape."""
    random = np.random.default_rng([seed, 0x5CE])
    indoors = random.random() < 0.7
    half = (float(random.uniform(2.2, 3.4)), float(random.uniform(1.2, 1.6)), float(random.uniform(2.4, 3.6)))
    if not indoors:
        half = (5.0, float(random.uniform(1.1, 1.5)), 5.0)
    scene = Scene(half, _walls(random, indoors), (), _light(random, indoors, half), seed)
    things: list[Thing] = []
    for number in range(int(random.integers(4, 9))):
        moving = number < int(random.integers(0, 3))
        thing = random_thing(random, scene, things, moving=moving)
        if thing is not None:
            things.append(thing)
    return Scene(scene.half, scene.walls, tuple(things), scene.light, seed)


def random_thing(
    random: np.random.Generator,
    scene: Scene,
    others: list[Thing],
    shape: str | None = None,
    word: str | None = None,
    moving: bool = False,
) -> Thing | None:
    """A thing on the floor, apart from the others in place and in name; None where no place was found."""
    taken = {(each.word, each.shape) for each in others}
    x, floor, z = scene.half
    if not scene.indoors:
        x, z = 2.6, 2.6
    for _ in range(30):
        kind = shape or str(random.choice(SHAPES))
        name = word or str(random.choice(list(WORDS)))
        if (name, kind) in taken:
            continue
        wide = float(random.uniform(0.22, 0.48))
        tall = wide if kind == "ball" else float(random.uniform(0.25, 0.85))
        size = (wide, tall, wide if kind != "box" else float(random.uniform(0.22, 0.48)))
        motion = _motion(random) if moving else Motion()
        place = random.uniform(-1, 1, 2) * (x - 0.6, z - 0.6)
        centre = (float(place[0]), floor - tall - (0.3 if motion.swing else 0.0), float(place[1]))
        thing = Thing(
            kind, name, random_material(random, name), centre, size, float(random.uniform(-0.8, 0.8)), motion,
        )  # fmt: skip
        apart = all(
            math.dist(centre[::2], each.centre[::2]) > 0.55 * (thing.radius + each.radius) + 0.1 for each in others
        )
        if apart:
            return thing
    return None


def random_material(random: np.random.Generator, word: str, texture: str | None = None) -> Material:
    """A material that its colour's word describes: plain, or with a pattern whose other shade is darker or lighter."""
    first = random_colour(random, word)
    if texture is None:
        texture = "plain" if random.random() < 0.45 else str(random.choice(PATTERNS))
    bright = sum(first) / 3
    other: Colour
    if bright > 0.4:
        other = tuple(float(each * random.uniform(0.25, 0.45)) for each in first)  # type: ignore[assignment]
    else:
        other = tuple(float(each + (1 - each) * random.uniform(0.5, 0.75)) for each in first)  # type: ignore[assignment]
    return Material(texture, (first, other), float(random.uniform(1.3, 2.6)))


def random_colour(random: np.random.Generator, word: str) -> Colour:
    """sRGB of one of the shades that the word names."""
    hue, saturation, value = (float(random.uniform(*each)) for each in WORDS[word])
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)


def _walls(random: np.random.Generator, indoors: bool) -> tuple[Material, ...]:
    """Faces differ in colour and pattern, so that it shows whether what lies behind the camera is remembered."""
    if not indoors:
        hue = float(random.choice([0.09, 0.13, 0.25, 0.30, 0.06]))
        ground = colorsys.hsv_to_rgb(hue, random.uniform(0.25, 0.6), random.uniform(0.45, 0.75))
        dark = tuple(0.6 * each for each in ground)
        texture = str(random.choice(["marbled", "checkered", "boards", "dotted"]))
        return (Material(texture, (ground, dark), float(random.uniform(0.5, 1.1))),)  # type: ignore[arg-type]
    walls, hue = [], random.random()
    for face in range(6):
        hue = (hue + 0.618 / 2 + random.uniform(-0.05, 0.05)) % 1
        light = colorsys.hsv_to_rgb(hue, random.uniform(0.15, 0.65), random.uniform(0.6, 0.95))
        dark = colorsys.hsv_to_rgb(
            (hue + random.uniform(-0.08, 0.08)) % 1, random.uniform(0.3, 0.8), random.uniform(0.3, 0.6)
        )
        texture = str(random.choice(["plain", "striped", "checkered", "dotted", "marbled", "boards"]))
        if face == 2:
            texture, light = "plain", (0.9, 0.9, 0.88)
        walls.append(Material(texture, (light, dark), float(random.uniform(0.6, 1.5))))
    return tuple(walls)


def _light(random: np.random.Generator, indoors: bool, half: tuple[float, float, float]) -> Light:
    warm = random.uniform(-0.12, 0.12)
    colour = (1 + warm, 1.0, 1 - warm)
    if indoors:
        place = (
            float(random.uniform(-0.5, 0.5) * half[0]),
            -0.85 * half[1],
            float(random.uniform(-0.5, 0.5) * half[2]),
        )
        ambient = float(random.uniform(0.32, 0.5))
        return Light(place, colour, float(random.uniform(0.8, 1.2)), (ambient,) * 3)
    angle, up = random.uniform(0, 2 * math.pi), random.uniform(0.4, 1.1)
    place = (
        float(80 * math.cos(angle) * math.cos(up)),
        float(-80 * math.sin(up)),
        float(80 * math.sin(angle) * math.cos(up)),
    )
    high = colorsys.hsv_to_rgb(random.uniform(0.54, 0.62), random.uniform(0.3, 0.7), random.uniform(0.6, 0.95))
    return Light(place, colour, float(random.uniform(0.7, 1.0)), (0.36, 0.38, 0.42), True, (high, (0.85, 0.88, 0.92)))


def _motion(random: np.random.Generator) -> Motion:
    kind, period, phase = random.integers(3), float(random.uniform(2.5, 5)), float(random.random())
    if kind == 0:  # to and fro
        angle = random.uniform(0, 2 * math.pi)
        reach = random.uniform(0.4, 0.9)
        sway = (float(reach * math.cos(angle)), float(random.choice([0.0, 0.35])), float(0.5 * reach * math.sin(angle)))
        return Motion(sway, 0, 0.0, period, phase)
    if kind == 1:
        return Motion((0.0, 0.0, 0.0), 1, 0.0, period, phase)
    return Motion((0.0, 0.0, 0.0), 0, float(random.uniform(0.3, 0.6)), period, phase)
