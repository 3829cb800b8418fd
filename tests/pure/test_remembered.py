"""What memories show is a surface, too: it agrees with the source's, goes on from it, and is met where that is not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pipeline import transformer
from pipeline.agreement import MadeUp, leading
from pipeline.conditioning import ConditioningVideo
from pipeline.copying import MEMORY, sights
from pipeline.memory_pipeline import MemoryVideo
from pipeline.remembered import EVERY, FARTHEST_OFF, remembered
from pipeline.surface import Met, first
from pipeline.trajectory import default_intrinsics, preset
from tests.generated import moving_frames
from tests.rays import DIM, FRAMES, SIZE, camera, head, video
from tests.tiny import build_tiny


def wall(metres: float, x: float = 0.0, latent: torch.Tensor | None = None):
    seen = video(camera(x, 0.0, 0.0), latent)
    return replace(seen, surface=torch.full((1, FRAMES, SIZE, SIZE), math.log(metres)))


def said(metres: float) -> torch.Tensor:
    return torch.full((1, FRAMES, SIZE, SIZE), math.log(metres))


def network(says: torch.Tensor):
    """One that says so, of as many frames as it is asked of."""
    return lambda shown, lens: says[:, : shown.shape[2]]


@pytest.mark.parametrize("mistake", [0.6, 1.0, 2.0])
def test_what_the_source_sees_lies_where_it_says_and_the_rest_goes_on_from_there(mistake):
    found = remembered(network(said(4.0 * mistake)), video(camera(1.5, 0.0, 0.0)), [wall(4.0)])
    assert (found - math.log(4.0)).abs().max() < 0.02


def half_known(top: float, bottom: float, metres: float = 4.0):
    """What the network says, off by these factors above and below, what comes of it, and which columns are known."""
    memory, known = video(camera(metres / 2, 0.0, 0.0)), [wall(metres)]
    own = said(metres)
    own[:, :, : SIZE // 2] += math.log(top)
    own[:, :, SIZE // 2 :] += math.log(bottom)
    there = remembered(network(own), memory, known)
    columns = ((there - math.log(metres)).abs() < 0.01).all(dim=(0, 1, 2))
    assert 0.3 < columns.float().mean() < 0.7 and columns[0] and not columns[-1]
    return own, there, int(columns.sum())


def test_beside_what_is_known_it_goes_on_from_that_by_what_it_is_off_there():
    own, there, border = half_known(0.7, 1.4)
    beside = slice(border, border + 3)
    for rows in (slice(4, 8), slice(SIZE - 8, SIZE - 4)):
        off, left = ((each[:, :, rows, beside] - math.log(4.0)).abs().mean() for each in (own, there))
        assert left < 0.4 * off


def test_a_great_mistake_is_carried_on_as_far_as_the_greatest():
    _, there, _ = half_known(1 / 20, 1 / 20, metres=60.0)
    assert abs(float(there[..., -1].mean()) - math.log(3.0) - FARTHEST_OFF) < 0.02


def test_rows_of_memories_are_as_alone():
    torch.manual_seed(0)
    own = said(3.0) + 0.3 * torch.randn(2, FRAMES, SIZE, SIZE)
    source = replace(video(camera(0.0, 0.0, 0.0, rows=2)), surface=torch.cat([said(2.0), said(6.0)]))
    memory = video(torch.cat([camera(1.6, 0.0, 0.0), camera(-5.0, 0.0, 0.0)]))
    together = remembered(network(own), memory, [source])
    for row in range(2):
        one, other = (
            ConditioningVideo(
                *(each[row : row + 1] for each in (whole.latent, whole.poses, whole.intrinsics, whole.times)),
                surface=None if whole.surface is None else whole.surface[row : row + 1],
            )
            for whole in (source, memory)
        )
        assert torch.allclose(together[row], remembered(network(own[row : row + 1]), other, [one])[0], atol=1e-5)


def test_without_anything_in_common_it_lies_where_the_network_says():
    found = remembered(network(said(5.0)), video(camera(500.0, 0.0, 0.0)), [wall(4.0)])
    assert torch.allclose(found, said(5.0), atol=1e-5)


def test_of_several_videos_the_first_that_is_met_tells():
    memory = video(camera(0.0, 0.0, 0.0))
    assert (remembered(network(said(1.0)), memory, [wall(3.0), wall(6.0)]) - math.log(3.0)).abs().max() < 0.02
    assert (remembered(network(said(1.0)), memory, [wall(3.0, 500.0), wall(6.0)]) - math.log(6.0)).abs().max() < 0.02


def test_what_the_network_gets_wrong_from_pixel_to_pixel_hardly_bends_what_is_made_up():
    torch.manual_seed(0)
    rough = (said(4.0).exp() * (1 + 0.2 * torch.randn(1, FRAMES, SIZE, SIZE)).clamp(0.5, 2)).log()
    found = remembered(network(rough), video(camera(500.0, 0.0, 0.0)), [wall(4.0)])
    assert found.std() < 0.4 * rough.std()


def test_the_network_is_asked_of_some_frames_and_what_it_says_of_those_between_is_between():
    memory, asked = video(camera(500.0, 0.0, 0.0, frames=10)), []

    def depths(shown: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        asked.append((shown, lens))
        return torch.tensor([1.0, 2.0, 4.0]).view(1, -1, 1, 1).log().expand(1, -1, SIZE, SIZE)

    source = replace(video(camera(0.0, 0.0, 0.0, frames=10)), surface=torch.zeros(1, 10, SIZE, SIZE))
    found = remembered(depths, memory, [source])
    [(shown, lens)] = asked
    assert torch.equal(shown, memory.latent[:, :, ::EVERY]) and torch.equal(lens, memory.intrinsics[:, ::EVERY])
    expected = math.log(2.0) * torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8]) / 4
    assert torch.allclose(found, expected.view(1, -1, 1, 1).expand_as(found), atol=1e-5)


def test_of_memories_the_first_that_a_ray_meets_is_shown():
    shows = [torch.full((1, 3, FRAMES, SIZE, SIZE), value) for value in (0.2, 0.5, 0.8)]
    places = (0.0, 1.5, 0.0)
    videos = [wall(4.0, x, latent) for x, latent in zip(places, shows, strict=True)]
    source, met, none = sights(video(camera(0.0, 0.0, 0.0)), videos)
    assert isinstance(source, Met) and isinstance(met, Met) and none is None
    assert source.by.shape[1] == 1 and met.by.shape[1] == 2 and met.meets.all()
    one, other = (by[:, None].expand_as(met.shown) for by in met.by.unbind(dim=1))
    assert 0 < one.float().mean() < 1 and torch.equal(other, ~one)
    assert (met.shown[one] - 0.5).abs().max() < 1e-5 and (met.shown[other] - 0.8).abs().max() < 1e-5


def copied(videos, logits: list[float], own: float) -> tuple[torch.Tensor, MadeUp, list[Met]]:
    """The sample in noise alone, what of it is made up, and what is met; candidates: of every video, then the own."""
    target, layer = video(camera(0.0, 0.0, 0.0)), head(videos=3)
    with torch.no_grad():
        layer.proj.bias.view(-1, 5)[:, :4] = torch.tensor(logits)
        said = layer.said(torch.zeros(1, (SIZE // 8) ** 2, DIM), (FRAMES, SIZE, SIZE))
        seen = sights(target, videos)
        made = torch.full_like(target.latent, own)
        sample, made_up = layer(made, *said, target.latent, torch.ones(1), seen, leading(target))
    return sample[0].transpose(0, 1), made_up, seen


def inner(mask: torch.Tensor) -> torch.Tensor:
    """Of (BT, 1, H, W) bool what lies three pixels and more from all that is not in it."""
    return torch.nn.functional.max_pool2d((~mask).float(), 7, 1, 3) == 0


def test_where_the_source_is_not_met_a_memory_is_likelier_than_the_network_says_and_nowhere_else():
    shows = [torch.full((1, 3, FRAMES, SIZE, SIZE), value) for value in (0.2, 0.5)]
    # The source shows the right part of the target, a memory the left and the middle.
    videos = [wall(4.0, 1.2, shows[0]), wall(6.0, -1.2, shows[1]), wall(5.0, 500.0)]
    sample, made_up, (source, memory, _) = copied(videos, [0.0, 0.0, 0.0, 0.0], own=0.9)
    both, one = inner(source.meets & memory.meets), inner(~source.meets & memory.meets)
    assert both.any() and one.any() and inner(~memory.meets).any()
    share = made_up.share[0].transpose(0, 1)
    likely = math.exp(MEMORY) / (math.exp(MEMORY) + 1)
    assert likely > 0.8
    for where, shown, invented in (
        (both, (0.2 + 0.5 + 0.9) / 3, 1 / 3),
        (one, 0.5 * likely + 0.9 * (1 - likely), 1 - likely),
        (inner(source.meets & ~memory.meets), (0.2 + 0.9) / 2, 1 / 2),
    ):
        assert (sample[where.expand_as(sample)] - shown).abs().max() < 0.01
        assert (share[where] - invented).abs().max() < 0.01
    depths = made_up.depths.log()
    for where, metres in ((inner(source.meets), 4.0), (one, 6.0)):
        cells = torch.nn.functional.max_pool2d((~where).float(), 2) == 0
        assert (depths[cells] - math.log(metres)).abs().max() < 0.03


def test_of_two_memories_that_are_met_the_one_that_is_shown_tells_how_likely_it_is():
    shows = [torch.full((1, 3, FRAMES, SIZE, SIZE), value) for value in (0.2, 0.5, 0.8)]
    videos = [wall(4.0, x, latent) for x, latent in zip((500.0, 0.0, 0.0), shows, strict=True)]
    for logits, shown in (([0.0, -20.0, 20.0, 0.0], 0.9), ([0.0, 20.0, -20.0, 0.0], 0.5)):
        sample, _, _ = copied(videos, logits, own=0.9)
        assert (sample - shown).abs().max() < 1e-3


def test_where_each_of_two_memories_shows_half_of_a_cell_that_is_shown():
    by = torch.zeros(1, 2, SIZE, SIZE, dtype=torch.bool)
    by[:, 0, ::2, ::2], by[:, 1, 1::2, 1::2] = True, True
    pixels = torch.zeros(1, 1, SIZE, SIZE)
    met = Met(pixels.expand(1, 3, -1, -1), by, pixels)
    assert met.mostly.all() and (met.shares == 0.25).all()
    assert not Met(met.shown, by[:, :1], pixels).mostly.any()


def test_one_video_is_met_as_it_is():
    [met] = sights(video(camera(0.3, 0.0, 0.0)), [wall(4.0)])
    assert first([met]) is met


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_an_edit_of_a_moving_camera_meets_its_memories_and_one_that_keeps_it_does_not(attention, monkeypatch):
    pipe = build_tiny()
    pipe.set_progress_bar_config(disable=True)
    given = []
    monkeypatch.setattr(transformer, "sights", lambda *a: given.append(a[1]) or sights(*a))
    source, arc = moving_frames(16, 16, 24), preset("arc_left", 16, default_intrinsics(24 / 16))
    made = pipe(source=source, target_trajectory=arc, attention=attention, generator=torch.Generator().manual_seed(0))
    beside = preset("arc_right", 16, default_intrinsics(24 / 16))
    past = [MemoryVideo(made.latents, arc), MemoryVideo(made.latents.flip(1), beside)]
    given.clear()
    for _ in range(2):
        pipe(
            source=source, target_trajectory=arc, memories=past, attention=attention,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    (one, memory, other), (_, again, _) = given
    assert memory.surface.shape == (1, 16, 16, 24) and torch.equal(memory.surface, again.surface)
    for shown, known in ((memory, [one]), (other, [one, memory])):
        assert torch.equal(shown.surface, remembered(pipe.transformer.depths, shown, known))
    given.clear()
    pipe(source=source, memories=past, prompt="make it night", attention=attention)
    assert all(each.surface is None for each in given[0] if each is not None)
