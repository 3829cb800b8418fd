"""Reading video: what a file is (`probe`), some of its frames (`read_frames`), all of them in a stream (`iter_frames`).

Frames are (H, W, 3) uint8 RGB as a player shows them: rotated as the metadata says, with square pixels, converted with
the stream's own matrix and range. An untagged stream is BT.709 from 720 lines or 1280 columns on, else BT.601, limited
range, which is what players assume.

Frame n is the n-th picture in order of presentation. Its number and time come from demuxing, which reads the file once
without decoding it (kept per process while the file stays the same): every packet is one picture, less those that an
edit list hides (`is_discard`) and those that are shown before the first picture that decodes, as cutting without
re-encoding leaves. That is the number a full decode gives; where a picture then does not decode, it is an error that
names the frame, never a shorter video. A container without usable time stamps (AVI) is counted by decoding.

Reading in the middle seeks to the last key frame shown at or before the first wanted frame. Everything runs on one
thread, so that many readers share a machine as they were told to.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from typing import Any

import av
import fsspec
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

CONTAINERS_WITH_LENGTH = ("matroska", "webm", "mov", "mp4", "avi")  # their headers state the duration; others guess it
SHORT_SECONDS = 1.0  # how much earlier than stated a whole file may end: the sound's last packet, rounded headers
SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
MATRICES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
            7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}  # fmt: skip  # H.273 codes

Key = tuple[int, int]  # pts, dts of a key frame


class VideoError(ValueError):
    """A video cannot be read or written. One line: the file, what was found, what was expected, what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """A video file as displayed.

    height, width: after rotation, with square pixels. rate: frames per second, exact; the mean where `pts` is given.
    pts: time of every frame from the first, in `time_base` seconds; None where the rate is constant (to the container's
    clock). start: seconds from the container's zero to the first frame, which the sound is relative to.
    seconds: from the first frame to the end of the last. rotation: counter-clockwise, one of 0, 90, 180, 270.
    """

    url: str
    frames: int
    height: int
    width: int
    rate: Fraction
    time_base: Fraction
    pts: tuple[int, ...] | None
    audio: bool
    rotation: int
    start: Fraction = Fraction(0)
    seconds: Fraction = Fraction(0)


@dataclass(frozen=True)
class _Index:
    """What demuxing tells. pts: (N,) int64, increasing. keys: (K, 2) int64 (pts, dts) of key frames, by pts.
    Both are empty where frames can only be counted (`counted`)."""

    info: VideoInfo
    pts: np.ndarray
    keys: np.ndarray
    counted: bool


def probe(url: str) -> VideoInfo:
    """What the file at a path or fsspec URL is. Demuxes it all and decodes one frame.

    Raises VideoError where it is missing, no video, without frames, or cut short."""
    return _index(url).info


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
    index = _index(url)
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
    index: _Index, start: int, key: Key | None, trusted: int | None, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The pictures from `start` on, none left out. Ends with a VideoError: at the end of the file too."""
    picture, expected = _Picture(index.info, size), start
    for number, frame in _decode(index, start, key, trusted):
        if number != expected:
            raise _missing(index, expected)
        yield picture(frame)
        expected += 1
    raise _missing(index, expected)


def _until_broken(pictures: Iterator[np.ndarray]) -> Generator[np.ndarray]:
    with suppress(VideoError):
        yield from pictures


def iter_frames(url: str, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """All frames in order, (h, w, 3) uint8 RGB each, one at a time in memory. Raises VideoError as read_frames does."""
    index = _index(url)
    pictures = _pictures(index, 0, None, None, size or (index.info.height, index.info.width))
    return itertools.islice(pictures, index.info.frames)


def local_path(url: str) -> str | None:
    """The path of a local file (a path, or a file: URL); None for what fsspec has to open."""
    if url.startswith(("file://", "local://")):
        return fsspec.core.strip_protocol(url)
    return None if "://" in url or "::" in url else url


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """The PyAV container at a path or fsspec URL, closed afterwards. What PyAV and fsspec raise becomes VideoError."""
    path = local_path(url)
    with ExitStack() as stack:
        with _reported(url):
            # Absolute, so that ffmpeg takes no name for one of its protocols ("concat:a|b").
            file = os.path.abspath(path) if path is not None else stack.enter_context(fsspec.open(url, "rb"))
            container = stack.enter_context(av.open(file))
        try:
            yield container
        except av.FFmpegError as error:
            reason = error.strerror or str(error)
            raise VideoError(f"{url}: damaged or truncated ({reason}); copy or download it again") from error


@contextmanager
def _reported(url: str) -> Iterator[None]:
    """Turns what goes wrong on opening into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise VideoError(f"{url}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise VideoError(f"{url}: is a folder, not a video file; name a file inside it") from error
    except PermissionError as error:
        raise VideoError(f"{url}: no permission to read it; change its permissions or run as its owner") from error
    except (av.FFmpegError, ImportError, OSError, ValueError) as error:
        raise VideoError(f"{url}: {_diagnosis(url, error)}") from error


def video_stream(container: Any, url: str) -> Any:
    """The first video stream which is not a cover picture, set to report damage instead of painting over it."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic and stream.codec_context is not None:
            stream.codec_context.options = {"err_detect": "explode"}
            stream.thread_count = 1
            return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams}))
    if not kinds:
        raise VideoError(f"{url}: has no frames, nor any stream; record or export it again")
    raise VideoError(f"{url}: no video stream in it (it holds: {kinds}); give a file with a picture")


def identity(url: str) -> tuple[Any, ...]:
    """What changes when a file is replaced: (size, modification time or etag ..., inode). Raises FileNotFoundError."""
    path = local_path(url)
    if path is not None:
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns, status.st_ino
    fs, path = fsspec.core.url_to_fs(url)
    about = fs.info(path)
    stamps = (about.get(name) for name in ("ETag", "etag", "LastModified", "last_modified", "mtime", "created"))
    return about.get("size"), next((str(stamp) for stamp in stamps if stamp), ""), 0


def _index(url: str) -> _Index:
    with _reported(url):
        known = identity(url)
    return _demuxed(url, known)


@functools.lru_cache(maxsize=64)
def _demuxed(url: str, known: tuple[Any, ...]) -> _Index:
    shown: list[tuple[int | None, int | None, bool]] = []  # pts, dts, key frame
    packets, end = 0, Fraction(0)
    with opened(url) as container:
        stream = video_stream(container, url)
        _check_whole(container, url, known[0])
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream is stream:
                packets += 1
                if not packet.is_discard:
                    shown.append((packet.pts, packet.dts, packet.is_keyframe))
        stated, names = container.duration, container.format.name.split(",")
        _check_length(url, stream, packets, stated, end, any(name in CONTAINERS_WITH_LENGTH for name in names))
        time_base, rates = stream.time_base, (stream.average_rate, stream.guessed_rate)
        aspect, audio = stream.sample_aspect_ratio, bool(container.streams.audio)
    if not shown:
        raise VideoError(f"{url}: has no frames in its video stream; record or export it again")
    stamps = [pts for pts, *_ in shown if pts is not None]
    counted = len(set(stamps)) != len(shown)
    blank = VideoInfo(url, len(shown), 1, 1, Fraction(1), time_base, None, audio, 0)
    none = np.empty(0, np.int64)
    first, total = _first_frame(_Index(blank, none, none.reshape(0, 2), True), count=counted)
    if counted:
        pts = np.arange(total, dtype=np.int64)
        time_base = 1 / Fraction(next((rate for rate in rates if rate), 25))
        keys = none.reshape(0, 2)
    else:
        kept = [(p, p if d is None else d, key) for p, d, key in shown if p is not None and p >= (first.pts or 0)]
        kept.sort(key=itemgetter(0))
        pts = np.array([p for p, *_ in kept], np.int64)
        keys = np.array([(p, d) for p, d, key in kept if key], np.int64).reshape(-1, 2)
    rate, constant = _rate(pts, time_base, rates)
    # Containers say little that can be trusted about how long the last frame stays: as long as the others.
    seconds = len(pts) / rate if constant else (int(pts[-1] - pts[0]) + int(np.median(np.diff(pts)))) * time_base
    rotation = round(first.rotation / 90) * 90 % 360
    height, width = first.height, first.width
    if aspect:
        width = max(1, round(width * Fraction(aspect)))
    if rotation in (90, 270):
        height, width = width, height
    info = VideoInfo(
        url, len(pts), height, width, rate, time_base, None if constant else tuple((pts - pts[0]).tolist()), audio,
        rotation, int(pts[0]) * time_base, seconds,
    )  # fmt: skip
    return _Index(info, none if counted else pts, keys, counted)


def _check_whole(container: Any, url: str, size: int | None) -> None:
    """An mp4's index says where every sample lies: one that lies past the end of the file was cut off."""
    if size is None or "mov" not in container.format.name:
        return
    need = max((entry.pos + entry.size for stream in container.streams for entry in stream.index_entries), default=0)
    if need > size:
        raise VideoError(f"{url}: truncated, it has {size} bytes and its index needs {need}; copy or download it again")


def _check_length(url: str, stream: Any, packets: int, stated: int | None, end: Fraction, states: bool) -> None:
    if not states or not stated:
        return
    missing = float(Fraction(stated, av.time_base) - end)
    if packets and missing > SHORT_SECONDS:
        raise VideoError(
            f"{url}: truncated, {packets} of {stream.frames or 'an unknown number of'} frames found and "
            f"{missing:.1f} of {stated / av.time_base:.1f} s missing; copy or download it again"
        )


def _rate(pts: np.ndarray, time_base: Fraction, rates: tuple[Fraction | None, ...]) -> tuple[Fraction, bool]:
    """Frames per second, and whether every frame lies within one tick of where that rate puts it."""
    count, span = len(pts), int(pts[-1] - pts[0])
    mean = Fraction(count - 1) / (span * time_base) if span else None
    for rate in (*rates, mean):
        if rate and rate > 0:
            ideal = np.arange(count) * float(1 / (rate * time_base))
            if np.abs(pts - pts[0] - ideal).max() <= 1.0:
                return Fraction(rate), True
    if mean is None:
        return Fraction(25), True
    return mean.limit_denominator(1001000), False


def _first_frame(index: _Index, count: bool) -> tuple[VideoFrame, int]:
    """The first picture that decodes and, if asked, how many there are."""
    first, total = None, 0
    for number, frame in _decode(index, 0):
        first, total = first or frame, number + 1
        if not count:
            break
    if first is None:
        raise VideoError(f"{index.info.url}: none of its {index.info.frames} frames decodes; export it again")
    return first, total


def _entries(index: _Index, start: int) -> list[tuple[Key | None, int | None]]:
    """Where decoding may begin to reach frame `start`, best first, and the pts from which errors count.

    From its key frame on everything decodes, in theory. But H.264's open groups release pictures that the seek left
    out, which is an error to a strict decoder: a run-up from the key frame before provides them, and its own errors
    mean nothing. Pictures refreshed a row at a time may need even more. Last comes the beginning (None)."""
    if index.counted:
        return [(None, None)]
    at = int(np.searchsorted(index.keys[:, 0], index.pts[start], side="right"))
    keys = [(int(pts), int(dts)) for pts, dts in index.keys[max(0, at - 2) : at][::-1] if pts > index.pts[0]]
    return [*((key, keys[0][0]) for key in keys), (None, None)]


def _decode(
    index: _Index, start: int, key: Key | None = None, trusted: int | None = None
) -> Iterator[tuple[int, VideoFrame]]:
    """(number, frame) for the frames from `start` on, decoding from the key frame or from the beginning. Errors of
    packets shown before the pts `trusted` are passed over: they refer to what the seek left out."""
    url, counter = index.info.url, 0
    with opened(url) as container:
        stream = video_stream(container, url)
        for packet in _packets(index, container, stream, key):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if trusted is not None and packet.pts is not None and packet.pts < trusted:
                    continue
                number = _number(index, packet.pts, counter)
                raise VideoError(f"{url}: frame {number} cannot be decoded ({error.strerror}); "
                                 "export the video again or leave the source out") from error  # fmt: skip
            for frame in frames:
                number = counter if index.counted else _number(index, frame.pts, -1)
                counter += 1
                if number >= start:
                    if frame.is_corrupt:
                        raise VideoError(f"{url}: frame {number} is damaged; export the video again or leave it out")
                    yield number, frame


def _packets(index: _Index, container: Any, stream: Any, key: Key | None) -> Iterator[Any]:
    """The stream's packets from the beginning, or from the key frame or a little before it."""
    if key is None:
        yield from container.demux(stream)
        return
    # Containers with an index (mp4, mkv) seek by presentation time, streams (ts) by decoding time and may land late.
    for target in key:
        container.seek(target, stream=stream)
        packets = container.demux(stream)
        first = next(packets, None)
        if first is not None and first.pts is not None and first.pts <= key[0]:
            yield first
            yield from packets
            return
    raise _missing(index, _number(index, key[0], 0))


def _number(index: _Index, pts: int | None, otherwise: int) -> int:
    if index.counted or pts is None:
        return otherwise
    at = int(np.searchsorted(index.pts, pts))
    return at if at < len(index.pts) and index.pts[at] == pts else otherwise


def _missing(index: _Index, number: int) -> VideoError:
    return VideoError(f"{index.info.url}: frame {number} of {index.info.frames} cannot be decoded; "
                      "export the video again or leave the source out")  # fmt: skip


class _Picture:
    """From decoded frames to RGB arrays of one size (height, width) as displayed; keeps the scaler's state."""

    def __init__(self, info: VideoInfo, size: tuple[int, int]) -> None:
        self.turns = info.rotation // 90
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
        return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), self.turns))


def _diagnosis(url: str, error: Exception) -> str:
    """Why a container does not open, from its first bytes."""
    if isinstance(error, av.error.InvalidDataError):
        try:
            with fsspec.open(url, "rb") as file:
                head = file.read(12)
        except Exception:  # the first error is the one to report
            head = b""
        if not head:
            return "empty file; copy or download it again"
        if head[4:8] in (b"ftyp", b"mdat", b"moov"):
            return "truncated or never finished, its index (moov) is missing; copy, download or record it again"
        return "not a video that ffmpeg knows, whatever its name says; give a video file (mp4, mov, mkv, webm ...)"
    if isinstance(error, av.error.EOFError):
        return "has no frames, it ends after its header; record or export it again"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot be read: {text}"
