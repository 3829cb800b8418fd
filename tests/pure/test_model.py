"""How a model's name becomes a folder: mini, bases that are converted once, our own folders, and errors."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import jobs.model
from jobs.config import EditConfig
from jobs.edit import unlearned
from jobs.model import ModelError, _made, resolve
from jobs.turn import parse_turn
from pipeline.bases import BASES
from pipeline.bases.recammaster import RECAMMASTER
from pipeline.memory_pipeline import MemoryV2VPipeline, MemoryVideo
from pipeline.scenes import paths, random_scene, render
from pipeline.transformer import MemoryWanTransformer3DModel
from tests import ROOT
from tests.pure.test_bases import components, folder_of, reading, small  # noqa: F401  (a fixture among them)


@pytest.fixture
def checkout(components, tmp_path, monkeypatch):  # noqa: F811
    """A local folder with all files of ReCamMaster, at the size of a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jobs.model, "recognise", lambda folder: small(RECAMMASTER))
    (tmp_path / "recammaster").mkdir()
    return folder_of(components, tmp_path / "recammaster", reading().state_dict())


def test_a_folder_of_a_base_is_converted_once(checkout, tmp_path, capsys):
    model = resolve(str(checkout))
    assert model.spec.trained and model.folder.startswith(str(tmp_path / "cache"))
    assert "converting ReCamMaster" in capsys.readouterr().err
    assert resolve(str(checkout)) == model
    assert "converting" not in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "cache/memory-v2v/models").iterdir()] == [model.folder.split("/")[-1]]


def test_other_weights_are_another_model(checkout):
    before = resolve(str(checkout))
    torch.save(reading(seed=1).state_dict(), checkout / "step20000.ckpt")
    after = resolve(str(checkout))
    assert before.folder != after.folder and before.digest != after.digest


def test_a_conversion_that_fails_leaves_nothing_and_says_why(checkout, tmp_path):
    torch.save({"patch_embedding.weight": torch.zeros(1)}, checkout / "step20000.ckpt")
    with pytest.raises(ModelError, match="recammaster: the checkpoint lacks"):
        resolve(str(checkout))
    assert not list((tmp_path / "cache/memory-v2v/models").iterdir())


def test_an_unknown_name_is_an_error_that_lists_what_there_is():
    with pytest.raises(ModelError, match="no-such-model.*mini, recammaster, lucy-edit, memory-v2v"):
        resolve("no-such-model")


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_without_the_hub_a_base_is_an_error_of_one_line(base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=f"model '{base.name}': .* put .* into one folder and name that folder"
    ) as error:
        resolve(base.name)
    assert "\n" not in str(error.value)


def test_mini_is_in_the_repository_trained_small_and_without_a_trace_of_where_it_was_made():
    model = resolve("mini")
    folder = Path(model.folder)
    assert folder.is_relative_to(ROOT) and model.spec.trained
    files = [each for each in folder.rglob("*") if each.is_file()]
    assert sum(each.stat().st_size for each in files) < 64 * 2**20
    assert {each.suffix for each in files} == {".json", ".safetensors"}
    assert not any("_name_or_path" in each.read_text() for each in files if each.suffix == ".json")


def test_mini_remembers():
    """Shown the true view as memory, it comes nearer to it than without, on a scene that it was not trained on."""
    scene, pipe = random_scene(1 << 38), MemoryV2VPipeline.from_pretrained(resolve("mini").folder)
    pipe.set_progress_bar_config(disable=True)
    source, target = paths(scene, 5, 3, 16, 12.0, 1.0)[::2]
    views = {}
    for name, path in (("source", source), ("target", target)):
        camera = torch.tensor(path.c2w, dtype=torch.float32)[None], torch.tensor(path.intrinsics).float()[None]
        views[name] = render([scene], *camera, torch.arange(16)[None] / 12, 48, 48).colour[0]
    origin, errors = source.c2w[0], []
    for memories in ([], [MemoryVideo(pipe.encode(views["target"]), target.relative_to(origin))]):
        made = pipe(
            source=views["source"],
            source_trajectory=source.relative_to(origin),
            target_trajectory=target.relative_to(origin),
            memories=memories,
            frame_rate=12.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).frames
        errors.append((torch.from_numpy(made).float() - views["target"]).square().mean())
    assert errors[1] < 0.8 * errors[0]


def test_what_was_made_in_the_cache_can_be_read_by_whoever_shares_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = os.umask(0o077)
    try:
        folder = Path(resolve("mini-cpu").folder)
    finally:
        os.umask(before)
    modes = {oct(each.stat().st_mode & 0o777) for each in (folder, *folder.rglob("*"))}
    assert modes == {"0o755", "0o644"}


def test_what_a_killed_conversion_left_in_the_cache_is_cleared_and_what_is_at_work_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = tmp_path / "memory-v2v" / "models"
    left, at_work = models / ".made.abcd_123", models / ".made.atwork_1"
    for each in (left, at_work):
        (each / "transformer").mkdir(parents=True)
        os.utime(each, (0, 0))
    os.utime(left / "transformer", (0, 0))
    assert _made("made", lambda fresh: (fresh / "model_index.json").write_text("{}")) == models / "made"
    assert sorted(each.name for each in models.iterdir()) == [".made.atwork_1", "made"]


def test_both_sizes_of_mini_can_begin_untrained():
    folders = {resolve(f"mini-{size}", seed=seed).folder for size in ("cpu", "gpu") for seed in (0, 1)}
    assert len(folders) == 4 and not resolve("mini-cpu").spec.trained
    widths = [MemoryWanTransformer3DModel.load_config(resolve(name).folder, subfolder="transformer")["ffn_dim"]
              for name in ("mini-cpu", "mini-gpu", "mini")]  # fmt: skip
    assert widths[0] < widths[1] == widths[2]


@pytest.mark.parametrize(
    ("learned", "turns", "said"),
    [
        (("camera", "text", "memory"), ["pan_right", "make it night"], []),
        (
            ("text", "memory"),
            ["pan_right"],
            ["has not learned to move the camera: pan_right will look like its source"],
        ),
        (("text", "memory"), ["make it night"], []),
        (("camera", "memory"), ["{trajectory: pan_right, prompt: a room}"], []),
        (("camera", "memory"), ["make it night"], ["has not learned instructions"]),
        (("camera",), ["pan_right"], ["has not learned to look at memories"]),
    ],
)
def test_what_a_model_was_not_trained_for_is_said(learned: tuple[str, ...], turns: list[str], said: list[str]) -> None:
    spec = replace(resolve("mini").spec, learned=learned, words=frozenset())
    lines = unlearned([parse_turn(turn) for turn in turns], EditConfig(), spec)
    assert len(lines) == len(said) and all(part in line for line, part in zip(lines, said, strict=True))
    assert not any("memories" in line for line in unlearned([], EditConfig(k=0), spec))


def test_words_that_a_model_of_few_words_does_not_have_are_named():
    spec = resolve("mini").spec
    known, other = parse_turn("turn the red cylinder blue"), parse_turn("prompt: Turn the bikes, and the Bed, blue!")
    assert unlearned([known, parse_turn("pan_right")], EditConfig(), spec) == []
    [line] = unlearned([known, other], EditConfig(), spec)
    assert "has few words, and not and, bed, bikes: " in line
    assert "cylinder" in spec.words
    assert unlearned([other], EditConfig(), replace(spec, words=frozenset())) == []
