"""Things made for tests: small videos (moving bars and noise whose every frame is different, written with plain PyAV)
and a small disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from storage.publish import REPEATABLE


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A real disk of 2 MB, mounted at a new folder."""
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs of 2 MB cannot be mounted here (needs root)")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def moving_frames(count: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: a bright bar that runs over a coloured noise."""
    random = np.random.default_rng(seed)
    base = np.kron(random.integers(40, 200, (height // 8 + 1, width // 8 + 1, 3)), np.ones((8, 8, 1)))[:height, :width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for t in range(count):
        frames[t] = np.roll(base, t, axis=1)
        frames[t, :, (3 * t) % width : (3 * t) % width + 4] = (250, 250 - 2 * (t % 100), 20)
    return frames


def write_clip(
    path: Path | str,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    rate: Fraction | int = 25,
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    audio: str | None = None,
    sound_rate: int = 48_000,
    rotation: int = 0,
    mirrored: bool = False,
    pix_fmt: str = "yuv420p",
    aspect: Fraction | None = None,
    container_options: dict[str, str] | None = None,
) -> str:
    """A clip of RGB or RGBA frames. pts: in time_base, for a varying rate. audio: a codec, for two 440 Hz beeps, at
    0.25 and 1 s, of so many samples a second. mirrored: left to right, after the rotation."""
    frames = list(frames)
    if codec == "libx264":  # else two clips of the same frames are not always the same
        options = {"x264-params": REPEATABLE, **(options or {})}
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=rate, options=options or {})
        video.height, video.width, video.pix_fmt = frames[0].shape[0], frames[0].shape[1], pix_fmt
        video.thread_count = 1
        base = time_base or 1 / Fraction(rate)
        video.codec_context.time_base = base
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        if rotation or mirrored:
            video.set_display_rotation(rotation, hflip=mirrored)
        sound = container.add_stream(audio, rate=sound_rate, layout="mono") if audio else None
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
            frame.pts, frame.time_base = (number if pts is None else pts[number]), base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            end = float((frame.pts + 1) * base)
            tone = np.sin(2 * np.pi * 440 * np.arange(round(48000 * end)) / 48000).astype(np.float32)[None] * 0.3
            times = np.arange(tone.shape[1]) / 48000
            tone[:, ~((times >= 0.25) & (times < 0.35) | (times >= 1) & (times < 1.1))] = 0
            size = 960
            for at in range(0, tone.shape[1] - size + 1, size):
                chunk = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone[:, at : at + size]), "fltp", "mono")
                chunk.pts, chunk.sample_rate, chunk.time_base = at, 48000, Fraction(1, 48000)
                container.mux(sound.encode(chunk))
            container.mux(sound.encode(None))
    return str(path)
