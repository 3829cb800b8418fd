"""A training as two processes on Ray Train: what a killed one costs, and parameters spread over both."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray

from actors.training import CHECKPOINTS, MODEL
from actors.training_on_ray import train_on_ray
from pipeline.memory_pipeline import MemoryV2VPipeline
from storage.checkpoints import Checkpoints
from tests.training import logged, setup

pytestmark = pytest.mark.usefixtures("ray_cluster")


def train(asked, retries=0) -> None:
    train_on_ray(asked, 2, retries=retries, cpus=0.5, report=lambda figures: None)


def newest(asked):
    found = Checkpoints(Path(asked.out) / CHECKPOINTS).latest()
    assert found is not None
    return found


def trainers() -> set[int]:
    """Process ids of the training's processes that are alive."""
    actors = ray._private.state.actors().values()
    return {each["Pid"] for each in actors if "TrainWorker" in each["ActorClassName"] and each["State"] == "ALIVE"}


def test_a_killed_process_costs_the_steps_since_the_last_checkpoint_and_the_training_ends(
    tiny_scenes, tiny_model, tmp_path
):
    asked = setup(tiny_scenes, tmp_path, tiny_model, {"steps": 12, "batch": 1}, checkpoint_minutes=0)
    checkpoints, killed = Checkpoints(tmp_path / CHECKPOINTS), []

    def kill() -> None:
        while not any(step >= 3 for step in checkpoints.steps()):
            time.sleep(0.02)
        killed.append(max(trainers()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    train(asked, retries=1)
    killer.join()
    assert killed and newest(asked)[0] == 12
    [resumed] = [line["step"] for line in logged(tmp_path) if "resumed" in line]
    assert 3 <= resumed < 12
    assert MemoryV2VPipeline.from_pretrained(f"{asked.out}/{MODEL}").config.trained_steps == 12
