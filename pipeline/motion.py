"""Does the camera of a source move? A cheap check, so that a source taken as static can be warned about.

Phase correlation between grey thumbnails finds the shift that most of the picture shares: what moves in front of a
still camera does not share it. Pairs of frames that share nothing (a cut, a flash) say nothing.

Measured on thumbnails of 54x96 half a second apart, the figure of `motion`:
    still cameras:  03_blocks (hands and toys) 0.0003, nasa_13013 0.0015, the four of pose2sim 0.0005 to 0.002
    moving cameras: bigbuckbunny (a short pan) 0.016, bedroom (hand-held) 0.029, bikes 0.14, bt709_full_range 0.24
It sees pans, tilts, tracking and shake; a pure zoom or roll about the centre mostly escapes it.
"""

from __future__ import annotations

import numpy as np

THUMBNAIL = (54, 96)  # height, width to read frames at; any size works, the figures above are for this one
APART = 0.5  # seconds between thumbnails: long enough for a slow pan to show, short enough to share the picture
THRESHOLD = 0.008  # of the frame's side: four times the worst still camera, half the slowest moving one
LEAST_PEAK = 0.1  # correlation below which a pair shares nothing; still pairs measured 0.3 to 0.98
GREY = np.array([0.299, 0.587, 0.114])


def moves(frames: np.ndarray) -> bool:
    """Whether the camera of (T, h, w, 3) uint8 thumbnails, about half a second apart, plainly moves."""
    return motion(frames) > THRESHOLD


def motion(frames: np.ndarray) -> float:
    """The shift between neighbouring (T, h, w, 3) uint8 thumbnails that a tenth of the pairs exceed, as a fraction of
    the frame's sides. 0.0 for a single frame, and where no two frames share anything."""
    if len(frames) < 2:
        return 0.0
    grey = np.asarray(frames, np.float64) @ GREY
    h, w = grey.shape[1:]
    window = np.hanning(h)[:, None] * np.hanning(w)  # the borders do not wrap around, so they must not count
    spectrum = np.fft.rfft2((grey - grey.mean((1, 2), keepdims=True)) * window)
    cross = spectrum[1:] * spectrum[:-1].conj()
    correlation = np.fft.irfft2(cross / (np.abs(cross) + 1e-9), s=(h, w))
    shifts = [_shift(pair) for pair in correlation if pair.max() >= LEAST_PEAK]
    return float(np.percentile(shifts, 90)) if shifts else 0.0


def _shift(correlation: np.ndarray) -> float:
    """Distance of the highest point of an (h, w) circular correlation from no shift, in fractions of the sides."""
    h, w = correlation.shape
    y, x = np.unravel_index(np.argmax(correlation), correlation.shape)
    column, row = correlation[:, x], correlation[y]
    dy = (y + _between(column[y - 1], column[y], column[(y + 1) % h]) + h / 2) % h - h / 2
    dx = (x + _between(row[x - 1], row[x], row[(x + 1) % w]) + w / 2) % w - w / 2
    return float(np.hypot(dy / h, dx / w))


def _between(before: float, peak: float, after: float) -> float:
    """Where a parabola through three neighbouring values has its top, from the middle one: -0.5 to 0.5."""
    bend = before + after - 2 * peak
    return 0.0 if abs(bend) < 1e-12 else 0.5 * (before - after) / bend
