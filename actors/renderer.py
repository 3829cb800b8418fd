"""The Renderer: an actor that makes clips, of one scene at a time, on one thread.

What a scene's clips are follows from its seed and the `Filming` alone, so it does not matter who renders which scene,
or how often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pipeline.scenes import Scene, random_scene, random_shots, render, seen_edit, shot_numbers, shot_paths
from pipeline.scenes.shots import check_shots
from pipeline.trajectory import Trajectory

if TYPE_CHECKING:
    from storage.clip_row import ClipRow

# Raised whenever a seed no longer gives the same clips: a data set keeps it, and is not gone on with by another.
GENERATOR = "1"
# What this file draws of its own must not follow what random_scene and paths draw from the same seed.
RATE_STREAM, EDIT_STREAM = 0x7261, 0x6564


class RenderError(RuntimeError):
    """A scene that could not be rendered. One line that names its seed."""


@dataclass(frozen=True)
class Filming:
    """How scenes become clips: all that decides a data set's bytes beside the seeds.

    height, width: pixels. frames: of every clip. cameras: of the scene as it was. edits: edited variants, each filmed
    by edited_cameras of them (at most all), the source's first. rates: frames per second, one drawn per scene.
    channels: "depth", "objects" or both. samples: rays per pixel and axis. licence: of what is rendered.
    shots: into which all cameras of a scene cut their clips.
    """

    height: int
    width: int
    frames: int
    cameras: int
    edits: int
    edited_cameras: int
    rates: tuple[float, ...]
    channels: tuple[str, ...]
    samples: int
    licence: str
    shots: int = 1

    def __post_init__(self) -> None:
        check_shots(self.frames, self.shots)

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip's blobs."""
        pixel = 3 + 4 * ("depth" in self.channels) + ("objects" in self.channels)
        return self.frames * self.height * self.width * pixel


class Task(Protocol):
    """Something that gives clips. What they are follows from it and from what all tasks of a run share: a `Filming`, or
    an `Extending`."""

    @property
    def name(self) -> str: ...

    def rows(self, filming: Any) -> list[ClipRow]: ...


@dataclass(frozen=True)
class SceneTask:
    """A scene to render."""

    seed: int

    @property
    def name(self) -> str:
        return f"scene {self.seed}"

    def clips(self, filming: Filming) -> int:
        return filming.cameras + filming.edits * filming.edited_cameras

    def rows(self, filming: Filming) -> list[ClipRow]:
        return scene_rows(self.seed, filming)


def scene_rows(seed: int, filming: Filming) -> list[ClipRow]:
    """All clips of the scene `seed`, in the order of their rows: as it was by every camera, then edit after edit."""
    scene = random_scene(seed)
    rate = float(np.random.default_rng([seed, RATE_STREAM]).choice(filming.rates))
    shots = random_shots(seed, filming.frames, filming.shots)
    numbers = shot_numbers(shots)
    cameras = shot_paths(scene, shots, filming.cameras, rate, filming.width / filming.height)
    rows = [_clip(scene, seed, 0, "", camera, path, numbers, rate, filming) for camera, path in enumerate(cameras)]
    draw = np.random.default_rng([seed, EDIT_STREAM])
    for variant in range(1, filming.edits + 1):
        edit = seen_edit(scene, int(draw.integers(1 << 31)), cameras[0], rate)
        # The source's camera sees every edit; the others take turns, so that any of them may be asked for.
        others = [1 + (variant - 1 + turn) % (filming.cameras - 1) for turn in range(filming.edited_cameras - 1)]
        for camera in sorted([0, *others]):
            path = cameras[camera]
            rows.append(_clip(edit.scene, seed, variant, edit.instruction, camera, path, numbers, rate, filming))
    return rows


def _clip(
    scene: Scene,
    seed: int,
    variant: int,
    instruction: str,
    camera: int,
    path: Trajectory,
    shots: np.ndarray,
    rate: float,
    filming: Filming,
) -> ClipRow:
    # Here and not at the top: Lance, which this module brings in, must not be there before Ray has forked.
    from storage.clip_row import ClipRow

    views = render(
        [scene],
        torch.tensor(path.c2w, dtype=torch.float32)[None],
        torch.tensor(path.intrinsics, dtype=torch.float32)[None],
        torch.arange(len(path), dtype=torch.float32)[None] / rate,
        filming.height,
        filming.width,
        samples=filming.samples,
    )
    return ClipRow(
        scene=seed,
        camera=camera,
        variant=variant,
        kind="rendered",
        instruction=instruction,
        rate=rate,
        trajectory=path,
        shots=shots,
        licence=filming.licence,
        source="",
        video=views.colour[0].numpy(),
        depth=views.depth[0].numpy() if "depth" in filming.channels else None,
        objects=views.objects[0].numpy() if "objects" in filming.channels else None,
    )


class Renderer:
    """Plain class; Ray wraps it from outside (`ray.remote(Renderer)`)."""

    def __init__(self, filming: Any) -> None:
        # Two threads per process collapse under contention, and the order of sums must not depend on the machine.
        torch.set_num_threads(1)
        self.filming = filming

    def ready(self) -> None:
        return

    def render(self, task: Task) -> tuple[int, list[Any]]:
        """(frames, rows) of a task, or a RenderError that names it."""
        try:
            with torch.inference_mode():
                rows = task.rows(self.filming)
        except Exception as error:
            line = " ".join(str(error).split())
            raise RenderError(f"{task.name} cannot be rendered: {type(error).__name__}: {line}") from error
        return sum(len(row.video) for row in rows), rows
