"""What is learned beside the transformer: depth, read where data has it and a model copies along rays and nowhere else,
and details."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.training import MODEL, train
from actors.training_data import WindowDepths, Windows
from jobs.main import main
from pipeline.mini import build_mini
from pipeline.training.samples import Window
from storage.clips import ClipDataset
from tests.tiny import TINY_PIPELINE, TINY_TEXT, TINY_TRANSFORMER
from tests.training import logged, render_scenes, setup


@pytest.fixture(scope="module")
def deep_scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_scenes(tmp_path_factory.mktemp("deep"), trained=2, depth=True)


def test_windows_have_the_depths_of_their_own_frames_in_the_order_asked_for(deep_scenes: str) -> None:
    data = ClipDataset.open(deep_scenes)
    clips = data.clips()
    asked = [Window(clips[2], 5), Window(clips[0], 0), Window(clips[2], 5)]
    depths = WindowDepths(Windows(data, 32, 32))(asked, 4)
    for found, window in zip(depths, asked, strict=True):
        whole = data.channel("depth", window.clip.row)
        assert (found.numpy() == whole[window.start : window.start + 4]).all()
    half = WindowDepths(Windows(data, 16, 16))(asked, 4)
    assert torch.equal(half, depths[:, :, ::2, ::2]), "single pixels, no means"


@pytest.mark.parametrize(("given", "reads"), [({}, True), ({"depth_weight": 0.0}, False)])
def test_a_training_reads_depth_where_it_counts(
    deep_scenes: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict, reads: bool
) -> None:
    read, plain = [], WindowDepths.__call__
    monkeypatch.setattr(WindowDepths, "__call__", lambda self, *asked: read.append(1) or plain(self, *asked))
    asked = setup(deep_scenes, tmp_path / "out", tiny_model, {"steps": 2, **given})
    train(asked)
    assert bool(read) is reads
    assert np.isfinite([line["loss"] for line in logged(asked.out) if "loss" in line]).all()


def test_tuned_alone_depths_learn_what_the_clips_say_and_the_rest_stays_as_it_was(
    deep_scenes: str, tiny_model: str, tmp_path: Path
) -> None:
    recipe = {"steps": 80, "batch": 4, "targets": 1, "camera": 1.0, "text": 0.0, "onward": 0.0, "memory_dropout": 1.0,
              "adam_learning_rate": 1e-2, "warmup": 2, "ema": 0.5}  # fmt: skip
    train(setup(deep_scenes, tmp_path / "out", tiny_model, recipe, tune="depths", validation_batches=1))
    log = logged(tmp_path / "out")
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.5 * losses[0], "of two rooms, by heart: others say nothing of a training this short"
    assert [line["step"] for line in log if "depths_off" in line] == [0, 80]
    name = "transformer/diffusion_pytorch_model.safetensors"
    before, after = (load_file(Path(each) / name) for each in (tiny_model, tmp_path / "out" / MODEL))
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert moved and all(key.startswith("depths.") for key in moved) and before.keys() == after.keys()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_where_depths_are_to_be_tuned_alone_both_data_and_model_must_have_them(
    deep_scenes: str, tiny_model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], dry: list[str]
) -> None:
    def command(model: str, *words: str) -> str:
        asked = ["train", "--data", deep_scenes, "--out", str(tmp_path / "out"), "--model", model, "tune=depths"]
        assert main([*asked, *words, *dry]) == 2
        return capfd.readouterr().err

    assert "expected clips made with depth=true and depth_weight above 0" in command(tiny_model, "depth_weight=0")
    none = build_mini(transformer={**TINY_TRANSFORMER, "depth_widths": ()}, text=TINY_TEXT, **TINY_PIPELINE)
    none.save_pretrained(tmp_path / "none")
    assert "says no depths that tune=depths could train" in command(str(tmp_path / "none"))


def test_tuned_alone_details_are_learned_from_any_clips_and_the_rest_stays_as_it_was(
    tiny_scenes: str, tiny_model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = {"steps": 4, "targets": 1, "camera": 0.5, "text": 0.5, "onward": 0.0, "warmup": 1}
    train(setup(tiny_scenes, tmp_path / "out", tiny_model, recipe, tune="details", validation_batches=1))
    log = logged(tmp_path / "out")
    assert [line["step"] for line in log if "details_off" in line and "validation_loss" not in line] == [0, 4]
    name = "transformer/diffusion_pytorch_model.safetensors"
    before, after = (load_file(Path(each) / name) for each in (tiny_model, tmp_path / "out" / MODEL))
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert moved and all(key.startswith("details.") for key in moved) and before.keys() == after.keys()
    none = build_mini(transformer={**TINY_TRANSFORMER, "detail_widths": ()}, text=TINY_TEXT, **TINY_PIPELINE)
    none.save_pretrained(tmp_path / "none")
    words = ["train", "--data", tiny_scenes, "--out", str(tmp_path / "no"), "--model", str(tmp_path / "none")]
    assert main([*words, "tune=details", "--dry-run"]) == 2
    assert "paints no details that tune=details could train, expected a model with detail_widths" in (
        capfd.readouterr().err
    )


def test_the_same_data_without_depth_trains_as_well(tiny_scenes: str, tiny_model: str, tmp_path: Path) -> None:
    train(setup(tiny_scenes, tmp_path / "out", tiny_model, {"steps": 1}))
