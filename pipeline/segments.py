"""Cutting a source into segments, and putting the edited segments together again.

A segment is a window of source frames that fits the model. Windows of `length` frames step by `length - overlap`
inside every shot; the last window of a shot is shifted back so that it ends with the shot and is full, because a
model trained on full windows is worst on short ones. Only a shot shorter than `length` gives a short segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """Source frames [start, stop) of one shot. Frames [keep, stop) are new: no earlier segment has them."""

    index: int
    shot: int
    start: int
    stop: int
    keep: int

    @property
    def frames(self) -> int:
        return self.stop - self.start


def segments(frames: int, length: int, overlap: int, cuts: Sequence[int] = ()) -> list[Segment]:
    """Windows that cover all frames of a source in order, none of them across a cut.

    frames: of the source. length: of a window. overlap: frames shared by neighbours in a shot (the tail window of a
    shot may share more). cuts: the first frame of every shot but the first, increasing.
    Raises ValueError for what cannot be cut so.
    """
    if frames < 1:
        raise ValueError(f"cannot cut {frames} frames into segments: a source needs at least one frame")
    if length < 1:
        raise ValueError(f"segment length is {length}: it must be at least one frame")
    if not 0 <= overlap < length:
        raise ValueError(f"overlap is {overlap}: it must be at least 0 and less than the segment length {length}")
    edges = [0, *(int(cut) for cut in cuts), frames]
    for before, cut in zip(edges, edges[1:-1], strict=False):
        if not 0 < cut < frames:
            raise ValueError(f"shot boundary {cut} in a source of {frames} frames: cuts lie between 1 and {frames - 1}")
        if cut <= before:
            raise ValueError(f"shot boundary {cut} follows {before}: cuts must increase")
    found: list[Segment] = []
    for shot, (first, end) in enumerate(zip(edges, edges[1:], strict=False)):
        start, keep = first, first
        while keep < end:
            stop = min(start + length, end)
            start = max(first, stop - length)
            found.append(Segment(len(found), shot, start, stop, keep))
            start, keep = stop - overlap, stop
    return found


def blend_weights(overlap: int) -> np.ndarray:
    """(overlap,) float32 weights of the later segment over the `overlap` frames before its `keep`.

    They rise evenly and reach neither 0 nor 1, so that every frame of the fade holds something of both sides."""
    return np.arange(1, overlap + 1, dtype=np.float32) / np.float32(overlap + 1)


def assemble(pieces: Iterable[tuple[Segment, np.ndarray]], overlap: int) -> Iterator[np.ndarray]:
    """The frames of a whole source, in order and each once, from its segments' frames: a stream, not a copy.

    pieces: every segment with its frames (n, H, W, 3) uint8, n >= segment.frames (padding at the end is dropped), in
    the order of `segments`. overlap: frames of the cross-fade; 0 cuts hard. At most `overlap` frames are held back
    between two segments. Yields (H, W, 3) uint8. Raises ValueError for a missing segment or too few frames.
    """
    held: list[np.ndarray] = []  # the last frames so far, which the next segment may fade into
    position = 0
    weights = blend_weights(overlap)
    for segment, frames in pieces:
        if segment.keep != position:
            raise ValueError(f"segment {segment.index} continues at frame {segment.keep}, but {position} is next")
        if len(frames) < segment.frames:
            raise ValueError(f"segment {segment.index} has {len(frames)} frames instead of {segment.frames}")
        new = segment.keep - segment.start
        if new > 0:
            held = [_mix(*pair) for pair in zip(held, frames[new - overlap : new], weights, strict=True)]
        else:  # a shot begins: nothing fades across a cut
            yield from held
            held = []
        held.extend(frames[new : segment.frames])
        ready = max(0, len(held) - overlap)
        yield from held[:ready]
        held = held[ready:]
        position = segment.stop
    yield from held


def _mix(old: np.ndarray, new: np.ndarray, weight: np.float32) -> np.ndarray:
    mixed = old.astype(np.float32) * (1 - weight) + new.astype(np.float32) * weight
    return np.rint(mixed).astype(np.uint8)
