"""What memories show is a surface, too: it agrees with the source's, goes on from it, and is met where that is not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pipeline import transformer
from pipeline.copying import sights
from pipeline.memory_pipeline import MemoryVideo
from pipeline.mini import build_mini, seeded
from pipeline.remembered import remembered
from pipeline.surface import Met, first
from pipeline.trajectory import default_intrinsics, preset
from tests.generated import moving_frames
from tests.rays import FRAMES, SIZE, camera, video


def wall(metres: float, x: float = 0.0, latent: torch.Tensor | None = None):
    seen = video(camera(x, 0.0, 0.0), latent)
    return replace(seen, surface=torch.full((1, FRAMES, SIZE, SIZE), math.log(metres)))


def said(metres: float) -> torch.Tensor:
    return torch.full((1, FRAMES, SIZE, SIZE), math.log(metres))


@pytest.mark.parametrize("mistake", [0.6, 1.0, 2.0])
def test_what_the_source_sees_lies_where_it_says_and_the_rest_goes_on_from_there(mistake):
    found = remembered(said(4.0 * mistake), video(camera(1.5, 0.0, 0.0)), [wall(4.0)])
    assert (found - math.log(4.0)).abs().max() < 0.02


def test_without_anything_in_common_it_lies_where_the_network_says():
    found = remembered(said(5.0), video(camera(500.0, 0.0, 0.0)), [wall(4.0)])
    assert torch.allclose(found, said(5.0), atol=1e-5)


def test_of_several_videos_the_first_that_is_met_tells():
    memory = video(camera(0.0, 0.0, 0.0))
    assert (remembered(said(1.0), memory, [wall(3.0), wall(6.0)]) - math.log(3.0)).abs().max() < 0.02
    assert (remembered(said(1.0), memory, [wall(3.0, 500.0), wall(6.0)]) - math.log(6.0)).abs().max() < 0.02


def test_what_the_network_gets_wrong_from_pixel_to_pixel_hardly_bends_what_is_made_up():
    torch.manual_seed(0)
    rough = (said(4.0).exp() * (1 + 0.2 * torch.randn(1, FRAMES, SIZE, SIZE)).clamp(0.5, 2)).log()
    found = remembered(rough, video(camera(500.0, 0.0, 0.0)), [wall(4.0)])
    assert found.std() < 0.4 * rough.std()


def test_of_memories_the_first_that_a_ray_meets_is_shown():
    shows = [torch.full((1, 3, FRAMES, SIZE, SIZE), value) for value in (0.2, 0.5, 0.8)]
    places = (0.0, 1.5, 0.0)
    videos = [wall(4.0, x, latent) for x, latent in zip(places, shows, strict=True)]
    source, met, none = sights(video(camera(0.0, 0.0, 0.0)), videos)
    assert isinstance(source, Met) and isinstance(met, Met) and none is None
    assert source.mostly.shape[1] == 1 and met.mostly.shape[1] == 2 and met.meets.all()
    one = met.mostly[:, :1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).expand_as(met.shown)
    assert 0 < one.float().mean() < 1
    assert ((met.shown - 0.5).abs() < 1e-5)[one].float().mean() > 0.9
    assert ((met.shown - 0.8).abs() < 1e-5)[~one].float().mean() > 0.9


def test_one_video_is_met_as_it_is():
    [met] = sights(video(camera(0.3, 0.0, 0.0)), [wall(4.0)])
    assert first([met]) is met


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_an_edit_of_a_moving_camera_meets_its_memories_and_one_that_keeps_it_does_not(attention, monkeypatch):
    pipe = build_mini(
        transformer={"num_layers": 1, "ffn_dim": 32, "num_attention_heads": 2, "depth_widths": (8, 16)},
        num_inference_steps=2, shift=1.0,
    )  # fmt: skip
    with seeded(0):
        torch.nn.init.normal_(pipe.transformer.depths.leave.weight, std=0.1)
    pipe.set_progress_bar_config(disable=True)
    given = []
    monkeypatch.setattr(transformer, "sights", lambda *a: given.append(a[1]) or sights(*a))
    source, arc = moving_frames(16, 16, 24), preset("arc_left", 16, default_intrinsics(24 / 16))
    made = pipe(source=source, target_trajectory=arc, attention=attention, generator=torch.Generator().manual_seed(0))
    past = [MemoryVideo(made.latents, arc)]
    given.clear()
    for _ in range(2):
        pipe(
            source=source, target_trajectory=arc, memories=past, attention=attention,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    (one, memory), (_, again) = given
    assert memory.surface.shape == (1, 16, 16, 24) and torch.equal(memory.surface, again.surface)
    own = pipe.transformer.depths(memory.latent, memory.intrinsics)
    assert torch.equal(memory.surface, remembered(own, memory, [one]))
    given.clear()
    pipe(source=source, memories=past, prompt="make it night", attention=attention)
    assert all(each.surface is None for each in given[0] if each is not None)
