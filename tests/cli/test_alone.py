"""`python -m pipeline.training.alone`: a training without a data set, at the size of a test."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.splits import split_of
from pipeline.training import alone
from pipeline.training.rendered import Stage

TINY = ["--scenes", "2", "--edits", "1", "--frames", "16", "--renderers", "1"]
# decay=0: rates that do not depend on the number of steps.
SHORT = [
    "model=mini-cpu",
    "height=16",
    "width=16",
    "batch=2",
    "targets=1",
    "memories=1",
    "onward=0",
    "decay=0",
]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch):
    """The command in this process: a new one would spend most of its time on imports."""

    def command(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["alone", *words])
        alone.main()

    before = torch.get_float32_matmul_precision()
    yield command
    torch.set_float32_matmul_precision(before)


def logged(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def trained(out: Path) -> int:
    return MemoryV2VPipeline.from_pretrained(out / "model").config.trained_steps


def test_it_trains_validates_writes_a_model_and_goes_on_where_it_was(
    tiny_model: str,
    tmp_path: Path,
    here: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alone, "HELD_OUT_SCENES", 2)
    monkeypatch.setattr("pipeline.training.log.EVERY", 1)
    small = [*TINY, "--begin", tiny_model, *SHORT]
    here("--out", str(tmp_path), *small, "steps=3", "validation_batches=1")
    lines = logged(tmp_path)
    assert [line["rendered"] for line in lines if "rendered" in line] == [2]
    assert [line["step"] for line in lines if "validation_loss" in line and line["depths_off"] > 0] == [3]
    assert trained(tmp_path) == 3 and (tmp_path / "checkpoint.pt").exists()
    (tmp_path / "long.yaml").write_text("steps: 7\nvalidation_batches: 0\n")
    here("--out", str(tmp_path), "--config", str(tmp_path / "long.yaml"), *small, "steps=5")
    assert trained(tmp_path) == 5, "the command line wins over the file"
    assert logged(tmp_path)[: len(lines)] == lines
    steps = [line for line in logged(tmp_path) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert all(line["gradient"] > 0 and line["rate"] > 0 and line["targets_per_s"] > 0 for line in steps)
    here("--out", str(tmp_path / "at once"), *small, "steps=5", "validation_batches=0")
    stopped, whole = (
        torch.load(each / "checkpoint.pt", weights_only=True)["parameters"] for each in (tmp_path, tmp_path / "at once")
    )
    assert all(torch.equal(stopped[name], each) for name, each in whole.items()), "as if it had never stopped"
    here("--out", str(tmp_path), *small, "steps=5")
    assert "nothing to do: 5 steps are taken already" in capsys.readouterr().err
    for left in (1000, 0):
        os.truncate(tmp_path / "checkpoint.pt", left)
        with pytest.raises(SystemExit) as refused:
            here("--out", str(tmp_path), *small, "steps=5")
        assert "checkpoint.pt: not a readable checkpoint; remove it to begin anew" in str(refused.value.code)


def test_a_renderer_that_dies_is_one_line(
    tiny_model: str, tmp_path: Path, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*_: Any) -> None:
        raise EOFError

    monkeypatch.setattr("pipeline.training.rendered.pickle", SimpleNamespace(loads=died))
    with pytest.raises(SystemExit) as refused:
        here("--out", str(tmp_path), *TINY, "--begin", tiny_model, *SHORT, "steps=1", "validation_batches=0")
    assert str(refused.value.code).startswith("alone: a renderer died; give the machine more memory")


def test_a_training_by_the_clock_goes_on_past_the_steps_of_its_file(
    tiny_model: str, tmp_path: Path, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [*TINY, "--begin", tiny_model, *SHORT, "validation_batches=0"]
    here("--out", str(tmp_path), *small, "steps=3")
    monkeypatch.setattr(alone, "time", SimpleNamespace(monotonic=map(float, count()).__next__))  # a second a look
    monkeypatch.setattr(alone, "REPLANNED", 2)
    here("--out", str(tmp_path), *small, "steps=3", "--minutes", "0.25")
    assert trained(tmp_path) > 6, "it has a quarter of a minute, not three steps"
    planned = [line["steps"] for line in logged(tmp_path) if "steps" in line]
    assert len(planned) > 1 and all(steps > 3 for steps in planned)


def test_a_training_by_the_clock_goes_on_with_the_rates_that_it_had(
    tiny_model: str, tmp_path: Path, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.log.EVERY", 1)
    slow = [*TINY, "--begin", tiny_model, *SHORT, "decay=1", "warmup=1", "validation_batches=0"]
    here("--out", str(tmp_path), *slow, "steps=4")
    monkeypatch.setattr(alone, "time", SimpleNamespace(monotonic=map(float, count()).__next__))  # a second a look
    monkeypatch.setattr(alone, "REPLANNED", 1)
    here("--out", str(tmp_path), *slow, "steps=100", "--minutes", "0.3")
    rates = [line["rate"] for line in logged(tmp_path) if "rate" in line][:5]
    assert rates[3] == pytest.approx(1 / 4) and rates[4] < 1 / 2, "and not .96, as early in a hundred steps"


def test_tuned_alone_details_learn_from_edits_of_the_model_that_it_begins_with(
    tiny_model: str, tmp_path: Path, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "HELD_OUT_SCENES", 2)
    small = [*TINY, "--begin", tiny_model, "height=32", "width=32", "batch=2", "memories=1", "decay=0", "warmup=1"]
    small += ["tune=details", "own_edits=2", "validation_batches=0"]
    here("--out", str(tmp_path / "stopped"), *small, "steps=2", "validation_batches=1")
    lines = logged(tmp_path / "stopped")
    assert [(line["edited"], line["edited_of"]) for line in lines if "edited" in line] == [(2, 2)]
    assert [line["step"] for line in lines if "details_off" in line and "validation_loss" not in line] == [2]
    here("--out", str(tmp_path / "stopped"), *small, "steps=5")
    here("--out", str(tmp_path / "whole"), *small, "steps=5")
    weights = [
        MemoryV2VPipeline.from_pretrained(folder).transformer.state_dict()
        for folder in (tiny_model, tmp_path / "stopped/model", tmp_path / "whole/model")
    ]
    before, stopped, whole = weights
    assert all(torch.equal(stopped[name], each) for name, each in whole.items()), "as if it had never stopped"
    moved = {name for name, each in before.items() if not torch.equal(whole[name], each)}
    assert moved and all(name.startswith("details.") for name in moved)
    pipe = MemoryV2VPipeline.from_pretrained(tiny_model)
    torch.nn.init.normal_(pipe.transformer.proj_out.weight)
    pipe.save_pretrained(tmp_path / "other")
    small[small.index(tiny_model)] = str(tmp_path / "other")
    with pytest.raises(SystemExit) as refused:
        here("--out", str(tmp_path / "stopped"), *small, "steps=7")
    assert "began from another model than --begin" in str(refused.value.code)

    # Of no batches no edits are made.
    monkeypatch.setattr(alone, "rendered_batches", lambda *_, **__: (each for each in ()))
    with pytest.raises(SystemExit) as refused:
        here("--out", str(tmp_path / "none"), *small, "steps=2")
    assert "of 2 batches of edits nothing is made up" in str(refused.value.code)


def test_scenes_of_other_splits_are_left_out(
    tmp_path: Path, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[int]()

    def rendered_batches(stage: Stage, scenes: Sequence[int], *_: Any, **__: Any) -> Iterator[Any]:
        made.extend(scenes)
        return (each for each in ())

    monkeypatch.setattr(alone, "rendered_batches", rendered_batches)
    here("--out", str(tmp_path), "--scenes", "30", *SHORT, "validation_batches=0")
    assert len(made) == 30 and {split_of(scene) for scene in made} == {"train"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("step=3", "unknown setting 'step=3', expected NAME=VALUE with one of ["),
        ("steps", "unknown setting 'steps', expected NAME=VALUE"),
        ("compile=no", "setting compile is no, expected a bool such as False"),
        ("model=mini", "model is 'mini', expected one of ('mini-cpu', 'mini-gpu')"),
        ("precision=half", "precision is 'half', expected one of ('float32', 'bfloat16')"),
        ("--renderers=0", "--scenes 2 --renderers 0, expected at least 1 of each"),
        ("--first=-1", "--first -1, expected the number of a scene, 0 or more"),
        ("clip=0", "clip must be more than 0"),
        ("validate_every=0", "validate_every is 0, expected at least 1"),
        ("optimizer=sgd", "optimizer must be muon or adamw, got 'sgd'"),
        ("seed=-1", "seed is -1, expected 0 or more"),
        ("tune=lora", "tune is 'lora', expected one of ('all', 'paper', 'words', 'empty', 'depths', 'details')"),
        ("tune=details", "tune is details, expected a trained model that the rest of it is of: --begin DIR"),
        ("own_edits=2", "own_edits is 2 with tune=all, expected 0, or tune=details"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_one_line(
    setting: str, words: str, tmp_path: Path, here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        here("--out", str(tmp_path / "out"), *TINY, *SHORT, setting)
    assert refused.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["height=20"], "clips of 16 frames of 16x20, expected at least 16 frames and multiples of 8 pixels"),
        (["--frames=8"], "clips of 8 frames of 16x16, expected at least 16 frames"),
        (["camera_dropout=0.1"], "camera_dropout: this model places tokens on camera rays and has none without"),
        (["--begin=nowhere"], "nowhere"),
        (["--edits=0", "camera=0"], "nothing would be trained"),
    ],
)
def test_what_the_model_cannot_take_is_one_line_before_anything_is_rendered(
    words: list[str], said: str, tmp_path: Path, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "rendered_batches", lambda *_, **__: pytest.fail("scenes are rendered"))
    with pytest.raises(SystemExit) as refused:
        here("--out", str(tmp_path / "out"), *TINY, *SHORT, "validation_batches=0", *words)
    assert said in str(refused.value.code) and "\n" not in str(refused.value.code)


def test_words_are_not_learned_where_no_scene_is_edited(tmp_path: Path, here: Callable[..., None]) -> None:
    here("--out", str(tmp_path), *TINY, *SHORT, "--edits", "0", "steps=1", "validation_batches=0")
    assert set(MemoryV2VPipeline.from_pretrained(tmp_path / "model").config.learned) == {"camera", "memory"}
