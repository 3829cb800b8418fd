"""A clip made longer by a model: one segment after another, each from those before it and without a source.

That is the `continue` task of a training, and the paper's way to a memory for short pairs: the edited clip alone goes
on, and what was added is remembered while the pair is learned from.

The camera goes back the way it came, and forth again. So it moves as cameras of its data set do and stays where they
were, not inside a wall; and it returns to what was seen before, where a memory has something to say. One held still
would show nothing that the segment just before does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from .memory_pipeline import MemoryV2VPipeline, MemoryVideo
from .trajectory import Trajectory


def onward(path: Trajectory, frames: int, first: int = 0) -> Trajectory:
    """`path`, then `frames` poses more: back to frame `first` and forth again, for as long as it takes."""
    steps = len(path) - 1 - first
    phase = np.arange(1, frames + 1) % max(2 * steps, 1)
    back = steps - abs(phase - steps)  # poses from the last one
    order = np.concatenate([np.arange(len(path)), len(path) - 1 - back])
    return Trajectory(path.c2w[order], path.intrinsics[order])


def extended(
    pipe: MemoryV2VPipeline,
    video: NDArray[np.uint8],
    path: Trajectory,
    rate: float,
    *,
    frames: int,
    k: int,
    seed: Callable[[int], int],
    first: int = 0,
) -> tuple[NDArray[np.uint8], Trajectory]:
    """A clip and its trajectory, `frames` longer than they were.

    video: (T, H, W, 3) uint8. path: T poses. rate: frames per second. k: segments that the model is shown, at most: the
    one just before, then earlier ones. seed: of each segment's noise, by its number. first: frame with which the clip's
    last shot begins, before which nothing is looked at; the shot is no shorter than a segment.
    """
    length = pipe.spec.frames_for(pipe.config.segment_frames)
    longer = onward(path, -(-frames // length) * length, first)
    before = range(len(path) - length, first - 1, -length)[:k]
    # Encoded from pixels also where the model has just made the latent: a training sees what is stored.
    latents = {at: pipe.encode(video[at : at + length]) for at in reversed(before)}
    pieces = [video]
    for number, start in enumerate(range(len(path), len(longer), length)):
        origin = longer.c2w[start]
        edit = pipe(
            target_trajectory=longer[start : start + length].relative_to(origin),
            memories=[
                MemoryVideo(latents[at], longer[at : at + length].relative_to(origin), at - start, preceding=rank == 0)
                for rank, at in enumerate(list(latents)[: -k - 1 : -1])
            ],
            num_frames=length,
            height=video.shape[1],
            width=video.shape[2],
            frame_rate=rate,
            generator=torch.Generator("cpu").manual_seed(seed(number)),
        )
        made = pipe.decode(edit.latents)
        pieces.append(made)
        latents[start] = pipe.encode(made)
    stop = len(path) + frames
    return np.concatenate(pieces)[:stop], longer[:stop]
