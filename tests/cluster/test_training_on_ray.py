"""A training as two processes on Ray Train: what a killed one costs, and parameters spread over both."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import ray

from actors.training import CHECKPOINTS, MODEL
from jobs.main import main
from pipeline.memory_pipeline import MemoryV2VPipeline
from storage.checkpoints import Checkpoints
from tests.training import logged

pytestmark = pytest.mark.usefixtures("ray_cluster")
STEPS = 8
SHORT = [f"steps={STEPS}", "height=32", "width=32", "batch=1", "targets=2", "validation_batches=1", "memories=2"]


def trainers() -> set[int]:
    """Process ids of the training's processes that are alive."""
    actors = ray._private.state.actors().values()
    return {each["Pid"] for each in actors if "TrainWorker" in each["ActorClassName"] and each["State"] == "ALIVE"}


def test_a_killed_process_costs_the_steps_since_the_last_checkpoint_and_the_training_ends(
    tiny_scenes, tiny_model, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(os.path.dirname(tiny_scenes))  # where the processes on Ray are not
    checkpoints, killed = Checkpoints(tmp_path / CHECKPOINTS), []

    def kill() -> None:
        while not any(step >= 3 for step in checkpoints.steps()):
            time.sleep(0.02)
        killed.append(max(trainers()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    data = os.path.basename(tiny_scenes)
    words = ["train", "--data", data, "--out", str(tmp_path), "--model", tiny_model, "--workers", "2"]
    assert main([*words, *SHORT, "checkpoint_minutes=0", "retries=1"]) == 0
    killer.join()
    assert killed and checkpoints.steps()[-1] == STEPS
    [resumed] = [line["step"] for line in logged(tmp_path) if "resumed" in line]
    assert 3 <= resumed < STEPS
    assert MemoryV2VPipeline.from_pretrained(tmp_path / MODEL).config.trained_steps == STEPS
    said = capfd.readouterr().err
    assert f"step {resumed}/{STEPS} | resumed 1" in said and f"step {STEPS}/{STEPS} | validation_loss" in said
