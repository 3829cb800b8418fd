"""A training as one process per device, on Ray Train.

Every process holds the whole model and gradients are averaged (`sharding="none"`), or parameters, gradients and
optimizer states are spread over the processes (FSDP2, `sharding="full"`), for models that do not fit otherwise. Ray
starts all processes again when one dies, and they go on from the newest checkpoint.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig

from actors.training import LOG, TrainingSetup, train
from pipeline.training.log import follow
from pipeline.training.network import Network
from pipeline.training.recipe import Recipe
from pipeline.training.sharding import spread


class TrainingFailed(RuntimeError):
    """The training ended with an error. One line that says which."""


def train_on_ray(
    setup: TrainingSetup, workers: int, *, retries: int, cpus: float, report: Callable[[dict[str, Any]], None]
) -> None:
    """Train with `workers` processes over a connected cluster; returns when done, or raises TrainingFailed."""
    ended = threading.Event()
    log = Path(setup.out).absolute() / LOG
    follower = threading.Thread(target=follow, args=(log, report, ended), daemon=True)
    follower.start()
    gpu = setup.device == "cuda"
    trainer = ray.train.torch.TorchTrainer(
        _process,
        train_loop_config=asdict(setup),
        # One process draws the sheets while the others wait in a collective: of a large base longer than half an hour.
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=4 * 3600),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})}
        ),
        run_config=RunConfig(
            name="ray", storage_path=str(Path(setup.out).absolute()), failure_config=FailureConfig(max_failures=retries)
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray Train's errors share no base class with Ray's
        raise TrainingFailed(cause(error)) from error
    finally:
        ended.set()
        follower.join()


def _process(config: dict[str, Any]) -> None:
    setup = TrainingSetup(**{**config, "recipe": Recipe(**config["recipe"])})
    if setup.device == "cuda":
        torch.cuda.set_device(ray.train.torch.get_device())
    context = ray.train.get_context()
    wrap = spread if setup.sharding == "full" else averaging
    train(setup, context.get_world_rank(), wrap, processes=context.get_world_size())


def averaging(network: Network) -> Any:
    """The network as one of several whose gradients are averaged."""
    from torch.nn.parallel import DistributedDataParallel

    # Which parameters a step uses depends on what was drawn for it: tokenizers, the compressor, the text encoder.
    return DistributedDataParallel(network, find_unused_parameters=True)


RAISED = re.compile(r"(\w+\.)*\w*(Error|Fault): ")  # as a traceback's last line begins


def cause(error: BaseException) -> str:
    """The message of the exception that a process ended with, in one line, from the traceback that Ray Train tells."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in reversed(lines) if RAISED.match(line)), lines[-1] if lines else type(error).__name__)
    return RAISED.sub("", line, count=1)
