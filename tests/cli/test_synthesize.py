"""`memory-v2v synthesize` from its command line to its data set, on one Ray."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import lance
import numpy as np
import pytest

from jobs.config import load_synthesize_config
from jobs.footage import look_at
from jobs.main import main
from jobs.synthesize import filming_of
from pipeline.clip import REAL
from storage.clips import ClipDataset
from storage.errors import VideoError
from tests.generated import moving_frames, small_disk, write_clip

SMALL = ["height=16", "width=16", "frames=8", "cameras=3", "edits=1"]
DEEP = [*SMALL, "depth=true"]
CLIPS, REAL_CLIPS = 5, 3  # of a rendered scene, of a piece of real footage


def run(*words: str | Path, out: Path) -> tuple[int, str]:
    """The command: its exit code and what it printed."""
    with io.StringIO() as said, redirect_stdout(said), redirect_stderr(said):
        code = main(["synthesize", *map(str, words), "--out", str(out)])
        return code, said.getvalue()


def content(out: Path) -> str:
    """A hash of all rows in their order with their pixels, and of what lies beside them."""
    data = ClipDataset.open(str(out))
    pixels = data.read(list(range(len(data))), [0] * len(data), 8)
    beside = [(out / name).read_bytes() for name in ("README.md", "preview.png")]
    return hashlib.sha256(repr(data.rows().to_pylist()).encode() + pixels.tobytes() + b"".join(beside)).hexdigest()


@dataclass(frozen=True)
class Made:
    """A finished run that several tests look at: two scenes, and footage of which some cannot be used."""

    footage: Path
    out: Path
    code: int
    said: str


@pytest.fixture(scope="module")
def made(ray_cluster, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("synthesize")
    footage = folder / "footage"
    footage.mkdir()
    shots = [moving_frames(count, 90, 160, seed) for seed, count in enumerate((20, 5, 17))]
    write_clip(footage / "a-cut.mp4", np.concatenate(shots), rate=24)
    (footage / "b-broken.mp4").write_text("not a video")
    write_clip(footage / "c-short.mp4", moving_frames(5, 90, 160), rate=24)
    write_clip(footage / "d-small.mp4", moving_frames(9, 16, 16), rate=24)
    (footage / "e-copy.mp4").write_bytes((footage / "a-cut.mp4").read_bytes())
    hdr = {"x264-params": "transfer=smpte2084"}
    write_clip(footage / "f-good.mp4", moving_frames(10, 90, 160, seed=9), rate=30, options=hdr)
    code, said = run(*words(footage), "--scenes", "2", "--workers", "2", out=folder / "out")
    return Made(footage, folder / "out", code, said)


def words(footage: Path) -> list[str]:
    return ["--from-videos", str(footage), "licence=CC-BY-4.0", *DEEP]


def test_rendered_scenes_and_real_footage_become_one_data_set(made: Made) -> None:
    assert made.code == 1  # some of the footage cannot be used
    assert (
        f"0 scenes there, 7 to make (5 of them pieces of real footage): {2 * CLIPS + 5 * REAL_CLIPS} clips" in made.said
    )
    data = ClipDataset.open(str(made.out))
    rows = data.rows(["scene", "kind", "licence", "source", "rate", "variant", "camera"]).to_pylist()
    assert [row["kind"] for row in rows] == ["rendered"] * 2 * CLIPS + ["real"] * 5 * REAL_CLIPS
    assert {(row["kind"], row["licence"]) for row in rows} == {("rendered", "CC0-1.0"), ("real", "CC-BY-4.0")}
    assert {row["source"] for row in rows} == {"", *(str(made.footage / name) for name in ("a-cut.mp4", "f-good.mp4"))}
    assert all((row["scene"] >= REAL) == (row["kind"] == "real") for row in rows)
    clips = data.clips()  # which also checks that no video is in two splits
    assert sum(bool(clip.instruction) for clip in clips) == 2 * 2
    assert all(len(clip) == 8 and not clip.shots.any() for clip in clips)
    for clip in clips:
        depth = data.channel("depth", clip.row)
        assert (np.isnan(depth) if clip.real else depth > 0).all(), "nobody knows how far real things are"
    card = (made.out / "README.md").read_text()
    assert "Licences: CC-BY-4.0, CC0-1.0" in card and "Clips of `kind` real" in card
    assert (made.out / "preview.png").stat().st_size > 1000


def test_each_video_that_cannot_be_used_costs_one_line_and_itself(made: Made) -> None:
    skipped = [line for line in made.said.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 4
    for name, says in [
        ("b-broken.mp4", "not a video"),
        ("c-short.mp4", "its longest shot has 5 frames, expected 8 or more"),
        ("d-small.mp4", "is 16x16, expected 19 pixels of width or more for views of 16x16"),
        ("e-copy.mp4", "holds the same bytes as"),
    ]:
        assert sum(name in line and says in line for line in skipped) == 1, (name, skipped)


def test_footage_that_is_read_otherwise_than_a_player_shows_it_is_warned_about(made: Made) -> None:
    [warning] = [line for line in made.said.splitlines() if line.startswith("warning: ")]
    assert "f-good.mp4: its HDR (PQ) is not converted" in warning


def test_no_piece_crosses_a_cut_and_its_cameras_see_different_parts_of_the_frame(made: Made) -> None:
    # The shots of a-cut.mp4: frames 0 to 20, 20 to 25 (too short for a piece) and 25 to 42.
    config = load_synthesize_config(["height=16", "width=16", "frames=8"])
    pieces = look_at([str(made.footage)], config).pieces
    assert [(Path(each.url).name, each.piece, each.start) for each in pieces] == [
        ("a-cut.mp4", 0, 0), ("a-cut.mp4", 1, 8), ("a-cut.mp4", 2, 25), ("a-cut.mp4", 3, 33), ("f-good.mp4", 0, 0),
    ]  # fmt: skip
    clips = [clip for clip in ClipDataset.open(str(made.out)).clips() if clip.scene >= REAL]
    assert [clip.scene for clip in clips[::REAL_CLIPS]] == [each.scene for each in pieces]
    assert all((clip.trajectory.c2w[:, :, 3] == 0).all() for clip in clips)
    assert len({clip.trajectory.c2w.tobytes() for clip in clips}) == len(clips)


def test_footage_that_changed_since_it_was_looked_at_is_not_filmed(made: Made, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    shutil.copy(made.footage / "f-good.mp4", film)
    config = load_synthesize_config(["height=16", "width=16", "frames=8"])
    [piece] = look_at([str(film)], config).pieces
    film.write_bytes(film.read_bytes() + b" ")
    with pytest.raises(VideoError, match="film.mp4: changed since it was planned"):
        piece.rows(filming_of(config))


def test_one_worker_that_is_stopped_and_goes_on_makes_the_same_bytes_as_two(made: Made, tmp_path: Path) -> None:
    code, said = run("--scenes", "1", *DEEP, "--workers", "1", out=tmp_path)
    assert code == 0 and "1 scenes, 5 clips" in said
    code, said = run(*words(made.footage), "--scenes", "2", "--workers", "1", out=tmp_path)
    assert code == 1 and "1 scenes there, 6 to make" in said
    assert content(tmp_path) == content(made.out)


def test_the_same_command_again_makes_nothing_and_changes_nothing(made: Made) -> None:
    before, version = content(made.out), lance.dataset(str(made.out / "clips.lance")).version
    code, said = run("--scenes", "2", *DEEP, out=made.out)
    assert code == 0 and "7 scenes there, 0 to make" in said
    assert (content(made.out), lance.dataset(str(made.out / "clips.lance")).version) == (before, version)


def test_footage_that_is_there_under_another_licence_is_not_taken_for_what_is_asked(made: Made) -> None:
    given = [
        each.replace("licence=", "licence=NOT-") if isinstance(each, str) else each for each in words(made.footage)
    ]
    code, said = run(*given, "--scenes", "2", out=made.out)
    assert code == 2 and "is there under licence" in said and "asked for is 'NOT-" in said


def test_a_data_set_made_otherwise_is_not_gone_on_with(made: Made) -> None:
    code, said = run("--scenes", "3", *SMALL, "shots=2", out=made.out)
    assert code == 2 and "was made with shots=1, asked for is 2" in said
    lance.dataset(str(made.out / "clips.lance")).update_schema_metadata({"memory_v2v.generator": "0"})
    try:
        code, said = run("--scenes", "3", *SMALL, out=made.out)
        assert code == 2 and "was made by generator 0, expected" in said
    finally:
        lance.dataset(str(made.out / "clips.lance")).update_schema_metadata({"memory_v2v.generator": "1"})


def test_a_run_that_ended_before_its_first_scene_goes_on(ray_cluster, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("jobs.synthesize.make", lambda *_: False)
        code, _ = run("--scenes", "1", *SMALL, out=tmp_path)
    assert code == 1 and len(ClipDataset.open(str(tmp_path / "clips.lance"))) == 0
    code, said = run("--scenes", "1", *SMALL, out=tmp_path)
    assert code == 0, said


def test_a_data_set_older_than_a_setting_is_gone_on_with_at_its_default(tmp_path: Path) -> None:
    ClipDataset.create(str(tmp_path / "clips.lance"), {"generator": "1", "config": OLD})
    code, said = run("--scenes", "3", "--dry-run", out=tmp_path)
    assert code == 0 and "0 scenes there, 3 to make" in said
    code, said = run("--scenes", "3", "--dry-run", "shots=2", out=tmp_path)
    assert code == 2 and "was made with shots=1" in said


# Before there was a setting `shots`.
OLD = """{"height": 64, "width": 64, "frames": 48, "rates": [12.0, 24.0], "samples": 1, "depth": false,
"objects": false, "cameras": 6, "edits": 2, "edited_cameras": 2, "licence": ""}"""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--scenes", "0"], "--scenes is 0, expected at least 1, or --from-videos"),
        (["--scenes", "2", "shots=13"], "shots=13 in clips of 48 frames, expected 1 to 12"),
        (["--scenes", "2", "hieght=8"], "setting 'hieght' does not exist; the nearest is 'height'"),
        (["--scenes", "2", "clips"], "'clips' is not a setting"),
        (["--scenes", "2", "xyz=1"], "setting 'xyz' does not exist (memory-v2v synthesize --help lists all)"),
        (["--scenes", "2", "extension=8"], "setting 'extension' belongs to synthesize --extend"),
        (["--scenes", "2", "edited_cameras=9"], "expected at most the 6 of 'cameras'"),
        (["--scenes", "2", "rates=[0]"], "setting 'rates' is [0.0]"),
        (["--from-videos", "clips"], "no licence was given for --from-videos"),
        (
            ["--from-videos", "clips", "licence=MIT", "objects=true"],
            "objects=true with --from-videos: real footage has no objects",
        ),
        (["--scenes", str(1 << 41)], "goes beyond the last seed"),
    ],
)
def test_what_cannot_start_is_said_in_one_line_and_leaves_nothing(given: list[str], says: str, tmp_path: Path) -> None:
    code, said = run(*given, out=tmp_path / "out")
    assert code == 2 and len(said.splitlines()) == 1 and said.startswith("memory-v2v: ")
    assert says in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_how_much_it_would_be_and_makes_nothing(tmp_path: Path) -> None:
    code, said = run("--scenes", "10", "--dry-run", "depth=true", out=tmp_path / "out")
    assert code == 0 and "0 scenes there, 10 to make: 100 clips of 48 frames of 64x64, 4,800 frames, 137.6 MB" in said
    assert not (tmp_path / "out").exists()


def test_a_disk_without_room_is_noticed_before_the_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        code, said = run("--scenes", "200", *SMALL, out=disk / "out")
        assert code == 2 and "6.1 MB are needed and" in said and "room for" in said
        assert not (disk / "out" / "clips.lance").exists()


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_room_lets_it_go_on(tmp_path: Path, ray_cluster) -> None:
    given = ["--scenes", "50", *SMALL, "commit_mb=0.3", "--workers", "1"]
    with small_disk(tmp_path / "disk") as disk:
        code, said = run(*given, out=disk / "out")
        assert code == 1 and "could not be committed" in said and "what was committed before is safe" in said
        there = len(ClipDataset.open(str(disk / "out")).scenes())
        assert 0 < there < 50
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        code, said = run(*given, out=disk / "out")
        assert code == 0 and f"{there} scenes there, {50 - there} to make" in said
        assert ClipDataset.open(str(disk / "out")).rows(["id"])["id"].to_pylist()[:: CLIPS] == [
            f"{scene}/0/0" for scene in range(50)
        ]  # fmt: skip


def test_real_clips_are_cut_at_their_cuts(clips: Path, tmp_path: Path) -> None:
    code, said = run("--from-videos", clips / "bikes.mp4", "licence=CC-BY-4.0", "frames=24", "--dry-run", out=tmp_path)
    # Its shots: 0 to 30, 76, 137, 187, 242 and 250, of which the last is too short: 1 + 1 + 2 + 2 + 2 pieces.
    assert code == 0 and "0 scenes there, 8 to make (8 of them pieces of real footage)" in said
