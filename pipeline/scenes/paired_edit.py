"""Edits of scenes with the words that ask for them. What the words leave open is drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.trajectory import Trajectory

from .random_scene import PATTERNS, WORDS, random_material, random_thing
from .render import render
from .scene import SHAPES, Colour, Light, Material, Scene, Thing

KINDS = ("recolour", "retexture", "add", "remove", "replace", "light")
SHARES = (0.45, 0.15, 0.1, 0.08, 0.07, 0.15)

# How it is asked for: the thing first, then what it becomes.
PHRASES: dict[str, tuple[str, ...]] = {
    "recolour": ("make the {} {}", "paint the {} {}", "turn the {} {}", "change the {} to {}"),
    "retexture": ("make the {} {}", "give the {} a {} look"),
    "add": ("add a {}", "put a {} on the floor", "place a {} there"),
    "remove": ("remove the {}", "take the {} away", "delete the {}"),
    "replace": ("replace the {} with a {}", "turn the {} into a {}"),
}
LIGHTS = ("make it night", "make it evening", "dim the light", "add fog", "make it snow")
NIGHT, EVENING, DIM, FOG, SNOW = LIGHTS
_ALL = " ".join((*LIGHTS, *(each for kind in PHRASES.values() for each in kind))).replace("{}", " ")
VOCABULARY = tuple(sorted({*_ALL.split(), *WORDS, *SHAPES, *PATTERNS}))

LOOK = 32  # pixels a side of the pictures in which it is looked for
SEEN = 0.015  # share of them that an edit must change to be worth filming
DRAWS = 12


@dataclass(frozen=True)
class PairedEdit:
    """kind: of KINDS, or "weather". thing: index among the scene's things that is touched, in the scene after the edit
    ("remove": before it); -1 where all of the picture is."""

    kind: str
    instruction: str
    scene: Scene
    thing: int


def paired_edit(scene: Scene, seed: int) -> PairedEdit:
    """An edit of the scene. Nothing else of it changes. Its seed leaves the scene's own randomness alone."""
    random = np.random.default_rng([seed, 0xED17])
    kind = str(random.choice(KINDS, p=SHARES))
    if not scene.things and kind != "light":
        kind = "add"
    if kind == "light":
        return _light(scene, random)
    if kind == "add":
        shape, word = str(random.choice(SHAPES)), str(random.choice(list(WORDS)))
        added = random_thing(random, scene, list(scene.things), shape, word)
        if added is not None:
            texture = "" if random.random() < 0.6 else str(random.choice(PATTERNS)) + " "
            material = random_material(random, word, texture.strip() or "plain")
            things = (*scene.things, replace(added, material=material))
            words = str(random.choice(PHRASES[kind]))
            after = replace(scene, things=things)
            return PairedEdit(kind, words.format(f"{texture}{word} {shape}"), after, len(things) - 1)
        kind = "recolour"
    index = int(random.integers(len(scene.things)))
    thing = scene.things[index]
    name = f"{thing.word} {thing.shape}"
    if kind == "remove":
        things = scene.things[:index] + scene.things[index + 1 :]
        words = str(random.choice(PHRASES[kind]))
        return PairedEdit(kind, words.format(name), replace(scene, things=things), index)
    if kind == "replace":
        shape = str(random.choice([each for each in SHAPES if each != thing.shape]))
        floor = scene.half[1]
        tall = thing.size[0] if shape == "ball" else float(random.uniform(0.3, 0.7))
        word = _other(random, thing.word)
        new = replace(
            thing, shape=shape, word=word, material=random_material(random, word),
            size=(thing.size[0], tall, thing.size[0]), centre=(thing.centre[0], floor - tall, thing.centre[2]),
        )  # fmt: skip
        words = str(random.choice(PHRASES[kind]))
        return PairedEdit(kind, words.format(name, f"{word} {shape}"), _with(scene, index, new), index)
    if kind == "retexture":
        texture = str(random.choice([each for each in PATTERNS if each != thing.material.texture]))
        fresh = random_material(random, thing.word, texture)
        material = Material(texture, (thing.material.colours[0], fresh.colours[1]), fresh.scale)
        words = str(random.choice(PHRASES[kind]))
        return PairedEdit(
            kind, words.format(name, texture), _with(scene, index, replace(thing, material=material)), index
        )
    word = _other(random, thing.word)
    new = replace(thing, word=word, material=random_material(random, word, thing.material.texture))
    words = str(random.choice(PHRASES["recolour"]))
    return PairedEdit("recolour", words.format(name, word), _with(scene, index, new), index)


def seen_edit(scene: Scene, seed: int, camera: Trajectory, rate: float) -> PairedEdit:
    """The first of the edits drawn from the seed that shows in the camera's first, middle and last picture together;
    where none of a dozen does, the last: words for what is out of sight teach nothing."""
    return next(seen_edits(scene, [seed], camera, rate))


def seen_edits(scene: Scene, seeds: Iterable[int], camera: Trajectory, rate: float) -> Iterator[PairedEdit]:
    """`seen_edit` of every seed."""
    frames = [0, len(camera) // 2, len(camera) - 1]
    view = (
        torch.tensor(camera.c2w[frames], dtype=torch.float32)[None],
        torch.tensor(camera.intrinsics[frames], dtype=torch.float32)[None],
        torch.tensor(frames)[None] / rate,
    )
    before = render([scene], *view, LOOK, LOOK).colour.int()
    for seed in seeds:
        draw = np.random.default_rng([seed, 0x5EE])
        for _ in range(DRAWS):
            edit = paired_edit(scene, int(draw.integers(1 << 31)))
            change = (render([edit.scene], *view, LOOK, LOOK).colour.int() - before).abs().amax(-1) > 24
            if change.float().mean() >= SEEN:
                break
        yield edit


def _other(random: np.random.Generator, word: str) -> str:
    return str(random.choice([each for each in WORDS if each != word]))


def _with(scene: Scene, index: int, thing: Thing) -> Scene:
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))


def _light(scene: Scene, random: np.random.Generator) -> PairedEdit:
    """Another time of day, and outdoors other weather; how dark, how thick and which tint is left open."""
    light, dim = scene.light, float(random.uniform(0.3, 0.5))

    def tinted(red: float, green: float, blue: float) -> Light:
        def by(colour: Colour) -> Colour:
            return colour[0] * red, colour[1] * green, colour[2] * blue

        high, low = light.sky
        return replace(light, ambient=by(light.ambient), sky=(by(high), by(low)), colour=by(light.colour))

    choices: dict[str, Light] = {
        NIGHT: tinted(0.35 * dim, 0.42 * dim, 1.1 * dim),
        EVENING: tinted(1.1, float(random.uniform(0.55, 0.7)), float(random.uniform(0.3, 0.45))),
        DIM: tinted(dim, dim, dim),
    }
    if not scene.indoors:
        choices[FOG] = replace(light, fog=float(random.uniform(0.15, 0.35)), power=0.4 * light.power)
        choices[SNOW] = replace(light, snow=float(random.uniform(0.8, 1.0)), fog=float(random.uniform(0.0, 0.05)))
    instruction = str(random.choice(list(choices)))
    kind = "weather" if instruction in (FOG, SNOW) else "light"
    return PairedEdit(kind, instruction, replace(scene, light=choices[instruction]), -1)
