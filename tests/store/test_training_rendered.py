"""Training on scenes that are rendered into memory: the same pixels and draws as by hand, whoever renders them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.pieces import write_pieces
from pipeline.clip import REAL, Clip
from pipeline.scenes import Filming, filmed, takes
from pipeline.splits import real_scene, split_of
from pipeline.training.batch import Batch, collate
from pipeline.training.recipe import Recipe
from pipeline.training.rendered import Pool, Stage, _received, footage_clips, rendered_batches
from pipeline.training.samples import Corpus, Window
from pipeline.trajectory import default_intrinsics, preset
from storage.clip_row import ClipRow
from storage.clips import ClipDataset
from storage.errors import StorageError

MEAN, STD = 0.45, 0.27
FILMING = Filming(
    16, 16, 16, cameras=2, edits=1, edited_cameras=1, rates=(6.0, 12.0), channels=("depth",), samples=1,
    licence="CC0-1.0",
)  # fmt: skip
RECIPE = Recipe(batch=2, targets=2, memories=2, glimpses=0.3, real=0.5)
STAGE = Stage(FILMING, RECIPE, length=8, glimpse=4, tokenizers=2, seed=3, device="cpu")


def pool(clips: int) -> Pool:
    return Pool(clips, FILMING, "cpu", MEAN, STD)


def batches(stage: Stage, scenes: list[int], workers: int, first: int, count: int, **given: Any) -> list[Batch]:
    drawn: Iterator[Batch] = rendered_batches(stage, scenes, workers, first, pool, **given)
    try:
        return list(islice(drawn, count))
    finally:
        drawn.close()


def leaves(value: Any) -> list[Any]:
    """All that is in a batch but its samples, which are not handed over."""
    if isinstance(value, Batch):
        value = replace(value, draw=replace(value.draw, samples=()))
    if is_dataclass(value):
        return [leaf for each in fields(value) for leaf in leaves(getattr(value, each.name))]
    if isinstance(value, dict | tuple):
        return [leaf for each in (value.values() if isinstance(value, dict) else value) for leaf in leaves(each)]
    return [value]


def equal(one: Batch, other: Batch) -> bool:
    return len(leaves(one)) == len(leaves(other)) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(leaves(one), leaves(other), strict=True)
    )


def by_hand(scenes: list[int], steps: list[int]) -> list[Batch]:
    """What one worker of these scenes draws, from the pixels that `filmed` gives."""
    clips: list[Clip] = []
    views = []
    for seed in scenes:
        for take in takes(seed, FILMING):
            views.append(filmed(take, FILMING))
            clips.append(
                Clip(len(clips), seed, take.camera, take.variant, take.instruction, take.rate, take.trajectory,
                     take.shots, 16, 16)
            )  # fmt: skip

    def encode(windows: list[Window], length: int) -> torch.Tensor:
        frames = [views[each.clip.row].colour[0, each.start : each.start + length] for each in windows]
        return ((torch.stack(frames).float() / 255 - MEAN) / STD).permute(0, 4, 1, 2, 3)

    def depths(windows: list[Window], length: int) -> torch.Tensor:
        return torch.stack(
            [views[each.clip.row].depth[0, each.start : each.start + length].half().float() for each in windows]
        )

    corpus = Corpus(clips, STAGE.length, RECIPE, STAGE.glimpse)
    return [
        collate(corpus.draw(np.random.default_rng([STAGE.seed, step]), tokenizers=2), encode, depths=depths)
        for step in steps
    ]


def write_footage(folder: Path, size: int = 16, frames: int = 16, cameras: int = 2) -> np.ndarray:
    """A piece of real footage. Returns its video."""
    video = np.random.default_rng(0).integers(0, 256, (cameras, frames, size, size, 3), dtype=np.uint8)
    path = preset("arc_left", frames, default_intrinsics(1.0))
    np.savez(folder / "piece.npz", video=video, c2w=np.stack([path.c2w] * cameras), rate=12.0,
             intrinsics=np.stack([path.intrinsics] * cameras))  # fmt: skip
    return video


def test_batches_are_those_drawn_by_hand_with_the_pixels_that_filming_gives() -> None:
    rendered: list[int] = []
    drawn = batches(STAGE, [4, 5, 6, 7], 2, 0, 12, progress=rendered.append)
    assert rendered == [1, 2, 3, 4]
    # Workers have every second scene, and take every second step.
    even, odd = by_hand([4, 6], list(range(0, 12, 2))), by_hand([5, 7], list(range(1, 12, 2)))
    expected = [batch for pair in zip(even, odd, strict=True) for batch in pair]
    assert all(map(equal, drawn, expected))
    assert {each.draw.length for each in drawn} == {4, 8} and len({each.draw.task for each in drawn}) > 1
    assert any(each.memories for each in drawn) and all(each.clean.isfinite().all() for each in drawn)


def test_a_training_that_goes_on_sees_what_it_would_have_seen() -> None:
    from_the_start, later = batches(STAGE, [4, 5], 2, 0, 6), batches(STAGE, [4, 5], 2, 3, 3)
    assert all(map(equal, from_the_start[3:], later)) and not equal(from_the_start[0], later[0])


def test_real_clips_lie_beside_the_scenes_and_nobody_knows_their_depth(tmp_path: Path) -> None:
    video = write_footage(tmp_path)
    recipe = replace(RECIPE, text=0.0, real=1.0)
    [batch] = batches(replace(STAGE, recipe=recipe), [4], 1, 0, 1, footage=str(tmp_path))
    assert batch.depths is not None and batch.depths.isnan().all()
    grey = ((batch.clean * STD + MEAN) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()
    windows = [clip[at : at + 8].tobytes() for clip in video for at in range(9)]
    assert all(each.tobytes() in windows for each in grey)


def test_footage_is_read_as_it_was_written_and_another_size_is_refused(tmp_path: Path) -> None:
    video = write_footage(tmp_path)
    clips, colour, depth = footage_clips(str(tmp_path), FILMING)
    assert [(each.row, each.scene, each.camera, each.real) for each in clips] == [
        (0, REAL, 0, True),
        (1, REAL, 1, True),
    ]
    assert np.array_equal(colour.numpy(), video) and depth.shape == (2, 16, 16, 16) and depth.isnan().all()
    for other in (replace(FILMING, height=32), replace(FILMING, frames=8)):
        with pytest.raises(ValueError, match=r"piece.npz: video is uint8 \(2, 16, 16, 16, 3\), expected uint8"):
            footage_clips(str(tmp_path), other)
    assert footage_clips(None, FILMING)[0] == [] and len(footage_clips(None, FILMING)[1]) == 0


def test_a_folder_without_footage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no .npz, expected pieces of footage"):
        batches(STAGE, [4], 1, 0, 1, footage=str(tmp_path / "nowhere"))


def test_more_renderers_than_scenes_are_as_many_as_there_are_scenes() -> None:
    assert all(map(equal, batches(STAGE, [4], 5, 0, 2), by_hand([4], [0, 1])))


def test_a_renderer_that_is_killed_ends_the_training_and_no_process_stays() -> None:
    drawn = rendered_batches(STAGE, [4, 5], 2, 0, pool)
    next(drawn)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    workers[0].kill()
    with pytest.raises(RuntimeError, match="a renderer died"):
        for _ in range(20):
            next(drawn)
    assert not any(each.is_alive() for each in workers)


@pytest.mark.parametrize("sent", [b"", b"\0\0\0\x64 of hundred bytes the first"])
def test_a_renderer_may_die_between_messages_and_within_one(sent: bytes) -> None:
    reader, writer = multiprocessing.Pipe(duplex=False)
    os.write(writer.fileno(), sent)
    writer.close()
    with pytest.raises(RuntimeError, match="a renderer died"):
        _received(reader)


@pytest.fixture
def footage(tmp_path: Path) -> Callable[[str], tuple[ClipDataset, list[ClipRow]]]:
    """A data set of one piece of real footage, seen by two virtual cameras, whose video falls into a split."""

    def made(split: str) -> tuple[ClipDataset, list[ClipRow]]:
        scene = next(each for each in (real_scene(f"{n:016x}", 0) for n in range(200)) if split_of(each) == split)
        path = preset("arc_left", 16, default_intrinsics(1.0))
        video = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 16, 3), dtype=np.uint8)
        rows = [
            ClipRow(scene, camera, 0, "real", "", 12.0, path, np.zeros(16, np.int32), "CC0-1.0", "a.mp4", video[camera])
            for camera in (1, 0)
        ]
        data = ClipDataset.create(str(tmp_path / "clips.lance"), {"generator": "1", "config": "{}"}, ())
        data.append(rows)
        return data, rows[::-1]

    return made


def test_pieces_of_a_data_set_are_read_as_footage(footage: Any, tmp_path: Path) -> None:
    data, rows = footage("train")
    assert write_pieces(data, tmp_path / "pieces") == 1
    clips, colour, _ = footage_clips(str(tmp_path / "pieces"), FILMING)
    assert [each.camera for each in clips] == [0, 1]
    for clip, pixels, row in zip(clips, colour.numpy(), rows, strict=True):
        assert np.array_equal(pixels, row.video) and clip.rate == 12.0
        assert np.array_equal(clip.trajectory.c2w, row.trajectory.c2w)


def test_pieces_that_could_not_all_be_written_leave_no_folder(footage: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*arguments: Any, **arrays: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        write_pieces(footage("train")[0], tmp_path / "pieces")
    assert {each.name for each in set(tmp_path.iterdir()) - before} <= {"clips.lance"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_footage_of_other_splits_alone_is_refused_in_words(split: str, footage: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="has no footage in the training split"):
        write_pieces(footage(split)[0], tmp_path / "pieces")
    assert not (tmp_path / "pieces").exists()


def test_what_a_renderer_cannot_do_ends_the_training_with_its_words() -> None:
    stage = replace(STAGE, filming=replace(FILMING, rates=()))
    with pytest.raises(RuntimeError, match="a renderer broke off: "):
        batches(stage, [4], 1, 0, 1)
