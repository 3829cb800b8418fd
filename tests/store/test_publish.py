"""Writing: whole or not at all, the same bytes every time, the source's times and sound, the right colours."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest

from storage.atomic import published
from storage.errors import StorageError, StorageFault
from storage.publish import Panel, Used, _Steps, video_id_of, write_compare, write_video
from storage.video import VideoError, iter_frames, probe, read_frames
from tests.generated import moving_frames, small_disk, write_clip


def sound_of(path: str) -> np.ndarray:
    with av.open(path) as container:
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


def packets_of(path: str) -> list[tuple[Fraction, bytes]]:
    with av.open(path) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]


@pytest.fixture
def source(tmp_path):
    return probe(write_clip(tmp_path / "source.mp4", moving_frames(50), audio="aac", rate=Fraction(30000, 1001)))


def test_two_writes_are_byte_identical_and_carry_the_id(tmp_path, source):
    for name in ("a.mp4", "b.mp4"):
        write_video(str(tmp_path / name), moving_frames(50, 32, 48), source=source, video_id="0123abcd")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert video_id_of(str(tmp_path / "a.mp4")) == "0123abcd"
    write_video(str(tmp_path / "b.mp4"), moving_frames(50, 32, 48), source=source, video_id="other")
    assert video_id_of(str(tmp_path / "b.mp4")) == "other", "a new edit replaces the old file"
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert "creation_time" not in container.metadata and "encoder" not in container.metadata


def test_a_file_without_an_id_has_none(tmp_path, source):
    (tmp_path / "text.mp4").write_text("no video")
    for path in (source.url, str(tmp_path / "none.mp4"), str(tmp_path / "text.mp4"), str(tmp_path)):
        assert video_id_of(path) is None


def test_rate_count_and_sound_are_the_sources(tmp_path, source):
    path = str(tmp_path / "out.mp4")
    write_video(path, moving_frames(50, 32, 48), source=source, video_id="x")
    written = probe(path)
    assert (written.frames, written.rate, written.height, written.width) == (50, source.rate, 32, 48)
    assert written.pts is None and written.audio and abs(written.seconds - source.seconds) < Fraction(1, 1000)
    assert packets_of(path) == packets_of(source.url), "copied, not encoded again"
    write_video(path, moving_frames(50, 32, 48), source=source, video_id="x", audio=False)
    assert not probe(path).audio


def test_real_sound_is_copied_exactly(tmp_path, clips):
    info = probe(str(clips / "bigbuckbunny.mp4"))
    path = str(tmp_path / "out.mp4")
    write_video(path, iter_frames(info.url, (32, 56)), source=info, video_id="x")
    np.testing.assert_array_equal(sound_of(path), sound_of(info.url))


def beeps(path: str) -> list[float]:
    """Seconds from the first frame at which the sound starts after silence."""
    with av.open(path) as container:
        first = next(container.decode(video=0)).time
    with av.open(path) as container:
        frames = list(container.decode(audio=0))
        sound = np.concatenate([frame.to_ndarray().reshape(-1, *frame.to_ndarray().shape[-1:])[0] for frame in frames])
        rate = frames[0].sample_rate
        loud = np.flatnonzero(np.abs(sound / np.abs(sound).max()) > 0.3)
        starts = loud[np.flatnonzero(np.diff(loud, prepend=-rate) > rate // 10)]
        return [float(frames[0].time) - first + start / rate for start in starts]


@pytest.mark.parametrize(
    "name, codec",
    [
        ("a.mkv", "pcm_s16le"),
        ("b.mkv", "flac"),
        ("c.webm", "libopus"),
        ("d.ts", "aac"),
        ("e.mov", "aac"),
        ("f.mkv", "libmp3lame"),
        ("g.avi", "libmp3lame"),
    ],
)
def test_sound_of_every_codec_arrives_in_step_and_the_same_each_time(tmp_path, name, codec):
    video = {"c.webm": {"codec": "libvpx-vp9"}, "g.avi": {"codec": "mpeg4"}}.get(name, {})
    info = probe(write_clip(tmp_path / name, moving_frames(50), audio=codec, **video))
    for out in ("1.mp4", "2.mp4"):
        write_video(str(tmp_path / out), moving_frames(50, 32, 48), source=info, video_id="x")
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "2.mp4").read_bytes()
    with av.open(str(tmp_path / "1.mp4")) as container:
        copied = {"libopus": "opus", "libmp3lame": "mp3"}.get(codec, "aac")
        assert container.streams.audio[0].codec_context.codec.canonical_name == copied
    assert beeps(info.url) == pytest.approx([0.25, 1.0], abs=0.03)
    assert beeps(str(tmp_path / "1.mp4")) == pytest.approx(beeps(info.url), abs=0.012)


def test_sound_that_mp4_does_not_take_as_it_is_becomes_aac(tmp_path):
    path = write_clip(tmp_path / "a.mkv", moving_frames(50), audio="libmp3lame", sound_rate=11_025)
    write_video(str(tmp_path / "out.mp4"), moving_frames(50), source=probe(path), video_id="x")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


@pytest.mark.parametrize("rate, written", [(192_000, 96_000), (37_800, 44_100), (6_000, 7_350)])
def test_sound_at_a_rate_that_aac_does_not_have_is_resampled_in_step(tmp_path, rate, written):
    path = write_clip(tmp_path / "a.mov", moving_frames(50), audio="pcm_s16le", sound_rate=rate)
    write_video(str(tmp_path / "out.mp4"), moving_frames(50), source=probe(path), video_id="x")
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.sample_rate == written
        assert float(stream.duration * stream.time_base) == pytest.approx(2.0, abs=0.3)
    assert beeps(str(tmp_path / "out.mp4")) == pytest.approx(beeps(path), abs=0.03)


def test_copied_sound_that_stands_still_is_left_out_until_it_goes_on(tmp_path):
    steps = _Steps(probe(write_clip(tmp_path / "a.mkv", moving_frames(2))))
    assert [steps.on(Fraction(at, 10)) for at in (0, 1, 1, 2, 0, 2, 3)] == [True, True, False, True, False, False, True]


def test_sound_that_was_cut_in_the_middle_of_a_packet_begins_with_the_next(tmp_path):
    path = Path(write_clip(tmp_path / "a.mpg", moving_frames(100), codec="mpeg2video", audio="mp2"))
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 3 :])
    with av.open(str(path)) as container, pytest.raises(av.FFmpegError):
        next(container.demux(audio=0)).decode()
    info = probe(str(path))
    write_video(str(tmp_path / "out.mp4"), moving_frames(info.frames), source=info, video_id="x")
    assert video_id_of(str(tmp_path / "out.mp4")) == "x" and len(sound_of(str(tmp_path / "out.mp4")))


def test_sound_goes_on_where_an_edit_list_goes_on(tmp_path):
    path = Path(write_clip(tmp_path / "a.mp4", moving_frames(75), options={"g": "25", "bf": "2"}, audio="aac"))
    data, word = bytearray(path.read_bytes()), struct.Struct(">I")

    def add(at: int, number: int) -> None:
        data[at : at + 4] = word.pack(word.unpack_from(data, at)[0] + number)

    for at in sorted((found.start() for found in re.finditer(b"elst", bytes(data))), reverse=True):
        begin, scale = (
            struct.unpack_from(">i", data, at + 16)[0],
            word.unpack_from(data, data.find(b"mdhd", at) + 16)[0],
        )
        data[at + 8 : at + 24] = word.pack(2) + b"".join(  # .8 s from the beginning, and from second 2
            struct.pack(">IiI", 800, begin + second * scale, 1 << 16) for second in (0, 2)
        )
        for box in (b"elst", b"edts", b"trak", b"moov"):
            add(data.rfind(box, 0, at + 4) - 4, 12)
    path.write_bytes(data)
    info = probe(str(path))
    assert info.frames == 40
    write_video(str(tmp_path / "out.mp4"), moving_frames(40), source=info, video_id="x")
    assert beeps(str(tmp_path / "out.mp4")) == pytest.approx([0.25], abs=0.03)  # the other was cut out
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(1.6, abs=0.1)


def test_sound_may_change_its_layout_and_its_rate_on_the_way(tmp_path):
    parts = [("stereo", 48_000), ("mono", 48_000), ("stereo", 32_000)]
    picture = write_clip(tmp_path / "a.ts", moving_frames(75), options={"bf": "0"})
    with av.open(picture) as source, av.open(str(tmp_path / "b.ts"), "w") as container:
        video = container.add_stream_from_template(source.streams.video[0])
        sound = container.add_stream("mp2", rate=48_000, layout="stereo")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                container.mux(packet)
        for second, (layout, rate) in enumerate(parts):
            encoder = av.CodecContext.create("mp2", "w")
            encoder.layout, encoder.sample_rate, encoder.format, encoder.time_base = (
                layout,
                rate,
                "s16",
                Fraction(1, rate),
            )
            encoder.open()
            size = encoder.frame_size
            for number in range(rate // size):
                silence = np.zeros((1, size * (2 if layout == "stereo" else 1)), np.int16)
                frame = av.AudioFrame.from_ndarray(silence, "s16", layout)
                frame.pts, frame.sample_rate, frame.time_base = number * size, rate, Fraction(1, rate)
                for packet in encoder.encode(frame):
                    packet.pts = packet.dts = round((second + number * size / rate) * 90_000)
                    packet.time_base, packet.stream = Fraction(1, 90_000), sound
                    container.mux(packet)
    info = probe(str(tmp_path / "b.ts"))
    for out in ("1.mp4", "2.mp4"):
        write_video(str(tmp_path / out), moving_frames(75), source=info, video_id="x")
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "2.mp4").read_bytes()
    with av.open(str(tmp_path / "1.mp4")) as container:
        [stream] = container.streams.audio
        assert stream.codec_context.layout.name == "stereo" and stream.codec_context.sample_rate == 48_000
        assert float(stream.duration * stream.time_base) == pytest.approx(3.0, abs=0.1)


def test_sound_that_begins_anew_where_recordings_were_joined_is_named(tmp_path):
    for codec in ("aac", "mp2"):  # copied, and encoded again
        part = Path(write_clip(tmp_path / f"{codec}.ts", moving_frames(50), audio=codec))
        part.write_bytes(part.read_bytes() * 2)
        joined = probe(str(part))
        with pytest.raises(VideoError, match=f"{codec}.ts: its sound goes back in time .*audio=false"):
            write_video(str(tmp_path / "no.mp4"), moving_frames(joined.frames), source=joined, video_id="x")


def test_sound_that_cannot_be_read_is_named_and_what_nobody_can_read_is_left_out(tmp_path):
    path = Path(write_clip(tmp_path / "a.mkv", moving_frames(50), audio="flac"))
    whole = path.read_bytes()
    assert whole.count(b"A_FLAC") == 1
    path.write_bytes(whole.replace(b"A_FLAC", b"A_ZZZZ"))
    assert not probe(str(path)).audio
    write_video(str(tmp_path / "out.mp4"), moving_frames(50), source=probe(str(path)), video_id="x")
    frames = whole.split(b"\xff\xf8\x5a")  # FLAC's sync code, and the rate and size of these frames
    path.write_bytes(b"\xff\xf8\x5a".join(frames[:3]) + b"\x00\x00\x00" + b"\xff\xf8\x5a".join(frames[3:]))
    with pytest.raises(VideoError, match="a.mkv: its sound is damaged .*audio=false"):
        write_video(str(tmp_path / "out.mp4"), moving_frames(50), source=probe(str(path)), video_id="y")
    write_video(str(tmp_path / "out.mp4"), moving_frames(50), source=probe(str(path)), video_id="z", audio=False)
    assert video_id_of(str(tmp_path / "out.mp4")) == "z"


def test_a_varying_rate_keeps_every_time_stamp(tmp_path):
    stamps = [0, 20, 90, 120, 121, 300, 330, 480]
    info = probe(write_clip(tmp_path / "a.mp4", moving_frames(8), time_base=Fraction(1, 600), pts=stamps))
    write_video(str(tmp_path / "out.mp4"), moving_frames(8), source=info, video_id="x")
    written = probe(str(tmp_path / "out.mp4"))
    assert written.pts is not None and written.seconds == info.seconds == Fraction(480 + 30, 600)
    assert [pts * written.time_base for pts in written.pts] == [Fraction(stamp, 600) for stamp in stamps]
    with av.open(str(tmp_path / "out.mp4")) as container:  # the last picture stays as long as the median one
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == pytest.approx(info.seconds, abs=1e-3)


def test_flat_colours_come_back_within_three_grey_levels_and_the_file_is_tagged(tmp_path):
    colours = [(200, 30, 40), (30, 190, 60), (20, 40, 210), (128, 128, 128), (255, 255, 255), (0, 0, 0), (240, 220, 30)]
    frames = np.array(colours, np.uint8)[:, None, None].repeat(32, 1).repeat(48, 2)
    info = probe(write_clip(tmp_path / "a.mp4", moving_frames(len(colours))))
    path = str(tmp_path / "flat.mp4")
    write_video(path, frames, source=info, video_id="x")
    assert np.abs(read_frames(path, 0, len(colours)).astype(int) - frames).max() <= 3
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)


def test_the_index_comes_first_for_the_web(tmp_path, source):
    write_video(str(tmp_path / "out.mp4"), moving_frames(50), source=source, video_id="x")
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_other_file_systems_get_one_whole_object(tmp_path, source):
    write_video(str(tmp_path / "out.mp4"), moving_frames(50, 32, 48), source=source, video_id="x")
    write_video("memory://published/out.mp4", moving_frames(50, 32, 48), source=source, video_id="x")
    with fsspec.open("memory://published/out.mp4", "rb") as file:
        assert file.read() == (tmp_path / "out.mp4").read_bytes()
    assert video_id_of("memory://published/out.mp4") == "x"


# ---- what goes wrong


def failing(frames, error):
    yield from frames
    raise error


@pytest.mark.parametrize("error", [RuntimeError("model broke"), OSError(5, "latent unreadable"), KeyboardInterrupt()])
def test_an_error_of_the_frames_leaves_the_old_file_and_nothing_else(tmp_path, source, error):
    path = tmp_path / "out" / "a.mp4"
    write_video(str(path), moving_frames(50), source=source, video_id="old")
    before = path.read_bytes()
    with pytest.raises(type(error)) as caught:
        write_video(str(path), failing(moving_frames(20), error), source=source, video_id="new")
    assert caught.value is error, "the caller's error is not dressed up as one of the disk"
    assert path.read_bytes() == before and os.listdir(path.parent) == ["a.mp4"]


def test_wrong_frames_are_refused(tmp_path, source):
    path = str(tmp_path / "folder" / "a.mp4")
    for frames, reason in [
        (moving_frames(50, 33, 48), "even sizes"),
        (moving_frames(49), "49 frames were given, .* has 50"),
        (moving_frames(51), "more than the 50 frames"),
        (np.zeros((50, 2, 16386, 3), np.uint8), "2x16386, x264 takes up to 16384 pixels a side"),
        ([], "no frames"),
        (moving_frames(50).astype(np.float32), "expected uint8"),
        ([*moving_frames(10), *moving_frames(40, 32, 32)], "like the first"),
    ]:
        with pytest.raises(VideoError, match=reason):
            write_video(path, frames, source=source, video_id="x")
        assert os.listdir(tmp_path / "folder") == []


def test_what_a_killed_run_left_is_neither_a_result_nor_in_the_way(tmp_path, source):
    code = (
        "import os, signal, sys; from storage.publish import write_video; from storage.video import probe\n"
        "from tests.generated import moving_frames\n"
        "def frames():\n    yield from moving_frames(30)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_video(sys.argv[2], frames(), source=probe(sys.argv[1]), video_id='killed')"
    )
    path = tmp_path / "out" / "a[1].mp4"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, source.url, str(path)], cwd=root, check=False)
    assert done.returncode == -9
    left = os.listdir(path.parent)
    assert len(left) == 1 and left[0].startswith(".") and not left[0].endswith(".mp4"), "no player or glob takes it"
    assert video_id_of(str(path)) is None
    (path.parent / ".a1.mp4.000000000000.partial").write_text("somebody else's")
    write_video(str(path), moving_frames(50), source=source, video_id="x")
    assert sorted(os.listdir(path.parent)) == sorted([*left, ".a1.mp4.000000000000.partial", "a[1].mp4"])
    for name in os.listdir(path.parent):  # nobody has written to them for a while
        os.utime(path.parent / name, (0, 0))
    write_video(str(path.parent / "b.mp4"), moving_frames(50), source=source, video_id="x")
    assert sorted(os.listdir(path.parent)) == ["a[1].mp4", "b.mp4"], "a finished video is never written again"


def test_two_writers_of_one_file_both_write_it_whole_and_the_last_stands(tmp_path, source):
    path = str(tmp_path / "out" / "a.mp4")

    def frames():
        yield from moving_frames(25)
        write_video(path, moving_frames(50, seed=1), source=source, video_id="second")
        assert video_id_of(path) == "second" and probe(path).frames == 50
        yield from moving_frames(25)

    write_video(path, frames(), source=source, video_id="first")
    assert video_id_of(path) == "first" and probe(path).frames == 50 and os.listdir(tmp_path / "out") == ["a.mp4"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, source):
    code = (
        "import resource, sys; from storage.errors import StorageFault; from storage.publish import write_video\n"
        "from storage.video import probe\n"
        "from tests.generated import moving_frames\n"
        "source = probe(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\n"
        "try: write_video(sys.argv[2], moving_frames(50), source=source, video_id='x', crf=1)\n"
        "except StorageFault as error: print(error)"
    )
    path = tmp_path / "out" / "a.mp4"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, source.url, str(path)]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True)
    said = done.stdout.decode().strip()
    assert said.startswith(str(path)) and "space" in said and "\n" not in said
    assert os.listdir(path.parent) == []


def test_a_full_disk_is_known_by_its_number_and_its_words_and_not_blamed_on_the_source_s_sound(tmp_path, source):
    assert source.audio
    noise = np.random.default_rng(0).integers(0, 256, (50, 192, 256, 3), np.uint8)
    with small_disk(tmp_path / "tiny") as disk:
        with pytest.raises(StorageFault, match=f"{disk}/a.mp4: .*No space left on device") as full:
            write_video(str(disk / "a.mp4"), noise, source=source, video_id="x", crf=1)
        assert full.value.errno == errno.ENOSPC and os.listdir(disk) == []
        with pytest.raises(StorageFault, match=f"{disk}/table: .*No space left on device") as full, \
             published(str(disk / "table")) as path:  # fmt: skip
            Path(path).write_bytes(bytes(3 << 20))
        assert full.value.errno == errno.ENOSPC and os.listdir(disk) == []


def test_any_kind_of_file_is_published_and_keeps_its_name_on_the_way_to_a_store(monkeypatch):
    with published("memory://tables/results.parquet") as path:
        assert Path(path).name == "results.parquet"
        Path(path).write_text("rows")
    assert fsspec.open("memory://tables/results.parquet", "rt").open().read() == "rows"

    def away(*arguments, **options):
        raise RuntimeError("endpoint is away")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", away)
    with pytest.raises(StorageFault, match="memory://tables/b: cannot be reached .RuntimeError: endpoint is away"):
        with published("memory://tables/b") as path:
            Path(path).write_text("rows")


def test_a_folder_that_is_a_file_and_one_without_permission_are_named(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/a.mp4: .*file, not a folder"):
        write_video(str(tmp_path / "file" / "a.mp4"), moving_frames(50), source=source, video_id="x")
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(StorageError, match="no permission"):
        write_video(str(tmp_path / "closed" / "a.mp4"), moving_frames(50), source=source, video_id="x")


# ---- comparisons


def turn_file(tmp_path, source, name, seed, height=32, width=48):
    path = str(tmp_path / name)
    write_video(path, moving_frames(source.frames, height, width, seed), source=source, video_id=name)
    return path


def test_a_comparison_shows_source_turns_and_the_memories_of_the_current_segment(tmp_path, source):
    first, second = (turn_file(tmp_path, source, f"turn-{n}.mp4", n) for n in (1, 2))
    panels = [
        Panel("1 pan_right", first, (Used(0, 20, ()), Used(20, 50, ((1, 0, 10),)))),
        Panel("2 a prompt too long for its panel, far too long for it", second,
              (Used(0, 20, ((1, 0, 10), (1, 1, 35))), Used(20, 50, ((1, 1, 35),)))),
    ]  # fmt: skip
    for name in ("a.mp4", "b.mp4"):
        write_compare(str(tmp_path / name), source, panels, video_id="cmp")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    path = str(tmp_path / "a.mp4")
    written = probe(path)
    assert (written.frames, written.rate, written.audio) == (50, source.rate, True)
    assert video_id_of(path) == "cmp"
    write_compare(str(tmp_path / "silent.mp4"), source, panels, video_id="cmp", audio=False)
    assert not probe(str(tmp_path / "silent.mp4")).audio
    panel = 288  # turns of 32x48 are enlarged six times, to 192x288, and the source is brought to that height
    assert written.width == 3 * panel + 2 * 2 and written.height > 192 + 14
    for number in (5, 30):
        shot = read_frames(path, number, number + 1)[0].astype(int)
        for left, url in ((0, source.url), (panel + 2, first), (2 * (panel + 2), second)):
            shown = shot[14 : 14 + 192, left : left + panel]
            assert np.abs(shown - read_frames(url, number, number + 1, (192, panel))[0]).mean() < 4
        row = shot[14 + 192 + 14 :]
        assert row[:, :panel].max() < 40, "nothing under the source"
        thumb = np.abs(row[:46, panel + 2 : panel + 2 + 70] - read_frames(first, 10, 11, (46, 70))[0]).mean()
        assert (thumb < 12) == (number == 30), "turn 1 uses its first segment as memory from frame 20 on"
    assert read_frames(path, 0, 1)[0, :14].max() > 150, "labels are written"


def test_a_comparison_of_many_turns_has_rows_and_one_of_wide_turns_is_smaller(tmp_path, source, monkeypatch):
    monkeypatch.setattr("storage.publish.WIDEST", 600)
    turns = [Panel(f"{n}", turn_file(tmp_path, source, f"t{n}.mp4", n), (Used(0, 9, ((1, 0, 1),)),)) for n in (1, 2, 3)]
    write_compare(str(tmp_path / "c.mp4"), source, turns, video_id="x")
    written = probe(str(tmp_path / "c.mp4"))
    row = written.height // 2
    assert written.width == 2 * 288 + 2 and written.height == 2 * row
    shot = read_frames(written.url, 30, 31)[0].astype(int)
    for number, url in enumerate([source.url, *(turn.url for turn in turns)]):
        top, left = divmod(number, 2)
        shown = shot[top * row + 14 : top * row + 14 + 192, left * 290 : left * 290 + 288]
        assert np.abs(shown - read_frames(url, 30, 31, (192, 288))[0]).mean() < 4, number
    wide = probe(write_clip(tmp_path / "wide.mp4", moving_frames(3, 20, 320), rate=24))
    write_compare(str(tmp_path / "w.mp4"), wide, [Panel("1", wide.url)], video_id="x")
    assert probe(str(tmp_path / "w.mp4")).width <= 600


def test_a_comparison_needs_a_turn_and_one_of_the_same_length(tmp_path, source):
    with pytest.raises(VideoError, match="at least one turn"):
        write_compare(str(tmp_path / "c.mp4"), source, [], video_id="x")
    short = probe(write_clip(tmp_path / "short.mp4", moving_frames(20)))
    with pytest.raises(VideoError, match="20 frames.* has 50"):
        write_compare(str(tmp_path / "c.mp4"), source, [Panel("1", short.url)], video_id="x")
    assert not (tmp_path / "c.mp4").exists()
