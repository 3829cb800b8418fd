"""Scenes as a training's clips without a data set: rendered once into the memory of the device that trains.

Every worker process has scenes of its own. It renders them, hands the pixels over, and from then on draws batches from
them that say where in the pool their pixels are. The training itself only looks these up. Steps take turns among the
workers, so what is trained on follows from the seed and the number of workers alone.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.clip import REAL, Clip
from pipeline.scenes import Filming, Take, filmed, takes
from pipeline.scenes.packed import Packed, cast, pack
from pipeline.trajectory import Trajectory

from .batch import Batch, collate
from .recipe import Recipe
from .samples import MADE, Corpus, Window

Pixels = tuple[torch.Tensor, torch.Tensor]  # colour (N, T, H, W, 3) uint8 and depth (N, T, H, W) float16


class RendererError(RuntimeError):
    """A worker died, or could not do its work. One line."""


@dataclass(frozen=True)
class Stage:
    """What a worker needs to know. length, glimpse: frames of windows and of short ones. tokenizers: how many distinct
    ones memories may have. device: that renders."""

    filming: Filming
    recipe: Recipe
    length: int
    glimpse: int
    tokenizers: int
    seed: int
    device: str


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
        self.colour[row : row + len(colour)] = colour
        self.depth[row : row + len(depth)] = depth

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
        return Packed.of([pack(each.scene, *each.views) for each in shots])
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
    4), intrinsics (cameras, T, 4) and rate (). Raises ValueError for another size, and for a folder without any."""
    shape = (filming.frames, filming.height, filming.width)
    clips: list[Clip] = []
    videos = [torch.zeros(0, *shape, 3, dtype=torch.uint8)]
    paths = sorted(Path(folder).glob("*.npz")) if folder else []
    if folder and not paths:
        raise ValueError(f"{folder}: has no .npz, expected pieces of footage as `python -m jobs.pieces` writes them")
    for piece, path in enumerate(paths):
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
    footage: str | None = None,
    progress: Callable[[int], None] = lambda scenes: None,
    before: int = 0,
) -> Generator[Batch, None, None]:
    """Batches of steps `first` and on, without end, as soon as all scenes are rendered.

    scenes: their seeds. workers: processes at most. pool: makes a `Pool` for so many clips. footage: folder of real
    clips beside them (see `footage_clips`). progress: called with the number of scenes rendered. before: so many others
    come before these, the same ones whatever the first step is. Raises RendererError where a worker died or could not
    do its work.
    """
    real, *pixels = footage_clips(footage, stage.filming)
    there = pool(len(real) + len(scenes) * stage.filming.clips)
    there.put(0, *pixels)
    workers = min(workers, len(scenes))
    context = multiprocessing.get_context("spawn")  # a process that has a GPU in use must not be forked
    readers: list[Connection] = []
    processes: list[Any] = []
    row = len(real)
    try:
        for number in range(workers):
            reader, writer = context.Pipe(duplex=False)
            own = list(scenes[number::workers])
            turns = [range(number, before, workers), count(first + (number - first) % workers, workers)]
            arguments = (stage, real, own, row, writer, turns)
            processes.append(context.Process(target=_work, args=arguments, daemon=True))
            processes[-1].start()
            writer.close()  # so that the pipe ends with the worker
            readers.append(reader)
            row += stage.filming.clips * len(own)
        done, left = 0, {reader: len(scenes[number::workers]) for number, reader in enumerate(readers)}
        while left:
            ready: Any = wait(list(left))
            for reader in ready:
                at, description = _received(reader)
                there.put(at, *developed(description, stage.filming.clips, stage.filming))
                left[reader] -= 1
                if not left[reader]:
                    del left[reader]
                done += 1
                progress(done)
        for turn in chain(range(before), count(first)):
            yield there.shown(_received(readers[turn % workers]))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _received(reader: Any) -> Any:
    try:
        found = pickle.loads(reader.recv_bytes())
    except (EOFError, OSError):  # between two messages, and within one
        raise RendererError("a renderer died; give the machine more memory, or take fewer renderers") from None
    if isinstance(found, str):
        raise RendererError(f"a renderer broke off: {found}")
    return found


def _work(
    stage: Stage,
    clips: list[Clip],
    scenes: list[int],
    row: int,
    writer: Connection,
    turns: list[Iterable[int]],
) -> None:
    """Hand over the pixels of scenes, from `row` on, then batches: this process's turns of those before the first step,
    and of the steps. Sending waits until what was sent before is taken."""
    torch.set_num_threads(1)

    def send(found: Any) -> None:
        writer.send_bytes(pickle.dumps(found))

    try:
        for seed in scenes:
            made, shots = scene_clips(seed, stage.filming, row)
            clips += made
            send((row, described(shots, stage.filming, stage.device)))
            row += len(made)
        corpus = Corpus(clips, stage.length, stage.recipe, stage.glimpse)
        before, steps = turns
        for state in chain(([each, 0, MADE] for each in before), ([each] for each in steps)):
            draw = corpus.draw(np.random.default_rng([stage.seed, *state]), tokenizers=stage.tokenizers)
            batch = collate(draw, placed)
            send(replace(batch, draw=replace(draw, samples=())))
    except BrokenPipeError:
        pass  # the training is over
    except Exception as error:
        send(f"{type(error).__name__}: {error}")
