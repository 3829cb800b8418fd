"""How far away things are: the network, what it looks at, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pipeline.cameras import slopes
from pipeline.depths import TYPICAL, Depths
from pipeline.mini import build_mini, seeded
from pipeline.training.batch import Batch
from pipeline.training.network import EVERY, Network
from pipeline.training.objective import depths_off, loss, surface_error, varied
from pipeline.training.recipe import Recipe
from pipeline.training.samples import Draw
from pipeline.training.trainer import Trainer
from pipeline.training.tuning import takes_part
from pipeline.training.validation import validate

LENS = torch.tensor([1.0, 1.0, 0.5, 0.5])


def network(*widths: int, area: int = 16 * 16, channels: int = 3) -> Depths:
    """With random weights in its last layer, too."""
    with seeded(0):
        made = Depths(channels, widths or (8, 16), area)
    return made.eval()


def test_an_untrained_network_says_the_same_of_everything():
    made = network()
    made.initialise()
    with torch.no_grad():
        said = made(torch.randn(1, 3, 2, 16, 16), LENS.expand(1, 2, 4))
    assert torch.equal(said, torch.full((1, 2, 16, 16), TYPICAL))


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (8, 24), (40, 56), (6, 10), (96, 8)])
@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 8, 16, 24)])
def test_it_says_a_depth_of_every_pixel_of_pictures_of_any_size(size, widths):
    with torch.no_grad():
        said = network(*widths)(torch.randn(2, 3, 3, *size), LENS.expand(2, 3, 4))
    assert said.shape == (2, 3, *size) and said.dtype == torch.float32 and said.isfinite().all()


@pytest.mark.parametrize(("size", "seen"), [((64, 64), (16, 16)), ((8, 8), (16, 16)), ((24, 48), (12, 22))])
def test_pictures_of_all_sizes_are_looked_at_in_one_area(size, seen):
    made = network()
    shown, lens = torch.randn(1, 3, 1, *size, generator=torch.Generator().manual_seed(0)), LENS.expand(1, 1, 4)
    smooth = {"mode": "bilinear", "antialias": True}
    with torch.no_grad():
        said = made(shown, lens)
        small = made(torch.nn.functional.interpolate(shown[:, :, 0], seen, **smooth)[:, :, None], lens)
    assert torch.allclose(said, torch.nn.functional.interpolate(small, size, **smooth), atol=1e-5)


def test_rows_do_not_mix_and_frames_share_no_more_than_their_mean():
    made = network()
    shown, lens = torch.randn(2, 3, 4, 16, 16), LENS.expand(2, 4, 4)
    with torch.no_grad():
        both, one = made(shown, lens), made(shown[1:], lens[1:])
        backwards = made(shown.flip(2), lens)
        alone = made(shown[:, :, :1], lens[:, :1])
    assert torch.allclose(both[1:], one, atol=1e-5)
    assert torch.allclose(both.flip(1), backwards, atol=1e-5)
    assert not torch.allclose(both[:, :1], alone, atol=1e-3)


def test_it_is_told_the_lens():
    made = network()
    shown = torch.randn(1, 3, 1, 16, 16)
    with torch.no_grad():
        wide, long = (made(shown, (LENS * torch.tensor([far, far, 1, 1])).expand(1, 1, 4)) for far in (0.7, 1.4))
    assert not torch.allclose(wide, long, atol=1e-3)


def test_widths_that_do_not_divide_are_refused_and_models_that_do_not_copy_have_no_depths():
    with pytest.raises(ValueError, match=r"depth_widths must be multiples of 8, got \[8, 12\]"):
        Depths(3, (8, 12), 256)
    assert build_mini(transformer={"copied_videos": 0, "num_layers": 1}).transformer.depths is None


def test_the_error_is_that_of_depths_and_of_their_steps_and_nothing_where_nobody_knows():
    depths = torch.full((2, EVERY + 1, 8, 8), 2.0)
    depths[0, EVERY] = torch.inf
    depths[1, :, :, :4] = torch.nan
    said = torch.full((2, 2, 8, 8), math.log(4.0))
    off = depths_off(said, depths)
    assert torch.allclose(off[0, 0], torch.tensor(math.log(2.0)))
    assert torch.allclose(off[0, 1], torch.tensor(math.log(4.0) - math.log(100.0)))
    assert (off[1, :, :, :4] == 0).all()
    flat = (math.log(2) + math.log(25)) / 2
    # The second has an edge of log 2 in half of its errors, in one of seven steps and in two of six.
    edge = math.log(2) * (1 / 2 + (1 / 7 + 2 / 6) / 4)
    assert torch.allclose(surface_error(said, depths), torch.tensor([flat, edge]), atol=1e-5)


def batch(depths: torch.Tensor | None, clean: torch.Tensor) -> Batch:
    rows, frames = len(clean), clean.shape[2]
    poses = torch.eye(3, 4).expand(rows, frames, 3, 4)
    view = {
        "target_poses": poses, "target_intrinsics": LENS.expand(rows, frames, 4),
        "target_times": torch.arange(frames).expand(rows, -1) / 12,
    }  # fmt: skip
    draw = Draw("camera", frames, (), False, False, None, None)
    return Batch(draw, clean, None, depths, view, None, (), ("",) * rows, tuple(range(rows)))


def small_trainer(tune: str) -> Trainer:
    small = {"num_layers": 1, "ffn_dim": 32, "num_attention_heads": 2, "depth_widths": (8, 16), "depth_area": 256}
    recipe = Recipe(steps=100, warmup=1, adam_learning_rate=0.01, ema=0.5, text_dropout=0.0)
    return Trainer(Network(build_mini(transformer=small)), recipe, trainable=takes_part(tune))


def shades(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose brightness says how far away they are, and that."""
    away = 1 + 6 * torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(seed)).expand(4, 8, 16, 16)
    return away, (away.log() - TYPICAL)[:, None].expand(4, 3, 8, 16, 16).contiguous()


def test_rooms_are_varied_by_a_mirror_and_by_other_colours_and_are_rooms():
    rows, frames, size = 60, 2, (4, 6)
    random = torch.Generator().manual_seed(0)
    lens = torch.tensor([0.9, 1.1, 0.4, 0.6]).expand(rows, frames, 4)
    given = batch(
        1 + torch.rand(rows, frames, *size, generator=random), torch.rand(rows, 3, frames, *size, generator=random)
    )
    given.view["target_intrinsics"] = lens
    found = varied(given, random)

    def points(of: Batch) -> torch.Tensor:
        """Where what its pixels show is, (B, 3, T, H, W)."""
        across, down = slopes(of.view["target_intrinsics"], size, (1, 1), size)
        return torch.stack([across * of.depths, down * of.depths, of.depths], dim=1)

    there = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1, 1)
    kinds = []
    for row in range(rows):
        mirrored = not torch.equal(found.depths[row], given.depths[row])
        where, colours = points(given)[row], given.clean[row]
        if mirrored:
            where, colours = (where * there).flip(-1), colours.flip(-1)
        assert torch.allclose(points(found)[row], where, atol=1e-6)
        coloured = not torch.equal(found.clean[row], colours)
        assert torch.equal(found.clean[row].sort(dim=0).values, colours.sort(dim=0).values)
        kinds.append((mirrored, coloured))
    assert {kinds.count(each) > 5 for each in ((False, False), (False, True), (True, False), (True, True))} == {True}


def test_tuned_alone_it_learns_and_the_transformer_is_neither_asked_nor_moved(monkeypatch):
    trainer = small_trainer("depths")
    assert trainer.alone and all(name.startswith("transformer.depths.") for name in trainer.parameters)
    before = {name: each.clone() for name, each in trainer.network.named_parameters()}
    monkeypatch.setattr(type(trainer.pipe.transformer), "forward", None)
    losses = []
    for step in range(100):
        away, clean = shades(step)
        losses.append(trainer.train_step(batch(away, clean))["loss"])
    assert losses[-1] < 0.5 * losses[0]
    after = dict(trainer.network.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(trainer.parameters)


def test_trained_with_the_rest_every_part_learns_and_without_depths_there_is_nothing_to_learn():
    trainer = small_trainer("all")
    assert trainer.surface and not trainer.alone
    away, clean = shades(0)
    generator = torch.Generator().manual_seed(0)

    def learned(given: Batch) -> set[str]:
        loss(trainer.network, given, trainer.recipe, generator, shift=1.0, sample=True, surface=True).mean().backward()
        found = {name for name, each in trainer.parameters.items() if each.grad is not None and each.grad.any()}
        trainer._clear()
        return found

    with torch.no_grad():
        trainer.pipe.transformer.depths.leave.weight.normal_()  # behind zeros nothing learns in the first step
    depths = {name for name in trainer.parameters if name.startswith("transformer.depths.")}
    assert learned(batch(away, clean)) > depths and not learned(batch(None, clean)) & depths


def test_validation_says_by_how_much_depths_are_off_where_anybody_knows():
    trainer = small_trainer("depths")
    away, clean = torch.full((4, 8, 16, 16), math.exp(TYPICAL + 1)), shades(0)[1]
    half, nothing = away.clone(), torch.full_like(away, math.nan)
    half[..., 8:] = math.nan
    for given in ([away], [half], [away, half, nothing]):
        found = validate(trainer, [batch(each, clean) for each in given], 0.27)
        assert found["depths_off"] == pytest.approx(1.0, abs=1e-5)
    assert "depths_off" not in validate(trainer, [batch(nothing, clean)], 0.27)


@pytest.mark.parametrize("widths", [(8, 16), (24, 48, 96)])
def test_what_is_kept_for_the_way_back_is_about_as_much_as_said(widths):
    made, kept = network(*widths).train(), {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 4 and value.shape[2] > 3:  # no weights
            kept[value.data_ptr()] = (value, value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        made(torch.randn(2, 3, 3, 16, 16), LENS.expand(2, 3, 4))
    assert 0.7 < 6 * made.kept(16 * 16) / sum(size for _, size in kept.values()) < 1.3


def test_clips_without_depths_are_refused_where_nothing_else_is_learned():
    trainer = small_trainer("depths")
    given = replace(batch(*shades(0)), depths=None)
    with pytest.raises(ValueError, match="expected clips made with depth=true and depth_weight above 0"):
        trainer.train_step(given)
