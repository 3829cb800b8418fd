"""Memories for the tests of the store: small, real, and the same for the same arguments."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from pipeline.coverage import Sphere
from pipeline.trajectory import PRESETS, default_intrinsics, preset
from storage.memory import Memory

SPHERE = Sphere(points=512, radius=20.0)
DIM = 8
PLACE: dict[str, Any] = {"model": "model-a", "sphere": SPHERE, "descriptor_dim": DIM}


def edit_id(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def a_memory(name: object, source: str = "bikes", size: int = 8, **changes: Any) -> Memory:
    """The memory of edit `name`: everything in it follows from the name. `size`: the latent is (3, 4, size, size)."""
    number = int(edit_id(name)[:8], 16)
    generator = torch.Generator().manual_seed(number)
    fields: dict[str, Any] = {
        "id": edit_id(name),
        "parent": edit_id(f"parent of {name}"),
        "source": source,
        "turn": number % 3,
        "segment": number % 7,
        "shot": 0,
        "start": 12 * (number % 7),
        "stop": 12 * (number % 7) + 16,
        "trajectory": preset(PRESETS[number % 10], 16, default_intrinsics(16 / 9)),
        "descriptor": np.random.default_rng(number).standard_normal(DIM).astype(np.float32),
        "latent": torch.randn(3, 4, size, size, generator=generator).to(torch.bfloat16),
        "model": "model-a",
        "prompt": f"a red jacket, it's {name}",
        "seed": 2**63 + number,
        "attempt": 1,
        "memories": (edit_id("x"), edit_id("y")),
        "scores": (0.5, 0.25),
        "seconds": 1.5,
        "worker": "w0",
    }
    return Memory(**(fields | changes))
