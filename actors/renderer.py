"""The Renderer: an actor that makes clips, of one scene at a time, on one thread.

What a scene's clips are follows from its seed and the `Filming` alone, so it does not matter who renders which scene,
or how often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pipeline.scenes import Filming, filmed, takes

if TYPE_CHECKING:
    from storage.clip_row import ClipRow

# Raised whenever a seed no longer gives the same clips: a data set keeps it, and is not gone on with by another.
GENERATOR = "1"


class RenderError(RuntimeError):
    """A scene that could not be rendered. One line that names its seed."""


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
        return filming.clips

    def rows(self, filming: Filming) -> list[ClipRow]:
        return scene_rows(self.seed, filming)


def scene_rows(seed: int, filming: Filming) -> list[ClipRow]:
    """All clips of the scene `seed`, in the order of their rows."""
    # Here and not at the top: Lance, which this module brings in, must not be there before Ray has forked.
    from storage.clip_row import ClipRow

    rows = []
    for take in takes(seed, filming):
        views = filmed(take, filming)
        rows.append(
            ClipRow(
                scene=seed,
                camera=take.camera,
                variant=take.variant,
                kind="rendered",
                instruction=take.instruction,
                rate=take.rate,
                trajectory=take.trajectory,
                shots=take.shots,
                licence=filming.licence,
                source="",
                video=views.colour[0].numpy(),
                depth=views.depth[0].numpy() if "depth" in filming.channels else None,
                objects=views.objects[0].numpy() if "objects" in filming.channels else None,
            )
        )
    return rows


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
