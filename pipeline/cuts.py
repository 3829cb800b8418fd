"""Where a video cuts from one shot to the next: hard cuts alone, so that nothing is cut out of footage across one.

A cut changes the picture much more than anything does that happens just before or after it. Measured on thumbnails of
27x48, mean change in levels at a cut against the second greatest within six frames around it:
    cuts: the five of bikes.mp4 46 against 5 to 83 against 7, in the midst of a fast pan 51 against 20; nasa_13013 73
    no cuts: hands and toys (03_blocks) 12 against 12, hand-held (bedroom) 9 against 8
A flash looks like two cuts, which costs a piece; dissolves and fades escape.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

THUMBNAIL = (27, 48)  # height, width to read frames at
CHANGE = 12.0  # levels
TIMES = 2.0  # what happens around it
AROUND = 6  # frames to either side; of their changes the greatest may be another cut's


def find_cuts(thumbnails: Iterable[np.ndarray]) -> tuple[int, ...]:
    """First frames of all shots but the first. thumbnails: (h, w, 3) uint8 each, of every frame in order."""
    changes: list[float] = []
    before: np.ndarray | None = None
    for thumbnail in thumbnails:
        now = thumbnail.astype(np.float32)
        if before is not None:
            changes.append(float(np.abs(now - before).mean()))
        before = now
    return tuple(at + 1 for at in range(len(changes)) if _is_cut(changes, at))


def _is_cut(changes: list[float], at: int) -> bool:
    around = sorted(changes[max(0, at - AROUND) : at] + changes[at + 1 : at + 1 + AROUND])
    return changes[at] > CHANGE and changes[at] > TIMES * (around[-2] if len(around) > 1 else 0.0)
