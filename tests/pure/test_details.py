"""Details of what is made up: the network that paints them, what it is shown, where it paints, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pipeline.transformer
from pipeline.agreement import MadeUp, leading
from pipeline.details import GUIDANCE, GUIDED, Details, painted
from pipeline.lookup import CELL
from pipeline.mini import build_mini, seeded
from pipeline.training.batch import Batch
from pipeline.training.network import Network
from pipeline.training.objective import varied
from pipeline.training.recipe import Recipe
from pipeline.training.samples import Draw
from pipeline.training.softened import KNOWN, Pictures, Softened, detail_error, softened
from pipeline.training.trainer import Trainer
from pipeline.training.tuning import takes_part
from pipeline.training.validation import validate
from pipeline.trajectory import Trajectory, default_intrinsics, preset
from tests.pure.test_depths import batch
from tests.rays import FRAMES, SIZE, camera, video
from tests.tiny import TINY_PIPELINE, TINY_TEXT, TINY_TRANSFORMER

WIDTH = 6  # of words


def network(*widths: int) -> Details:
    """With random weights in its last layer, too."""
    with seeded(0):
        return Details(3, widths or (8, 16), WIDTH).eval()


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("size", [(16, 16), (6, 10), (33, 8)])
@pytest.mark.parametrize("widths", [(8,), (8, 8, 16)])
def test_it_takes_pictures_of_any_size_and_untrained_says_the_mean_colour(size, widths):
    noisy, shown, source = torch.randn(3, 2, 3, *size, generator=seed(0))
    share, words = torch.rand(2, 1, *size, generator=seed(1)), torch.randn(2, 4, WIDTH, generator=seed(2))
    given = [noisy, shown, share, source, words, torch.tensor([0.3, 0.9])]
    made = network(*widths)
    with torch.no_grad():
        usual = made(*given)
        assert usual.isfinite().all()
        for index, each in enumerate(given):  # all of which it is told
            assert not torch.equal(made(*given[:index], each.sqrt().nan_to_num(0.5), *given[index + 1 :]), usual)
        made.initialise()
        assert not made(*given).any()


def test_padding_is_no_word_and_pictures_of_a_batch_do_not_see_each_other():
    made = network()
    pictures, share = torch.randn(3, 2, 3, 16, 16, generator=seed(0)), torch.rand(2, 1, 16, 16, generator=seed(1))
    words, sigma = torch.randn(2, 3, WIDTH, generator=seed(2)), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        both = made(pictures[0], pictures[1], share, pictures[2], words, sigma)
        padded = torch.cat([words, torch.zeros(2, 5, WIDTH)], dim=1)
        assert torch.equal(made(pictures[0], pictures[1], share, pictures[2], padded, sigma), both)
        one = made(*pictures[:2, :1], share[:1], pictures[2, :1], words[:1], sigma[:1])
        assert torch.allclose(one, both[:1], atol=1e-5)


def test_what_lies_far_off_has_a_say():
    made = network(8, 8, 24)
    levels = [*made.down, made.bottom, *made.up]
    wholes = [each.whole for each in levels]
    assert [each is not None for each in wholes] == [False, True, True, True, True, False]
    made.norm = torch.nn.Identity()
    for each in levels:  # norms, too, see all of a picture
        each.norms = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
        if each.whole is not None:
            each.whole.norm = torch.nn.Identity()
    noisy, shown = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
    other = shown.clone()
    other[..., -8:, -8:] = 1.0
    rest = (torch.ones(1, 1, 128, 128), noisy, torch.zeros(1, 2, WIDTH), torch.tensor([0.5]))

    def corner(shown: torch.Tensor, apart: bool = False) -> torch.Tensor:
        return made(noisy, shown, *rest, apart=apart)[..., :8, :8]

    with torch.no_grad():
        assert not torch.equal(corner(shown), corner(other))
        assert torch.equal(corner(shown, apart=True), corner(other, apart=True)), "nor has it where places are apart"
        assert not torch.equal(corner(shown, apart=True), corner(shown))
        for each in levels:
            each.whole = None
        assert torch.equal(corner(shown), corner(other))


def test_widths_that_do_not_divide_are_refused_and_models_that_do_not_copy_paint_nothing():
    with pytest.raises(ValueError, match=r"detail_widths must be multiples of 8, got \[8, 12\]"):
        network(8, 12)
    assert build_mini(transformer={"copied_videos": 0}).transformer.details is None


# What is painted.


WORDS = torch.ones(1, 2, WIDTH)


def clip(share: torch.Tensor, depth: float = 3.0) -> tuple[torch.Tensor, MadeUp]:
    """A clip of a camera that stands still, and what of it is made up."""
    still = video(camera(0.0, 0.0, 0.0))
    depths = torch.full((FRAMES, 1, SIZE // CELL, SIZE // CELL), depth)
    sample = torch.randn(1, 3, 1, SIZE, SIZE, generator=seed(0)).expand(-1, -1, FRAMES, -1, -1).contiguous()
    share = share.expand(1, 1, FRAMES, SIZE, SIZE)
    return sample, MadeUp(share, torch.zeros_like(share), depths, leading(still), None)


def test_what_is_not_made_up_stays_to_the_bit_and_the_rest_is_painted():
    share = torch.zeros(SIZE, SIZE)
    share[:, SIZE // 2 :] = 1.0
    sample, made_up = clip(share)
    with torch.no_grad():
        found = painted(network(), sample, made_up, WORDS, seed(1))
    assert torch.equal(found[..., : SIZE // 2], sample[..., : SIZE // 2])
    assert (found[..., SIZE // 2 :] != sample[..., SIZE // 2 :]).float().mean() > 0.9


def test_frames_that_see_the_same_are_painted_alike():
    sample, made_up = clip(torch.ones(SIZE, SIZE))
    made = network()
    with torch.no_grad():
        made.leave.weight.mul_(0.2)  # what differs by far more than a unit is taken for another thing
        found = painted(made, sample, made_up, WORDS, seed(1))
    inside = found[..., 1:-1, 1:-1]
    new = (inside - sample[..., 1:-1, 1:-1]).square().mean()
    assert (inside - inside[:, :, -1:]).square().mean() < 0.1 * new


def test_the_same_noise_paints_the_same_bits():
    sample, made_up = clip(torch.ones(SIZE, SIZE))
    with torch.no_grad():
        one, same, other = (painted(network(), sample, made_up, WORDS, seed(number)) for number in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_clips_of_a_batch_are_painted_as_alone():
    sample = torch.randn(2, 3, FRAMES, SIZE, SIZE, generator=seed(0))
    share = torch.rand(2, 1, FRAMES, SIZE, SIZE, generator=seed(1))
    depths = 2 + torch.rand(2 * FRAMES, 1, SIZE // CELL, SIZE // CELL, generator=seed(2))
    targets = [video(camera(0.0, 0.0, 0.0)), video(camera(0.5, 0.0, 0.0))]
    views = {"poses": torch.cat([each.poses for each in targets]),
             "intrinsics": torch.cat([each.intrinsics for each in targets])}  # fmt: skip
    both = replace(targets[0], latent=sample, times=targets[0].times.expand(2, -1), **views)

    def brighter(noisy, shown, share, source, words, sigma, apart=False):
        return shown + share + words.mean()

    words = torch.zeros(2, 2, WIDTH)
    found = painted(brighter, sample, MadeUp(share, 0 * share, depths, leading(both), None), words)
    for row, target in enumerate(targets):
        own = MadeUp(share[row : row + 1], 0 * share, depths.unflatten(0, (2, -1))[row], leading(target), None)
        one = painted(brighter, sample[row : row + 1], own, words[:1])
        assert torch.allclose(found[row : row + 1], one, atol=1e-5)
    assert not torch.allclose(found, sample, atol=0.01)


def test_frames_that_lead_and_have_nothing_made_up_are_not_painted():
    share = torch.zeros(1, 1, FRAMES, SIZE, SIZE)
    share[:, :, -1] = 1.0
    sample, made_up = clip(torch.zeros(SIZE, SIZE))
    asked: list[int] = []

    def paints(noisy, *_, apart=False):
        asked.append(len(noisy))
        return noisy

    assert torch.equal(painted(paints, sample, made_up, WORDS), sample) and not asked
    painted(paints, sample, replace(made_up, share=share), WORDS)
    assert set(asked) == {1}


def test_where_a_source_shows_what_was_there_the_painting_begins_with_the_picture_and_carries_its_noise_on():
    sample, made_up = clip(torch.ones(SIZE, SIZE))
    before = torch.randn(sample.shape, generator=seed(5))
    levels: list[float] = []
    first: list[torch.Tensor] = []

    def paints(noisy, shown, share, source, words, sigma, apart=False):
        if not apart:
            levels.append(float(sigma[0]))
            first.append(noisy)
        assert torch.equal(source, before[0, :, made_up.leaders.frames].transpose(0, 1))
        return shown

    state = torch.Generator().manual_seed(1)
    painted(paints, sample, replace(made_up, before=before), WORDS, state)
    assert levels[0] == pytest.approx(14 / 20)  # the first of the even steps from BEGUN on
    assert levels == sorted(levels, reverse=True)
    shown = sample[0, :, made_up.leaders.frames].transpose(0, 1)
    noise = [(each - (1 - level) * shown) / level for each, level in zip(first, levels, strict=True)]
    assert all(torch.allclose(each, noise[0], atol=1e-3) for each in noise)


def test_in_some_noise_it_is_driven_away_from_what_would_be_if_places_attended_to_themselves_alone():
    sample, made_up = clip(torch.ones(SIZE, SIZE))
    asked: list[tuple[float, bool]] = []

    def paints(noisy, shown, share, source, words, sigma, apart=False):
        asked.append((float(sigma[0]), apart))
        return noisy + apart  # where noise is carried on, what the last step says comes back as it is

    last = made_up.leaders.frames[0]  # which takes nothing from others
    found = painted(paints, sample, replace(made_up, before=sample), WORDS, seed(1))[:, :, last]
    apart = [level for level, each in asked if each]
    assert apart == [level for level, each in asked if not each and GUIDED[0] <= level <= GUIDED[1]]
    assert 0 < len(apart) < len(asked) / 2
    levels = [level for level, each in asked if not each]
    noisy = torch.lerp(sample[:, :, last], _noise(sample, made_up, seed(1)), levels[0])
    for level, lower in zip(levels, [*levels[1:], 0.0], strict=True):
        said = noisy - GUIDANCE * (level in apart)
        noisy = torch.lerp(said, said + (noisy - said) / level, lower)
    assert torch.allclose(found, noisy, atol=1e-4)


def _noise(sample: torch.Tensor, made_up: MadeUp, generator: torch.Generator) -> torch.Tensor:
    """Of the frame that leads the others."""
    frames = len(made_up.leaders.frames)
    return torch.randn(frames, *sample.shape[1:2], *sample.shape[3:], generator=generator)[:1]


def test_other_frames_take_what_is_painted_where_what_was_there_is_the_same():
    sample, made_up = clip(torch.ones(SIZE, SIZE))
    before = torch.zeros_like(sample)
    before[:, :, 1, :, : SIZE // 2] = 50.0  # something else stands there just then

    def white(noisy, *_, apart=False):
        return torch.full_like(noisy, 9.0)

    found = painted(white, sample, replace(made_up, before=before), WORDS)[0, :, 1]
    assert (found[..., SIZE // 2 + 2 : -2] > 8.9).all()
    assert torch.allclose(found[..., : SIZE // 2 - 2], sample[0, :, 1, :, : SIZE // 2 - 2], atol=1e-3)


def test_what_moves_is_painted_where_it_is_in_every_frame_and_not_where_it_is_remembered():
    sample, made_up = clip(torch.zeros(SIZE, SIZE))
    before, share, kept = torch.zeros_like(sample), torch.zeros_like(made_up.share), torch.zeros_like(made_up.share)
    thing = 2 + torch.randn(3, 8, 8, generator=seed(3))
    places = [slice(6 + 2 * frame, 14 + 2 * frame) for frame in range(FRAMES)]
    for frame, columns in enumerate(places):
        before[0, :, frame, 10:18, columns] = thing
        share[..., frame, 10:18, columns] = float(frame != 1)  # one in which it was taken for the source's
    kept[..., 1, 14:18, :] = 1.0

    def white(noisy, *_, apart=False):
        return torch.full_like(noisy, 9.0)

    changed = replace(made_up, before=before, share=share, kept=kept)
    found = painted(white, sample, changed, WORDS)[0, :, 1]
    columns, stays = slice(places[1].start + 1, places[1].stop - 1), (found - sample[0, :, 1]).abs()
    assert (found[:, 11:14, columns] > 8.9).all()
    assert stays[:, 14:18].max() < 1e-4 and stays[:, 20:].max() < 1e-4
    assert stays[:, :, : places[1].start - 1].max() < 0.1


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


def test_edits_are_painted_where_the_camera_moves_and_where_it_is_kept_and_not_without_a_source():
    with seeded(1):
        pipe = build_mini(transformer=TINY_TRANSFORMER, text=TINY_TEXT, **TINY_PIPELINE)
        for each in (pipe.transformer.depths, pipe.transformer.details):
            torch.nn.init.normal_(each.leave.weight, std=0.1)
    pipe.set_progress_bar_config(disable=True)
    lens = default_intrinsics(1.0)
    still = Trajectory.static(16, lens)
    shown = {"source": torch.randn(3, 16, 32, 32, generator=seed(0)), "source_trajectory": still}
    edits = [
        {**shown, "target_trajectory": still, "prompt": "paint the ball red"},
        {**shown, "target_trajectory": preset("pan_right", 16, lens)},
        {"num_frames": 16, "height": 32, "width": 32, "target_trajectory": still},
    ]

    def edit(number: int, **more) -> torch.Tensor:
        return pipe(**edits[number], generator=seed(3), **more).latents

    with_details = [edit(number) for number in range(3)]

    def interrupt(pipe, step, t, tensors):
        pipe._interrupt = True
        return {}

    interrupted = edit(1, callback_on_step_end=interrupt)
    paints, pipe.transformer.details = pipe.transformer.details, None
    without = [edit(number) for number in range(3)]
    same = [torch.equal(one, other) for one, other in zip(with_details, without, strict=True)]
    assert same == [False, False, True]
    assert torch.equal(interrupted, edit(1, callback_on_step_end=interrupt)), "noise is not painted over"
    assert paints is not None


def test_a_model_says_in_how_many_steps_it_paints():
    with seeded(1):
        changed = {**TINY_TRANSFORMER, "detail_steps": 5}
        pipe = build_mini(transformer=changed, text=TINY_TEXT, **TINY_PIPELINE)
    pipe.set_progress_bar_config(disable=True)
    asked: list[float] = []

    def note(_, given, named, made) -> None:
        if not named.get("apart"):
            asked.append(round(float(given[5][0]), 3))

    pipe.transformer.details.register_forward_hook(note, with_kwargs=True)
    lens = default_intrinsics(1.0)
    still = Trajectory.static(16, lens)
    for target in (preset("pan_right", 16, lens), still):
        pipe(
            source=torch.randn(3, 16, 32, 32), source_trajectory=still, target_trajectory=target, prompt="make it night"
        )
    assert asked == [1.0, 0.8, 0.6, 0.4, 0.2, 0.6, 0.4, 0.2], "what keeps the camera begins with what there is"


def test_who_paints_is_told_the_words_that_were_asked_for_also_under_guidance(monkeypatch):
    pipe = build_mini(transformer=TINY_TRANSFORMER, text=TINY_TEXT, **{**TINY_PIPELINE, "guidance_scale": 3.0})
    pipe.set_progress_bar_config(disable=True)
    still, told = Trajectory.static(16, default_intrinsics(1.0)), []
    monkeypatch.setattr(
        pipeline.transformer, "painted", lambda _, sample, made_up, words, noise, steps: told.append(words) or sample
    )
    pipe(source=torch.randn(3, 16, 32, 32), source_trajectory=still, target_trajectory=still, prompt="make it night")
    assert len(told) == 1 and torch.equal(told[0], pipe.encode_prompt("make it night"))


# What it learns from.


@given(count=st.integers(1, 4), height=st.integers(8, 40), width=st.integers(8, 40), number=st.integers(0, 999))
def test_pictures_are_soft_where_they_count_as_made_up_and_nowhere_else(count, height, width, number):
    clean = torch.randn(count, 3, height, width, generator=seed(number))
    noisy, shown, share, source, sigma = softened(Pictures(clean), seed(number))
    assert torch.equal(source, shown) and softened(Pictures(clean, noisy), seed(number)).source is noisy
    assert share.shape == (count, 1, height, width) and share.min() >= 0 and share.max() <= 1
    assert (sigma > 0).all() and (sigma <= 1).all()
    off = (shown - clean).abs()
    assert (off <= 12 * share).all(), "a value of the picture and what its colour is missed by, at most"
    assert off[(share > 0.9).expand_as(off)].any() if (share > 0.9).any() else True
    noise = (noisy - (1 - sigma.view(-1, 1, 1, 1)) * clean) / sigma.view(-1, 1, 1, 1)
    assert 0.5 < noise.std() < 1.5


def test_soft_parts_lie_to_either_side_of_most_pictures_and_some_are_bands():
    share = softened(Pictures(torch.randn(200, 3, 24, 24, generator=seed(0))), seed(1)).share[:, 0]
    left, right = share[:, :, 0].mean(dim=1) > 0.5, share[:, :, -1].mean(dim=1) > 0.5
    kinds = [(left & ~right), (right & ~left), ~(left | right)]
    assert all(0.1 < each.float().mean() < 0.7 for each in kinds)
    part = share.mean(dim=(1, 2))
    assert ((part > 0.05) & (part < 0.95)).float().mean() > 0.8


def test_the_error_counts_where_pictures_were_made_soft_and_is_none_for_the_right_ones():
    clean = torch.randn(2, 3, 8, 8, generator=seed(0))
    share = torch.zeros(2, 1, 8, 8)
    share[..., 4:] = 1.0
    soft = Softened(clean, clean, share, clean, torch.tensor([1.0, 0.5]))
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


def instructed(number: int) -> Batch:
    """Targets two of which share what an instruction changes, each brighter than that."""
    clean = edges(number)
    draw = Draw("text", 8, (), source=False, preceding=False, tokenizer=None, merge_share=None)
    plain = clean[:2] - torch.tensor([0.5, 1.5]).view(2, 1, 1, 1, 1)
    return replace(batch(None, clean[[0, 0, 1, 1]]), draw=draw, plain=plain, instructions=("paint it red", "add a box"))


def test_of_instructions_it_is_told_the_words_and_shown_what_was_there_before(monkeypatch):
    trainer, told = small_trainer("details"), []
    network, encode = trainer.network, trainer.pipe.encode_prompt

    def forward(noisy, shown, share, source, words, sigma):
        told.append((shown, share, source, words))
        return shown + 0 * sum(each.sum() for each in trainer.parameters.values())

    monkeypatch.setattr(trainer.pipe.transformer.details, "forward", forward)
    given = instructed(0)
    trainer.train_step(given)
    [(shown, share, source, words)] = told
    states, frames = encode(given.instructions), len(shown) // 4
    assert torch.equal(words, states.repeat_interleave(2 * frames, dim=0)) and not words.requires_grad
    known = (share < 0.01).expand_as(shown)
    lighter = torch.tensor([0.5, 1.5]).repeat_interleave(2 * frames).view(-1, 1, 1, 1).expand_as(shown)
    assert known.any() and torch.allclose((shown - source)[known], lighter[known], atol=0.15), "mirrored alike"
    with torch.no_grad():
        assert network is not None and set(validate(trainer, [given], 0.27)) == {"details_off"}


def test_pictures_keep_the_colours_that_an_instruction_names():
    given, mirrors = instructed(1), 0
    given = replace(given, clean=given.clean * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
    for number in range(10):
        found = varied(given, seed(number))
        assert found.plain is not None
        for row, clean in enumerate(given.clean):
            plain = given.plain[row // 2]
            if mirrored := not torch.equal(found.clean[row], clean):
                clean, plain = clean.flip(-1), plain.flip(-1)
            assert torch.equal(found.clean[row], clean) and torch.equal(found.plain[row], plain)
            mirrors += mirrored
    assert 0 < mirrors < 40


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
