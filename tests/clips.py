"""Clips of random pixels, and scenes to render that do what a test wants of them."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.trajectory import Trajectory, default_intrinsics
from storage.clip_row import ClipRow

SIZE = (6, 160, 160)  # frames, height, width: large enough to be stored outside the Lance file


def clip_row(scene: int, camera: int = 0, variant: int = 0, size: tuple[int, int, int] = SIZE, **changed) -> ClipRow:
    random = np.random.default_rng([scene, camera, variant])
    frames, height, width = size
    c2w = np.tile(np.eye(3, 4), (frames, 1, 1))
    c2w[:, :, 3] = random.normal(size=(frames, 3))
    row = ClipRow(
        scene=scene,
        camera=camera,
        variant=variant,
        kind="rendered",
        instruction=f"edit {variant}" if variant else "",
        rate=24.0,
        trajectory=Trajectory(c2w, default_intrinsics(width / height)),
        shots=np.arange(frames, dtype=np.int32) // 4,
        licence="CC0-1.0",
        source="",
        video=random.integers(0, 256, (frames, height, width, 3), np.uint8),
    )
    return dataclasses.replace(row, **changed)


@dataclass(frozen=True)
class Task:
    """A scene of two small clips. The earlier ones take longer, so that they end out of order."""

    seed: int

    @property
    def name(self) -> str:
        return f"scene {self.seed}"

    def rows(self, filming: Any) -> list[ClipRow]:
        time.sleep(0.2 if self.seed % 3 == 0 else 0)
        return [clip_row(self.seed, camera, size=(2, 8, 8)) for camera in (0, 1)]


@dataclass(frozen=True)
class Deadly(Task):
    """Kills its process the first few times; `folder` counts them."""

    folder: str = ""
    times: int = 1

    def rows(self, filming: Any) -> list[ClipRow]:
        died = len(list(Path(self.folder).iterdir()))
        if died < self.times:
            (Path(self.folder) / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rows(filming)


class Sweeping(Deadly):
    """As a node that dies: takes `times` renderers with it that have nothing to do."""

    def rows(self, filming: Any) -> list[ClipRow]:
        if not list(Path(self.folder).iterdir()):
            idle: list[psutil.Process] = []
            while len(idle) < self.times:
                time.sleep(0.5)
                there = psutil.process_iter(["ppid", "cmdline"])  # passes over those that end meanwhile
                siblings = [each for each in there if each.info["ppid"] == os.getppid()]
                idle = [each for each in siblings if "".join(each.info["cmdline"] or []).strip() == "ray::Renderer"]
            for each in idle:
                each.kill()
        return super().rows(filming)


class Broken(Task):
    def rows(self, filming: Any) -> list[ClipRow]:
        raise ZeroDivisionError("a scene without extent")
