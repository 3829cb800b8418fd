"""The data set of clips: what is appended is read back to the byte, and what is wrong with it is said."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from pipeline.splits import family_of, real_scene, scenes_of, split_of
from storage.clips import CLEANED, ClipDataset, StorageError
from tests.clips import SIZE, clip_row


def scene_of(split: str, nth: int = 0) -> int:
    return scenes_of(split, 0, nth + 1)[nth]


@pytest.fixture
def data(tmp_path: Path) -> ClipDataset:
    return ClipDataset.create(str(tmp_path / "clips.lance"), {"generator": "7"})


def test_a_clip_is_read_back_as_it_was_appended(data: ClipDataset) -> None:
    rows = [clip_row(scene, camera, variant) for scene in (3, 1) for camera in (0, 1) for variant in (0, 1)]
    data.append(rows[:4])
    data.append(rows[4:])
    found = ClipDataset.open(data.url)
    clips = found.clips()
    assert [clip.row for clip in clips] == list(range(8))
    videos = found.read([clip.row for clip in clips], [0] * 8, SIZE[0])
    for row, clip, video in zip(rows, clips, videos, strict=True):
        assert (clip.scene, clip.camera, clip.variant) == (row.scene, row.camera, row.variant)
        assert (clip.instruction, clip.rate, len(clip)) == (row.instruction, row.rate, SIZE[0])
        assert (clip.height, clip.width) == SIZE[1:]
        assert (clip.trajectory.c2w == row.trajectory.c2w).all()
        assert (clip.trajectory.intrinsics == row.trajectory.intrinsics).all()
        assert (clip.shots == row.shots).all()
        assert (video == row.video).all()


def test_a_clip_says_which_of_its_frames_a_model_made(data: ClipDataset) -> None:
    data.append([clip_row(0), clip_row(0, 0, 1, kind="extended", extended=4)])
    assert [clip.extended for clip in ClipDataset.open(data.url).clips()] == [0, 4]
    for changed in ({"extended": 4}, {"kind": "extended"}, {"kind": "extended", "extended": SIZE[0]}):
        with pytest.raises(StorageError, match="of 6 frames from a model; expected any in extended clips only"):
            data.append([clip_row(1, **changed)])


def test_a_data_set_from_before_clips_were_extended_is_read_and_gone_on_with(data: ClipDataset) -> None:
    lance.dataset(data.url).drop_columns(["extended"])
    old = ClipDataset.open(data.url)
    old.append([clip_row(0)])
    assert [clip.extended for clip in old.clips()] == [0]


def test_a_window_is_those_frames_and_no_others(data: ClipDataset) -> None:
    rows = [clip_row(scene) for scene in range(3)]
    data.append(rows)
    windows = data.read([2, 0, 2], [1, 4, 0], 2)
    assert (windows == np.stack([rows[2].video[1:3], rows[0].video[4:6], rows[2].video[0:2]])).all()
    with pytest.raises(StorageError, match="frames 5 to 7 of row 1 asked for, it has 6"):
        data.read([1], [5], 2)
    with pytest.raises(StorageError, match="no row 3; it has rows 0 to 3"):
        data.read([3], [0], 2)


def test_small_clips_and_clips_of_several_sizes_live_in_one_data_set(data: ClipDataset) -> None:
    small = clip_row(0, size=(3, 8, 12))
    data.append([small, clip_row(1)])
    assert (data.read([0], [1], 2)[0] == small.video[1:3]).all()
    with pytest.raises(StorageError, match="several sizes"):
        data.read([0, 1], [0, 0], 2)


@pytest.mark.parametrize(
    ("most", "said"),
    [(None, "(60, 1, "), (100, "has 60 files to be open at a time, this process may have 100: raise its")],
)
def test_more_commits_than_a_process_begins_with_open_files_are_read(
    data: ClipDataset, most: int | None, said: str
) -> None:
    for scene in range(60):
        data.append([clip_row(scene)])
    code = (
        "import resource, sys; from storage.clips import ClipDataset; from storage.errors import StorageError\n"
        f"limit = {most} or resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit))\n"
        "try: print(ClipDataset.open(sys.argv[1]).read(list(range(60)), [0] * 60, 1).shape)\n"
        "except StorageError as error: print(error)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, data.url], cwd=root, capture_output=True, text=True, check=False)
    assert said in done.stdout, done.stderr


def test_old_versions_go_and_whoever_reads_one_reads_on(data: ClipDataset) -> None:
    data.append([clip_row(0)])
    reader = ClipDataset.open(data.url)
    for scene in range(1, 2 * CLEANED):
        data.append([clip_row(scene)], keep=timedelta(microseconds=1))
    assert len(list((Path(data.url) / "_versions").iterdir())) < 1.1 * CLEANED
    assert len(reader) == 1 and (reader.read([0], [0], 2)[0] == clip_row(0).video[:2]).all()
    assert reader.scenes() == {0} and len(ClipDataset.open(data.url)) == 2 * CLEANED


def test_a_clean_up_that_fails_costs_no_clip(data: ClipDataset, monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no permission to delete")

    monkeypatch.setattr("storage.clips.CLEANED", 1)
    monkeypatch.setattr(lance.LanceDataset, "cleanup_old_versions", refused)
    data.append([clip_row(0)])
    assert data.scenes() == {0}


def test_appending_again_doubles_nothing(data: ClipDataset) -> None:
    data.append([clip_row(0), clip_row(0)])
    data.append([clip_row(1), clip_row(0)])
    data.append([clip_row(0), clip_row(1)])
    assert data.rows(["id"])["id"].to_pylist() == ["0/0/0", "1/0/0"]
    assert data.scenes() == {0, 1}


def test_rows_written_after_a_read_are_read_too(data: ClipDataset) -> None:
    data.append([clip_row(0)])
    data.read([0], [0], 2)
    data.append([clip_row(1)])
    assert (data.read([1], [0], 2)[0] == clip_row(1).video[:2]).all()


def test_depth_and_objects_are_kept_where_asked_for(tmp_path: Path) -> None:
    data = ClipDataset.create(str(tmp_path / "clips.lance"), {}, channels=["depth", "objects"])
    depth = np.linspace(0.5, 9, np.prod(SIZE), dtype=np.float32).reshape(SIZE)
    depth[0, 0] = np.inf
    objects = np.arange(np.prod(SIZE)).astype(np.uint8).reshape(SIZE)
    data.append([clip_row(0, depth=depth, objects=objects)])
    assert (data.channel("depth", 0) == depth).all()
    assert (data.channel("objects", 0) == objects).all()
    assert (data.channel("depth", 0, 2, 3) == depth[2:5]).all()
    with pytest.raises(StorageError, match="frames 4 to 8 of row 0 asked for, it has 6"):
        data.channel("depth", 0, 4, 4)
    with pytest.raises(StorageError, match="has no depth, which this data set holds"):
        data.append([clip_row(1)])


def test_a_plain_lance_client_reads_it(data: ClipDataset) -> None:
    row = clip_row(5)
    data.append([row])
    plain = lance.dataset(data.url)
    assert plain.to_table(columns=["scene", "split", "frames"]).to_pylist() == [
        {"scene": 5, "split": split_of(5), "frames": 6}
    ]
    [(_, blob)] = plain.read_blobs("video", indices=[0])
    assert blob == row.video.tobytes()


def test_a_data_set_given_to_a_loader_opens_itself_there(data: ClipDataset) -> None:
    data.append([clip_row(0)])
    loader = pickle.loads(pickle.dumps(data))
    assert (loader.read([0], [2], 3) == data.read([0], [2], 3)).all()


def test_clips_are_split_by_their_scene_alone(data: ClipDataset) -> None:
    scenes = [scene_of("train"), scene_of("validation"), scene_of("test")]
    data.append([clip_row(scene, camera) for scene in scenes for camera in (0, 1)])
    for scene, split in zip(scenes, ("train", "validation", "test"), strict=True):
        assert [clip.scene for clip in data.clips(split)] == [scene, scene]
    with pytest.raises(StorageError, match="no split 'training'"):
        data.clips("training")
    for first in range(0, 2000, 20):
        splits = [split_of(scene) for scene in range(first, first + 20)]
        assert (splits.count("validation"), splits.count("test")) == (1, 1)
    known = [scene for scene in range(100, 200) if split_of(scene) == "train"]
    assert scenes_of("train", 100, len(known)) == known and len(known) == 90


def test_all_pieces_of_a_real_video_are_in_one_split() -> None:
    pieces = [real_scene("f3" * 32, piece) for piece in range(200)]
    assert len(set(pieces)) == 200
    assert len({split_of(scene) for scene in pieces}) == len({family_of(scene) for scene in pieces}) == 1
    assert max(pieces) < 1 << 63
    assert len({split_of(real_scene(hashlib.sha256(bytes([video])).hexdigest(), 0)) for video in range(200)}) == 3


def test_a_scene_in_two_splits_is_refused(data: ClipDataset) -> None:
    data.append([clip_row(4, 0), clip_row(4, 1), clip_row(5)])
    lance.dataset(data.url).update({"split": "'validation'"}, where="id = '4/0/1'")
    with pytest.raises(StorageError, match="scene 4 is in two splits, train and validation"):
        ClipDataset.open(data.url).clips("train")


def test_a_data_set_of_another_version_or_kind_is_refused(data: ClipDataset, tmp_path: Path) -> None:
    lance.dataset(data.url).update_schema_metadata({"memory_v2v.clips": "9"})
    with pytest.raises(StorageError, match="version 9 of the format of clips, expected 1"):
        ClipDataset.open(data.url)
    lance.write_dataset(pa.table({"x": [1]}), tmp_path / "other.lance")
    with pytest.raises(StorageError, match="not one of clips"):
        ClipDataset.open(str(tmp_path / "other.lance"))
    with pytest.raises(StorageError, match="no data set of clips is there"):
        ClipDataset.open(str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match="is there already"):
        ClipDataset.create(data.url, {})


def test_a_folder_with_a_data_set_in_it_stands_for_it(data: ClipDataset, tmp_path: Path) -> None:
    data.append([clip_row(0)])
    assert len(ClipDataset.open(str(tmp_path))) == 1


@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_video_file_is_named_with_its_clip_and_the_others_are_read(data: ClipDataset, gone: bool) -> None:
    packs = set()
    for scene in range(3):
        data.append([clip_row(scene)])
        new = set(Path(data.url).glob("data/**/*.blob")) - packs
        packs |= new
        if scene == 1:
            [damaged] = new
    damaged.unlink() if gone else os.truncate(damaged, 1000)
    found = ClipDataset.open(data.url)
    assert len(found.clips()) == 3
    with pytest.raises(StorageError, match="clip 1/0/0 in row 1 cannot be read .* restore it from a copy"):
        found.read([0, 1, 2], [0, 0, 0], 3)
    assert (found.read([0, 2], [0, 0], 3)[1] == clip_row(2).video[:3]).all()


def test_a_damaged_table_file_is_named(data: ClipDataset) -> None:
    for scene in range(3):
        data.append([clip_row(scene)])
    fragments = lance.dataset(data.url).get_fragments()
    name = fragments[1].data_files()[0].path
    os.truncate(Path(data.url) / "data" / name, 40)
    with pytest.raises(StorageError, match=f"data/{name} is damaged or gone .* expected 1 clips in it"):
        ClipDataset.open(data.url).clips()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"video": np.zeros(SIZE, np.uint8)}, "expected uint8"),
        ({"video": np.zeros((5, 8, 8, 3), np.uint8)}, "5 frames and 6 poses"),
        ({"shots": np.zeros(3, np.int32)}, r"expected \(6,\)"),
        ({"rate": 0.0}, "frames per second"),
        ({"instruction": "make it red"}, "expected one for edited variants only"),
    ],
)
def test_a_clip_that_does_not_hold_together_is_kept_out(data: ClipDataset, changed: dict, says: str) -> None:
    with pytest.raises(StorageError, match=says):
        data.append([clip_row(0), clip_row(1, **changed)])
    assert len(data) == 0
