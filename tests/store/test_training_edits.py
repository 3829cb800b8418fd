"""Details learned from edits of the model itself: what is made, kept and trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import actors.training
from actors.training import EDITS, MODEL, train
from actors.training_data import Encoded, Windows
from actors.training_edits import TRIES, Edits
from jobs.main import main
from pipeline.memory_pipeline import MemoryV2VPipeline, MemoryVideo
from pipeline.pixels import load_codec
from pipeline.training.batch import Batch, Covered, collate
from pipeline.training.edited import edited, edits_recipe
from pipeline.training.network import Network, pictures
from pipeline.training.objective import noise_of, varied
from pipeline.training.recipe import Recipe
from pipeline.training.samples import Corpus, Draw
from pipeline.training.trainer import Trainer
from storage.clips import ClipDataset
from tests.store.test_training_loop import Stopped, stop_after
from tests.training import logged, setup

RECIPE = {"steps": 6, "batch": 2, "targets": 1, "camera": 0.5, "text": 0.5, "onward": 0.0, "warmup": 1}


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture(scope="module")
def network(tiny_model: str) -> Network:
    pipe = MemoryV2VPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return Network(pipe)


@pytest.fixture(scope="module")
def batches(tiny_scenes: str, tiny_model: str) -> dict[str, Batch]:
    """Of every task one, of two scenes."""
    data = ClipDataset.open(tiny_scenes)
    encode = Encoded(Windows(data, 32, 32), load_codec(tiny_model, "cpu"))
    corpus = Corpus(data.clips("train"), 16, edits_recipe(Recipe(batch=2, memory_dropout=0.0)))
    return {task: collate(corpus.draw(np.random.default_rng(3), task), encode) for task in ("camera", "text")}


@pytest.mark.parametrize("task", ["camera", "text"])
def test_edits_are_those_that_the_pipeline_makes_and_does_not_paint(network, batches, task):
    batch = batches[task]
    one = replace(
        batch,
        clean=batch.clean[:1],
        plain=None if batch.plain is None else batch.plain[:1],
        view={name: value[:1] for name, value in batch.view.items()},
        source=_row(batch.source),
        memories=tuple(_row(each) for each in batch.memories),
        instructions=batch.instructions[:1],
        scenes=batch.scenes[:1],
    )
    made = edited(network, one, 5)
    assert made is not None and made.covered is not None
    [sample] = batch.draw.samples[:1]
    reference = sample.origin.clip.trajectory.c2w[sample.origin.start]

    def shown(window):
        return window.clip.trajectory[window.start : window.start + 16].relative_to(reference)

    rate = sample.origin.clip.rate
    pipe = network.pipe
    details, pipe.transformer.details = pipe.transformer.details, None
    try:
        usual = pipe(
            source=one.source.latent[0], source_trajectory=shown(sample.origin),
            target_trajectory=shown(sample.targets[0]), prompt=sample.instruction, frame_rate=rate,
            memories=[
                MemoryVideo(video.latent[0], shown(window), round((window.seconds - sample.origin.seconds) * rate))
                for video, window in zip(one.memories, sample.memories, strict=True)
            ],
            generator=noise_of("cpu", 5),
        ).latents  # fmt: skip
    finally:
        pipe.transformer.details = details
    frames = [15, 0, 8]
    assert torch.allclose(made.covered.shown[0], usual[:, frames], atol=1e-4)
    assert torch.equal(made.clean, one.clean[:, :, frames]) and made.instructions == one.instructions
    assert (made.plain is None) == (task == "camera")
    assert made.covered.share.shape == (1, 1, 3, 32, 32) and 0 < made.covered.share.mean() <= 1.0001


def _row(video):
    names = ("latent", "poses", "intrinsics", "times")
    return replace(video, **{name: getattr(video, name)[:1] for name in names})


def test_clips_of_which_nothing_is_made_up_are_left_out(network, batches, monkeypatch):
    batch, copying = batches["camera"], network.transformer.copying

    def forward(*given):
        sample, made_up = type(copying).forward(copying, *given)
        made_up.share[0] = 0.0
        return sample, None if nothing else replace(made_up, share=nobody * made_up.share)

    nothing, nobody = False, 1.0
    monkeypatch.setattr(copying, "forward", forward)
    one = edited(network, batch, 5)
    assert one is not None and len(one.clean) == len(one.instructions) == len(one.scenes) == 1
    assert torch.equal(one.clean, batch.clean[1:, :, [15, 0, 8]]) and one.scenes == batch.scenes[1:]
    nobody = 0.0
    assert edited(network, batch, 5) is None
    nothing = True
    assert edited(network, batch, 5) is None


def covered(number: int, plain: bool) -> Batch:
    clean, before, shown = torch.randn(3, 2, 3, 3, 8, 8, generator=seed(number)).half().float()
    share = torch.rand(2, 1, 3, 8, 8, generator=seed(number)).half().float()
    draw = Draw("text" if plain else "camera", 16, (), False, False, None, None)
    view = {
        "target_poses": None,
        "target_intrinsics": torch.ones(2, 3, 4) / 7,
        "target_times": torch.arange(6.0).view(2, 3),
    }
    words = ("paint it red", "") if plain else ("", "")
    return Batch(draw, clean, before if plain else None, None, view, None, (), words, (7, 8), Covered(shown, share))


def same(one: Batch, other: Batch) -> bool:
    assert one.covered is not None and other.covered is not None
    pairs = [(one.clean, other.clean), (one.plain, other.plain), *zip(one.covered, other.covered, strict=True)]
    pairs += [(value, other.view[name]) for name, value in one.view.items()]
    return (one.draw.task, one.instructions, one.scenes) == (other.draw.task, other.instructions, other.scenes) and all(
        left is right if left is None or right is None else torch.equal(left, right) for left, right in pairs
    )


def test_edits_that_are_kept_come_back_as_they_were_and_are_made_once(tmp_path):
    asked: list[tuple[int, int]] = []

    def make(number: int, attempt: int) -> Batch | None:
        asked.append((number, attempt))
        return covered(number, plain=bool(number % 2)) if number != 1 or attempt == 2 else None

    edits = Edits(tmp_path / "edits", ["a key"], 4, make)
    assert edits.missing() == [0, 1, 2, 3]
    assert list(edits.fill(0, 2)) == [(1, 2), (2, 2)] and asked == [(0, 0), (2, 0)]
    assert list(edits.fill(1, 2)) == [(1, 2), (2, 2)] and asked[2:] == [(1, 0), (1, 1), (1, 2), (3, 0)]
    for number in range(4):
        assert same(edits(number), covered(number, plain=bool(number % 2)))
    (edits.folder / "000002.safetensors").unlink()
    assert edits.missing() == [2] and list(edits.fill()) == [(4, 4)] and asked[6:] == [(2, 0)]
    assert Edits(tmp_path / "edits", ["another"], 4, make).missing() == [0, 1, 2, 3]
    nothing = Edits(tmp_path / "none", [], 1, lambda number, attempt: None)
    with pytest.raises(RuntimeError, match=f"edits 0: of {TRIES} batches nothing is made up"):
        list(nothing.fill())


@pytest.mark.parametrize("plain", [False, True])
def test_edits_are_varied_with_what_they_show(plain):
    given, kinds = covered(1, plain), set()
    for number in range(12):
        found = varied(given, seed(number))
        assert found.covered is not None and given.covered is not None
        for row in range(2):
            parts = [(given.clean, found.clean), (given.covered.shown, found.covered.shown)]
            ways = [
                (flip, order)
                for flip in (False, True)
                for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
                if all(
                    torch.equal((old[row].flip(-1) if flip else old[row])[list(order)], new[row]) for old, new in parts
                )
            ]
            [(flip, order)] = ways  # one for both
            share = given.covered.share[row]
            assert torch.equal(found.covered.share[row], share.flip(-1) if flip else share)
            if given.plain is not None and found.plain is not None:
                assert torch.equal(found.plain[row], given.plain[row].flip(-1) if flip else given.plain[row])
            kinds.add((flip, order == (0, 1, 2)))
    assert kinds == ({(False, True), (True, True)} if plain else {(a, b) for a in (False, True) for b in (False, True)})
    assert len(pictures(given).clean) == 6, "all of their frames"


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "transformer/diffusion_pytorch_model.safetensors")


def test_a_training_learns_from_its_models_edits_and_ends_the_same_after_a_stop(
    tiny_scenes: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    take = Trainer.train_step

    def step(trainer: Trainer, batch: Batch) -> dict[str, float]:
        seen.append(batch.covered is not None)
        return take(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", step)
    whole, stopped = (
        setup(tiny_scenes, tmp_path / name, tiny_model, RECIPE, tune="details", own_edits=3, checkpoint_minutes=0)
        for name in ("whole", "stopped")
    )
    whole = replace(whole, validation_batches=1)
    train(whole)
    assert any(seen) and not all(seen), "some of the pictures are drawn"
    log = logged(whole.out)
    assert [line["edited"] for line in log if "edited" in line] == [3]
    assert [line["step"] for line in log if "details_off" in line] == [0, 6]
    before, after = weights(tiny_model), weights(f"{whole.out}/{MODEL}")
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved and all(name.startswith("details.") for name in moved)

    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            train(stopped)
    made = sorted(Path(stopped.out, EDITS).rglob("*.safetensors"))
    before_stop = [each.read_bytes() for each in made]
    for each in made[:2]:
        each.unlink()
    train(stopped)
    assert [each.read_bytes() for each in made] == before_stop, "made again, as they were"
    ended = weights(f"{stopped.out}/{MODEL}")
    assert all(torch.equal(value, ended[name]) for name, value in after.items())


def test_edits_are_made_again_for_another_seed_and_kept_for_more_steps(tiny_scenes, tiny_model, network, tmp_path):
    data = ClipDataset.open(tiny_scenes)
    encode = Encoded(Windows(data, 32, 32), load_codec(tiny_model, "cpu"))

    def files(steps: int, **changed) -> set[Path]:
        asked = setup(tiny_scenes, tmp_path / "out", tiny_model, {**RECIPE, "steps": steps}, tune="details", **changed)
        actors.training._edits(asked, network, encode, data, None, 0, 0, 1)
        return set(Path(asked.out, EDITS).rglob("*.safetensors"))

    first = files(1, own_edits=1)
    assert len(first) == 1 and files(2, own_edits=1) == first
    more = files(3, own_edits=2)
    assert len(more) == 2 and first < more
    [other] = files(3, own_edits=1, seed=9) - more
    assert other.read_bytes() not in [each.read_bytes() for each in first]


def test_of_several_processes_each_makes_a_part(tiny_scenes, tiny_model, network, tmp_path, monkeypatch):
    asked = setup(tiny_scenes, tmp_path / "out", tiny_model, RECIPE, tune="details", own_edits=4)
    made: list[tuple[int, int]] = []

    def fill(self: Edits, part: int = 0, parts: int = 1) -> Iterator[tuple[int, int]]:
        made.append((part, parts))
        return iter(())

    told: list[object] = []
    monkeypatch.setattr(Edits, "fill", fill)
    monkeypatch.setattr(actors.training, "same_everywhere", lambda find, name: told.append(find()))
    data = ClipDataset.open(tiny_scenes)
    actors.training._edits(asked, network, lambda windows, length: torch.zeros(0), data, None, 0, 1, 2)
    assert made == [(1, 2)] and told == [[0, 1, 2, 3]], "and waits for the others, which see as many files"


def test_own_edits_are_refused_where_details_are_not_what_is_tuned(tiny_scenes, tiny_model, tmp_path, capfd):
    words = ["train", "--data", tiny_scenes, "--out", str(tmp_path / "out"), "--model", tiny_model, "own_edits=2"]
    assert main([*words, "tune=words", "--dry-run"]) == 2
    assert "own_edits is 2 with tune=words and sharding=none: expected tune=details" in capfd.readouterr().err
    assert main([*words, "tune=details", "sharding=full", "--workers", "2", "--dry-run"]) == 2
    assert "own_edits is 2 with tune=details and sharding=full: expected tune=details" in capfd.readouterr().err
    assert main([*words, "tune=details", "camera=0", "text=0", "onward=1", "--dry-run"]) == 2
    assert "one of camera, text and onward must be more than 0" in capfd.readouterr().err


def test_a_part_that_is_trained_to_the_end_is_refused_for_another_model(tiny_scenes, tiny_model, tmp_path, capfd):
    other = tmp_path / "other"
    pipe = MemoryV2VPipeline.from_pretrained(tiny_model)
    torch.nn.init.normal_(pipe.transformer.proj_out.weight)
    pipe.save_pretrained(other)
    words = ["train", "--data", tiny_scenes, "--out", str(tmp_path / "out"), "tune=details", "steps=1", "batch=2"]
    assert main([*words, "--model", tiny_model]) == 0
    assert main([*words, "--model", str(other)]) == 2
    assert "began from model" in capfd.readouterr().err
    assert main([*words, "--model", tiny_model]) == 0
    assert "nothing to do: 1 steps are taken already" in capfd.readouterr().err
