"""Scenes: what is rendered is exact, follows from its seed, and edits do what their words say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.scenes import (
    SKY,
    Light,
    Material,
    Motion,
    Scene,
    Thing,
    Views,
    free,
    paired_edit,
    paths,
    pose,
    random_scene,
    render,
    render_clip,
    seen_edit,
)  # fmt: skip
from pipeline.scenes.paired_edit import KINDS, seen_edits
from pipeline.scenes.random_scene import WORDS
from pipeline.scenes.scene import SHAPES, TEXTURES
from pipeline.scenes.textures import mixture
from pipeline.trajectory import Trajectory, default_intrinsics

LENS = default_intrinsics(4 / 3)
HALF = (3.0, 1.5, 4.0)
GREY = Material("plain", ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))
LAMP = Light((0.0, -1.2, 0.0))


def room(*things: Thing, light: Light = LAMP) -> Scene:
    return Scene(HALF, (GREY,) * 6, things, light)


def ball(centre: tuple[float, float, float], radius: float = 0.5, motion: Motion | None = None) -> Thing:
    red = Material("plain", ((0.9, 0.1, 0.1), (0.4, 0.0, 0.0)))
    return Thing("ball", "red", red, centre, (radius,) * 3, motion=motion or Motion())


def seen(
    scene: Scene, path: Trajectory, height: int = 48, width: int = 64, rate: float = 24.0, samples: int = 1
) -> Views:
    """What a camera sees, without the axes of scenes: colour (T, H, W, 3), depth and objects (T, H, W)."""
    views = render(
        [scene], torch.tensor(path.c2w, dtype=torch.float32)[None],
        torch.tensor(path.intrinsics, dtype=torch.float32)[None], torch.arange(len(path))[None] / rate,
        height, width, samples,
    )  # fmt: skip
    return Views(views.colour[0], views.depth[0], views.objects[0])


def standing(place: tuple[float, float, float] = (0, 0, 0), yaw: float = 0.0, pitch: float = 0.0) -> Trajectory:
    return Trajectory(pose(np.array(place, float), yaw, pitch)[None], LENS)


def rays(height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3) through the pixels' middles, of length 1 along the axis."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return np.stack([(x - LENS[2]) / LENS[0], (y - LENS[3]) / LENS[1], np.ones_like(x)], axis=-1)


# ---- seeds


def test_a_clip_repeats_and_its_seed_decides_it() -> None:
    clip = render_clip(frames=3, height=24, width=32, seed=0)
    assert clip.shape == (3, 24, 32, 3) and clip.dtype == np.uint8
    assert np.array_equal(clip, render_clip(frames=3, height=24, width=32, seed=0))
    assert not np.array_equal(clip, render_clip(frames=3, height=24, width=32, seed=1))


def test_a_longer_clip_begins_as_the_shorter_one() -> None:
    assert np.array_equal(render_clip(8, 24, 32)[:6], render_clip(6, 24, 32))


def test_a_scene_looks_the_same_whatever_else_is_rendered_with_it() -> None:
    scenes = [random_scene(seed) for seed in (1, 2)]
    views = [[torch.tensor(path.c2w).float() for path in paths(scene, 1, 3, 1, 24, 4 / 3)] for scene in scenes]
    lens = torch.tensor(LENS).float().expand(2, 3, 4)
    together = render(scenes, torch.stack([torch.cat(each) for each in views]), lens, torch.zeros(2, 3), 24, 32)
    alone = render(scenes[1:], views[1][2][None], lens[1:, 2:], torch.zeros(1, 1), 24, 32)
    assert torch.equal(together.colour[1, 2], alone.colour[0, 0])
    assert torch.equal(together.depth[1, 2], alone.depth[0, 0])


def test_scenes_of_other_seeds_differ_and_all_kinds_of_things_occur() -> None:
    scenes = [random_scene(seed) for seed in range(60)]
    assert len({scene.half for scene in scenes if scene.indoors}) == sum(scene.indoors for scene in scenes) > 20
    assert sum(not scene.indoors for scene in scenes) > 5
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES) and {thing.word for thing in things} == set(WORDS)
    assert any(each.motion.swing for each in things) and any(each.motion.spin for each in things)
    for scene in scenes:
        assert len({(each.word, each.shape) for each in scene.things}) == len(scene.things), "an ambiguous name"


def test_pictures_are_neither_dull_nor_burnt() -> None:
    clips = np.stack([render_clip(1, 24, 32, seed)[0] for seed in range(20)]).astype(float)
    assert 80 < clips.mean() < 170
    assert (clips.reshape(20, -1).std(axis=1) > 10).all()
    assert (clips.min(axis=-1) == 255).mean() < 0.02


# ---- depth


def test_depth_is_the_distance_to_a_wall_along_the_axis_also_off_it() -> None:
    views = seen(room(), standing())
    wall = np.abs(rays()[..., :2] * HALF[2]) < np.array(HALF[:2])
    expected = torch.full((int(wall.all(-1).sum()),), HALF[2])
    assert len(expected) > 100
    assert torch.allclose(views.depth[0][torch.tensor(wall.all(-1))], expected, atol=1e-5)
    ahead = seen(room(), standing((0, 0, 0.75)))
    assert torch.allclose(ahead.depth[0, 20:28, 20:44], torch.tensor(HALF[2] - 0.75), atol=1e-5)


def test_a_ray_at_right_angles_to_an_axis_has_a_depth_too() -> None:
    views = seen(room(), standing(), height=3, width=5)  # odd sizes: the middle ray goes straight ahead
    assert views.depth[0, 1, 2] == HALF[2] and torch.isfinite(views.depth).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_depth_of_things_is_that_of_their_equations(shape: str) -> None:
    thing = Thing(shape, "red", GREY, (0.2, 0.1, 2.5), (0.5, 0.7, 0.4), turn=0.3)
    views = seen(room(thing), standing())
    hit = views.objects[0].numpy() == 1
    assert 50 < hit.sum() < hit.size
    points = (rays() * views.depth[0].numpy()[..., None])[hit] - thing.centre
    cos, sin = math.cos(0.3), math.sin(0.3)
    x, y, z = (points @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) / thing.size).T
    surface = {
        "ball": x**2 + y**2 + z**2,
        "box": np.maximum(np.maximum(abs(x), abs(y)), abs(z)),
        "cylinder": np.maximum(np.hypot(x, z), abs(y)),
    }[shape]
    assert np.allclose(surface, 1, atol=1e-4)


def test_outdoors_the_sky_has_no_depth_and_the_ground_has() -> None:
    seed = next(seed for seed in range(50) if not random_scene(seed).indoors)
    scene = Scene(random_scene(seed).half, random_scene(seed).walls, (), random_scene(seed).light)
    views = seen(scene, standing())
    assert torch.equal(views.objects[0] == SKY, torch.isinf(views.depth[0]))
    down = rays()[..., 1]
    ground = views.objects[0].numpy() == 0
    assert (ground <= (down > 0)).all() and ground[-1].all()
    assert np.allclose(views.depth[0].numpy()[ground], scene.half[1] / down[ground], rtol=1e-5)


def test_several_samples_smooth_colours_and_mix_no_depths() -> None:
    scene = room(ball((0, 0, 2.0)))
    one, four = seen(scene, standing(), samples=1), seen(scene, standing(), samples=2)
    assert len(four.colour[0].flatten(0, 1).unique(dim=0)) > len(one.colour[0].flatten(0, 1).unique(dim=0))
    edges = torch.cat([four.depth[0][four.objects[0] == 1], four.depth[0][four.objects[0] == 0]])
    assert not ((edges > 2.3) & (edges < 3)).any(), "a depth between the ball and the wall"


# ---- light and motion


def test_what_the_lamp_does_not_reach_is_darker() -> None:
    light = Light((0.0, -1.4, 0.0), ambient=(0.3,) * 3)
    bare, with_ball = (
        seen(room(*things, light=light), standing((0, 0, -3.5))) for things in ([], [ball((0, 0.2, 0), 0.6)])
    )
    both = (bare.objects[0] == 0) & (with_ball.objects[0] == 0)
    change = bare.colour[0].float().mean(-1)[both] - with_ball.colour[0].float().mean(-1)[both]
    assert (change >= 0).all() and (change > 20).float().mean() > 0.01


def test_things_move_as_their_motion_says_and_all_else_stands_still() -> None:
    swaying = ball((0, 0.8, 2.5), 0.4, Motion(sway=(0.6, 0.0, 0.0), period=4.0))
    path = Trajectory.static(3, LENS)
    views = seen(room(swaying), path, rate=1.0)  # at 0, a quarter and half of the period
    columns = [float((each == 1).nonzero()[:, 1].float().mean()) for each in views.objects]
    shift = 0.6 / 2.5 * LENS[0] * 64
    assert columns[1] - columns[0] == pytest.approx(shift, abs=0.8)
    assert columns[2] == pytest.approx(columns[0], abs=0.2)
    centres, rotations = random_scene(3).at(torch.linspace(0, 9, 7))
    still = [i for i, each in enumerate(random_scene(3).things) if each.motion == Motion()]
    assert still and (centres[:, still] == centres[:1, still]).all()
    assert torch.allclose(rotations @ rotations.transpose(-1, -2), torch.eye(3), atol=1e-5)


def test_a_pendulum_hangs_from_its_top_end_whatever_way_it_is_turned() -> None:
    thing = Thing("box", "red", GREY, (0.3, 0.4, 2.0), (0.2, 0.6, 0.2), 0.7, Motion(swing=0.5))
    centres, rotations = room(thing).at(torch.linspace(0, 4, 9))
    top = centres[:, 0] + rotations[:, 0] @ torch.tensor([0.0, -0.6, 0.0])
    assert torch.allclose(top, torch.tensor([0.3, 0.4 - 0.6, 2.0]), atol=1e-6)
    assert (centres[:, 0] - centres[:1, 0]).abs().max() > 0.1


def test_every_texture_shows_two_shades() -> None:
    at = torch.rand(3, 2000, generator=torch.Generator().manual_seed(0)) * 6 - 3
    for texture in TEXTURES[1:]:
        share = mixture(texture, *at)
        assert isinstance(share, torch.Tensor) and 0 <= share.min() < 0.5 <= share.max() <= 1, texture
    with pytest.raises(ValueError, match="unknown texture 'tartan'"):
        mixture("tartan", *at)


# ---- cameras


def test_cameras_stay_clear_of_walls_and_things_and_see_some_of_what_the_source_sees() -> None:
    for seed in range(15):
        scene = random_scene(seed)
        cameras = paths(scene, seed, 6, 12, 12.0, 4 / 3)
        assert all(free(scene, each.c2w[:, :, 3]) for each in cameras), f"seed {seed}"
        looks = np.stack([each.c2w[0, :, 2] for each in cameras])
        assert (looks @ looks[0] > 0).all(), f"seed {seed}: a camera looks away"
        assert np.array_equal(cameras[1].c2w[0], cameras[0].c2w[0]), "camera 1 starts where the source does"


def test_more_cameras_leave_the_first_ones_as_they_are() -> None:
    few, many = (paths(random_scene(4), 4, count, 8, 12.0, 1.0) for count in (2, 6))
    assert all(np.array_equal(a.c2w, b.c2w) for a, b in zip(few, many, strict=False))


def test_a_clip_may_have_a_single_frame() -> None:
    assert all(len(each) == 1 for seed in range(10) for each in paths(random_scene(seed), seed, 6, 1, 12.0, 1.0))


# ---- edits


def test_edits_repeat_and_all_kinds_occur() -> None:
    edits = [paired_edit(random_scene(7), seed) for seed in range(150)]
    assert edits[:20] == [paired_edit(random_scene(7), seed) for seed in range(20)]
    assert {each.kind for each in edits} >= set(KINDS)
    assert len({each.instruction for each in edits}) > 40


def test_an_edit_changes_what_its_words_say_and_nothing_else() -> None:
    for seed in range(150):
        scene = random_scene(seed % 10)
        edit = paired_edit(scene, seed)
        before, after = list(scene.things), list(edit.scene.things)
        assert (edit.scene.half, edit.scene.walls) == (scene.half, scene.walls)
        assert (edit.scene.light != scene.light) == (edit.kind in ("light", "weather"))
        if edit.thing < 0:
            assert before == after
            continue
        touched = (after if edit.kind != "remove" else before)[edit.thing]
        if edit.kind == "add":
            after.remove(touched)
        elif edit.kind == "remove":
            before.remove(touched)
        else:
            old = before.pop(edit.thing)
            after.pop(edit.thing)
            assert f"{old.word} {old.shape}" in edit.instruction
            assert old.motion == touched.motion
            if edit.kind == "recolour":
                assert touched.word in edit.instruction and old.shape == touched.shape and old.centre == touched.centre
            elif edit.kind == "retexture":
                assert touched.material.texture in edit.instruction
        assert before == after, edit.instruction
        assert touched.shape in edit.instruction


def test_pixels_change_only_where_the_edited_thing_or_its_shadow_is() -> None:
    scene = room(ball((-0.7, 0.8, 2.2)), Thing("box", "blue", GREY, (0.9, 1.0, 2.6), (0.4, 0.5, 0.4)))
    edit = next(edit for edit in (paired_edit(scene, seed) for seed in range(99)) if edit.kind == "recolour")
    a, b = (seen(each, standing()) for each in (scene, edit.scene))
    changed = (a.colour != b.colour).any(-1)
    assert changed.any() and (a.objects[changed] == edit.thing + 1).all()
    assert torch.equal(a.depth, b.depth) and torch.equal(a.objects, b.objects)


def test_edits_that_are_filmed_can_be_seen() -> None:
    shown = 0
    for seed in range(20):
        scene = random_scene(seed)
        [camera] = paths(scene, seed, 1, 5, 12.0, 1.0)
        edit = seen_edit(scene, seed, camera, 12.0)
        a, b = (seen(each, camera, 32, 32, 12.0).colour[[0, 2, 4]].int() for each in (scene, edit.scene))
        shown += bool(((a - b).abs().amax(-1) > 24).float().mean() >= 0.015)
    assert shown >= 19


def test_edits_drawn_together_are_those_drawn_one_by_one() -> None:
    for number in range(3):
        scene = random_scene(number)
        [camera] = paths(scene, number, 1, 5, 12.0, 1.0)
        seeds = [7, 3, 7, 1 << 30]
        assert list(seen_edits(scene, seeds, camera, 12.0)) == [seen_edit(scene, each, camera, 12.0) for each in seeds]
