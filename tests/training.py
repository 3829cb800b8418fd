"""A data set and a setup for tests of training: small enough that a step takes a thirtieth of a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from actors.renderer import scene_rows
from actors.training import TrainingSetup
from jobs.config import SynthesizeConfig
from jobs.synthesize import filming_of
from pipeline.training.recipe import Recipe
from storage.clip_row import split_of
from storage.clips import NAME, ClipDataset

RENDERED = SynthesizeConfig(
    height=32, width=32, frames=32, rates=[12.0], cameras=3, edits=1, edited_cameras=2
)  # fmt: skip
TRAINED, HELD_OUT = 8, 1  # scenes


def render_scenes(folder: Path) -> str:
    """Scenes for training and validation, two windows and a half long, with cameras and edits. Returns the folder."""
    data = ClipDataset.create(str(folder / NAME), {"generator": "test"})
    filming = filming_of(RENDERED)
    for split, count in (("train", TRAINED), ("validation", HELD_OUT)):
        for seed in [seed for seed in range(40) if split_of(seed) == split][:count]:
            data.append(scene_rows(seed, filming))
    return str(folder)


def setup(
    data: str, out: Path | str, model: str, recipe: dict[str, Any] | None = None, **changed: Any
) -> TrainingSetup:
    """A short training of the tiny model."""
    short = {"steps": 6, "batch": 2, "targets": 2, "warmup": 2, "memories": 2}
    plain = {"height": 32, "width": 32, "frames": 16, "validation_batches": 1, "validate_every": 1000}
    return TrainingSetup(
        data=data, out=str(out), model=model, recipe=Recipe(**{**short, **(recipe or {})}),
        **{**plain, "sheet_every": 1000, **changed},
    )  # fmt: skip


def logged(out: Path | str) -> list[dict[str, Any]]:
    """Lines of the log."""
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def validated(out: Path | str) -> dict[int, float]:
    """Validation loss by step."""
    return {line["step"]: line["validation_loss"] for line in logged(out) if "validation_loss" in line}
