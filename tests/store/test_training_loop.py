"""The training loop in one process: what it writes, what a stop costs, and what it says where it cannot go on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import actors.training
from actors.training import CHECKPOINTS, MODEL, TrainingSetup, train
from jobs.train import TrainingProgress
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.training.trainer import DivergedError, Trainer
from storage.checkpoints import Checkpoints
from storage.clips import ClipDataset
from storage.errors import StorageError, StorageFault
from storage.fingerprint import folder_digest
from tests.tiny import build_tiny
from tests.training import logged, setup, validated


class Stopped(Exception):
    """The power is gone."""


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Every training dies when it begins the step after `step`."""
    take = Trainer.train_step

    def dying(trainer: Trainer, batch: Any) -> Any:
        if trainer.step == step:
            raise Stopped
        return take(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", dying)


@pytest.fixture
def short(tiny_scenes: str, tiny_model: str, tmp_path: Path) -> Callable[..., TrainingSetup]:
    """A setup of a few steps, whose out is a folder of the test's own."""
    return lambda out="out", **changed: setup(tiny_scenes, tmp_path / out, tiny_model, **changed)


def newest(asked: TrainingSetup) -> tuple[int, dict[str, Any]]:
    found = Checkpoints(Path(asked.out) / CHECKPOINTS).latest()
    assert found is not None
    return found


def tensors(state: Any) -> list[torch.Tensor]:
    return [each for each in torch.utils._pytree.tree_leaves(state) if isinstance(each, torch.Tensor)]


def equal(one: Any, other: Any) -> bool:
    return len(tensors(one)) == len(tensors(other)) and all(map(torch.equal, tensors(one), tensors(other)))


def test_a_short_training_lowers_the_validation_loss_of_the_untrained_model(tiny_scenes, tiny_model, tmp_path):
    recipe = {"steps": 20, "batch": 4, "targets": 2, "learning_rate": 1e-2, "adam_learning_rate": 1e-2, "warmup": 5,
              "ema": 0.9}  # fmt: skip
    train(setup(tiny_scenes, tmp_path, tiny_model, recipe, threads=1, validation_batches=1))
    losses = validated(tmp_path)
    assert list(losses) == [0, 20]
    assert losses[20] < 0.7 * losses[0]


def test_a_training_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(short, monkeypatch):
    whole, stopped = short("whole", validation_batches=1), short("stopped", validation_batches=1, checkpoint_minutes=0)
    train(whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            train(stopped)
    assert newest(stopped)[0] == 4
    train(stopped)
    assert newest(whole)[0] == newest(stopped)[0] == 6
    assert equal(newest(whole)[1], newest(stopped)[1])
    weights = [
        MemoryV2VPipeline.from_pretrained(f"{each.out}/{MODEL}").transformer.state_dict() for each in (whole, stopped)
    ]
    assert equal(*weights)
    assert validated(whole.out) == validated(stopped.out)


def test_the_log_drops_what_is_taken_again(short, monkeypatch):
    monkeypatch.setattr("pipeline.training.log.EVERY", 2)
    asked = short(checkpoint_minutes=1e-9)
    with monkeypatch.context() as patch:
        save = Checkpoints.save
        patch.setattr(Checkpoints, "save", lambda self, step, state: step > 2 or save(self, step, state))
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            train(asked)
    assert [line["step"] for line in logged(asked.out)] == [2, 4]
    train(asked)
    lines = logged(asked.out)
    assert [line["step"] for line in lines] == [2, 2, 4, 6]
    assert "resumed" in lines[1] and "loss" in lines[2]


def test_what_is_written_can_be_looked_at_and_used(short):
    asked = short(sheet_every=6, validation_batches=1)
    said: list[dict[str, Any]] = []
    train(asked, report=said.append)
    assert said == logged(asked.out)
    [sheet] = (Path(asked.out) / "sheets").iterdir()
    assert sheet.name == "step-00000006.png" and Image.open(sheet).size[0] > 400
    pipe = MemoryV2VPipeline.from_pretrained(f"{asked.out}/{MODEL}")
    assert pipe.config.trained_steps == 6
    averaged = newest(asked)[1]["average"]["shadow_params"]
    names = list(newest(asked)[1]["parameters"])
    weights = {f"transformer.{name}": each for name, each in pipe.transformer.named_parameters()}
    for name, each in zip(names, averaged, strict=True):
        if name in weights:
            assert torch.equal(weights[name], each), name
    assert not list(Path(asked.out).glob(".model*"))
    weights_file = Path(asked.out, MODEL, "transformer", "diffusion_pytorch_model.safetensors")
    assert oct(weights_file.stat().st_mode) == "0o100644"  # safetensors writes 600, and a model is for colleagues too


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_scenes(short, monkeypatch):
    asked = short(checkpoint_minutes=0)
    noisy = actors.training.collate

    def poisoned(draw: Any, *rest: Any, **named: Any) -> Any:
        batch = noisy(draw, *rest, **named)
        if len(Checkpoints(Path(asked.out) / CHECKPOINTS).steps()) == 2:  # held-out batches are made before any
            batch.clean[0, 0, 0, 0, 0] = torch.nan
        return batch

    monkeypatch.setattr(actors.training, "collate", poisoned)
    with pytest.raises(DivergedError, match=r"step \d, \w+ of scenes \[\d+, \d+\]: loss nan"):
        train(asked)
    step, state = newest(asked)
    assert 2 <= step < 6 and all(each.isfinite().all() for each in tensors(state))
    monkeypatch.setattr(actors.training, "collate", noisy)
    train(asked)
    assert newest(asked)[0] == 6


def test_a_step_that_diverges_changes_nothing(short, monkeypatch):
    asked = short(recipe={"learning_rate": 1e-3, "steps": 3}, checkpoint_minutes=0)
    kept: list[Trainer] = []
    take = Trainer.train_step

    def poisoned(trainer: Trainer, batch: Any) -> Any:
        if trainer.step < 2:
            return take(trainer, batch)
        kept.append(trainer)
        batch.clean.fill_(torch.inf)
        return take(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(DivergedError):
        train(asked)
    assert equal(kept[0].state_dict(), newest(asked)[1])


def test_a_data_set_without_validation_says_so_and_the_last_steps_are_logged(short, monkeypatch, capfd):
    whole = ClipDataset.clips
    monkeypatch.setattr(ClipDataset, "clips", lambda data, split: whole(data, split) if split == "train" else [])
    asked = short(recipe={"steps": 3}, validation_batches=1)
    train(asked, report=TrainingProgress(3))
    assert "no_validation no clip is in the validation split" in capfd.readouterr().err
    assert [line["step"] for line in logged(asked.out) if "loss" in line] == [3]


def test_a_validation_split_that_serves_no_task_is_left_out(short, monkeypatch, capfd):
    whole = ClipDataset.clips
    monkeypatch.setattr(ClipDataset, "clips", lambda data, split: whole(data, split)[: 1 if split != "train" else None])
    asked = short(recipe={"steps": 1, "camera": 0.0, "onward": 0.0}, validation_batches=1)
    train(asked, report=TrainingProgress(1))
    assert newest(asked)[0] == 1 and "validation_loss" not in logged(asked.out)[0]
    assert "no_validation none of the tasks text finds clips" in capfd.readouterr().err


def test_a_checkpoint_of_other_widths_is_refused_and_stays(short, tmp_path):
    from pipeline.mini import build_mini
    from tests.tiny import TINY_PIPELINE, TINY_TEXT, TINY_TRANSFORMER

    train(short(recipe={"steps": 1}))
    wide = build_mini(0, transformer={**TINY_TRANSFORMER, "ffn_dim": 48}, text=TINY_TEXT, **TINY_PIPELINE)
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(
        ValueError, match=r"step-00000001.pt: .*ffn.* has shape \(32, 24\), expected \(48, 24\); choose"
    ) as error:
        train(setup(short().data, short().out, str(tmp_path / "wide")))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="checkpoint of another optimizer, muon, expected adamw; choose"):
        train(short(recipe={"optimizer": "adamw"}))
    assert newest(short())[0] == 1


def test_what_was_tuned_of_one_model_is_not_gone_on_with_in_another(short, tmp_path):
    build_tiny(seed=1).save_pretrained(tmp_path / "other")
    for tune, refused in (("paper", True), ("all", False)):
        asked = short(tune, tune=tune, recipe={"steps": 1})
        train(asked)
        other = replace(asked, model=str(tmp_path / "other"), model_digest=folder_digest(str(tmp_path / "other")))
        other = replace(other, recipe=replace(asked.recipe, steps=2))
        if refused:
            with pytest.raises(ValueError, match=r"began from model \w{16}, expected is \w{16}, of --model; choose"):
                train(other)
        else:  # all that there is of a model is in its checkpoint
            train(other)
        assert newest(asked)[0] == (1 if refused else 2)


def test_a_checkpoint_of_another_tune_is_called_that_and_not_another_model(short):
    asked = short(tune="words", recipe={"steps": 1})
    train(asked)
    said = "step-00000001.pt: other parameters were trained, those of tune=words, expected are those of tune=all; "
    with pytest.raises(ValueError, match=f"{said}set tune=words, or choose another --out$"):
        train(replace(asked, tune="all"))
    assert newest(asked)[0] == 1


def test_the_attention_that_a_model_was_trained_with_is_the_one_it_uses(short):
    asked = short(attention="joint", recipe={"steps": 1, "targets": 1})
    train(asked)
    assert MemoryV2VPipeline.from_pretrained(f"{asked.out}/{MODEL}").transformer.config.attention == "joint"


@pytest.mark.parametrize("full", ["checkpoint", "model"])
def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(short, monkeypatch, full):
    train(short(recipe={"steps": 2}))
    before = newest(short())

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(
            *((torch, "save", refuse) if full == "checkpoint" else (MemoryV2VPipeline, "save_config", refuse))
        )
        with pytest.raises(StorageFault, match="No space left on device.*check the free space") as error:
            train(short(recipe={"steps": 4}))
    assert error.value.errno == errno.ENOSPC and "\n" not in str(error.value)
    assert newest(short())[0] == 2 and equal(newest(short()), before)
    assert MemoryV2VPipeline.from_pretrained(f"{short().out}/{MODEL}").config.trained_steps in (2, 4)
    assert not list(Path(short().out).glob("**/*.partial")) + list(Path(short().out).glob(".model*"))
    train(short(recipe={"steps": 4}))
    assert newest(short())[0] == 4


def test_what_killed_saves_left_is_cleared_once_nobody_can_be_at_it(short):
    out = Path(short().out)
    left = [out / CHECKPOINTS / ".step-00000001.pt.0123456789ab.partial"]
    left += [out / ".model.abcdefg_", out / ".model.abcdefg_.old"]
    young, strange = out / ".model.abcdefgh", out / ".model.best"
    left[0].parent.mkdir(parents=True)
    left[0].write_bytes(b"half")
    for folder in (*left[1:], young, strange):
        folder.mkdir()
        (folder / "config.json").touch()
    for each in (*left, strange):
        for part in (each, *each.rglob("*")):
            os.utime(part, (0, 0))
    train(short(recipe={"steps": 2}))
    assert not any(each.exists() for each in left) and young.exists() and strange.exists()


@pytest.mark.parametrize("left", [1000, 0])
def test_a_checkpoint_that_was_cut_short_says_which_one_to_remove(short, left):
    asked = short(checkpoint_minutes=0, recipe={"steps": 2})
    train(asked)
    path = Path(asked.out) / CHECKPOINTS / "step-00000002.pt"
    os.truncate(path, left)
    with pytest.raises(StorageError, match=r"not a readable checkpoint .*remove it to go on .* of steps \[1\]"):
        train(asked)
    path.unlink()
    train(asked)
    assert newest(asked)[0] == 2


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (OSError(errno.EIO, "Input/output error"), StorageFault, "cannot be read .Input/output error.; check the disk"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes"), MemoryError, "allocate memory"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_for_now_is_not_called_damaged(tmp_path, monkeypatch, raised, kind, said):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})

    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(kind, match=said) as error:
        checkpoints.latest()
    assert "remove" not in str(error.value)


def test_components_that_are_not_trained_are_linked_and_not_written_again(short, tiny_model):
    asked = short(tune="paper", recipe={"steps": 1})
    train(asked)
    for name, same in (
        ("text_encoder/diffusion_pytorch_model.safetensors", True),
        ("transformer/diffusion_pytorch_model.safetensors", False),
    ):
        assert os.path.samefile(f"{tiny_model}/{name}", f"{asked.out}/{MODEL}/{name}") is same
