"""What pictures a file has: `probe`, the index that demuxing makes, and decoding by number.

Frame n is the n-th picture in order of presentation. Its number and time come from demuxing, which reads the file once
without decoding it (kept per process while the file stays the same): every packet is one picture, less those that an
edit list hides (`is_discard`) and those that are shown before the first picture that decodes, as cutting without
re-encoding leaves. That is the number a full decode gives; where a picture then does not decode, it is an error that
names the frame, never a shorter video. A container without usable time stamps (AVI) is counted by decoding.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from typing import Any

import av
import fsspec
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.frame import VideoFrame

from storage.errors import VideoError, reading
from storage.location import identity, local_path

CONTAINERS_WITH_LENGTH = ("matroska", "webm", "mov", "mp4", "avi")  # their headers state the duration; others guess it
# Those that hold their pictures themselves. Playlists (HLS, concat, image sequences ...) name other files, which a
# manifest's folder would not bound, nor a fingerprint cover.
CONTAINERS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "mxf", "gxf", "gif", "apng", "nut",
    "ivf", "dv", "rm", "wtv", "yuv4mpegpipe", "h264", "hevc", "vvc", "av1", "obu", "m4v", "mjpeg", "vc1",
)  # fmt: skip
SHORT_SECONDS = 1.0  # how much earlier than stated a whole file may end: the sound's last packet, rounded headers

HDR = {16: "PQ", 18: "HLG"}  # H.273 codes of transfer characteristics

PASSING = (OSError, MemoryError)  # kinds of ffmpeg's errors that say nothing about the file

# DivX writes so that it packs two pictures into one packet, and nothing into the next.
HEAD, PACKED = 1024, re.compile(rb"DivX\d+\D+\d+p")

Key = tuple[int, int]  # pts, dts of a key frame


@dataclass(frozen=True)
class VideoInfo:
    """A video file as displayed.

    height, width: after rotation, with square pixels. rate: frames per second, exact; the mean where `pts` is given.
    pts: time of every frame from the first, in `time_base` seconds; None where the rate is constant (to the container's
    clock). start: seconds from the container's zero to the first frame, which the sound is relative to.
    seconds: from the first frame to the end of the last. rotation: counter-clockwise, one of 0, 90, 180, 270.
    mirrored: the picture is flipped top to bottom before it is rotated.
    notes: a line for each way in which frames are read otherwise than a player shows them.
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
    mirrored: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Index:
    """What demuxing tells. pts: (N,) int64, increasing. keys: (K, 2) int64 (pts, dts) of key frames, by pts.
    Both are empty where frames can only be counted (`counted`). begins: pts of the file's first key frame, also of one
    that is not shown; what is shown before it nobody can decode. wide: by how much the first picture is wider than
    high, in pixels as they are stored; 0 where that is not known yet."""

    info: VideoInfo
    pts: np.ndarray
    keys: np.ndarray
    counted: bool
    begins: int | None = None
    wide: int = 0

    def number(self, pts: int | None, otherwise: int) -> int:
        """Of the frame shown at `pts`, or `otherwise` where no frame is."""
        if self.counted or pts is None:
            return otherwise
        at = int(np.searchsorted(self.pts, pts))
        return at if at < len(self.pts) and self.pts[at] == pts else otherwise


def probe(url: str) -> VideoInfo:
    """What the file at a path or fsspec URL is. Demuxes it all and decodes one frame.

    Raises VideoError where it is missing, no video, without frames, or cut short; StorageFault where the disk or the
    network fails."""
    return index_of(url).info


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """The PyAV container at a path or fsspec URL, closed afterwards. What goes wrong in the block becomes VideoError or
    StorageFault; so it must do nothing but read."""
    path = local_path(url)
    with reading(url, VideoError), ExitStack() as stack:
        try:
            # Absolute, so that ffmpeg takes no name for one of its protocols ("concat:a|b").
            file = os.path.abspath(path) if path is not None else stack.enter_context(fsspec.open(url, "rb"))
            only = {"format_whitelist": ",".join(CONTAINERS)}
            container = stack.enter_context(av.open(file, container_options=only))
        except av.FFmpegError as error:
            if isinstance(error, PASSING):
                raise
            raise VideoError(f"{url}: {_diagnosis(url, error)}") from error
        try:
            yield container
        except av.FFmpegError as error:
            if isinstance(error, PASSING):
                raise
            reason = error.strerror or str(error)
            raise VideoError(f"{url}: damaged or truncated ({reason}); copy or download it again") from error


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


def sound_stream(container: Any) -> Any:
    """The first sound track of a codec that ffmpeg knows, None where there is none."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def index_of(url: str) -> Index:
    """The index of the file as it is now. Raises as `probe` does."""
    return _demuxed(url, identified(url))


def identified(url: str) -> tuple[Any, ...]:
    """The file's `identity` (storage.location). VideoError where there is none, StorageFault as `probe`."""
    with reading(url, VideoError):
        return identity(url)


@functools.lru_cache(maxsize=64)
def _demuxed(url: str, known: tuple[Any, ...]) -> Index:
    shown: list[tuple[int | None, int | None, bool]] = []  # pts, dts, key frame
    packets, end, head, begins = 0, Fraction(0), b"", None
    with opened(url) as container:
        stream = video_stream(container, url)
        _check_whole(container, url, known[0])
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream is stream:
                head = head or bytes(packet)[:HEAD]
                begins = packet.pts if begins is None and packet.is_keyframe else begins
                packets += 1
                if not packet.is_discard:
                    shown.append((packet.pts, packet.dts, packet.is_keyframe))
        stated, names = container.duration, container.format.name.split(",")
        _check_length(url, stream, packets, stated, end, any(name in CONTAINERS_WITH_LENGTH for name in names))
        time_base, rates = stream.time_base, (stream.average_rate, stream.guessed_rate)
        # AVI has no time stamps: ffmpeg numbers the packets of these, which are stored in another order than shown.
        codec = stream.codec_context
        packed = codec.name == "mpeg4" and PACKED.search((codec.extradata or b"") + head) is not None
        numbered = "avi" in names and (codec.name in ("h264", "hevc") or packed)
        aspect, audio = stream.sample_aspect_ratio, sound_stream(container) is not None
        # VP9 keeps its alpha beside the pictures, where the decoder does not look.
        transfer, alpha = codec.color_trc, stream.metadata.get("alpha_mode") == "1"
    if not shown:
        raise VideoError(f"{url}: has no frames in its video stream; record or export it again")
    stamps = [pts for pts, *_ in shown if pts is not None]
    counted = numbered or len(set(stamps)) != len(shown)
    blank = VideoInfo(url, len(shown), 1, 1, Fraction(1), time_base, None, audio, 0)
    none = np.empty(0, np.int64)
    first, times = _first_frame(Index(blank, none, none.reshape(0, 2), True, begins), count=counted)
    start = Fraction(0) if numbered else (first.pts or 0) * time_base
    if counted:
        keys, pts = none.reshape(0, 2), np.arange(len(times), dtype=np.int64)
        if numbered or (own := _increasing(times)) is None:
            time_base = 1 / Fraction(next((rate for rate in rates if rate), 25))
        else:
            pts = own
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
        rotation, start, seconds, _mirrors(first), tuple(_notes(first, transfer, alpha)),
    )  # fmt: skip
    return Index(info, none if counted else pts, keys, counted, begins, first.width - first.height)


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


def _increasing(times: list[int | None]) -> np.ndarray | None:
    """(N,) int64: times of pictures in their order, of several at one time each a tick after the one before; None where
    one has no time or one that goes back, as where recordings were joined."""
    if None in times or sorted(times) != times:  # type: ignore[type-var]
        return None
    places = np.arange(len(times))
    return np.maximum.accumulate(np.array(times, np.int64) - places) + places


def _rate(pts: np.ndarray, time_base: Fraction, rates: tuple[Fraction | None, ...]) -> tuple[Fraction, bool]:
    """Frames per second, and whether every frame lies where that rate puts it: within one tick, and, where ticks are
    few, within what rounding makes of a rate that the container says, or a quarter of a frame."""
    count, span = len(pts), int(pts[-1] - pts[0])
    mean = Fraction(count - 1) / (span * time_base) if span else None
    for rate, rounded in (*((rate, 0.5) for rate in rates), (mean, 0.0)):
        if rate and rate > 0:
            ticks = float(1 / (rate * time_base))  # of one frame
            if np.abs(pts - pts[0] - np.arange(count) * ticks).max() <= min(1.0, max(rounded, ticks / 4)):
                return Fraction(rate), True
    if mean is None:
        return Fraction(25), True
    return mean.limit_denominator(1001000), False


def _mirrors(frame: Any) -> bool:
    """Whether the display matrix mirrors. `frame.rotation` comes from its first row, so it is the second that does."""
    if SideData.DISPLAYMATRIX not in frame.side_data:
        return False
    a, b, _, c, d = np.frombuffer(frame.side_data[SideData.DISPLAYMATRIX], np.int32)[:5].tolist()
    return bool(a * d < b * c)


def _notes(frame: VideoFrame, transfer: int, alpha: bool) -> Iterator[str]:
    """What of the picture is lost. transfer: the stream's transfer characteristics, as H.273 numbers them. alpha:
    whether the container says that there is any; that of `frame` itself is seen."""
    if frame.rotation % 90:
        yield f"a player turns it by {frame.rotation} degrees, here it is turned by whole 90s: export it upright"
    if transfer in HDR:
        yield f"its HDR ({HDR[transfer]}) is not converted, so that it comes out grey: convert it to BT.709 before"
    if any(component.is_alpha for component in frame.format.components):
        alpha = bool(frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255)
    if frame.interlaced_frame:
        yield "it is marked as interlaced: its fields are read as one picture, which combs what moves: deinterlace it"
    if alpha:
        yield "its alpha channel is left out, so that what is transparent is seen: lay it over a background before"


def _first_frame(index: Index, count: bool) -> tuple[VideoFrame, list[int | None]]:
    """The first picture that decodes and, if all are to be counted, the times of all of them."""
    first, times = None, list[int | None]()
    for _, frame in decode(index, 0):
        first = first or frame
        times.append(frame.pts)
        if not count:
            break
    if first is None:
        raise VideoError(f"{index.info.url}: none of its {index.info.frames} frames decodes; export it again")
    return first, times


def decode(
    index: Index, start: int, key: Key | None = None, trusted: int | None = None
) -> Iterator[tuple[int, VideoFrame]]:
    """(number, frame) for the frames from `start` on, decoding from the key frame or from the beginning. Errors of
    packets shown before the pts `trusted` are passed over: they refer to what the seek left out, or, from the
    beginning, to what was cut off."""
    url, counter = index.info.url, 0
    trusted = index.begins if trusted is None else trusted
    with opened(url) as container:
        stream = video_stream(container, url)
        for packet in _packets(index, container, stream, key):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if trusted is not None and packet.pts is not None and packet.pts < trusted:
                    continue
                if isinstance(error, PASSING):
                    raise
                number = index.number(packet.pts, counter)
                raise VideoError(f"{url}: frame {number} cannot be decoded ({error.strerror}); "
                                 "export the video again or leave the source out") from error  # fmt: skip
            for frame in frames:
                number = counter if index.counted else index.number(frame.pts, -1)
                counter += 1
                if number >= start:
                    if frame.is_corrupt:
                        raise VideoError(f"{url}: frame {number} is damaged; export the video again or leave it out")
                    if (frame.width - frame.height) * index.wide < 0:
                        first = "wide" if index.wide > 0 else "high"
                        raise VideoError(f"{url}: frame {number} is {frame.width}x{frame.height}, and the first is "
                                         f"{first}; split the video where that changes")  # fmt: skip
                    yield number, frame


def _packets(index: Index, container: Any, stream: Any, key: Key | None) -> Iterator[Any]:
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
    raise missing(index, index.number(key[0], 0))


def missing(index: Index, number: int) -> VideoError:
    return VideoError(f"{index.info.url}: frame {number} of {index.info.frames} cannot be decoded; "
                      "export the video again or leave the source out")  # fmt: skip


def _diagnosis(url: str, error: Exception) -> str:
    """Why a container does not open, from its first bytes."""
    if isinstance(error, (av.error.InvalidDataError, av.error.ArgumentError)):  # the latter for other containers
        try:
            with fsspec.open(url, "rb") as file:
                head = file.read(12)
        except Exception:  # the first error is the one to report
            head = b""
        if not head:
            return "empty file; copy or download it again"
        if head[4:8] in (b"ftyp", b"mdat", b"moov"):
            return "truncated or never finished, its index (moov) is missing; copy, download or record it again"
        return (
            "not a video that ffmpeg knows, whatever its name says, or a playlist, which names other files; give a "
            "video file (mp4, mov, mkv, webm ...)"
        )
    if isinstance(error, av.error.EOFError):
        return "has no frames, it ends after its header; record or export it again"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot be read: {text}"
