"""Training without files: what is drawn, how it is arranged, the noise, the loss, the optimizers, one step."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pipeline.clip import Clip
from pipeline.memory_pipeline import MemoryVideo
from pipeline.mini import SIZES, TRANSFORMER, build_mini
from pipeline.training.batch import collate
from pipeline.training.estimate import estimate, measured_rate
from pipeline.training.muon import Muon, orthogonalised
from pipeline.training.network import Network, Prediction
from pipeline.training.objective import corrupted, loss, noise_levels, noised, weighted_error
from pipeline.training.recipe import Recipe
from pipeline.training.samples import TASKS, Corpus, Window, pairs, starts
from pipeline.training.trainer import Trainer
from pipeline.training.tuning import takes_part
from pipeline.training.validation import validate, validation_batches, validation_recipe
from pipeline.trajectory import Trajectory, default_intrinsics, preset
from pipeline.transformer import MemoryWanTransformer3DModel
from tests.tiny import TINY_PIPELINE, TINY_TEXT, TINY_TRANSFORMER, build_tiny

LENGTH = 8


def path(frames: int, seed: int) -> Trajectory:
    """A camera that turns and moves at random."""
    random = np.random.default_rng(seed)
    turned = np.linalg.qr(random.normal(size=(frames, 3, 3)))[0]
    turned *= np.sign(np.linalg.det(turned))[:, None, None]
    c2w = np.concatenate([turned, random.normal(size=(frames, 3, 1))], axis=2)
    return Trajectory(c2w, default_intrinsics(1.0))


def clips_of(scenes=3, cameras=3, edited=2, frames=32, shots=1, side=16, extended=0) -> list[Clip]:
    """Scenes of some cameras, each edited once in the first of them. extended: frames that a model adds to those."""
    made = []
    for scene in range(scenes):
        for variant, count in ((0, cameras), (1, edited)):
            for camera in range(count):
                added = extended if variant else 0
                numbers = np.arange(frames, dtype=np.int32) * shots // frames
                made.append(
                    Clip(
                        row=len(made),
                        scene=scene,
                        camera=camera,
                        variant=variant,
                        instruction=f"paint it {scene}" if variant else "",
                        rate=12.0,
                        trajectory=path(frames + added, 100 * scene + camera),
                        shots=np.append(numbers, [numbers[-1]] * added).astype(np.int32),
                        height=side,
                        width=side,
                        extended=added,
                    )  # fmt: skip
                )
    return made


def corpora():
    """Corpora of any shape that has something to train on, with their recipe."""

    @st.composite
    def built(draw):
        cameras = draw(st.integers(1, 4))
        clips = clips_of(
            scenes=draw(st.integers(1, 3)), cameras=cameras, edited=draw(st.integers(0, cameras)),
            frames=draw(st.integers(LENGTH // 2, 40)), shots=draw(st.integers(1, 3)),
            extended=draw(st.sampled_from([0, 0, 5, 20])),
        )  # fmt: skip
        recipe = Recipe(
            batch=draw(st.integers(1, 3)), targets=draw(st.integers(1, 3)), memories=draw(st.integers(1, 6)),
            foreign=draw(st.sampled_from([0.0, 0.3])), source_dropout=0.3, turned=0.5,
        )  # fmt: skip
        try:
            return Corpus(clips, LENGTH, recipe)
        except ValueError:
            assume(False)

    return built()


def windows_of(sample) -> list[Window]:
    return [sample.origin, *sample.targets, *sample.memories, *([sample.before] if sample.before else [])]


def overlap(one: Window, other: Window) -> bool:
    return one.clip is other.clip and abs(one.start - other.start) < LENGTH


# What is drawn.


@given(corpora(), st.integers(0, 2**32 - 1))
def test_no_memory_shows_a_frame_of_a_target_and_no_window_crosses_a_cut(corpus, seed):
    for sample in corpus.draw(np.random.default_rng(seed)).samples:
        for window in windows_of(sample):
            shots = window.clip.shots[window.start : window.start + LENGTH]
            assert len(shots) == LENGTH and (shots == shots[0]).all()
        assert not any(overlap(memory, target) for memory in sample.memories for target in sample.targets)


@given(corpora(), st.integers(0, 2**32 - 1), st.sampled_from(TASKS))
def test_frames_that_a_model_made_are_shown_as_memory_and_are_nothing_else(corpus, seed, task):
    assume(corpus.shares[task])
    for sample in corpus.draw(np.random.default_rng(seed), task).samples:
        shown = [sample.origin, *sample.targets, *([sample.before] if sample.before else [])]
        assert all(each.start + LENGTH <= len(each.clip) - each.clip.extended for each in shown)


def test_a_short_pair_is_trained_on_with_what_its_target_was_extended_by():
    recipe = Recipe(memory_dropout_text=0.0, foreign=0.0, turned=0.0)
    corpus = Corpus(clips_of(frames=LENGTH, edited=1, extended=24), LENGTH, recipe)
    for sample in corpus.draw(np.random.default_rng(0), "text").samples:
        assert sample.targets[0].start == sample.before.start == 0
        assert all(each.clip is sample.targets[0].clip and each.start >= LENGTH for each in sample.memories)
    assert not corpus.shares["continue"]  # it would ask for frames that a model made


@pytest.mark.parametrize(
    ("made", "targets", "forgetful"),
    [
        ({"cameras": 2, "edited": 1, "frames": LENGTH}, 1, ("camera", "text")),
        ({"cameras": 3, "edited": 1, "frames": LENGTH}, 1, ("text",)),
        ({"cameras": 3, "edited": 2, "frames": LENGTH}, 2, ("camera",)),
        ({"cameras": 3, "edited": 2, "frames": LENGTH}, 1, ()),
        ({"cameras": 2, "edited": 1, "frames": 3 * LENGTH}, 4, ()),
    ],
)
def test_where_clips_have_no_frames_for_memory_nothing_foreign_stands_in_for_it(made, targets, forgetful):
    recipe = Recipe(memory_dropout=0.0, memory_dropout_text=0.0, foreign=0.0, targets=targets)
    corpus = Corpus(clips_of(**made), LENGTH, recipe)
    assert corpus.forgetful == forgetful
    assert ("memory" in corpus.teaches) == (len(forgetful) < 2)
    for seed in range(20):
        for task in ("camera", "text"):
            for sample in corpus.draw(np.random.default_rng(seed), task).samples:
                assert (task in forgetful) == (not sample.memories)
                assert all(each.clip.scene == sample.origin.clip.scene for each in sample.memories)


@given(corpora(), st.integers(0, 2**32 - 1))
def test_samples_of_a_step_have_the_same_shapes(corpus, seed):
    recipe = corpus.recipe
    draw = corpus.draw(np.random.default_rng(seed))
    assert len(draw.samples) == recipe.batch
    for sample in draw.samples:
        assert len(sample.targets) == recipe.targets
        assert len(sample.memories) == len(draw.samples[0].memories) <= recipe.memories
        assert (sample.before is not None) == (draw.task == "text") == bool(sample.instruction)
    assert draw.source or draw.samples[0].memories
    assert draw.merge_share is None or (draw.samples[0].memories and 0.3 <= draw.merge_share <= 0.7)
    if draw.preceding:
        for sample in draw.samples:
            first, target = sample.memories[0], sample.targets[0]
            assert first.clip is target.clip and first.start == target.start - LENGTH


def described(draw):
    shown = [[(each.clip.row, each.start) for each in windows_of(sample)] for sample in draw.samples]
    return shown, draw.task, draw.source, draw.preceding, draw.tokenizer, draw.merge_share


@given(corpora(), st.integers(0, 2**32 - 1))
def test_a_draw_is_a_function_of_its_random_state(corpus, seed):
    one, other = (corpus.draw(np.random.default_rng(seed)) for _ in range(2))
    assert described(one) == described(other)


def test_draws_are_those_of_the_trainings_that_are_under_way():
    # A training that is gone on with must draw what it would have drawn: a new digest here breaks every one. (Those
    # begun before there was `still` go on with 0.)
    corpus = Corpus(clips_of(frames=40, shots=2), LENGTH, Recipe(foreign=0.1, turned=0.5, still=0.0))
    draws = [described(corpus.draw(np.random.default_rng(seed))) for seed in range(30)]
    assert {draw[1] for draw in draws} == set(TASKS)
    assert hashlib.sha256(repr(draws).encode()).hexdigest()[:16] == "613fa648589148e6"


@given(st.integers(0, 2**32 - 1))
def test_the_source_is_never_among_the_memories(seed):
    corpus = Corpus(clips_of(), LENGTH, Recipe(memory_dropout=0, memory_dropout_text=0))
    draw = corpus.draw(np.random.default_rng(seed))
    for sample in draw.samples:
        if draw.task == "camera":
            assert all(each.clip is not sample.origin.clip for each in sample.memories)
            still = [each.clip is sample.origin.clip and each.start == sample.origin.start for each in sample.targets]
            assert all(still) or all(each.clip is not sample.origin.clip for each in sample.targets)
        if draw.task == "text":
            assert sample.before.clip.variant == 0 and sample.targets[0].clip.variant == 1
            assert sample.before.clip.camera == sample.targets[0].clip.camera
            assert sample.origin.clip.variant == 0


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_processes_that_must_agree_draw_alike_what_decides_which_layers_run(seed, other):
    corpus = Corpus(clips_of(), LENGTH, Recipe())
    draws = [corpus.draw(np.random.default_rng(each), common=np.random.default_rng(7)) for each in (seed, other)]
    shapes = [(d.task, d.source, d.tokenizer, d.merge_share, len(d.samples[0].memories)) for d in draws]
    assert shapes[0] == shapes[1]


def test_shares_of_tasks_and_dropouts_are_the_recipes():
    recipe = Recipe(batch=1, targets=1)
    corpus = Corpus(clips_of(), LENGTH, recipe)
    draws = [corpus.draw(np.random.default_rng(seed)) for seed in range(3000)]

    def share(part, whole=draws):
        return sum(map(part, whole)) / len(whole)

    for task, expected in zip(TASKS, (recipe.camera, recipe.text, recipe.onward), strict=True):
        assert share(lambda d, task=task: d.task == task) == pytest.approx(expected, abs=0.03)
    assert share(lambda d: d.tokenizer is not None) == pytest.approx(0.5, abs=0.03)
    camera = [draw for draw in draws if draw.task == "camera"]
    still = [draw for draw in camera if draw.samples[0].targets[0].clip is draw.samples[0].origin.clip]
    assert len(still) / len(camera) == pytest.approx(recipe.still, abs=0.03)
    assert share(lambda d: not d.samples[0].memories, camera) == pytest.approx(recipe.memory_dropout, abs=0.04)
    remembered = [draw for draw in camera if draw.samples[0].memories]
    assert share(lambda d: d.merge_share is not None, remembered) == pytest.approx(0.5, abs=0.05)
    assert share(lambda d: not d.source, remembered) == pytest.approx(recipe.source_dropout, abs=0.03)
    assert {len(draw.samples[0].memories) for draw in draws} == set(range(7))


def test_clips_that_are_too_short_are_refused_with_what_a_task_needs():
    with pytest.raises(ValueError, match="finds clips of 64 frames or more in one shot among 15 clips"):
        Corpus(clips_of(), 64, Recipe())
    alone = Corpus(clips_of(cameras=1, edited=0), LENGTH, Recipe())
    assert alone.shares["camera"] == alone.shares["text"] == 0 < alone.shares["continue"]


def test_glimpses_are_short_windows_of_many_scenes_with_an_instruction_and_no_memory():
    recipe = Recipe(batch=2, targets=3, glimpses=1.0, memory_dropout_text=0.0, source_dropout=1.0)
    corpus = Corpus(clips_of(), LENGTH, recipe, glimpse=LENGTH // 4)
    for seed in range(5):
        draw = corpus.draw(np.random.default_rng(seed))
        assert (draw.task, draw.length, draw.source, len(draw.samples)) == ("text", LENGTH // 4, True, 2 * 3 * 4)
        assert all(len(each.targets) == 1 and not each.memories and each.instruction for each in draw.samples)
        assert len({each.targets[0].start for each in draw.samples}) > 4
        batch = collate(draw, encode)
        assert batch.clean.shape == (24, 3, LENGTH // 4, 16, 16), "as many pixels as in any other step"


def test_glimpses_come_in_their_share_and_never_where_a_task_is_asked_for():
    corpus = Corpus(clips_of(), LENGTH, Recipe(glimpses=0.3), glimpse=2)
    random = np.random.default_rng(0)
    lengths = [corpus.draw(random).length for _ in range(300)]
    assert set(lengths) == {2, LENGTH} and lengths.count(2) / 300 == pytest.approx(0.3, abs=0.08)
    assert all(corpus.draw(random, "text").length == LENGTH for _ in range(20))


def test_without_a_share_of_glimpses_or_edits_to_see_all_windows_are_long():
    plain = Corpus(clips_of(), LENGTH, Recipe())
    none = Corpus(clips_of(), LENGTH, Recipe(glimpses=0.0), glimpse=2)
    for seed in range(10):
        one, other = (described(each.draw(np.random.default_rng(seed))) for each in (plain, none))
        assert one == other
    unedited = Corpus(clips_of(edited=0), LENGTH, Recipe(glimpses=1.0), glimpse=2)
    assert unedited.draw(np.random.default_rng(0)).length == LENGTH


# How it is arranged.


def encode(windows, length):
    """Latents that say which window they are of: the row and the start of every frame."""
    values = [[[each.clip.row] * length, range(each.start, each.start + length), [0] * length] for each in windows]
    return torch.tensor(np.array(values), dtype=torch.float32)[..., None, None].expand(-1, -1, -1, 16, 16).clone()


@given(corpora(), st.integers(0, 2**32 - 1), st.sampled_from([1, 4]))
def test_a_batch_holds_the_windows_of_its_draw_in_the_frame_of_its_sources_first_camera(corpus, seed, every):
    draw = corpus.draw(np.random.default_rng(seed))
    batch = collate(draw, encode, every)
    for index, sample in enumerate(draw.samples):
        pairs = [(f"target {each}", target, batch.clean, batch.view["target_poses"], batch.view["target_times"],
                  index * len(sample.targets) + each) for each, target in enumerate(sample.targets)]  # fmt: skip
        pairs += [
            (f"memory {rank}", memory, batch.memories[rank].latent, batch.memories[rank].poses,
             batch.memories[rank].times, index) for rank, memory in enumerate(sample.memories)
        ]  # fmt: skip
        if draw.source:
            pairs.append(("source", sample.origin, batch.source.latent, batch.source.poses, batch.source.times, index))
            assert torch.allclose(batch.source.poses[index, 0], torch.eye(3, 4), atol=1e-6)
            assert batch.source.times[index, 0] == 0
        origin = np.vstack([sample.origin.clip.trajectory.c2w[sample.origin.start], [0, 0, 0, 1]])
        for name, window, latent, poses, times, row in pairs:
            assert latent[row, 0, 0, 0, 0] == window.clip.row and latent[row, 1, 0, 0, 0] == window.start, name
            world = window.clip.trajectory.c2w[window.start : window.start + LENGTH : every]
            assert np.allclose(
                origin[:3] @ np.concatenate([poses[row], [[[0, 0, 0, 1]]] * len(world)], 1), world, atol=1e-5
            )
            first = (window.start - sample.origin.start) / 12
            assert np.allclose(times[row], first + np.arange(0, LENGTH, every) / 12, atol=1e-5)
    assert (batch.changed is not None) == (draw.task == "text")


def test_without_cameras_no_video_has_any():
    corpus = Corpus(clips_of(), LENGTH, Recipe(camera_dropout=1.0, memory_dropout=0.0, source_dropout=0.0))
    batch = collate(corpus.draw(np.random.default_rng(0), "camera"), encode)
    assert not batch.draw.cameras and set(batch.view.values()) == {None}
    assert all(each.poses is None and each.times is None for each in (batch.source, *batch.memories))


def test_changed_pixels_are_those_that_the_instruction_moves():
    corpus = Corpus(clips_of(), LENGTH, Recipe())

    def painted(windows, length):
        latents = torch.zeros(len(windows), 3, length, 16, 16)
        for latent, window in zip(latents, windows, strict=True):
            latent[:, :, 4:8, 4:8] = float(window.clip.variant)
        return latents

    batch = collate(corpus.draw(np.random.default_rng(0), "text"), painted)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 4:8] = True
    assert (batch.changed == expected).all() and batch.changed.shape == (16, 1, LENGTH, 16, 16)


# Noise and loss.


@pytest.mark.parametrize("shift", [1.0, 2.0, 5.0])
def test_noise_levels_are_where_the_sampler_with_that_shift_goes(shift):
    plain = noise_levels(100_000, 1.0, 1.2, 0.0, torch.Generator().manual_seed(0))
    shifted = noise_levels(100_000, shift, 1.2, 0.0, torch.Generator().manual_seed(0))
    assert torch.allclose(shifted, shift * plain / (1 + (shift - 1) * plain), atol=1e-5)
    assert shifted.median() == pytest.approx(shift / (1 + shift), abs=0.01)
    assert shifted.min() > 0 and shifted.max() <= 1


def test_a_share_of_the_levels_is_noise_alone():
    levels = noise_levels(100_000, 2.0, 1.2, 0.1, torch.Generator().manual_seed(0))
    assert (levels == 1).float().mean() == pytest.approx(0.1, abs=0.005)
    assert (noise_levels(1000, 2.0, 1.2, 0.0, torch.Generator().manual_seed(0)) < 1).all()


def test_noise_goes_straight_from_the_clean_latent_to_the_noise():
    # In double precision: single rounds a sum near zero beyond the tolerance, for some draws.
    clean, noise = torch.randn(2, 3, 3, 2, 4, 4, dtype=torch.float64)
    sigma = torch.tensor([0.0, 0.25, 1.0])
    noisy = corrupted(clean, noise, sigma)
    assert torch.equal(noisy[0], clean[0]) and torch.equal(noisy[2], noise[2])
    assert torch.allclose(noisy[1], clean[1] + 0.25 * (noise[1] - clean[1]))


def test_errors_weigh_more_where_something_changes():
    prediction, wanted = torch.ones(2, 3, 2, 4, 4), torch.zeros(2, 3, 2, 4, 4)
    changed = torch.zeros(2, 1, 2, 4, 4, dtype=torch.bool)
    changed[1, :, :, :2] = True
    assert weighted_error(prediction, wanted, changed, 5.0).tolist() == [1.0, 3.0]
    assert weighted_error(prediction, wanted, changed, 1.0).tolist() == [1.0, 1.0]
    assert weighted_error(prediction, wanted, None, 5.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("sample", [True, False])
def test_the_loss_of_the_right_answer_is_nothing(sample):
    batch = collate(Corpus(clips_of(), LENGTH, Recipe()).draw(np.random.default_rng(0), "camera"), encode)
    batch = replace(batch, clean=torch.randn(batch.clean.shape))

    def knows(batch, noisy, sigma, instructions, surface=False, soft=None):
        sigma = sigma.view(-1, 1, 1, 1, 1)
        right = batch.clean if sample else (noisy - batch.clean) / sigma
        return Prediction(right, right)

    value = loss(knows, batch, Recipe(), torch.Generator().manual_seed(0), shift=2.0, sample=sample)
    assert value.shape == (16,) and value.max() < 1e-6


def text_batch(recipe: Recipe, task: str = "text"):
    batch = collate(Corpus(clips_of(), LENGTH, recipe).draw(np.random.default_rng(0), task), encode)
    return replace(batch, clean=torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("sample", [True, False])
def test_the_guess_of_a_model_that_knows_the_truth_changes_nothing(sample):
    def seen_by(guessed):
        seen = []

        def knows(batch, noisy, sigma, instructions, surface=False, soft=None):
            seen.append(noisy)
            return Prediction(batch.clean if sample else (noisy - batch.clean) / sigma.view(-1, 1, 1, 1, 1))

        recipe = Recipe(guessed=guessed)
        value = loss(knows, text_batch(recipe), recipe, torch.Generator().manual_seed(0), shift=2.0, sample=sample)
        assert value.max() < 1e-6
        return seen

    [without], [_, guessing] = seen_by(0.0), seen_by(1.0)
    assert torch.allclose(without, guessing, atol=1e-5)


@pytest.mark.parametrize("sample", [True, False])
def test_under_the_noise_lies_something_between_the_truth_and_the_models_guess(sample):
    recipe = Recipe(guessed=1.0, pure_noise_text=0.0)
    batch, seen = text_batch(recipe), []

    def errs(batch, noisy, sigma, instructions, surface=False, soft=None):
        """At first by three, then no more."""
        seen.append((noisy, sigma.view(-1, 1, 1, 1, 1)))
        said = batch.clean + (3.0 if len(seen) == 1 else 0.0)
        return Prediction(said if sample else (noisy - said) / seen[-1][1])

    value = loss(errs, batch, recipe, torch.Generator().manual_seed(0), shift=2.0, sample=sample)
    (noise, whole), (noisy, sigma) = seen
    assert (whole == 1).all() and (sigma < 1).all(), "the guess is what is made of noise alone"
    way = ((noisy - sigma * noise) / (1 - sigma) - batch.clean) / 3
    assert torch.allclose(way, way[:, :1, :1, :1, :1].expand_as(way), atol=1e-2), "each target has a share of its own"
    share = way.mean(dim=(1, 2, 3, 4))
    assert (share > -1e-3).all() and (share < sigma.flatten() + 1e-3).all() and share.max() > 0.1
    assert value.max() < 1e-6, "wanted is the truth, not the guess"


def test_only_instructions_are_guessed_at_and_in_their_share():
    def calls(task, guessed):
        recipe, count = Recipe(guessed=guessed, batch=1, targets=1), []

        def blind(batch, noisy, sigma, instructions, surface=False, soft=None):
            count.append(instructions)
            return Prediction(torch.zeros_like(noisy))

        batch = text_batch(recipe, task)
        loss(blind, batch, recipe, torch.Generator().manual_seed(0), shift=2.0, sample=True)
        assert len(set(count)) == 1, "the guess is made from the same words"
        return len(count)

    assert calls("camera", 1.0) == calls("continue", 1.0) == calls("text", 0.0) == 1
    assert calls("text", 1.0) == 2
    corpus = Corpus(clips_of(), LENGTH, Recipe(guessed=0.4))
    twice = [corpus.draw(np.random.default_rng(seed), "text").guessed for seed in range(100)]
    assert sum(twice) / 100 == pytest.approx(0.4, abs=0.12)


def test_memories_get_noise_of_a_level_of_their_own_and_nothing_else_does():
    corpus = Corpus(clips_of(), LENGTH, Recipe(memory_dropout=0.0, source_dropout=0.0))
    batch = collate(corpus.draw(np.random.default_rng(1), "camera"), encode)
    noisy = noised(batch, 0.5, torch.Generator().manual_seed(0))
    levels = [(a.latent - b.latent).flatten(1).std(dim=1) for a, b in zip(noisy.memories, batch.memories, strict=True)]
    assert torch.cat(levels).max() < 0.52 and len(torch.cat(levels).round(decimals=3).unique()) == sum(map(len, levels))
    assert noisy.clean is batch.clean and noisy.source is batch.source


# The recipe and the optimizers.


@given(st.integers(1, 500), st.integers(0, 100), st.floats(0, 1))
def test_rates_rise_then_stay_then_fall(steps, warmup, decay):
    recipe = Recipe(steps=steps, warmup=warmup, decay=decay)
    rates = [recipe.schedule(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert recipe.schedule(steps) == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"optimizer": "sgd"}, "muon or adamw"), ({"batch": 0}, "batch must be at least 1"), ({"clip": -1.0}, "negative"),
     ({"camera": 0.0, "text": 0.0, "onward": 0.0}, "nothing would be trained"), ({"learning_rate": -1}, "negative"),
     ({"warmup": -5}, "negative"), ({"memory_dropout": 3.0}, "memory_dropout must lie in 0..1, got 3.0"),
     ({"ema": 2.0}, "ema must lie in 0..1"), ({"memories": 0}, "memories must be at least 1"),
     ({"merge_share": (0.7, 0.3)}, "merge_share must be a range in 0..1, got 0.7 to 0.3")],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Recipe(**wrong)


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
def test_orthogonalised_matrices_are_nearly_the_polar_factor(shape):
    random = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(5, *shape, generator=random).double(), full_matrices=False)
    values = 0.1 + 0.9 * torch.rand(5, 1, min(shape), generator=random)  # what is nearly singular takes more rounds
    matrices = (u * values @ vh).float()
    made = orthogonalised(matrices)
    found = torch.linalg.svdvals(made.double())
    assert found.min() > 0.4 and found.max() < 1.3
    likeness = torch.nn.functional.cosine_similarity(made.double().flatten(1), (u @ vh).flatten(1))
    assert likeness.min() > 0.95


def test_muon_goes_where_torchs_own_goes():
    start, gradients = torch.randn(16, 40), torch.randn(3, 16, 40)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    one = Muon([ours], lr=0.01)
    other = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    moved = [(each.detach() - start).flatten() for each in (ours, theirs)]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.995  # torch's is in bfloat16
    assert moved[0].norm() == pytest.approx(moved[1].norm().item(), rel=0.02)


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match=r"takes matrices, got a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


# A step.


def pixels(windows, length, size=16):
    random = np.random.default_rng([windows[0].clip.row, windows[0].start])
    return torch.tensor(random.normal(size=(len(windows), 3, length, size, size)), dtype=torch.float32)


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_gradients_reach_every_trained_parameter_over_a_few_draws(attention):
    recipe = Recipe(batch=1, targets=1 if attention == "joint" else 2, memory_dropout=0.1, memory_dropout_text=0.1)
    corpus = Corpus(clips_of(), LENGTH, recipe)
    pipe = build_tiny()
    pipe.transformer.register_to_config(attention=attention)
    trainer = Trainer(Network(pipe), recipe)
    untouched = set(trainer.parameters)
    with torch.no_grad():
        for part in (pipe.transformer.depths, pipe.transformer.details):
            part.leave.weight.normal_()  # as after a step: behind zeros nothing learns
    for step in range(16):
        batch = collate(corpus.draw(np.random.default_rng(step)), partial(pixels, size=32))  # large enough to merge
        batch = replace(batch, depths=torch.full((*batch.clean.shape[:1], *batch.clean.shape[2:]), 5.0))
        value = loss(
            trainer.network, batch, recipe, torch.Generator().manual_seed(step), shift=2.0, sample=True,
            surface=trainer.surface, details=trainer.details,
        )  # fmt: skip
        value.mean().backward()
        untouched -= {name for name, each in trainer.parameters.items() if each.grad is not None and each.grad.any()}
    assert not untouched


def test_known_depths_add_to_the_loss_and_nothing_else_does():
    recipe = Recipe(batch=2, targets=2)
    draw = Corpus(clips_of(), LENGTH, recipe).draw(np.random.default_rng(0), "camera")
    network = Network(build_tiny())

    def losses(depth, **changed):
        def depths(windows, length):
            return torch.full((len(windows), length, 16, 16), depth)

        batch = collate(draw, pixels, depths=depths)
        given = replace(recipe, **changed)
        return loss(network, batch, given, torch.Generator().manual_seed(0), shift=2.0, sample=True)

    plain = losses(5.0, depth_weight=0.0)
    assert torch.equal(losses(torch.nan), plain), "unknown"
    assert torch.allclose((losses(5.0, depth_weight=0.4) - plain) / 4, losses(5.0, depth_weight=0.1) - plain, atol=1e-6)
    assert (losses(5.0) > plain).all() and (losses(99.0) > losses(5.0)).all()


def test_what_a_model_makes_up_itself_is_taught_where_copying_prevails():
    recipe = Recipe(batch=2, targets=2, depth_weight=0.0, turned=0.0, source_dropout=0.0)
    batch = collate(Corpus(clips_of(), LENGTH, recipe).draw(np.random.default_rng(0), "text"), pixels)
    network = Network(build_tiny())
    with torch.no_grad():  # nothing of the model's own is in the mean
        network.transformer.copying.proj.bias.view(-1, 13)[:, 9] = -100.0

    def gradient(weight):
        network.zero_grad()
        given = replace(recipe, own_weight=weight)
        loss(network, batch, given, torch.Generator().manual_seed(0), shift=2.0, sample=True).mean().backward()
        return network.transformer.proj_out.weight.grad.abs().max()

    assert gradient(0.0) < 1e-6 < 1e-3 < gradient(0.3)


def test_a_step_is_a_function_of_seed_step_and_rank():
    recipe = Recipe(batch=1, targets=2)
    batch = collate(Corpus(clips_of(), LENGTH, recipe).draw(np.random.default_rng(0), "camera"), pixels)

    def losses(**changed):
        trainer = Trainer(Network(build_tiny()), recipe, **changed)
        return [trainer.train_step(batch)["loss"] for _ in range(2)]

    assert losses() == losses()
    assert losses() != losses(seed=1) and losses() != losses(rank=1)
    assert losses()[0] != losses()[1]


def test_averaged_weights_are_in_place_inside_and_trained_ones_outside():
    recipe = Recipe(batch=1, targets=1, warmup=0, ema=0.5)
    trainer = Trainer(Network(build_tiny()), recipe)
    batch = collate(Corpus(clips_of(), LENGTH, recipe).draw(np.random.default_rng(0), "camera"), pixels)
    for _ in range(2):
        trainer.train_step(batch)
    state = trainer.state_dict()
    trained, averages = {n: p.clone() for n, p in state["parameters"].items()}, state["average"]["shadow_params"]
    averages = [each.clone() for each in averages]
    with pytest.raises(ZeroDivisionError), trainer.averaged():
        assert all(torch.equal(*pair) for pair in zip(trainer.parameters.values(), averages, strict=True))
        raise ZeroDivisionError
    assert all(torch.equal(trained[name], each) for name, each in trainer.parameters.items())
    assert any(not torch.equal(trained[name], each) for name, each in zip(trained, averages, strict=True))


def test_validation_sees_the_same_windows_and_noise_whenever_it_is_asked():
    recipe = Recipe(batch=2, targets=2)
    corpus = Corpus(clips_of(), LENGTH, validation_recipe(recipe))
    trainer = Trainer(Network(build_tiny()), recipe)
    one, other = (validate(trainer, validation_batches(corpus, pixels, 1), 0.27) for _ in range(2))
    assert one == other and {"psnr_camera_1", "psnr_text_0.6", "psnr_continue_1", "memory_gain_camera"} <= set(one)
    errors = [10 ** (-value / 10) / 0.27**2 for name, value in one.items() if name.startswith("psnr_")]
    assert len(errors) == 6 and one["validation_loss"] == pytest.approx(np.mean(errors))


def test_a_model_whose_memories_all_have_one_tokenizer_can_be_validated():
    recipe = Recipe(batch=1, targets=1)
    one = {**TINY_TRANSFORMER, "memory_kernels": ((1, 2, 2),)}
    pipe = build_mini(0, transformer=one, text=TINY_TEXT, **TINY_PIPELINE)
    corpus = Corpus(clips_of(), LENGTH, validation_recipe(recipe))
    batches = validation_batches(corpus, pixels, 4, tokenizers=1)
    assert np.isfinite(validate(Trainer(Network(pipe), recipe), batches, 0.27)["validation_loss"])


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_training_that_goes_on_has_the_settings_it_is_given(optimizer):
    recipe = Recipe(batch=1, targets=1, warmup=0, optimizer=optimizer)
    batch = collate(Corpus(clips_of(), LENGTH, recipe).draw(np.random.default_rng(0), "camera"), pixels)
    first = Trainer(Network(build_tiny()), recipe)
    first.train_step(batch)
    changed = replace(recipe, weight_decay=0.1, ema=0.5, learning_rate=2e-3, adam_learning_rate=2e-3)
    second = Trainer(Network(build_tiny()), changed)
    second.load_state_dict(first.state_dict())
    assert {group["weight_decay"] for each in second.optimizers for group in each.param_groups} == {0.1}
    assert second.average.decay == 0.5 and second.step == 1
    second.train_step(batch)
    assert {group["lr"] for each in second.optimizers for group in each.param_groups} == {2e-3}


def test_a_model_has_learned_what_its_trainings_could_teach_it():
    def taught(clips, **recipe) -> tuple[str, ...]:
        return Corpus(clips, LENGTH, Recipe(**recipe)).teaches

    assert taught(clips_of()) == taught(clips_of(), onward=0) == ("camera", "text", "memory")
    assert taught(clips_of(edited=0)) == ("camera", "memory"), "no clip has an instruction"
    assert taught(clips_of(), camera=0) == ("text", "memory")
    assert taught(clips_of(), onward=0, memory_dropout=1, memory_dropout_text=1) == ("camera", "text")
    first = Trainer(Network(build_tiny()), Recipe(camera=0, onward=0, memory_dropout_text=1))
    first.register(256)
    assert tuple(first.pipe.config.learned) == ("text",), "random weights know nothing"
    second = Trainer(Network(build_tiny(trained_steps=7, learned=("memory",))), Recipe(), learned=("camera",))
    second.load_state_dict(first.state_dict())
    second.register(256)
    assert tuple(second.pipe.config.learned) == ("camera", "text", "memory"), "base, an earlier recipe, and this one"
    assert second.pipe.config.trained_steps == 7


def test_the_paper_tunes_self_attention_cameras_tokenizers_and_compressors_and_what_is_ours_beside():
    network = Network(build_tiny())
    part = takes_part("paper")
    tuned = {name.split(".", 2)[1] for name, _ in network.named_parameters() if part(name)}
    assert tuned == {"blocks", "camera_embedding", "tokenizers", "compressor", "copying"}
    assert not any(part(name) for name, _ in network.named_parameters() if "ffn" in name or "attn2" in name)
    assert not any(part(name) for name, _ in network.named_parameters() if name.startswith("text_encoder"))
    assert all(takes_part("all")(name) for name, _ in network.named_parameters())
    for beside, other in (("depths", "details"), ("details", "depths")):
        names = [name for name, _ in network.named_parameters() if name.startswith(f"transformer.{beside}.")]
        assert names and all(takes_part(beside)(name) for name in names)
        assert not any(takes_part(tune)(name) for name in names for tune in ("paper", "words", "empty", other, "lora"))


def test_who_learns_words_alone_edits_without_them_as_before_to_the_bit():
    pipe = build_tiny()
    pipe.set_progress_bar_config(disable=True)
    recipe = Recipe(batch=2, targets=1, warmup=1, learning_rate=0.1, adam_learning_rate=0.1, ema=0.0)
    lens = default_intrinsics(1.0)
    camera, aside = Trajectory.static(16, lens), preset("arc_left", 16, lens)
    video = torch.randn(3, 16, 32, 32, generator=torch.Generator().manual_seed(0))

    def edits(prompt: str) -> list[torch.Tensor]:
        return [
            pipe(
                source=video, source_trajectory=camera, target_trajectory=aside, prompt=prompt,
                memories=[MemoryVideo(video.flip(1), aside)], attention=attention,
                generator=torch.Generator().manual_seed(1),
            ).latents
            for attention in ("cached", "joint")
        ]  # fmt: skip

    before = edits(""), edits("paint the ball red")
    trainer = Trainer(Network(pipe), recipe, trainable=takes_part("words"))
    for _ in range(2):
        trainer.train_step(text_batch(recipe))
    pipe.transformer.eval()
    wordless, worded = edits(""), edits("paint the ball red")
    assert all(torch.equal(*each) for each in zip(wordless, before[0], strict=True))
    assert not any(torch.equal(*each) for each in zip(worded, before[1], strict=True))
    assert {name.split(".")[0] for name in trainer.parameters} == {"transformer", "text_encoder"}
    assert "text_encoder.empty" not in trainer.parameters, "which camera samples would teach"


def test_what_an_empty_prompt_says_can_be_learned_alone_and_changes_no_edit_with_words():
    pipe, recipe = build_tiny(), Recipe(batch=2, targets=1, warmup=1, adam_learning_rate=0.1, ema=0.0, text_dropout=0.0)
    pipe.set_progress_bar_config(disable=True)
    video = torch.randn(3, 16, 32, 32, generator=torch.Generator().manual_seed(0))

    def edit(prompt: str) -> torch.Tensor:
        seed = torch.Generator().manual_seed(1)
        return pipe(source=video, prompt=prompt, guidance_scale=2.0, generator=seed).latents

    before = edit(""), edit("paint the ball red")
    trainer = Trainer(Network(pipe), recipe, trainable=takes_part("empty"))
    assert list(trainer.parameters) == ["text_encoder.empty"]
    for _ in range(2):
        trainer.train_step(replace(text_batch(recipe), instructions=("", "")))
    pipe.transformer.eval()
    assert not torch.equal(edit(""), before[0]) and torch.equal(edit("paint the ball red"), before[1])


def test_words_that_are_dropped_are_unknown_and_not_empty():
    recipe, heard = Recipe(batch=2, targets=1, text_dropout=1.0), []

    def network(batch, noisy, sigma, instructions, surface=False, soft=None):
        heard.extend(instructions)
        return Prediction(noisy)

    loss(network, text_batch(recipe), recipe, torch.Generator().manual_seed(0), shift=1.0, sample=True)
    assert heard == [None, None]


# The estimate.


def test_an_estimate_counts_what_is_there_and_grows_with_what_is_asked():
    recipe = Recipe(batch=2, targets=2)
    with torch.device("meta"):
        network = MemoryWanTransformer3DModel(**TRANSFORMER, **SIZES["cpu"])
    found = estimate(network, recipe, (16, 48, 48), None)
    assert found.parameters == found.trained == sum(each.numel() for each in network.parameters())
    assert 16 * found.parameters < found.memory < 200 * found.parameters
    part = estimate(network, recipe, (16, 48, 48), takes_part("paper"))
    assert 0 < part.trained < part.parameters and part.memory < found.memory
    assert estimate(network, recipe, (16, 96, 96), None).operations > 4 * found.operations
    assert estimate(network, recipe, (16, 48, 48), None, checkpointing=True).memory < found.memory
    assert estimate(network, recipe, (16, 48, 48), None, processes=2).memory < found.memory
    assert estimate(network, replace(recipe, batch=4), (16, 48, 48), None).operations == 2 * found.operations


def test_a_step_takes_about_as_many_operations_as_estimated():
    recipe = Recipe(batch=1, targets=2, memories=1, memory_dropout=0.0, source_dropout=0.0)
    corpus = Corpus(clips_of(), 16, recipe)
    network = Network(build_mini()).train()
    batch = collate(
        corpus.draw(np.random.default_rng(0), "camera"),
        lambda windows, _: torch.zeros(len(windows), 3, 16, 64, 64),
        depths=lambda windows, _: torch.ones(len(windows), 16, 64, 64),
    )
    for tune in ("all", "depths", "details", "paper", "empty"):
        trained = takes_part(tune)
        teaches = {part: tune in ("all", name) for part, name in (("surface", "depths"), ("details", "details"))}
        teaches["alone"] = tune in ("depths", "details")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            loss(network, batch, recipe, torch.Generator().manual_seed(0), shift=2.0, sample=True, **teaches)
        counted = 3 * counter.get_total_flops()  # the way back takes twice the way there
        assert 0.6 < estimate(network.transformer, recipe, (16, 64, 64), trained).operations / counted < 1.5, tune


def test_the_measured_rate_leaves_torchs_threads_as_they_were():
    before = torch.get_num_threads()
    assert measured_rate("cpu", torch.float32, 1) > 1e8
    assert torch.get_num_threads() == before


def test_starts_lie_half_a_window_apart_and_end_within_the_clip():
    [clip] = clips_of(scenes=1, cameras=1, edited=0, frames=21)
    assert starts(clip, 8) == (0, 4, 8, 12) and starts(clip, 21) == (0,) and starts(clip, 22) == ()
    assert starts(clip, 9) == (0, 4, 9) and pairs(clip, 9) == [9] and pairs(clip, 8) == [8, 12]
    assert starts(clip, 1) == tuple(range(21))
    assert math.isclose(Window(clip, 6).seconds, 0.5)
