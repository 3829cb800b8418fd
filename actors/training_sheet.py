"""A sheet of pictures of a training: what the model makes of held-out samples, beside what it should have made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from pipeline.memory_pipeline import MemoryV2VPipeline, MemoryVideo
from pipeline.training.batch import Batch
from pipeline.training.samples import Window
from pipeline.trajectory import Trajectory, compose, inverse
from storage.atomic import published

ROWS, TILE, GAP = 9, 96, 4
COLUMNS = ("source", "memory 1", "true view", "with memory", "without")
SEED = 72


@torch.no_grad()
def write_sheet(pipe: MemoryV2VPipeline, batches: Sequence[Batch], path: Path | None) -> None:
    """The last frame of the first sample of up to ROWS batches, every task in turn. path: None draws without writing,
    for processes that hold a share of the model."""
    per_task = max(1, ROWS // 3)
    chosen: list[Batch] = []
    for task in dict.fromkeys(each.draw.task for each in batches):
        chosen += [each for each in batches if each.draw.task == task][:per_task]
    pipe.set_progress_bar_config(disable=True)
    rows = [_row(pipe, each) for each in chosen]
    sheet = Image.new("RGB", (len(COLUMNS) * (TILE + GAP), 14 + len(rows) * (TILE + 14 + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(COLUMNS):
        draw.text((column * (TILE + GAP), 0), name, fill="black")
    for number, (words, pictures) in enumerate(rows):
        y = 14 + number * (TILE + 14 + GAP)
        for column, picture in enumerate(pictures):
            if picture is not None:
                tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BICUBIC)
                sheet.paste(tile, (column * (TILE + GAP), y))
        draw.text((0, y + TILE), words, fill="black")
    if path is not None:
        with published(str(path)) as temporary:
            sheet.save(temporary, "PNG")


def _row(pipe: MemoryV2VPipeline, batch: Batch) -> tuple[str, list[np.ndarray | None]]:
    sample = batch.draw.samples[0]

    def last(latent: torch.Tensor) -> np.ndarray:
        return pipe.decode(latent)[-1]

    words = f"{batch.draw.task}: {sample.instruction}" if sample.instruction else batch.draw.task
    return words, [
        None if batch.source is None else last(batch.source.latent[0]),
        last(batch.memories[0].latent[0]) if batch.memories else None,
        last(batch.clean[0]),
        last(edited(pipe, batch, memories=True)),
        None if batch.source is None else last(edited(pipe, batch, memories=False)),
    ]


def edited(pipe: MemoryV2VPipeline, batch: Batch, memories: bool) -> torch.Tensor:
    """The first sample's first target as the pipeline makes it: (C, T', H', W')."""
    sample, length = batch.draw.samples[0], batch.draw.length
    origin, rate = sample.origin, sample.origin.clip.rate

    def seen(window: Window) -> Trajectory:
        part = window.clip.trajectory[window.start : window.start + length]
        return Trajectory(compose(inverse(origin.clip.trajectory.c2w[origin.start]), part.c2w), part.intrinsics)

    shown = [
        MemoryVideo(video.latent[0], seen(window), round((window.seconds - origin.seconds) * rate), video.preceding)
        for video, window in zip(batch.memories, sample.memories, strict=True)
    ]
    scale = pipe.codec.spatial_compression
    return pipe(
        source=None if batch.source is None else batch.source.latent[0],
        source_trajectory=None if batch.source is None else seen(origin),
        target_trajectory=seen(sample.targets[0]),
        prompt=sample.instruction,
        memories=shown if memories else (),
        num_frames=length,
        height=batch.clean.shape[3] * scale,
        width=batch.clean.shape[4] * scale,
        frame_rate=rate,
        generator=torch.Generator().manual_seed(SEED),
    ).latents
