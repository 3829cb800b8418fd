"""Procedural scenes with exact cameras: what training learns from and evaluation measures against.

scene = random_scene(seed=0)
cameras = paths(scene, seed=0, count=4, frames=48, rate=12.0, aspect=4 / 3)
edit = paired_edit(scene, seed=0)  # edit.instruction, edit.scene
for take in takes(0, filming): filmed(take, filming)  # a scene's clips: cameras, edits
views = render([scene], c2w, intrinsics, times, height=48, width=64)  # colour, depth, objects
where, seen = correspondence(depth_a, c2w_a, intrinsics_a, depth_b, c2w_b, intrinsics_b)  # of two views' pixels
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.trajectory import default_intrinsics

from .correspondence import correspondence, motions, sampled
from .filming import Filming, Take, filmed, takes
from .paired_edit import PairedEdit, paired_edit, seen_edit
from .paths import free, paths, pose
from .random_scene import random_scene
from .render import render
from .scene import Light, Material, Motion, Scene, Thing
from .shots import Shot, random_shots, shot_numbers, shot_paths
from .views import SKY, Views

FRAMES_PER_SECOND = 24

__all__ = [
    "FRAMES_PER_SECOND", "SKY", "Filming", "Light", "Material", "Motion", "PairedEdit", "Scene", "Shot", "Take",
    "Thing", "Views", "correspondence", "filmed", "free", "motions", "paired_edit", "paths", "pose", "random_scene",
    "random_shots", "render", "render_clip", "sampled", "seen_edit", "shot_numbers", "shot_paths", "takes",
]  # fmt: skip


def render_clip(frames: int = 48, height: int = 192, width: int = 256, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8, 24 frames per second: the scene `seed` filmed by a camera that stands still."""
    scene = random_scene(seed)
    [source] = paths(scene, seed, 1, 1, FRAMES_PER_SECOND, width / height)
    c2w = torch.tensor(source.c2w, dtype=torch.float32).expand(1, frames, 3, 4)
    lens = torch.tensor(default_intrinsics(width / height), dtype=torch.float32).expand(1, frames, 4)
    times = torch.arange(frames)[None] / FRAMES_PER_SECOND
    return render([scene], c2w, lens, times, height, width, samples=2).colour[0].numpy()
