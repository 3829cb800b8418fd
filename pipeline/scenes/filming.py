"""How a scene becomes clips: which cameras film which of its variants, as a description without pixels.

What a scene's takes are follows from its seed and the `Filming` alone, so it does not matter who renders them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.trajectory import Trajectory

from .paired_edit import seen_edits
from .random_scene import random_scene
from .render import render
from .scene import Scene
from .shots import check_shots, random_shots, shot_numbers, shot_paths
from .views import Views

# What this file draws of its own must not follow what random_scene and paths draw from the same seed.
RATE_STREAM, EDIT_STREAM = 0x7261, 0x6564


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
    def clips(self) -> int:
        """Of one scene."""
        return self.cameras + self.edits * self.edited_cameras

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip's blobs."""
        pixel = 3 + 4 * ("depth" in self.channels) + ("objects" in self.channels)
        return self.frames * self.height * self.width * pixel


@dataclass(frozen=True, eq=False)
class Take:
    """One clip to film: a variant of a scene by one of its cameras. Fields as of `pipeline.clip.Clip`."""

    scene: Scene
    camera: int
    variant: int
    instruction: str
    rate: float
    trajectory: Trajectory
    shots: np.ndarray

    @property
    def views(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """c2w (T, 3, 4), intrinsics (T, 4) and seconds (T,), float32, as `render` takes them of one scene."""
        path = self.trajectory
        c2w, intrinsics = (torch.tensor(each, dtype=torch.float32) for each in (path.c2w, path.intrinsics))
        return c2w, intrinsics, torch.arange(len(path), dtype=torch.float32) / self.rate


def takes(seed: int, filming: Filming) -> Iterator[Take]:
    """All takes of the scene `seed`, in order: as it was by every camera, then edit after edit."""
    scene = random_scene(seed)
    rate = float(np.random.default_rng([seed, RATE_STREAM]).choice(filming.rates))
    shots = random_shots(seed, filming.frames, filming.shots)
    numbers = shot_numbers(shots)
    cameras = shot_paths(scene, shots, filming.cameras, rate, filming.width / filming.height)
    for camera, path in enumerate(cameras):
        yield Take(scene, camera, 0, "", rate, path, numbers)
    draw = np.random.default_rng([seed, EDIT_STREAM])
    seeds = [int(draw.integers(1 << 31)) for _ in range(filming.edits)]
    for variant, edit in enumerate(seen_edits(scene, seeds, cameras[0], rate), start=1):
        # The source's camera sees every edit; the others take turns, so that any of them may be asked for.
        others = [1 + (variant - 1 + turn) % (filming.cameras - 1) for turn in range(filming.edited_cameras - 1)]
        for camera in sorted([0, *others]):
            yield Take(edit.scene, camera, variant, edit.instruction, rate, cameras[camera], numbers)


def filmed(take: Take, filming: Filming, device: torch.device | str = "cpu") -> Views:
    """The pixels of a take, rendered on the device: its `Views` have one scene and T views."""
    c2w, intrinsics, times = (each[None].to(device) for each in take.views)
    return render([take.scene], c2w, intrinsics, times, filming.height, filming.width, samples=filming.samples)
