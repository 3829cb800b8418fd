"""What a call of the transformer is given beside the noisy target, and whether it fits the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .memory_cache import MemoryCache

if TYPE_CHECKING:
    from .transformer import MemoryWanTransformer3DModel

CHOICES = {
    "attention": ("cached", "joint"),
    "cameras": ("extrinsics", "plucker", "per_block"),
    "positions": ("grid", "frustum"),
    "ranges": ("forward", "reversed"),
    "source": ("tokens", "channels"),
    "source_modulation": ("clean", "target"),
    "source_camera": ("own", "target"),
    "merge": ("off", "merge", "discard"),
}


@dataclass(frozen=True, eq=False)
class ConditioningVideo:
    """A clean video that the target may look at.

    latent: (B, C, T, H, W), normalised as the target's; where places are rays and not rows and columns (positions
    "frustum") a memory may have another H and W. poses: (B, T, 3, 4) camera-to-world per latent frame in the
    frame of reference shared by all videos of the call, or None where the task knows no cameras. intrinsics:
    (B, T, 4) divided by the frame's size, for models that see rays. times: (B, T) signed seconds from the target's
    first frame, for models with frustum positions. preceding: the memory just before the target in time, which
    takes the source's range of positions where no source tokens do (text tasks). source: like latent, of a memory made
    with its source's camera, what it was made from (see `copying`). surface: (B, T, H, W) float32, where the
    target's camera is not the source's, how far away what the video shows is, in logarithms of metres along the optical
    axis; None for what the model says (see `depths` and `remembered`); of no use without a source, nor in a batch with
    a row whose camera is the source's.
    """

    latent: torch.Tensor
    poses: torch.Tensor | None = None
    intrinsics: torch.Tensor | None = None
    times: torch.Tensor | None = None
    preceding: bool = False
    source: torch.Tensor | None = None
    surface: torch.Tensor | None = None


def choice(name: str, value: str, choices: Sequence[str]) -> str:
    """The value. Raises ValueError, naming the argument, where it is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check(
    model: MemoryWanTransformer3DModel,
    target_video: ConditioningVideo,
    source: ConditioningVideo | None,
    memories: Sequence[ConditioningVideo],
    attention: str,
    merge: str,
    cache: MemoryCache | None,
) -> None:
    """Raise ValueError, saying expected and got. The target comes without source channels."""
    config, channels = model.config, model.latent_channels
    target, posed = target_video.latent, target_video.poses is not None
    videos = {"the target": target_video}
    videos |= {} if source is None else {"the source": source}
    videos |= {f"memory {rank}": memory for rank, memory in enumerate(memories)}
    needed = {"plucker": ["poses", "intrinsics"], "frustum": ["poses", "intrinsics", "times"]}
    needs = {*needed.get(config.positions, []), *(needed.get(config.cameras, []) if posed else [])}
    for name, video in videos.items():
        latent = video.latent
        if latent.ndim != 5 or latent.shape[1] != channels or latent.dtype != target.dtype or not latent.numel():
            raise ValueError(
                f"{name} must be a latent (B, {channels}, T, H, W) {target.dtype}, got {tuple(latent.shape)} "
                f"{latent.dtype}"
            )
        if len(target) % len(latent) or (attention == "joint" and len(target) != len(latent)):
            raise ValueError(f"{name} has {len(latent)} rows in its batch, expected the target's {len(target)}")
        if video.source is not None and (video.source.shape, video.source.dtype) != (latent.shape, latent.dtype):
            raise ValueError(
                f"{name} was made from a latent of {tuple(video.source.shape)} {video.source.dtype}, expected its own "
                f"{tuple(latent.shape)} {latent.dtype}"
            )
        of_pixels = (len(latent), *latent.shape[2:])
        if video.surface is not None and video.surface.shape != of_pixels:
            raise ValueError(f"{name} has a surface of shape {tuple(video.surface.shape)}, expected {of_pixels}")
        for known, each in (("poses", (3, 4)), ("intrinsics", (4,)), ("times", ())):
            found, expected = getattr(video, known), (len(latent), latent.shape[2], *each)
            if found is not None and found.shape != expected:
                raise ValueError(
                    f"{name} has {known} of shape {tuple(found.shape)}, expected {expected}: one per frame"
                )
        if missing := sorted(each for each in needs if getattr(video, each) is None):
            raise ValueError(f"{name} has no {', '.join(missing)}, which this model needs of every video")
        if config.cameras == "per_block" and (video.poses is not None) != posed:
            raise ValueError(f"{name} and the target must both have poses, or neither: got one of them")
    if wrong := [size for size, patch in zip(target.shape[2:], config.patch_size, strict=True) if size % patch]:
        raise ValueError(
            f"the target has (T, H, W) {tuple(target.shape[2:])}, of which {wrong[0]} is no multiple of its part of "
            f"the patch {tuple(config.patch_size)}; only sources and memories are padded"
        )
    if len(rows := {len(video.latent) for name, video in videos.items() if name != "the target"}) > 1:
        raise ValueError(f"source and memories have {sorted(rows)} rows in their batches, expected the same of all")
    if source is not None and config.source == "channels" and source.latent.shape[1:] != target.shape[1:]:
        raise ValueError(
            f"the source goes beside the target's channels: expected {tuple(target.shape)}, got "
            f"{tuple(source.latent.shape)}"
        )
    for rank, memory in enumerate(memories):
        if config.positions == "grid" and memory.latent.shape[3:] != target.shape[3:]:
            raise ValueError(
                f"memory {rank} has (H, W) {tuple(memory.latent.shape[3:])}, expected the target's "
                f"{tuple(target.shape[3:])}: this model's positions are rows and columns, which another resolution has "
                "elsewhere"
            )
    if cache is not None and cache.complete:
        _check_cached(cache, target_video, source, memories, attention)
    if config.positions == "grid":
        _check_positions(model, target, source, memories)
    if merge == "merge" and model.compressor is None:
        raise ValueError("merge='merge' needs a compressor, but this model was configured with another merge")
    noisy = config.source == "tokens" and config.source_modulation == "target"
    if source is not None and noisy and attention == "cached":
        raise ValueError(
            "this model gives its source the target's timestep, which changes with every step: expected "
            "attention='joint', got 'cached'"
        )


def _check_cached(
    cache: MemoryCache,
    target: ConditioningVideo,
    source: ConditioningVideo | None,
    memories: Sequence[ConditioningVideo],
    attention: str,
) -> None:
    """What a cache keeps is the first call's: of the target's size and cameras, and of all that it may look at."""
    first = cache.target
    assert first is not None
    if cache.attention != attention:
        raise ValueError(f"the cache was filled with attention={cache.attention!r}, got {attention!r}: clear() it")
    if first.latent.shape != target.latent.shape:
        raise ValueError(
            f"the cache was filled beside a target (B, C, T, H, W) of {tuple(first.latent.shape)}, got "
            f"{tuple(target.latent.shape)}: clear() it, or take another"
        )
    shown = [*((source,) if source else ()), *memories]
    same = len(shown) == len(cache.shown) and all(map(_alike, shown, cache.shown))
    if attention == "joint" and cache.shown and not shown:
        raise ValueError("with joint attention source and memories must be given in every call, got none of them")
    if shown and not same:
        raise ValueError("the cache was filled with another source or other memories: clear() it, or take another")
    for name in ("poses", "intrinsics", "times"):
        if not _equal(getattr(first, name), getattr(target, name)):
            raise ValueError(
                f"the cache was filled beside a target of other {name}: clear() it, or take another, for every "
                "trajectory"
            )


def _alike(one: ConditioningVideo, other: ConditioningVideo) -> bool:
    return one is other or all(map(_equal, vars(one).values(), vars(other).values()))


def _equal(one: Any, other: Any) -> bool:
    """Of what a video is said to be: a tensor, a bool or None."""
    return one is other or (
        isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    )


def _check_positions(
    model: MemoryWanTransformer3DModel,
    target: torch.Tensor,
    source: ConditioningVideo | None,
    memories: Sequence[ConditioningVideo],
) -> None:
    """Temporal positions beyond the base's table were never seen by it."""
    patch, most = model.config.patch_size[0], model.config.rope_max_seq_len
    for rank, (video, _, offset) in enumerate(model._places(source, memories, target.shape[2] // patch)):
        last = abs(offset) + video.latent.shape[2] // patch
        if last > most:
            raise ValueError(
                f"conditioning video {rank} reaches temporal position {last}, expected at most {most} "
                "(rope_max_seq_len): shorten the target or the memory"
            )
