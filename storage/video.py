"""Reading video: some of a file's frames (`read_frames`, `Reader`), or all of them in a stream (`iter_frames`).

Frames are (H, W, 3) uint8 RGB as a player shows them: rotated and mirrored as the metadata say, with square pixels,
converted with the stream's own matrix and range. An untagged stream is BT.709 from 720 lines or 1280 columns on, else
BT.601, limited range, which is what players assume. HDR and alpha are lost, which `VideoInfo.notes` say. Frames are
numbered as in storage.video_index.

Reading in the middle seeks to the last key frame shown at or before the first wanted frame. Everything runs on one
thread, so that many readers share a machine as they were told to. What is wrong with a file is a VideoError, what may
pass (disk, network) a StorageFault.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from storage.errors import StorageFault, VideoError, reaching
from storage.location import identity
from storage.video_index import Index, Key, VideoInfo, decode, identified, index_of, missing, probe

__all__ = [
    "Reader", "VideoError", "VideoInfo", "check_unchanged", "identified", "iter_frames", "probe", "read_frames",
]  # fmt: skip

SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
MATRICES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
            7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}  # fmt: skip  # H.273 codes


def check_unchanged(url: str, known: tuple[Any, ...]) -> None:
    """VideoError where the file is no longer the one that had the identity `known` when it was planned, and hashed:
    hours may have passed since. Size and time decide: where it is mounted elsewhere its inode may have another
    number."""
    try:
        with reaching(url):
            unchanged = identity(url)[:2] == known[:2]
    except FileNotFoundError:
        raise VideoError(f"{url}: gone since it was planned; put it back and run the command again") from None
    if not unchanged:
        raise VideoError(f"{url}: changed since it was planned; run the command again")


def read_frames(url: str, start: int, stop: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Frames [start, stop) as (stop - start, h, w, 3) uint8 RGB, resized to `size` (h, w) while decoding if given.

    Bit-equal to the same frames of a decode from the start, wherever it seeks. Holds the result and the decoder's few
    pictures, nothing else. Raises VideoError for a range outside the video or a frame that does not decode."""
    frames, rest = _read(url, start, stop, size)
    rest.close()
    return frames


class Reader:
    """Reads segment after segment of one file: `read_frames`, going on where the last read stopped instead of seeking.

    Seeking costs the frames since the last key frame, often ten times as many as a segment has. Holds the last read and
    the open decoder. Not for two threads."""

    def __init__(self, url: str, size: tuple[int, int] | None = None):
        self.url, self.size = url, size
        self._start = self._stop = 0  # of the last read
        self._last: np.ndarray | None = None
        self._rest: Iterator[np.ndarray] = iter(())  # the frames from _stop on

    def read(self, start: int, stop: int) -> np.ndarray:
        """As read_frames, to the bit."""
        if self._last is None or not self._start <= start <= self._stop < stop:
            self._last, self._rest = _read(self.url, start, stop, self.size)
        else:
            fresh = list(itertools.islice(self._rest, stop - self._stop))
            if len(fresh) < stop - self._stop:  # the stream broke off: a seek may do better, or says what is wrong
                self._last, self._rest = _read(self.url, start, stop, self.size)
            else:
                self._last = np.concatenate([self._last[start - self._start :], np.stack(fresh)])
        self._start, self._stop = start, stop
        return self._last


def _read(url: str, start: int, stop: int, size: tuple[int, int] | None) -> tuple[np.ndarray, Generator[np.ndarray]]:
    """Frames [start, stop), and those that follow as far as they decode."""
    index = index_of(url)
    if not 0 <= start < stop <= index.info.frames:
        raise VideoError(f"{url}: frames {start} to {stop} asked for, it has frames 0 to {index.info.frames}")
    h, w = size or (index.info.height, index.info.width)
    out = np.empty((stop - start, h, w, 3), np.uint8)
    first_error: VideoError | None = None
    for key, trusted in _entries(index, start):
        pictures = _pictures(index, start, key, trusted, (h, w))
        try:
            for done in range(len(out)):
                out[done] = next(pictures)
        except VideoError as error:
            first_error = first_error or error
        else:
            return out, _until_broken(pictures)
    assert first_error is not None
    raise first_error


def _pictures(
    index: Index, start: int, key: Key | None, trusted: int | None, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The pictures from `start` on, none left out. Ends with a VideoError: at the end of the file too."""
    picture, expected = _Picture(index.info, size), start
    for number, frame in decode(index, start, key, trusted):
        if number != expected:
            raise missing(index, expected)
        yield picture(frame)
        expected += 1
    raise missing(index, expected)


def _until_broken(pictures: Iterator[np.ndarray]) -> Generator[np.ndarray]:
    with suppress(VideoError, StorageFault):
        yield from pictures


def iter_frames(url: str, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """All frames in order, (h, w, 3) uint8 RGB each, one at a time in memory. Raises VideoError as read_frames does."""
    index = index_of(url)
    pictures = _pictures(index, 0, None, None, size or (index.info.height, index.info.width))
    return itertools.islice(pictures, index.info.frames)


def _entries(index: Index, start: int) -> list[tuple[Key | None, int | None]]:
    """Where decoding may begin to reach frame `start`, best first, and the pts from which errors count.

    From its key frame on everything decodes, in theory. But H.264's open groups release pictures that the seek left
    out, which is an error to a strict decoder: a run-up from the key frame before provides them, and its own errors
    mean nothing. Pictures refreshed a row at a time may need even more. Last comes the beginning (None)."""
    if index.counted:
        return [(None, None)]
    at = int(np.searchsorted(index.keys[:, 0], index.pts[start], side="right"))
    keys = [(int(pts), int(dts)) for pts, dts in index.keys[max(0, at - 2) : at][::-1] if pts > index.pts[0]]
    return [*((key, keys[0][0]) for key in keys), (None, None)]


class _Picture:
    """From decoded frames to RGB arrays of one size (height, width) as displayed; keeps the scaler's state."""

    def __init__(self, info: VideoInfo, size: tuple[int, int]) -> None:
        self.turns, self.mirrored = info.rotation // 90, info.mirrored
        self.size = size if self.turns % 2 == 0 else size[::-1]
        self.scaler = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        matrix = MATRICES.get(frame.colorspace)
        if matrix is None:
            large = frame.height >= 720 or frame.width >= 1280
            matrix = Colorspace.ITU709 if large else Colorspace.ITU601
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        rgb = self.scaler.reformat(
            frame, width=self.size[1], height=self.size[0], format="rgb24", src_colorspace=matrix,
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG, dst_color_range=ColorRange.JPEG,
            interpolation=SCALING, threads=1,
        )  # fmt: skip
        pixels = rgb.to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels[::-1] if self.mirrored else pixels, self.turns))
