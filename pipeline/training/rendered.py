"""Scenes as a training's clips without a data set: rendered once into the memory of the device that trains.

Every worker process has scenes of its own. It renders them, hands the pixels over, and from then on draws batches from
them that say where in the pool their pixels are. The training itself only looks these up. Steps take turns among the
workers, so what is trained on follows from the seed and the number of workers alone.
"""

from __future__ import annotations

import pickle
import queue
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

from pipeline.clip import REAL, Clip
from pipeline.scenes import Filming, Take, filmed, takes
from pipeline.scenes.packed import Packed, cast, pack
from pipeline.trajectory import Trajectory

from .batch import Batch, collate
from .recipe import Recipe
from .samples import Corpus, Window

Pixels = tuple[torch.Tensor, torch.Tensor]  # colour (N, T, H, W, 3) uint8 and depth (N, T, H, W) float16
AHEAD = 3  # batches that a worker draws ahead
PATIENCE, POLL = 600.0, 2.0  # seconds without a word from a worker, and between looks at whether one died


@dataclass(frozen=True)
class Stage:
    """What a worker needs to know. length, glimpse: frames of windows and of short ones. tokenizers: how many distinct
    ones memories may have. device: that renders. footage: folder of real clips, or None (see `footage_clips`)."""

    filming: Filming
    recipe: Recipe
    length: int
    glimpse: int
    tokenizers: int
    seed: int
    device: str
    footage: str | None = None


class Pool:
    """The pixels of all clips: colour (N, T, H, W, 3) uint8 and depth (N, T, H, W) float16 metres, NaN where nobody
    knows. mean, std: of the pixel codec, in grey levels of 1."""

    def __init__(self, clips: int, filming: Filming, device: str, mean: float, std: float) -> None:
        shape = (clips, filming.frames, filming.height, filming.width)
        self.colour = torch.zeros(*shape, 3, dtype=torch.uint8, device=device)
        self.depth = torch.zeros(shape, dtype=torch.float16, device=device)
        self.mean, self.std = mean, std

    def put(self, row: int, colour: torch.Tensor, depth: torch.Tensor) -> None:
        """Clips from `row` on."""
        self.colour[row : row + len(colour)] = colour.to(self.colour.device)
        self.depth[row : row + len(depth)] = depth.to(self.depth.device)

    def latents(self, places: torch.Tensor, length: int) -> torch.Tensor:
        """(N, 3, length, H, W) float32 of windows at (N, 2) rows and first frames."""
        frames = self.colour[self._index(places, length)]
        return frames.permute(0, 4, 1, 2, 3).float().div_(255).sub_(self.mean).div_(self.std)

    def depths(self, places: torch.Tensor, length: int) -> torch.Tensor:
        """(N, length, H, W) float32."""
        return self.depth[self._index(places, length)].float()

    def _index(self, places: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = places.to(self.colour.device)
        return places[:, :1], places[:, 1:] + torch.arange(length, device=places.device)

    def shown(self, batch: Batch) -> Batch:
        """A batch of places as one of pixels."""
        length = batch.draw.length

        def seen(places: torch.Tensor | None) -> Any:
            return None if places is None else self.latents(places, length)

        there = batch.to(self.colour.device)
        return replace(
            there,
            clean=seen(batch.clean),
            plain=seen(batch.plain),
            depths=self.depths(batch.clean, length),
            source=None if there.source is None else replace(there.source, latent=seen(there.source.latent)),
            memories=tuple(replace(each, latent=seen(each.latent)) for each in there.memories),
        )


def placed(windows: Sequence[Window], length: int) -> torch.Tensor:
    """An `Encode` that says where windows are, (N, 2) rows and first frames, for a `Pool` to look up."""
    return torch.tensor([(each.clip.row, each.start) for each in windows])


def scene_clips(seed: int, filming: Filming, row: int) -> tuple[list[Clip], list[Take]]:
    """The clips of a scene, from `row` on, and how they are filmed."""
    shots = list(takes(seed, filming))
    clips = [
        Clip(
            row + number, seed, each.camera, each.variant, each.instruction, each.rate, each.trajectory, each.shots,
            filming.height, filming.width,
        )
        for number, each in enumerate(shots)
    ]  # fmt: skip
    return clips, shots


def described(shots: Sequence[Take], filming: Filming, device: str) -> Packed | Pixels:
    """All that a device needs to have the pixels: on a CPU these themselves, for a GPU what it makes them of."""
    if device == "cuda":
        views = [
            (
                torch.tensor(each.trajectory.c2w, dtype=torch.float32),
                torch.tensor(each.trajectory.intrinsics, dtype=torch.float32),
                torch.arange(len(each.trajectory)) / each.rate,
            )
            for each in shots
        ]
        return Packed.of([pack(each.scene, *view) for each, view in zip(shots, views, strict=True)])
    parts = [filmed(each, filming) for each in shots]
    return torch.cat([each.colour for each in parts]), torch.cat([each.depth for each in parts]).half()


def developed(description: Packed | Pixels, clips: int, filming: Filming) -> Pixels:
    """Pixels of what is described."""
    if not isinstance(description, Packed):
        return description
    views = cast(description.to("cuda"), clips, filming.height, filming.width, filming.samples)
    return views.colour, views.depth.half()


def footage_clips(folder: str | None, filming: Filming) -> tuple[list[Clip], torch.Tensor, torch.Tensor]:
    """Real clips, rows from 0 on: a `.npz` for each piece, with video (cameras, T, H, W, 3) uint8, c2w (cameras, T, 3,
    4), intrinsics (cameras, T, 4) and rate (). Raises ValueError for another size."""
    shape = (filming.frames, filming.height, filming.width)
    clips: list[Clip] = []
    videos = [torch.zeros(0, *shape, 3, dtype=torch.uint8)]
    for piece, path in enumerate(sorted(Path(folder).glob("*.npz")) if folder else []):
        with np.load(path, allow_pickle=False) as arrays:
            video, c2w, intrinsics, rate = (arrays[name] for name in ("video", "c2w", "intrinsics", "rate"))
        if video.dtype != np.uint8 or video.shape[1:] != (*shape, 3):
            raise ValueError(f"{path}: video is {video.dtype} {video.shape}, expected uint8 (cameras, *{shape}, 3)")
        for camera, pixels in enumerate(video):
            trajectory = Trajectory(c2w[camera], intrinsics[camera])
            shots = np.zeros(filming.frames, np.int32)
            clips.append(Clip(len(clips), REAL + piece, camera, 0, "", float(rate), trajectory, shots, *shape[1:]))
            videos.append(torch.from_numpy(pixels)[None])
    return clips, torch.cat(videos), torch.full((len(clips), *shape), torch.nan, dtype=torch.float16)


def rendered_batches(
    stage: Stage,
    scenes: Sequence[int],
    workers: int,
    first: int,
    pool: Callable[[int], Pool],
    progress: Callable[[int], None] = lambda scenes: None,
) -> Generator[Batch, None, None]:
    """Batches of steps `first` and on, without end, as soon as all scenes are rendered.

    scenes: their seeds. pool: makes a `Pool` for so many clips. progress: called with the number of scenes rendered.
    Raises RuntimeError where a worker died.
    """
    context: Any = mp.get_context("spawn")  # a process that has a GPU in use must not be forked
    real, colour, depth = footage_clips(stage.footage, stage.filming)
    there = pool(len(real) + len(scenes) * stage.filming.clips)
    there.put(0, colour, depth)
    pixels = context.Queue()
    batches = [context.Queue(AHEAD) for _ in range(workers)]
    processes = []
    for number in range(workers):
        row = len(real) + stage.filming.clips * sum(len(scenes[each::workers]) for each in range(number))
        arguments = (stage, list(scenes[number::workers]), row, pixels, batches[number], number, workers, first)
        processes.append(context.Process(target=_work, args=arguments, daemon=True))
        processes[-1].start()

    def received(line: Any) -> Any:
        for _ in range(round(PATIENCE / POLL)):
            with suppress(queue.Empty):
                found = pickle.loads(line.get(timeout=POLL))
                if isinstance(found, str):
                    raise RuntimeError(f"a renderer broke off: {found}")
                return found
            if died := [each.exitcode for each in processes if not each.is_alive()]:
                raise RuntimeError(f"a renderer died with exit code {died[0]}")
        raise RuntimeError(f"no renderer spoke for {PATIENCE:.0f} s")

    try:
        for done in range(len(scenes)):
            row, description = received(pixels)
            there.put(row, *developed(description, stage.filming.clips, stage.filming))
            progress(done + 1)
        step = first
        while True:
            yield there.shown(received(batches[step % workers]))
            step += 1
    finally:
        for process in processes:
            process.terminate()


def _work(
    stage: Stage, scenes: list[int], row: int, pixels: Any, batches: Any, number: int, workers: int, first: int
) -> None:
    torch.set_num_threads(1)
    try:
        clips, _, _ = footage_clips(stage.footage, stage.filming)
        for seed in scenes:
            made, shots = scene_clips(seed, stage.filming, row)
            clips += made
            pixels.put(pickle.dumps((row, described(shots, stage.filming, stage.device))))
            row += len(made)
        corpus = Corpus(clips, stage.length, stage.recipe, stage.glimpse)
    except Exception as error:
        for line in (pixels, batches):
            line.put(pickle.dumps(f"{type(error).__name__}: {error}"))
        return
    step = first + (number - first) % workers
    while True:
        draw = corpus.draw(np.random.default_rng([stage.seed, step]), tokenizers=stage.tokenizers)
        batch = collate(draw, placed)
        batches.put(pickle.dumps(replace(batch, draw=replace(draw, samples=()))))
        step += workers
