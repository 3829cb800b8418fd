"""From drawn windows and their pixels to what the transformer takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.conditioning import ConditioningVideo
from pipeline.trajectory import Trajectory, compose, inverse

from .samples import Draw, Window

# Windows of one length in frames to their normalised latents (N, C, T', H', W') float32.
Encode = Callable[[Sequence[Window], int], torch.Tensor]
# The same to their depths (N, frames, H, W) float32 metres along the optical axis, infinite for the sky, NaN where
# nobody knows.
Depths = Callable[[Sequence[Window], int], torch.Tensor]
VIEW = ("poses", "intrinsics", "times")
CHANGED = 0.15  # of the latent's standard deviation: an edit that moves a pixel by more has changed it


class Covered(NamedTuple):
    """What an edit of the model's own shows in the place of the targets, like them, and how far it is made up, share
    (B M, 1, T, H, W) in 0..1."""

    shown: torch.Tensor
    share: torch.Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B scenes with M targets each; targets of a scene come one after another.

    clean (B M, C, T, H, W) float32: the targets without noise. plain (B, C, T, H, W): what the instructions change, as
    the targets' cameras see it; None for other tasks. depths (B M, T, H, W): of the targets, None where the data has
    none. view: poses, intrinsics and times of the targets, `target_...` of the transformer. instructions, scenes: one
    per sample; a scene by its number. covered: of `edited` targets, which are of few frames.
    """

    draw: Draw
    clean: torch.Tensor
    plain: torch.Tensor | None
    depths: torch.Tensor | None
    view: dict[str, torch.Tensor | None]
    source: ConditioningVideo | None
    memories: tuple[ConditioningVideo, ...]
    instructions: tuple[str, ...]
    scenes: tuple[int, ...]
    covered: Covered | None = None

    @property
    def changed(self) -> torch.Tensor | None:
        """(B M, 1, T, H, W) bool: the pixels that the instruction changes, None for other tasks."""
        if self.plain is None:
            return None
        plain = self.plain.repeat_interleave(len(self.clean) // len(self.plain), dim=0)
        return (self.clean - plain).abs().amax(dim=1, keepdim=True) > CHANGED

    def to(self, device: torch.device | str) -> Batch:
        """All its tensors on a device."""

        def moved(value: Any) -> Any:
            return None if value is None else value.to(device)

        def video(each: ConditioningVideo) -> ConditioningVideo:
            return replace(
                each,
                latent=moved(each.latent),
                poses=moved(each.poses),
                intrinsics=moved(each.intrinsics),
                times=moved(each.times),
            )

        return Batch(
            self.draw,
            self.clean.to(device),
            moved(self.plain),
            moved(self.depths),
            {name: moved(value) for name, value in self.view.items()},
            None if self.source is None else video(self.source),
            tuple(video(each) for each in self.memories),
            self.instructions,
            self.scenes,
            None if self.covered is None else Covered(*map(moved, self.covered)),
        )


def collate(draw: Draw, encode: Encode, every: int = 1, depths: Depths | None = None) -> Batch:
    """A step's windows, encoded and arranged. every: frames per latent frame after the first (the codec's temporal
    compression)."""
    samples = draw.samples
    ranks = len(samples[0].memories)
    windows: list[Window] = [target for each in samples for target in each.targets]
    targets = len(windows)
    windows += [each.origin for each in samples] if draw.source else []
    windows += [each.memories[rank] for rank in range(ranks) for each in samples]
    before = draw.task == "text"
    windows += [each.before for each in samples if each.before is not None] if before else []
    latents = iter(encode(windows, draw.length).split([targets] + [len(samples)] * (ranks + draw.source + before)))

    def view(each: Sequence[tuple[Window, Window]]) -> dict[str, Any]:
        if not draw.cameras:
            return dict.fromkeys(VIEW)
        return _stack([_view(window, origin, draw.length, every) for window, origin in each])

    clean = next(latents)
    origins = [each.origin for each in samples]
    target_view = view([(target, each.origin) for each in samples for target in each.targets])
    source = ConditioningVideo(next(latents), **view([(each, each) for each in origins])) if draw.source else None
    memories = tuple(
        ConditioningVideo(
            next(latents),
            **view([(each.memories[rank], each.origin) for each in samples]),
            preceding=draw.preceding and rank == 0,
        )
        for rank in range(ranks)
    )
    return Batch(
        draw,
        clean,
        next(latents) if before else None,
        None if depths is None else depths(windows[:targets], draw.length)[:, ::every],
        {f"target_{name}": value for name, value in target_view.items()},
        source,
        memories,
        tuple(each.instruction for each in samples),
        tuple(each.origin.clip.scene for each in samples),
    )


def _view(window: Window, origin: Window, length: int, every: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses (T', 3, 4), intrinsics (T', 4) and seconds (T',) of a window in the frame of reference of `origin`."""
    part: Trajectory = window.clip.trajectory[window.start : window.start + length : every]
    reference = inverse(origin.clip.trajectory.c2w[origin.start])
    seconds = window.seconds - origin.seconds + np.arange(0, length, every) / window.clip.rate
    return compose(reference, part.c2w), part.intrinsics, seconds


def _stack(views: Sequence[tuple[np.ndarray, ...]]) -> dict[str, Any]:
    columns = (torch.tensor(np.stack(each), dtype=torch.float32) for each in zip(*views, strict=True))
    return dict(zip(VIEW, columns, strict=True))
