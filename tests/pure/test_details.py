"""Details of what is made up: the network that paints them, what it is shown, where it paints, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.agreement import MadeUp, leading
from pipeline.details import Details, painted
from pipeline.lookup import CELL
from pipeline.mini import build_mini, seeded
from pipeline.training.network import Network
from pipeline.training.recipe import Recipe
from pipeline.training.softened import KNOWN, Softened, detail_error, softened
from pipeline.training.trainer import Trainer
from pipeline.training.tuning import takes_part
from pipeline.training.validation import validate
from pipeline.trajectory import Trajectory, default_intrinsics, preset
from tests.pure.test_depths import batch
from tests.rays import FRAMES, SIZE, camera, video
from tests.tiny import TINY_PIPELINE, TINY_TEXT, TINY_TRANSFORMER


def network(*widths: int) -> Details:
    """With random weights in its last layer, too."""
    with seeded(0):
        return Details(3, widths or (8, 16)).eval()


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("size", [(16, 16), (6, 10), (33, 8)])
@pytest.mark.parametrize("widths", [(8,), (8, 8, 16)])
def test_it_takes_pictures_of_any_size_and_untrained_says_the_mean_colour(size, widths):
    noisy, shown, share = torch.randn(2, 3, *size), torch.randn(2, 3, *size), torch.rand(2, 1, *size)
    sigma = torch.tensor([0.3, 0.9])
    made = network(*widths)
    with torch.no_grad():
        assert made(noisy, shown, share, sigma).isfinite().all()
        for each in (noisy + 1, share.sqrt(), sigma.flip(0)):  # all of which it is told
            other = [each if each.shape == was.shape else was for was in (noisy, share, sigma)]
            assert not torch.equal(made(other[0], shown, *other[1:]), made(noisy, shown, share, sigma))
        made.initialise()
        assert not made(noisy, shown, share, sigma).any()


def test_widths_that_do_not_divide_are_refused_and_models_that_do_not_copy_paint_nothing():
    with pytest.raises(ValueError, match=r"detail_widths must be multiples of 8, got \[8, 12\]"):
        network(8, 12)
    assert build_mini(transformer={"copied_videos": 0}).transformer.details is None


# What is painted.


def clip(share: torch.Tensor, depth: float = 3.0) -> tuple[torch.Tensor, MadeUp]:
    """A clip of a camera that stands still, and what of it is made up."""
    still = video(camera(0.0, 0.0, 0.0))
    depths = torch.full((FRAMES, 1, SIZE // CELL, SIZE // CELL), depth)
    sample = torch.randn(1, 3, 1, SIZE, SIZE, generator=seed(0)).expand(-1, -1, FRAMES, -1, -1).contiguous()
    return sample, MadeUp(share.expand(1, 1, FRAMES, SIZE, SIZE), depths, leading(still))


def test_what_is_not_made_up_stays_to_the_bit_and_the_rest_is_painted():
    share = torch.zeros(SIZE, SIZE)
    share[:, SIZE // 2 :] = 1.0
    sample, made_up = clip(share)
    with torch.no_grad():
        found = painted(network(), sample, made_up, seed(1))
    assert torch.equal(found[..., : SIZE // 2], sample[..., : SIZE // 2])
    assert (found[..., SIZE // 2 :] != sample[..., SIZE // 2 :]).float().mean() > 0.9


def test_frames_that_see_the_same_are_painted_alike():
    sample, made_up = clip(torch.ones(SIZE, SIZE))
    made = network()
    with torch.no_grad():
        made.leave.weight.mul_(0.2)  # what differs by far more than a unit is taken for another thing
        found = painted(made, sample, made_up, seed(1))
    inside = found[..., 1:-1, 1:-1]
    new = (inside - sample[..., 1:-1, 1:-1]).square().mean()
    assert (inside - inside[:, :, -1:]).square().mean() < 0.1 * new


def test_the_same_noise_paints_the_same_bits():
    sample, made_up = clip(torch.ones(SIZE, SIZE))
    with torch.no_grad():
        one, same, other = (painted(network(), sample, made_up, seed(number)) for number in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_clips_of_a_batch_are_painted_as_alone():
    sample = torch.randn(2, 3, FRAMES, SIZE, SIZE, generator=seed(0))
    share = torch.rand(2, 1, FRAMES, SIZE, SIZE, generator=seed(1))
    depths = 2 + torch.rand(2 * FRAMES, 1, SIZE // CELL, SIZE // CELL, generator=seed(2))
    targets = [video(camera(0.0, 0.0, 0.0)), video(camera(0.5, 0.0, 0.0))]
    views = {"poses": torch.cat([each.poses for each in targets]),
             "intrinsics": torch.cat([each.intrinsics for each in targets])}  # fmt: skip
    both = replace(targets[0], latent=sample, times=targets[0].times.expand(2, -1), **views)

    def brighter(noisy, shown, share, sigma):
        return shown + share

    found = painted(brighter, sample, MadeUp(share, depths, leading(both)))
    for row, target in enumerate(targets):
        own = MadeUp(share[row : row + 1], depths.unflatten(0, (2, -1))[row], leading(target))
        assert torch.allclose(found[row : row + 1], painted(brighter, sample[row : row + 1], own), atol=1e-5)
    assert not torch.allclose(found, sample, atol=0.01)


def test_what_a_callback_makes_of_the_last_step_is_the_result():
    pipe = build_mini(transformer=TINY_TRANSFORMER, text=TINY_TEXT, **TINY_PIPELINE)
    pipe.set_progress_bar_config(disable=True)
    lens = default_intrinsics(1.0)

    def blank(pipe, step, t, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    made = pipe(
        source=torch.randn(3, 16, 32, 32), source_trajectory=Trajectory.static(16, lens),
        target_trajectory=preset("pan_right", 16, lens), callback_on_step_end=blank,
    ).latents  # fmt: skip
    assert not made.any()


def test_an_edit_is_painted_where_the_camera_moves_and_nowhere_else():
    with seeded(1):
        pipe = build_mini(transformer=TINY_TRANSFORMER, text=TINY_TEXT, **TINY_PIPELINE)
        for each in (pipe.transformer.depths, pipe.transformer.details):
            torch.nn.init.normal_(each.leave.weight, std=0.1)
    pipe.set_progress_bar_config(disable=True)
    lens = default_intrinsics(1.0)
    still = Trajectory.static(16, lens)
    source = torch.randn(3, 16, 32, 32, generator=seed(0))

    def edit(target: Trajectory, **more) -> torch.Tensor:
        return pipe(source=source, source_trajectory=still, target_trajectory=target, generator=seed(3), **more).latents

    moves = (still, preset("pan_right", 16, lens))
    with_details = [edit(each) for each in moves]

    def interrupt(pipe, step, t, tensors):
        pipe._interrupt = True
        return {}

    interrupted = edit(moves[1], callback_on_step_end=interrupt)
    paints, pipe.transformer.details = pipe.transformer.details, None
    without = [edit(each) for each in moves]
    assert torch.equal(with_details[0], without[0]) and not torch.equal(with_details[1], without[1])
    assert torch.equal(interrupted, edit(moves[1], callback_on_step_end=interrupt)), "noise is not painted over"
    assert paints is not None


# What it learns from.


@given(count=st.integers(1, 4), height=st.integers(8, 40), width=st.integers(8, 40), number=st.integers(0, 999))
def test_pictures_are_soft_where_they_count_as_made_up_and_nowhere_else(count, height, width, number):
    clean = torch.randn(count, 3, height, width, generator=seed(number))
    noisy, shown, share, sigma = softened(clean, seed(number))
    assert share.shape == (count, 1, height, width) and share.min() >= 0 and share.max() <= 1
    assert (sigma > 0).all() and (sigma <= 1).all()
    off = (shown - clean).abs()
    assert (off <= 12 * share).all(), "a value of the picture and what its colour is missed by, at most"
    assert off[(share > 0.9).expand_as(off)].mean() > 0.01 if (share > 0.9).any() else True
    noise = (noisy - (1 - sigma.view(-1, 1, 1, 1)) * clean) / sigma.view(-1, 1, 1, 1)
    assert 0.5 < noise.std() < 1.5


def test_soft_parts_lie_to_either_side_of_most_pictures_and_some_are_bands():
    share = softened(torch.randn(200, 3, 24, 24, generator=seed(0)), seed(1)).share[:, 0]
    left, right = share[:, :, 0].mean(dim=1) > 0.5, share[:, :, -1].mean(dim=1) > 0.5
    kinds = [(left & ~right), (right & ~left), ~(left | right)]
    assert all(0.1 < each.float().mean() < 0.7 for each in kinds)
    part = share.mean(dim=(1, 2))
    assert ((part > 0.05) & (part < 0.95)).float().mean() > 0.8


def test_the_error_counts_where_pictures_were_made_soft_and_is_none_for_the_right_ones():
    clean = torch.randn(2, 3, 8, 8, generator=seed(0))
    share = torch.zeros(2, 1, 8, 8)
    share[..., 4:] = 1.0
    soft = Softened(clean, clean, share, torch.tensor([1.0, 0.5]))
    assert not detail_error(clean, clean, soft).any()
    made_up, known = (torch.where(share.bool() if part else ~share.bool(), clean + 1, clean) for part in (True, False))
    assert torch.allclose(
        detail_error(made_up, clean, soft) / detail_error(known, clean, soft), torch.tensor(1 + KNOWN) / KNOWN
    )
    less, more = detail_error(made_up, clean, soft)
    assert more > 3 * less, "what less noise hides weighs more"


STEPS = 200


def small_trainer(tune: str) -> Trainer:
    small = {"num_layers": 1, "ffn_dim": 32, "num_attention_heads": 2, "depth_widths": (8, 16), "depth_area": 256,
             "detail_widths": (8, 16)}  # fmt: skip
    recipe = Recipe(steps=STEPS, warmup=1, adam_learning_rate=0.004, ema=0.9, text_dropout=0.0)
    return Trainer(Network(build_mini(transformer=small)), recipe, trainable=takes_part(tune))


def edges(number: int) -> torch.Tensor:
    """(4, 3, 8, 16, 16): pictures of black and white with an upright edge between them."""
    at = torch.randint(4, 12, (4, 1, 1, 1, 1), generator=seed(number))
    return torch.where(torch.arange(16) < at, -1.0, 1.0).expand(4, 3, 8, 16, 16).contiguous()


def test_tuned_alone_it_learns_and_the_transformer_is_neither_asked_nor_moved(monkeypatch):
    trainer = small_trainer("details")
    assert trainer.alone and all(name.startswith("transformer.details.") for name in trainer.parameters)
    before = {name: each.clone() for name, each in trainer.network.named_parameters()}
    monkeypatch.setattr(type(trainer.pipe.transformer), "forward", None)
    held_out = [batch(None, edges(1000 + number)) for number in range(4)]
    first = validate(trainer, held_out, 0.27)
    for step in range(STEPS):
        trainer.train_step(batch(None, edges(step)))
    last = validate(trainer, held_out, 0.27)
    assert first.keys() == last.keys() == {"details_off"} and last["details_off"] < 0.7 * first["details_off"]
    after = dict(trainer.network.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(trainer.parameters)


def test_trained_with_the_rest_every_part_learns():
    trainer = small_trainer("all")
    assert trainer.details and trainer.surface and not trainer.alone
    with torch.no_grad():
        trainer.pipe.transformer.details.leave.weight.normal_()  # behind zeros nothing learns in the first step
    before = {name: each.clone() for name, each in trainer.parameters.items()}
    trainer.train_step(batch(None, edges(0)))
    moved = {name for name, each in trainer.parameters.items() if not torch.equal(before[name], each)}
    details = {name for name in trainer.parameters if name.startswith("transformer.details.")}
    assert details <= moved and any(name.startswith("transformer.blocks.") for name in moved)
