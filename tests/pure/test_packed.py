"""Scenes as tables of numbers: what they say is what the scene says, and many fit in one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scenes import Filming, Scene, filmed, paired_edit, paths, random_scene, takes
from pipeline.scenes.packed import CAMERA, LIGHT, MATERIAL, PLACE, STATIC, THINGS, Packed, pack
from pipeline.scenes.scene import SHAPES, TEXTURES
from pipeline.training.rendered import described

TIMES = torch.arange(3) / 12.0


def packed(scene: Scene) -> tuple[Packed, torch.Tensor, torch.Tensor]:
    """The scene as a camera sees it in three frames, with the camera's poses and intrinsics."""
    [path] = paths(scene, scene.seed, 1, 3, 12.0, 1.0)
    c2w, intrinsics = (torch.tensor(each, dtype=torch.float32) for each in (path.c2w, path.intrinsics))
    return pack(scene, c2w, intrinsics, TIMES), c2w, intrinsics


def test_views_hold_the_camera_and_where_each_thing_is_at_that_time() -> None:
    scene = random_scene(3)
    tables, c2w, intrinsics = packed(scene)
    assert tables.views.shape == (3, CAMERA + THINGS * PLACE) and tables.views.dtype == torch.float32
    assert torch.equal(tables.views[:, :3], c2w[:, :, 3]) and torch.equal(tables.views[:, 12:16], intrinsics)
    assert torch.equal(tables.views[:, 3:12].unflatten(1, (3, 3)), c2w[:, :, :3])
    centres, rotations = scene.at(TIMES)
    places = tables.views[:, CAMERA:].unflatten(1, (THINGS, PLACE))
    count = len(scene.things)
    assert count and not places[:, count:].any()
    assert torch.equal(places[:, :count, :3], centres)
    assert torch.equal(places[:, :count, 3:12].unflatten(2, (3, 3)), rotations)
    assert torch.equal(places[0, :count, 12:], torch.tensor([each.size for each in scene.things]))


@given(st.integers(0, 2**31 - 1))
def test_a_scene_can_be_read_from_its_table_whatever_is_edited(seed: int) -> None:
    scene = paired_edit(random_scene(seed), seed).scene
    tables, _, _ = packed(scene)
    assert tables.scenes.shape == (1, STATIC) and tables.which.tolist() == [0, 0, 0]
    numbers, count, light = tables.scenes[0], len(scene.things), scene.light
    told = [*scene.half, scene.indoors, light.sun, *light.position, *light.colour, light.power, *light.ambient]
    assert torch.equal(numbers[: len(told)], torch.tensor([float(each) for each in told]))
    assert torch.equal(numbers[LIGHT - 3 : LIGHT], torch.tensor([light.fog, light.snow, float(count)]))
    assert [SHAPES[int(each)] for each in numbers[LIGHT : LIGHT + count]] == [each.shape for each in scene.things]
    materials = numbers[LIGHT + THINGS :].unflatten(0, (THINGS + 6, MATERIAL))
    for row, material in [
        *enumerate(each.material for each in scene.things), *enumerate(scene.walls, start=THINGS)
    ]:  # fmt: skip
        first, second = material.colours
        assert TEXTURES[int(materials[row, 0])] == material.texture
        assert torch.equal(materials[row, 1:], torch.tensor([material.scale, *first, *second]))


def test_packed_together_every_view_still_knows_its_scene() -> None:
    parts = [packed(random_scene(seed))[0] for seed in range(4)]
    nested = Packed.of([parts[0], Packed.of(parts[1:3]), parts[3]])
    assert all(map(torch.equal, nested, Packed.of(parts)))
    assert nested.which.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] and nested.which.dtype == torch.int32
    for index, (view, scene) in enumerate(zip(nested.views, nested.which, strict=True)):
        assert torch.equal(nested.scenes[scene], parts[index // 3].scenes[0])
        assert torch.equal(view, parts[index // 3].views[index % 3])


def test_a_scene_of_too_many_things_is_refused_with_its_seed() -> None:
    scene = random_scene(5)
    most = replace(scene, things=(scene.things * THINGS)[:THINGS])
    assert packed(most)[0].scenes[0, LIGHT - 1] == THINGS
    with pytest.raises(ValueError, match=f"scene {scene.seed} has 13 things, expected at most 12"):
        packed(replace(scene, things=(*most.things, scene.things[0])))


def test_an_empty_scene_has_walls_alone() -> None:
    tables, _, _ = packed(replace(random_scene(5), things=()))
    assert not tables.views[:, CAMERA:].any() and tables.scenes[0, LIGHT + THINGS + THINGS * MATERIAL :].any()


def test_for_a_gpu_a_scenes_takes_are_described_one_after_another_by_numbers_alone() -> None:
    filming = Filming(16, 16, 5, 2, 2, 1, (12.0,), ("depth",), 1, "CC0-1.0")
    shots = list(takes(1, filming))
    tables = described(shots, filming, "cuda")
    assert isinstance(tables, Packed) and tables.scenes.shape == (filming.clips, STATIC)
    assert tables.which.tolist() == [number for number in range(filming.clips) for _ in range(5)]
    for number, take in enumerate(shots):
        centres = torch.tensor(take.trajectory.c2w[:, :, 3], dtype=torch.float32)
        assert torch.equal(tables.views[5 * number : 5 * number + 5, :3], centres)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs a GPU")
def test_the_kernel_shows_what_the_renderer_shows():
    filming = Filming(48, 48, 8, 2, 3, 1, (12.0,), ("depth",), 2, "CC0-1.0")
    for take in takes(0, filming):
        plain, fast = filmed(take, filming), filmed(take, filming, "cuda")
        assert (fast.objects.cpu() == plain.objects).float().mean() > 0.999
        assert ((fast.colour.cpu().int() - plain.colour.int()).abs() > 3).float().mean() < 1e-3
        assert torch.allclose(fast.depth.cpu(), plain.depth, rtol=1e-3)
