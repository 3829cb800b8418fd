"""Two processes that each hold half of every parameter (FSDP2) train as two that each hold all of them."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from transformers import UMT5EncoderModel

import pipeline.training.log
from actors.training import CHECKPOINTS, MODEL, TrainingSetup, train
from actors.training_on_ray import averaging
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.training.sharding import same_everywhere, spread
from storage.checkpoints import Checkpoints
from tests.training import logged, setup, tiny_base

STEPS = 2


def both_ways(rank: int, rendezvous: str, setups: list[TrainingSetup]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    pipeline.training.log.EVERY = 1
    for asked, wrap in zip(setups, (averaging, spread) * 3, strict=True):
        train(asked, rank, wrap, processes=2)
    shared = setups[1]
    train(replace(shared, recipe=replace(shared.recipe, steps=STEPS + 1)), rank, spread, processes=2)
    made = Path(f"{rendezvous}-made")
    if rank:
        time.sleep(0.5)
        made.touch()
    same_everywhere(made.exists, "what the later of them has made")
    apart = replace(shared, out=f"{shared.out}{rank or ''}")  # of a node that has another folder at this path
    with pytest.raises(ValueError, match=r"different checkpoints in .*: \[\[3\], \[\]\]; let all nodes mount the same"):
        train(apart, rank, spread, processes=2)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tiny_scenes, tiny_model, tmp_path_factory):
    """The setups of finished trainings, parameters held by every process and spread: of all parameters, of a base
    where the paper tunes it, whose text encoder has another precision, and of instructions, which processes drop each
    by itself and guess at together."""
    folder = tmp_path_factory.mktemp("sharded")
    base = tiny_base(folder / "base")
    UMT5EncoderModel.from_pretrained(f"{base}/text_encoder").bfloat16().save_pretrained(f"{base}/text_encoder")
    recipe = {"steps": STEPS, "optimizer": "adamw", "targets": 1}
    measured = {"sharding": "full", "validation_batches": 1}
    setups = [
        setup(tiny_scenes, folder / name, tiny_model, recipe, sheet_every=STEPS, **measured)
        for name in ("held", "spread")
    ]
    setups += [
        setup(tiny_scenes, folder / name, base, recipe, frames=9, tune="paper", **measured)
        for name in ("held-base", "spread-base")
    ]
    words = {"camera": 0.0, "onward": 0.0, "glimpses": 0.4, "guessed": 0.5, "text_dropout": 0.5}
    setups += [
        setup(tiny_scenes, folder / name, tiny_model, recipe | words, sharding="full")
        for name in ("held-words", "spread-words")
    ]
    torch.multiprocessing.spawn(both_ways, (str(folder / "rendezvous"), setups), nprocs=2)
    return setups


def state(asked: TrainingSetup, step: int = STEPS):
    return torch.load(Checkpoints(Path(asked.out) / CHECKPOINTS).path(step), weights_only=True)


@pytest.mark.parametrize("pair", [slice(0, 2), slice(2, 4), slice(4, 6)], ids=["all", "paper", "words"])
def test_losses_gradients_and_weights_are_those_of_whole_parameters(trained, pair):
    trained = trained[pair]
    measurements = 2 * trained[0].validation_batches  # at the beginning and the end
    held, shared = ([line for line in logged(each.out) if line["step"] <= STEPS] for each in trained)
    assert len(held) == STEPS + measurements
    for one, other in zip(held, shared, strict=False):
        for name in ("loss", "gradient", "validation_loss"):
            assert one.get(name, 0) == pytest.approx(other.get(name, 0), rel=1e-3), (name, one, other)
    for part in (lambda s: s["parameters"].values(), lambda s: s["average"]["shadow_params"]):
        for one, other in zip(*map(part, map(state, trained)), strict=True):
            assert one.shape == other.shape
            # AdamW makes a step of what is nothing but rounding, for gradients of nothing
            assert ((one - other).abs() < 1e-4).float().mean() > 0.99


def test_what_was_spread_is_saved_whole_and_goes_on_spread_or_not(trained):
    shared = trained[1]
    assert logged(shared.out)[-1]["step"] == STEPS + 1  # went on spread
    sheets = sorted(each.name for each in (Path(shared.out) / "sheets").iterdir())
    assert sheets == [f"step-{STEPS:08}.png", f"step-{STEPS + 1:08}.png"]
    pipe = MemoryV2VPipeline.from_pretrained(f"{shared.out}/{MODEL}")
    averages = dict(zip(state(shared)["parameters"], state(shared, STEPS + 1)["average"]["shadow_params"], strict=True))
    for name, parameter in pipe.transformer.named_parameters():
        assert torch.equal(parameter, averages[f"transformer.{name}"]), name
    train(replace(shared, sharding="none", recipe=replace(shared.recipe, steps=STEPS + 2)))
    assert logged(shared.out)[-1]["step"] == STEPS + 2
