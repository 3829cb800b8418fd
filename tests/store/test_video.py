"""Reading: frames are the same wherever a read begins, colours are right, and bad files say what is wrong with them."""

from __future__ import annotations

import errno
import pickle
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile

from storage import video
from storage.errors import StorageFault
from storage.fingerprint import file_digest
from storage.video import Reader, VideoError, check_unchanged, iter_frames, probe, read_frames
from storage.video_index import Index
from tests.generated import moving_frames, write_clip

KINDS = {
    "B-frames and long groups": ("a.mp4", {"options": {"g": "100", "bf": "3", "b-pyramid": "normal"}}),
    "open groups": ("b.mp4", {"options": {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}}),
    "periodic intra refresh": ("c.mp4", {"options": {"g": "12", "x264-params": "intra-refresh=1:bframes=0"}}),
    "varying rate": ("d.mp4", {"options": {"g": "10"}, "time_base": Fraction(1, 600),
                               "pts": np.cumsum([0, *([20, 45, 20, 70, 24] * 12)])[:60].tolist()}),
    "matroska": ("e.mkv", {"options": {"g": "10", "bf": "2"}, "rate": Fraction(30000, 1001)}),
    "transport stream": ("f.ts", {"options": {"g": "10", "bf": "2"}}),
    "VP9": ("g.webm", {"codec": "libvpx-vp9", "options": {"g": "16", "auto-alt-ref": "1", "lag-in-frames": "16"}}),
    "only key frames": ("h.mp4", {"options": {"g": "1"}}),
    "bare H.264": ("l.h264", {"options": {"g": "10", "bf": "2"}}),
    "AVI": ("i.avi", {"codec": "mpeg4", "options": {"g": "10", "bf": "2"}}),
    "AVI with H.264": ("m.avi", {"options": {"g": "10", "bf": "3"}}),
    "MPEG-2 open groups": ("j.mp4", {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}}),
    "HEVC": ("k.mp4", {"codec": "libx265",
                       "options": {"x265-params": "keyint=12:bframes=4:open-gop=1:log-level=none"}}),
}  # fmt: skip


@pytest.fixture(params=KINDS, scope="module")
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    name, settings = KINDS[request.param]
    return write_clip(tmp_path_factory.mktemp("kind") / name, moving_frames(60), **settings)


def plain_decode(path: str) -> list[np.ndarray]:
    """What PyAV alone gives from the start; the colours are the reader's own affair, so only the brightness plane."""
    with av.open(path) as container:
        return [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.ffconcat"])
def test_a_playlist_is_no_video_whatever_its_name_says(tmp_path, name):
    # Through its segments it would show files that its folder does not bound and its fingerprint does not cover.
    (tmp_path / "outside").mkdir()
    part = write_clip(tmp_path / "outside" / "part.ts", moving_frames(30))
    entry = f"file '{part}'" if name.endswith("concat") else f"#EXTINF:1.2,\n{part}\n#EXT-X-ENDLIST"
    head = "ffconcat version 1.0" if name.endswith("concat") else "#EXTM3U\n#EXT-X-TARGETDURATION:2"
    (tmp_path / name).write_text(f"{head}\n{entry}\n")
    with pytest.raises(VideoError, match="or a playlist, which names other files"):
        probe(str(tmp_path / name))


def test_a_read_is_bit_equal_to_a_sequential_decode_wherever_it_begins(clip):
    whole = np.stack(list(iter_frames(clip)))
    assert len(whole) == 60 == len(np.unique(whole.reshape(60, -1), axis=0)), "every frame there, and different"
    for start, stop in [(0, 1), (0, 60), (1, 3), (9, 12), (11, 14), (12, 13), (23, 40), (35, 36), (47, 50), (59, 60)]:
        np.testing.assert_array_equal(read_frames(clip, start, stop), whole[start:stop])


def test_a_reader_gives_the_same_frames_whether_it_goes_on_overlaps_skips_or_returns(clip):
    whole = np.stack(list(iter_frames(clip)))
    reader = Reader(clip)
    for start, stop in [(0, 16), (16, 32), (28, 44), (44, 60), (44, 60), (20, 30), (30, 31), (31, 50), (3, 9)]:
        np.testing.assert_array_equal(reader.read(start, stop), whole[start:stop])


def test_a_reader_that_goes_on_decodes_every_frame_once(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "long.mp4", moving_frames(60), options={"g": "60"})
    decoded = []
    real = video._Picture.__call__
    monkeypatch.setattr(video._Picture, "__call__", lambda self, frame: decoded.append(frame.pts) or real(self, frame))
    reader = Reader(path)
    for start in (0, 16, 32):
        reader.read(start, start + 16)
    assert len(decoded) == 48 == len(set(decoded))


def test_a_reader_names_what_is_wrong_with_its_file(tmp_path):
    path = write_clip(tmp_path / "short.mp4", moving_frames(20))
    reader = Reader(path)
    reader.read(0, 16)
    with pytest.raises(VideoError, match="16 to 32 asked for, it has frames 0 to 20"):
        reader.read(16, 32)
    assert reader.read(16, 20).shape[0] == 4, "and goes on being of use"


def test_the_number_of_frames_is_that_of_a_full_decode(clip):
    assert probe(clip).frames == len(plain_decode(clip))


@pytest.mark.parametrize("name", ["bikes.mp4", "nasa_13013.mp4", "03_blocks.mp4", "bedroom.mp4"])
def test_real_clips_read_the_same_by_seeking(clips, name):
    path, size = str(clips / name), (45, 80)
    whole = np.stack(list(iter_frames(path, size)))
    assert probe(path).frames == len(whole)
    for start in (1, 31, len(whole) // 2, len(whole) - 5):
        np.testing.assert_array_equal(read_frames(path, start, start + 5, size), whole[start : start + 5])


def test_a_read_in_the_middle_of_a_long_file_decodes_only_its_own_group(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "long.mp4", moving_frames(600, 32, 48), options={"g": "20", "bf": "2"})
    probe(path)
    decoded = []
    real = Index.number
    monkeypatch.setattr(Index, "number", lambda self, pts, other: decoded.append(pts) or real(self, pts, other))
    read_frames(path, 505, 510)
    assert 5 <= len(decoded) <= 20


def test_a_long_video_is_never_held_in_memory(tmp_path):
    path = write_clip(tmp_path / "long.mp4", moving_frames(300, 256, 256), options={"preset": "ultrafast"})
    probe(path)
    tracemalloc.start()
    for _ in iter_frames(path):
        pass
    assert tracemalloc.get_traced_memory()[1] < 4 * 256 * 256 * 3, "a few frames at most"
    tracemalloc.stop()


def test_urls_of_other_file_systems_read_the_same(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving_frames(30), options={"g": "10"})
    with fsspec.open("memory://videos/a.mp4", "wb") as file:
        file.write(Path(path).read_bytes())
    np.testing.assert_array_equal(read_frames("memory://videos/a.mp4", 15, 22), read_frames(path, 15, 22))
    assert probe("memory://videos/a.mp4").frames == 30
    assert probe(f"file://{path}").frames == 30
    with pytest.raises(VideoError, match="memory://videos/none.mp4: no such file"):
        probe("memory://videos/none.mp4")


def test_a_replaced_file_is_probed_again(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving_frames(10))
    assert probe(path).frames == 10
    write_clip(tmp_path / "b.mp4", moving_frames(7))
    (tmp_path / "b.mp4").replace(path)
    assert probe(path).frames == 7


# ---- colours

FLAT = [(200, 30, 40), (30, 190, 60), (20, 40, 210), (128, 128, 128), (255, 255, 255), (0, 0, 0), (240, 220, 30)]


@pytest.mark.parametrize("matrix", [1, 5, 6, 2])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("height", [64, 720])
def test_flat_colours_come_back_whatever_matrix_and_range_the_stream_has(tmp_path, matrix, full, height):
    """The planes are computed here from the standard's numbers (Rec. 601 and 709), not by the library under test."""
    is_709 = matrix == 1 or (matrix == 2 and height == 720)
    kr, kb = (0.2126, 0.0722) if is_709 else (0.299, 0.114)
    with av.open(str(tmp_path / "flat.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for number, colour in enumerate(FLAT):
            r, g, b = np.array(colour) / 255
            luma = kr * r + (1 - kr - kb) * g + kb * b
            chroma = (b - luma) / (2 * (1 - kb)), (r - luma) / (2 * (1 - kr))
            y = luma * 255 if full else 16 + 219 * luma
            planes = [y, *(128 + (255 if full else 224) * c for c in chroma)]
            frame = av.VideoFrame(64, height, "yuv420p")
            for plane, value in zip(frame.planes, planes, strict=True):
                plane.update(bytes([int(np.clip(round(value), 0, 255))]) * plane.buffer_size)
            frame.pts, frame.colorspace, frame.color_range = number, matrix, 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for size in (None, (32, 32)):
        got = read_frames(str(tmp_path / "flat.mp4"), 0, len(FLAT), size).astype(int)
        assert np.abs(got.mean((1, 2)) - np.array(FLAT)).max() <= 3


def test_full_range_bt709_is_decoded_with_its_own_numbers(clips):
    path = str(clips / "bt709_full_range.mp4")
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 2)
        y, u, v = (np.frombuffer(p, np.uint8).reshape(-1, p.line_size)[:, : p.width] for p in frame.planes)
    y = y.astype(float)
    u, v = (np.kron(c.astype(float) - 128, np.ones((2, 2))) for c in (u, v))
    right = np.stack([y + 1.5748 * v, y - 0.1873 * u - 0.4681 * v, y + 1.8556 * u], -1).clip(0, 255)
    as_601 = np.stack([y + 1.402 * v, y - 0.3441 * u - 0.7141 * v, y + 1.772 * u], -1).clip(0, 255)
    as_limited = ((right - 16) * 255 / 219).clip(0, 255)

    def blocks(picture):  # 8x8 means: how chroma is spread over neighbouring pixels is not the question here
        return picture.reshape(90, 8, 160, 8, 3).mean((1, 3))

    got = blocks(read_frames(path, 0, 1)[0].astype(float))
    errors = [np.abs(got - blocks(wrong)).mean() for wrong in (right, as_601, as_limited)]
    assert errors[0] < 1 and min(errors[1:]) > 5


# ---- shapes


@pytest.mark.parametrize("rotation, k", [(90, 1), (-90, 3), (180, 2)])
def test_a_rotated_video_comes_as_a_player_shows_it(tmp_path, rotation, k):
    upright = write_clip(tmp_path / "a.mp4", moving_frames(5))
    turned = write_clip(tmp_path / "b.mp4", moving_frames(5), rotation=rotation)
    info = probe(turned)
    assert info.rotation == rotation % 360
    assert (info.height, info.width) == ((96, 64) if k % 2 else (64, 96))
    expected = np.rot90(read_frames(upright, 0, 5), k, axes=(1, 2))
    np.testing.assert_array_equal(read_frames(turned, 0, 5), expected)
    assert read_frames(turned, 0, 1, (30, 20)).shape == (1, 30, 20, 3)


@pytest.mark.parametrize("rotation, k", [(0, 0), (90, 1), (-90, 3), (180, 2)])
def test_a_mirrored_video_comes_as_a_player_shows_it(tmp_path, rotation, k):
    upright = write_clip(tmp_path / "a.mp4", moving_frames(5))
    mirrored = write_clip(tmp_path / "b.mp4", moving_frames(5), rotation=rotation, mirrored=True)
    info = probe(mirrored)
    assert (info.height, info.width) == ((96, 64) if k % 2 else (64, 96))
    expected = np.rot90(read_frames(upright, 0, 5), k, axes=(1, 2))[:, :, ::-1]
    np.testing.assert_array_equal(read_frames(mirrored, 0, 5), expected)


def test_what_is_read_otherwise_than_a_player_shows_it_is_noted(tmp_path):
    seen = moving_frames(5)
    opaque, cut_out = (np.concatenate([seen, np.full((*seen.shape[:3], 1), a, np.uint8)], 3) for a in (255, 99))

    def notes(name, frames, **options):
        return probe(write_clip(tmp_path / name, frames, **options)).notes

    assert notes("plain.mp4", seen) == notes("quarter.mp4", seen, rotation=90) == ()
    [turned] = notes("turned.mp4", seen, rotation=45)
    assert turned.startswith("a player turns it by 45 degrees, here it is turned by whole 90s")
    for name, transfer in (("PQ", "smpte2084"), ("HLG", "arib-std-b67")):
        [grey] = notes(f"{name}.mp4", seen, options={"x264-params": f"transfer={transfer}"})
        assert f"its HDR ({name}) is not converted" in grey
    [combed] = notes("interlaced.ts", seen, codec="mpeg2video", options={"flags": "+ildct+ilme", "field_order": "tt"})
    assert "it is marked as interlaced" in combed
    lossless, vp9 = {"codec": "ffv1", "pix_fmt": "yuva420p"}, {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"}
    assert notes("opaque.mkv", opaque, **lossless) == ()
    for name, how in (("cut out.mkv", lossless), ("cut out.webm", vp9)):
        [transparent] = notes(name, cut_out, **how)
        assert "its alpha channel is left out" in transparent


def test_oblong_pixels_become_square_ones(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving_frames(3), aspect=Fraction(4, 3))
    assert (probe(path).height, probe(path).width) == (64, 128)
    assert read_frames(path, 0, 3).shape == (3, 64, 128, 3)


def test_odd_sizes_are_read_whole(tmp_path):
    path = write_clip(tmp_path / "a.mkv", moving_frames(3, 51, 77), codec="ffv1", pix_fmt="bgr0")
    np.testing.assert_array_equal(read_frames(path, 0, 3), moving_frames(3, 51, 77))


def test_times_are_exact(tmp_path, clips):
    assert probe(str(clips / "03_blocks.mp4")).rate == Fraction(30000, 1001)
    assert probe(str(clips / "bikes.mp4")).pts is None
    matroska = probe(write_clip(tmp_path / "a.mkv", moving_frames(30), rate=Fraction(30000, 1001)))
    assert matroska.pts is None and matroska.rate == Fraction(30000, 1001), "milliseconds are no varying rate"
    varying = probe(write_clip(tmp_path / "b.mp4", moving_frames(4), time_base=Fraction(1, 600), pts=[0, 20, 90, 120]))
    assert varying.pts is not None
    assert [pts * varying.time_base for pts in varying.pts] == [Fraction(n, 600) for n in (0, 20, 90, 120)]
    assert varying.audio is False


def repacked(path: str, out: Path, change: Callable[[list[av.Packet]], None]) -> str:
    """The video of a file, its packets changed."""
    with av.open(path) as source, av.open(str(out), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        change(packets)
        for packet in packets:
            packet.stream = stream
            container.mux(packet)
    return str(out)


def test_a_time_stamp_that_is_repeated_costs_the_other_frames_none_of_theirs(tmp_path):
    stamps = [33 * n + n % 3 for n in range(40)]
    plain = write_clip(tmp_path / "a.mkv", moving_frames(40), time_base=Fraction(1, 1000), pts=stamps,
                       options={"bf": "0"})  # fmt: skip

    def repeat(packets: list[av.Packet]) -> None:
        packets[20].pts = packets[20].dts = packets[19].pts

    info = probe(repacked(plain, tmp_path / "b.mkv", repeat))
    assert info.pts == (*stamps[:20], stamps[19] + 1, *stamps[21:]) and info.time_base == Fraction(1, 1000)
    assert info.seconds == probe(plain).seconds
    np.testing.assert_array_equal(read_frames(info.url, 18, 40), read_frames(plain, 18, 40))


def test_sound_is_relative_to_the_first_picture_also_where_these_are_counted(tmp_path):
    late = write_clip(tmp_path / "a.ts", moving_frames(20), pts=[*range(250, 270)], options={"bf": "0"},
                      container_options={"mpegts_copyts": "1"})  # fmt: skip

    def repeat(packets: list[av.Packet]) -> None:
        packets[10].pts = packets[10].dts = packets[9].pts

    info = probe(repacked(late, tmp_path / "b.mkv", repeat))
    assert info.frames == 20 and info.start == probe(late).start == 10


def test_a_frame_that_a_camera_dropped_shifts_none_of_the_others(tmp_path):
    times = [*range(10), *range(11, 21)]
    path = write_clip(tmp_path / "a.avi", moving_frames(20), codec="mjpeg", pix_fmt="yuvj420p", pts=times)
    info = probe(path)
    assert info.pts is not None and [pts * info.time_base for pts in info.pts] == [Fraction(n, 25) for n in times]


def test_pictures_that_divx_packed_into_one_packet_are_all_read(tmp_path):
    plain = write_clip(tmp_path / "a.avi", moving_frames(41), codec="mpeg4", options={"bf": "1", "g": "100"})
    begin, user = b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p"

    def pack(packets: list[av.Packet]) -> None:
        data = [bytes(packet) for packet in packets]
        data[0] = data[0].replace(begin, user + begin, 1)
        packed: list[bytes] = []
        while data:
            picture = data.pop(0)
            if data and data[0][data[0].find(begin) + 4] >> 6 == 2:  # a B-frame
                packed += [picture + data.pop(0), begin + b"\x51\x7f"]
            else:
                packed.append(picture)
        packets[:] = [av.Packet(each) for each in packed]
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number
            packet.time_base, packet.is_keyframe = Fraction(1, 25), number == 0

    path = repacked(plain, tmp_path / "b.avi", pack)
    assert (probe(path).frames, probe(path).rate, probe(path).start) == (41, 25, 0)
    np.testing.assert_array_equal(read_frames(path, 0, 41), read_frames(plain, 0, 41))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_recording_that_was_cut_before_a_key_frame_begins_with_that(tmp_path, codec):
    options = {"libx264": {"g": "20", "bf": "2"}, "libx265": {"x265-params": "keyint=20:log-level=none"}}[codec]
    whole = Path(write_clip(tmp_path / "a.ts", moving_frames(80), codec=codec, options=options))
    data, packet = whole.read_bytes(), 188
    cut = tmp_path / "b.ts"
    cut.write_bytes(data[len(data) // 3 // packet * packet :])
    frames = probe(str(cut)).frames
    assert 20 <= frames < 60
    np.testing.assert_array_equal(read_frames(str(cut), 0, frames), read_frames(str(whole), 80 - frames, 80))


def test_a_phone_that_was_turned_while_it_filmed_is_not_squeezed(tmp_path):
    """As WebRTC records it: the size of the pictures changes in the middle."""
    vp8 = {"codec": "libvpx", "options": {"g": "10"}}
    upright = write_clip(tmp_path / "b.webm", moving_frames(10, 96, 64), **vp8)

    def turn(packets: list[av.Packet]) -> None:
        with av.open(upright) as source:
            for packet in [packet for packet in source.demux(video=0) if packet.size]:
                packet.pts = packet.dts = packets[-1].pts + 40
                packets.append(packet)

    path = repacked(write_clip(tmp_path / "a.webm", moving_frames(10), **vp8), tmp_path / "c.webm", turn)
    assert len(read_frames(path, 0, 10)) == 10
    with pytest.raises(VideoError, match="c.webm: frame 10 is 64x96, and the first is wide; split the video"):
        read_frames(path, 5, 15)
    with pytest.raises(VideoError, match="frame 12 is 64x96"):
        read_frames(path, 12, 15)


@pytest.mark.parametrize("count", [1, 2])
def test_the_shortest_videos_work(tmp_path, count):
    path = write_clip(tmp_path / "short.mp4", moving_frames(count))
    assert probe(path).frames == count and probe(path).pts is None and probe(path).rate == 25
    assert read_frames(path, 0, count).shape == (count, 64, 96, 3) and len(list(iter_frames(path))) == count


# ---- bad files


def refused(path: Path | str, reason: str) -> None:
    with pytest.raises(VideoError, match=reason) as caught:
        probe(str(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_bad_files_say_in_one_line_what_is_wrong(tmp_path):
    refused(tmp_path / "none.mp4", "no such file")
    refused(tmp_path, "is a folder")
    (tmp_path / "text.mp4").write_text("this is not a video, it is a shopping list\n" * 50)
    refused(tmp_path / "text.mp4", "not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    refused(tmp_path / "empty.mp4", "empty file")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    refused(tmp_path / "sound.mp4", "no video stream")


def test_a_server_that_fails_or_does_not_answer_may_do_better_later_and_one_without_the_file_will_not(server):
    for url in ("http://localhost:9/a.mp4", server(503)):
        for read in (probe, file_digest, lambda url: check_unchanged(url, (1, 2, 3))):
            with pytest.raises(StorageFault, match=f"{url}: its server fails or does not answer .*; check address"):
                read(url)
    for status in (403, 404):
        url = server(status)
        refused(url, "its server has no such file or does not give it away; check the address")
        with pytest.raises(VideoError, match="gone since it was planned"):
            check_unchanged(url, (1, 2, 3))


@pytest.mark.parametrize("name, front", [("index first.mp4", True), ("index last.mp4", False), ("cut.mkv", False)])
def test_a_truncated_video_is_told_apart(tmp_path, name, front):
    options = {"movflags": "faststart"} if front else {}
    path = Path(write_clip(tmp_path / name, moving_frames(75), options={"g": "15"}, container_options=options))
    probe(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "truncated")


def test_a_video_of_no_frames_is_refused(tmp_path):
    for name, codec in [("zero.mkv", "ffv1"), ("zero.mp4", "libx264"), ("zero.avi", "mpeg4")]:
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            container.start_encoding()
        refused(tmp_path / name, "no frames")


def test_a_frame_that_does_not_decode_is_named(tmp_path):
    options = {"g": "10", "bf": "0", "x264-params": "cabac=0"}
    path = Path(write_clip(tmp_path / "damaged.mp4", moving_frames(40), options=options))
    good = read_frames(str(path), 0, 40)
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][25]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[place + 5 : place + size] = b"\xff" * (size - 5)
    path.write_bytes(bytes(data))
    assert probe(str(path)).frames == 40
    np.testing.assert_array_equal(read_frames(str(path), 0, 25), good[:25])
    np.testing.assert_array_equal(read_frames(str(path), 30, 40), good[30:])
    for attempt in (lambda: read_frames(str(path), 22, 28), lambda: list(iter_frames(str(path)))):
        with pytest.raises(VideoError, match=r"damaged\.mp4: frame 25 "):
            attempt()


def test_damage_to_what_an_edit_list_hides_is_damage_to_what_is_shown_after_it(tmp_path):
    options = {"g": "30", "bf": "2", "x264-params": "cabac=0"}
    path = Path(write_clip(tmp_path / "a.mp4", moving_frames(60), options=options))
    good, data = read_frames(str(path), 0, 60), bytearray(path.read_bytes())
    at = data.find(b"elst")
    [begin], [scale] = struct.unpack_from(">i", data, at + 16), struct.unpack_from(">I", data, data.find(b"mdhd") + 16)
    struct.pack_into(">Ii", data, at + 12, 2000, begin + scale * 10 // 25)
    path.write_bytes(data)
    assert probe(str(path)).frames == 50
    np.testing.assert_array_equal(read_frames(str(path), 0, 50), good[10:])
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][3]
        assert packet.is_discard
        data[packet.pos + 5 : packet.pos + packet.size] = b"\xff" * (packet.size - 5)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="a.mp4: frame 0 cannot be decoded"):
        probe(str(path))


def test_a_cut_recording_may_repeat_a_time_stamp_too(tmp_path):
    whole = write_clip(tmp_path / "a.mkv", moving_frames(60), codec="libx265",
                       options={"x265-params": "keyint=20:log-level=none"})  # fmt: skip

    def cut(packets: list[av.Packet]) -> None:
        del packets[:7]
        packets[30].pts = packets[29].pts

    path = repacked(whole, tmp_path / "b.mkv", cut)
    frames = probe(path).frames
    assert 35 <= frames <= 45 and len(read_frames(path, 0, frames)) == frames


def test_the_shape_of_the_pictures_is_the_first_ones_whatever_the_container_says(tmp_path):
    path = Path(write_clip(tmp_path / "a.webm", moving_frames(5), codec="libvpx"))
    data = path.read_bytes()
    size = b"\xb0\x81\x60\xba\x81\x40"  # 96 wide and 64 high
    assert data.count(size) == 1
    path.write_bytes(data.replace(size, b"\xb0\x81\x40\xba\x81\x60"))
    assert len(read_frames(str(path), 0, 5)) == 5


class StoreError(Exception):
    """As botocore's: neither an OSError nor a ValueError."""


@pytest.mark.parametrize(
    "error, number",
    [
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), errno.ECONNRESET),
        (TimeoutError("timed out"), None),
        (OSError(errno.EIO, "Input/output error"), errno.EIO),
        (StoreError("endpoint is away"), None),
    ],
)
def test_what_may_pass_is_a_fault_and_not_a_bad_video(tmp_path, monkeypatch, error, number):
    path = write_clip(tmp_path / "a.mp4", moving_frames(30), options={"g": "10"})
    url = f"memory://flaky/{type(error).__name__}.mp4"
    with fsspec.open(url, "wb") as file:
        file.write(Path(path).read_bytes())

    def fails(*arguments, **options):
        raise error

    def faulty(attempt):
        with pytest.raises(StorageFault, match="cannot be read") as caught:
            attempt()
        copy = pickle.loads(pickle.dumps(caught.value))
        assert not isinstance(copy, ValueError) and copy.errno == number
        assert str(copy).startswith(url) and "\n" not in str(copy) and str(error.args[-1]) in str(copy)

    with monkeypatch.context() as away:
        away.setattr(fsspec.get_filesystem_class("memory"), "info", fails)
        faulty(lambda: probe(url))
    with monkeypatch.context() as away:
        away.setattr(MemoryFile, "read", fails)
        faulty(lambda: probe(url))
    assert probe(url).frames == 30
    with monkeypatch.context() as away:
        away.setattr(MemoryFile, "read", fails)
        faulty(lambda: read_frames(url, 12, 20))
    np.testing.assert_array_equal(read_frames(url, 12, 20), read_frames(path, 12, 20))


def test_a_range_outside_the_video_is_refused(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving_frames(5))
    for start, stop in [(0, 6), (-1, 3), (3, 3), (5, 6)]:
        with pytest.raises(VideoError, match="frames 0 to 5"):
            read_frames(path, start, stop)


def test_the_module_imports_without_ray_and_lance():
    code = "import sys, storage.video, storage.publish; assert not {'ray', 'lance'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
