"""Writing video: an edited turn (`write_video`), and a comparison to look at (`write_compare`).

A file is there whole or not at all: it grows under a temporary name beside its own, is checked, flushed to the disk and
then renamed; on an object store it is put in one piece. The same frames give the same bytes: one x264 thread, bit-exact
muxing, no clock. The id of what is inside stands in the container's comment, so that a re-run can tell.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from PIL import Image, ImageDraw, ImageFont

from storage.atomic import CallersError, published
from storage.errors import StorageFault, VideoError
from storage.video import iter_frames, read_frames
from storage.video_index import PASSING, VideoInfo, opened, probe, sound_stream

CRF = 18  # visually lossless; the latents are the archive, files can be published again
COPIED_SOUND = ("aac", "mp3", "ac3", "eac3", "opus", "alac")  # what mp4 takes and players play; the rest becomes AAC
LEAST_MP3 = 16_000  # Hz, of the MP3 that mp4 takes
LEAP = Fraction(1)  # seconds by which copied sound may go back and is left out until it has caught up
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # by channels: PCM often does not say which is which
AAC_BIT_RATE, AAC_SAMPLES = 192_000, "fltp"
# With macroblock-tree rate control x264 (165) does not repeat itself on small pictures, one thread or not: 60 writes of
# 62x144 frames gave 5 different files, of 40x56 frames 27; without it always one. It costs a few per cent of size.
REPEATABLE = "mbtree=0"
COMPARE_CRF = 20
COMPARE_HEIGHT = 192
WIDEST = 4096  # pixels of a comparison; most players end at twice as many
LARGEST = 16384  # pixels a side of what x264 takes
THUMBS = 4  # memories shown for a segment
THUMB_CACHE = 64  # small pictures kept; neighbouring segments use the same memories
LINE = 14  # height of a line of PIL's default font, even
GAP = 2
TO_YUV = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


def write_video(
    url: str, frames: Iterable[np.ndarray], *, source: VideoInfo, video_id: str, crf: int = CRF, audio: bool = True
) -> None:
    """Publish (H, W, 3) uint8 RGB frames as H.264 in mp4 at a path or fsspec URL, with the source's times and sound.

    As many frames as the source has, of even size, at its rate (its own time stamps where the rate varies); its first
    sound track is copied where mp4 takes the codec, else made AAC. BT.709, limited range, tagged. Nothing but the frame
    at hand and the encoder's look-ahead is in memory. Raises VideoError, StorageError where the place cannot be written
    to, StorageFault where disk, network or store fail; an error, also one of the frames' iterator, leaves no file and
    an older one untouched.
    """
    with _encoding(url) as path:
        _encode(path, frames, source, video_id, crf, audio, url)


@contextmanager
def _encoding(url: str) -> Iterator[str]:
    """As `published`; what the encoder refuses becomes VideoError."""
    with published(url) as path:
        try:
            yield path
        except av.FFmpegError as error:
            if isinstance(error, PASSING):
                raise
            raise VideoError(f"{url}: cannot be encoded ({error.strerror}); check the ffmpeg that av brings") from error


def video_id_of(url: str) -> str | None:
    """The id that write_video put into the file; None where there is no file, no video, no id, or no getting at it: a
    file that is written again without need has the same bytes."""
    try:
        with opened(url) as container:
            return container.metadata.get("comment") or None
    except (VideoError, StorageFault):
        return None


@dataclass(frozen=True)
class Used:
    """The memories of one segment: while frames [start, stop) play, these are shown, at most four of them.

    memories: (turn, segment, frame) each: number of the turn, from 1, whose published file the memory became; number
    of the segment to print; and the frame of that file to show (the middle of the segment)."""

    start: int
    stop: int
    memories: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Panel:
    """One turn in a comparison: what to write above it, its published file, the memories its segments used."""

    label: str
    url: str
    used: tuple[Used, ...] = ()


def write_compare(url: str, source: VideoInfo, turns: Sequence[Panel], *, video_id: str, audio: bool = True) -> None:
    """Publish the source and its turns side by side, each under its label, all at the height of the turns, and under
    each turn the memories that its current segment used, labelled "t1 s3" (turn 1, segment 3); in as many rows as keep
    the picture within WIDEST.

    Small models' turns are enlarged by a whole factor to about COMPARE_HEIGHT, so that labels and thumbnails can be
    read. Times and sound are the source's; streams like write_video and raises like it. One turn at least.
    """
    if not turns:
        raise VideoError(f"{url}: nothing to compare {source.url} with; give at least one turn")
    for turn in turns:
        if (found := probe(turn.url).frames) != source.frames:
            raise VideoError(f"{turn.url}: {found} frames, its source {source.url} has {source.frames}; publish again")
    with _encoding(url) as path:
        _encode(path, _compared(source, turns), source, video_id, COMPARE_CRF, audio, url)


def _compared(source: VideoInfo, turns: Sequence[Panel]) -> Iterator[np.ndarray]:
    infos = [probe(turn.url) for turn in turns]
    tallest = max(info.height for info in infos)
    height = tallest * max(1, round(COMPARE_HEIGHT / tallest))
    slimmest = min(info.height / info.width for info in (source, *infos))
    height = max(2, min(height, int(WIDEST * slimmest)) // 2 * 2)
    sizes = [(height, max(2, round(info.width * height / info.height / 2) * 2)) for info in (source, *infos)]
    thumbs = [max(2, round(w / THUMBS / 2) * 2 - GAP) for _, w in sizes[1:]]
    thumb_heights = [max(2, round(w * info.height / info.width / 2) * 2) for w, info in zip(thumbs, infos, strict=True)]
    below = LINE + max(thumb_heights) if any(used.memories for turn in turns for used in turn.used) else 0
    row = LINE + height + (below + 1) // 2 * 2
    corners = _corners([width for _, width in sizes], row)
    across = max(left + width for (left, _), (_, width) in zip(corners, sizes, strict=True))
    canvas = Image.new("RGB", (across, corners[-1][1] + row))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for label, (left, top), (_, width) in zip(["source", *(turn.label for turn in turns)], corners, sizes, strict=True):
        draw.text((left + 2, top + 1), _shortened(label, width - 4, font), fill="white", font=font)

    @functools.lru_cache(maxsize=THUMB_CACHE)
    def thumbnail(turn: int, frame: int, size: tuple[int, int]) -> Image.Image:
        return Image.fromarray(read_frames(turns[turn - 1].url, frame, frame + 1, size)[0])

    streams = [iter_frames(info.url, size) for info, size in zip((source, *infos), sizes, strict=True)]
    shown: list[Used | None] = [None] * len(turns)
    for number, pictures in enumerate(zip(*streams, strict=True)):
        for (left, top), picture in zip(corners, pictures, strict=True):
            canvas.paste(Image.fromarray(picture), (left, top + LINE))
        for at, turn in enumerate(turns):
            used = next((used for used in turn.used if used.start <= number < used.stop), None)
            if used is shown[at]:
                continue
            shown[at], (left, top) = used, corners[at + 1]
            top += LINE + height
            if below:
                draw.rectangle((left, top, left + sizes[at + 1][1] - 1, top + below - 1), fill="black")
            for place, (memory_turn, segment, frame) in enumerate(used.memories[:THUMBS] if used else ()):
                x = left + place * (thumbs[at] + GAP)
                draw.text((x + 1, top + 1), f"t{memory_turn} s{segment}", fill="white", font=font)
                canvas.paste(thumbnail(memory_turn, frame, (thumb_heights[at], thumbs[at])), (x, top + LINE))
        yield np.asarray(canvas)


def _corners(widths: Sequence[int], row: int) -> list[tuple[int, int]]:
    """(left, top) of panels beside each other, in rows of this height that are no wider than WIDEST."""
    corners, left, top = [], 0, 0
    for width in widths:
        if left and left + width > WIDEST:
            left, top = 0, top + row
        corners.append((left, top))
        left += width + GAP
    return corners


def _shortened(text: str, width: int, font: Any) -> str:
    """The label, cut with dots where it is wider than its panel."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _encode(
    path: str, frames: Iterable[np.ndarray], source: VideoInfo, video_id: str, crf: int, audio: bool, url: str
) -> None:
    stream = _carried(frames)
    first = next(stream, None)
    if first is None:
        raise VideoError(f"{url}: no frames to write, {source.url} has {source.frames}")
    height, width = _checked(first, first.shape, url)
    time_base = 1 / source.rate if source.pts is None else source.time_base
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with av.open(path, "w", format="mp4", container_options=options) as container:
        container.metadata["comment"] = video_id
        video = container.add_stream("libx264", rate=source.rate)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        # How long a file is mp4 takes from the order of decoding: of B-frames whose times vary not to their end.
        ordered = "" if source.pts is None else ":bframes=0"
        flags = "+bitexact+frame_duration"  # without durations the last frame stays as long as the mean
        video.options = {"crf": str(crf), "preset": "medium", "flags": flags, "x264-params": REPEATABLE + ordered}
        video.thread_count = 1
        context = video.codec_context
        context.time_base = time_base
        context.colorspace, context.color_range = 1, 1  # H.273: BT.709, limited
        context.color_primaries, context.color_trc = 1, 1
        packets = _sound(source, container) if audio and source.audio else _silence()
        with closing(packets):
            sound = _Sound(packets, container)
            scaler = VideoReformatter()
            count = 0
            for pixels in itertools.chain([first], stream):
                _checked(pixels, first.shape, url)
                if count == source.frames:
                    raise VideoError(f"{url}: more than the {source.frames} frames of {source.url} were given")
                frame = scaler.reformat(
                    VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"), format="yuv420p",
                    dst_colorspace=Colorspace.ITU709, src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
                    interpolation=TO_YUV, threads=1,
                )  # fmt: skip
                frame.colorspace, frame.color_range = 1, ColorRange.MPEG
                frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
                frame.pts, frame.duration = _time(source, count)
                frame.time_base = time_base
                container.mux(video.encode(frame))
                count += 1
                sound.until(frame.pts * time_base)
            if count != source.frames:
                raise VideoError(f"{url}: {count} frames were given, {source.url} has {source.frames}")
            container.mux(video.encode(None))
            sound.until(None)
    written = probe(path)
    if written.frames != source.frames:
        raise VideoError(f"{url}: {written.frames} of {source.frames} frames arrived on the disk; check its free space")


def _carried(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    try:
        yield from frames
    except Exception as error:
        raise CallersError from error


def _time(source: VideoInfo, number: int) -> tuple[int, int]:
    """(pts, duration) of a frame in ticks of the output: counts at a constant rate, else the source's own stamps."""
    if source.pts is None:
        return number, 1
    pts = source.pts[number]
    end = source.pts[number + 1] if number + 1 < len(source.pts) else round(source.seconds / source.time_base)
    return pts, end - pts


def _checked(frame: np.ndarray, shape: tuple[int, ...], url: str) -> tuple[int, int]:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
        raise VideoError(
            f"{url}: a frame is {frame.dtype} {frame.shape}, expected uint8 (H, W, 3) like the first {shape}"
        )
    if frame.shape[0] % 2 or frame.shape[1] % 2:
        raise VideoError(
            f"{url}: frames are {frame.shape[0]}x{frame.shape[1]}, H.264 (4:2:0) needs even sizes; crop or resize them"
        )
    if max(frame.shape) > LARGEST:
        raise VideoError(
            f"{url}: frames are {frame.shape[0]}x{frame.shape[1]}, x264 takes up to {LARGEST} pixels a side; publish "
            "smaller ones (upscale=none)"
        )
    return frame.shape[0], frame.shape[1]


class _Sound:
    """The source's first sound track, brought over in step with the pictures so that neither waits in memory."""

    def __init__(self, packets: Iterator[Any], writer: Any) -> None:
        self.packets, self.writer = packets, writer
        self.next: Any = next(packets, None)  # its track is now among the file's, before anything is written

    def until(self, seconds: Fraction | None) -> None:
        """Write what sounds up to `seconds` from the first frame; None: all that is left."""
        while self.next is not None:
            at = self.next.dts * self.next.time_base if self.next.dts is not None else None
            if seconds is not None and at is not None and at > seconds:
                return
            self.writer.mux(self.next)
            self.next = next(self.packets, None)


def _sound(source: VideoInfo, writer: Any) -> Generator[Any]:
    """Adds a track to the writer, then gives its packets. Writes none: what fails in here is the source's reading."""
    with opened(source.url) as reader:
        stream = sound_stream(reader)
        name, rate = stream.codec_context.codec.canonical_name, stream.codec_context.sample_rate
        steps = _Steps(source)
        if name in COPIED_SOUND and (name != "mp3" or rate >= LEAST_MP3):
            out = writer.add_stream_from_template(stream)
            for packet in reader.demux(stream):
                if packet.dts is not None:  # else the empty packet at the end
                    # Sound is decoded in the order in which it is heard, whatever its container says.
                    packet.pts = packet.dts = packet.pts - round(source.start / packet.time_base)
                    packet.stream = out
                    if packet.is_discard and packet.dts * packet.time_base <= steps.last:
                        continue  # what an edit list leaves out is there again before what it goes on with
                    if steps.on(packet.dts * packet.time_base):
                        yield packet
            return
        rates = av.Codec("aac", "w").audio_rates
        assert rates
        out = writer.add_stream("aac", rate=min((each for each in rates if each >= rate), default=max(rates)))
        out.codec_context.layout = LAYOUTS.get(stream.codec_context.layout.nb_channels, "stereo")
        out.codec_context.bit_rate = AAC_BIT_RATE
        out.codec_context.options = {"flags": "+bitexact"}

        def heard() -> Iterator[Any]:
            for number, packet in enumerate(reader.demux(stream)):
                for frame in _heard(packet, source, cut=number == 0):
                    frame.pts -= round(source.start / frame.time_base)
                    steps.on(frame.pts * frame.time_base)
                    yield frame

        for frame in _alike(heard(), out.codec_context):
            yield from out.encode(frame)
        yield from out.encode(None)


def _alike(frames: Iterator[Any], context: Any) -> Iterator[Any]:
    """Sound as an encoder takes it: broadcasts go from one layout or rate to another, which it does not follow."""
    resampler, kind = None, None
    for frame in frames:
        if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
            if resampler is not None:
                yield from resampler.resample(None)
            resampler = av.AudioResampler(AAC_SAMPLES, context.layout, context.sample_rate)
        assert resampler is not None
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)


class _Steps:
    """Whether sound goes on, which is all that a file takes: recordings repeat a time stamp, and where two were joined
    as bytes time begins anew."""

    def __init__(self, source: VideoInfo) -> None:
        self.source = source
        self.last = Fraction(-(10**9))

    def on(self, at: Fraction) -> bool:
        """False for what is not later than the last. Raises VideoError where it is earlier by more than LEAP."""
        if at < self.last - LEAP:
            raise VideoError(
                f"{self.source.url}: its sound goes back in time from {float(self.last):.2f} to {float(at):.2f} s, as "
                "where two recordings were joined; join them again with ffmpeg, or publish without: audio=false"
            )
        later = at > self.last
        self.last = max(self.last, at)
        return later


def _heard(packet: Any, source: VideoInfo, cut: bool) -> list[Any]:
    """cut: whether a recording may have been cut in the middle of this packet."""
    try:
        return list(packet.decode())
    except av.FFmpegError as error:
        if isinstance(error, PASSING):
            raise
        if cut:
            return []
        raise VideoError(
            f"{source.url}: its sound is damaged ({error.strerror or error}); copy it again, or publish without: "
            "audio=false"
        ) from error


def _silence() -> Generator[Any]:
    yield from ()
