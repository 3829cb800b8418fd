"""The Editor and the Publisher as plain objects: real model, real library, real video, no Ray."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.editor import Editor
from actors.publisher import Publisher
from actors.setup import Setup
from jobs.chain import Chain
from jobs.config import EditConfig
from jobs.model import resolve
from jobs.plan import make_plan
from jobs.published import compare_video, turn_videos
from jobs.turn import parse_turn
from storage.errors import StorageError
from storage.library import LibraryError
from storage.memory import Memory
from storage.publish import video_id_of
from storage.video import VideoError, probe, read_frames
from tests.by_hand import new_setup
from tests.generated import moving_frames, write_clip

CONFIG = EditConfig(text_memories="all_turns")
TURNS = ["pan_right", "{trajectory: arc_left, input: previous}", "at night"]


@pytest.fixture
def chain(tmp_path: Path, tiny_model: str) -> Chain:
    clip = write_clip(tmp_path / "clip.mp4", moving_frames(20, 48, 64), rate=24)
    return make_plan([clip], [parse_turn(turn) for turn in TURNS], CONFIG, resolve(tiny_model)).chains[0]


@pytest.fixture
def setup(tmp_path: Path, tiny_model: str) -> Setup:
    return new_setup(tiny_model, tmp_path / "library.lance", CONFIG)


def make_all(chain: Chain, setup: Setup, editor: Editor | None = None) -> list[Memory]:
    """All edits of a chain in order; with a new Editor for each where none is given."""
    library, made = setup.open_library(), []
    for index in range(len(chain)):
        _, memory = (editor or Editor(setup)).edit(chain.edit(index))
        library.commit([memory])
        made.append(memory)
    return made


def test_an_editor_that_is_warm_and_one_that_is_new_make_the_same_bits(chain, setup, tmp_path) -> None:
    warm = make_all(chain, setup, Editor(setup))
    cold = make_all(chain, other_library(setup, tmp_path))
    for one, two in zip(warm, cold, strict=True):
        assert (one.id, one.memories, one.scores) == (two.id, two.memories, two.scores)
        assert torch.equal(one.latent, two.latent)
        assert np.array_equal(one.descriptor, two.descriptor)


def test_an_editor_that_did_not_look_at_a_segment_looks_where_words_are_to_be_told_of_it(
    chain, setup, tmp_path
) -> None:
    setup = dataclasses.replace(setup, settings=dataclasses.asdict(EditConfig()))
    warm, cold = Editor(setup), Editor(setup)
    _, camera = warm.edit(chain.edit(0))
    assert not camera.descriptor.any(), "views alone rank"
    text = dataclasses.replace(chain.edit(4), candidates=())
    [one, two] = (editor.edit(text)[1] for editor in (warm, cold))
    assert one.descriptor.any() and np.array_equal(one.descriptor, two.descriptor)


def test_a_model_is_shown_memories_from_where_and_when_its_segment_begins(chain, setup, monkeypatch) -> None:
    editor, asked = Editor(setup), []

    class Watched(type(editor.pipe)):
        def __call__(self, **words):
            asked.append(words)
            return super().__call__(**words)

    monkeypatch.setattr(editor.pipe, "__class__", Watched)
    made = {memory.id: memory for memory in make_all(chain, setup, editor)}
    for index, words in enumerate(asked):
        edit = chain.edit(index)
        into = np.linalg.inv(np.vstack([edit.camera.c2w[0], [0, 0, 0, 1]]))
        chosen = [made[id] for id in made[edit.id].memories]
        assert len(words["memories"]) == len(chosen) == min(4, index)
        for shown, memory in zip(words["memories"], chosen, strict=True):
            assert torch.equal(shown.latent, memory.latent.float())
            assert shown.start == memory.start - edit.segment.start
            np.testing.assert_allclose(shown.trajectory.c2w, into[:3] @ _square(memory.trajectory.c2w), atol=1e-5)
            assert shown.preceding == (memory.id == edit.preceding)
        for name, path in (("source_trajectory", edit.camera), ("target_trajectory", edit.target)):
            np.testing.assert_allclose(words[name].c2w, into[:3] @ _square(path.c2w), atol=1e-5)
        assert words["generator"].initial_seed() == edit.seed
        assert (words["prompt"], words["frame_rate"]) == (edit.prompt, edit.rate)
    assert any(shown.preceding for words in asked[4:] for shown in words["memories"])
    assert any(shown.start for words in asked for shown in words["memories"])
    assert np.abs(chain.edit(3).camera.c2w[0] - np.eye(4)[:3]).max() > 0.01, "else nothing had to be moved"


@pytest.mark.parametrize("given", ["at night", "{prompt: at night, input: previous}"])
def test_a_model_that_copies_is_told_what_memories_of_a_text_turn_were_made_from(
    given, tiny_model, setup, tmp_path, monkeypatch
) -> None:
    clip = write_clip(tmp_path / "longer.mp4", moving_frames(64, 48, 64), rate=24)
    [chain] = make_plan([clip], [parse_turn("pan_right"), parse_turn(given)], CONFIG, resolve(tiny_model)).chains
    editor, asked = Editor(setup), []

    class Watched(type(editor.pipe)):
        def __call__(self, **words):
            asked.append(words)
            return super().__call__(**words)

    made = make_all(chain, setup, editor)
    monkeypatch.setattr(editor.pipe, "__class__", Watched)
    monkeypatch.setattr(
        editor.pipe.transformer, "_internal_dict", editor.pipe.transformer.config | {"copied_videos": 3}
    )
    count = len(chain.segments)
    assert count == 4
    for index in (count - 1, 2 * count - 1):
        editor.edit(chain.edit(index))
    camera, text = ([memory.source for memory in words["memories"]] for words in asked)
    assert camera == [None] * 3, "its source is seen from elsewhere"
    inputs = made[:count]
    for source, segment in zip(text, (count - 2, 0, None), strict=False):  # the one before, and the opening
        if segment is None:
            assert source is None, "not copied from"
        elif "previous" in given:
            assert torch.equal(source, inputs[segment].latent.float())
        else:
            part = chain.segments[segment]
            frames = chain.fit.apply(read_frames(clip, part.start, part.stop, size=chain.fit.resize))
            assert torch.equal(source, editor.pipe.encode(frames))


def _square(poses: np.ndarray) -> np.ndarray:
    last = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(poses), 1, 4))
    return np.concatenate([poses, last], axis=1)


def other_library(setup: Setup, tmp_path: Path) -> Setup:
    other = dataclasses.replace(setup, library=str(tmp_path / "other.lance"))
    other.open_library(create=True)
    return other


def test_an_edit_depends_on_its_memories_its_input_its_prompt_and_its_seed(chain, setup) -> None:
    editor = Editor(setup)
    make_all(chain, setup, editor)
    edit = chain.edit(3)  # second turn, second segment, on the first turn's result
    latent = editor.edit(edit)[1].latent
    for change in (
        {"candidates": ()},
        {"inputs": ()},
        {"seed": 1},
        {"prompt": "a red carpet"},
        {"target": edit.camera},
    ):
        other = editor.edit(dataclasses.replace(edit, **change))[1].latent
        assert not torch.equal(latent, other), f"{change} changed nothing"


def test_a_text_turn_is_shown_the_segment_before_then_the_one_that_opens_the_shot(tmp_path, tiny_model, setup) -> None:
    clip = write_clip(tmp_path / "longer.mp4", moving_frames(96, 48, 64), rate=24)
    [chain] = make_plan([clip], [parse_turn("at night")], CONFIG, resolve(tiny_model)).chains
    made = make_all(chain, setup, Editor(setup))
    assert len(made) == 6
    for index, memory in enumerate(made[2:], 2):
        assert memory.memories[:2] == (made[index - 1].id, made[0].id)
        assert len(set(memory.memories)) == min(index, CONFIG.k)


def test_what_is_remembered_is_what_the_account_says(chain, setup) -> None:
    made = make_all(chain, setup, Editor(setup))
    for index, memory in enumerate(made):
        edit = chain.edit(index)
        assert (memory.id, memory.parent, memory.turn, memory.segment) == (
            edit.id,
            edit.parent,
            edit.turn,
            edit.segment.index,
        )
        assert memory.trajectory.digest == edit.target.digest and memory.latent.dtype == torch.float16
        assert memory.prompt == edit.prompt and len(memory.memories) == min(4, index)
        assert memory.latent.shape == (3, edit.frames, edit.fit.height, edit.fit.width)


def test_a_missing_ancestor_is_an_error_that_names_it(chain, setup) -> None:
    with pytest.raises(LibraryError, match=chain.ids[0]):
        Editor(setup).edit(chain.edit(1))


def test_a_source_that_is_gone_is_an_error_that_names_it(chain, setup) -> None:
    Path(chain.url).unlink()
    with pytest.raises(VideoError, match="clip.mp4"):
        Editor(setup).edit(chain.edit(0))


def test_a_source_that_changed_since_it_was_planned_is_not_edited_under_its_old_name(chain, setup) -> None:
    write_clip(chain.url, moving_frames(20, 48, 64, seed=5), rate=24)
    with pytest.raises(VideoError, match="changed since it was planned"):
        Editor(setup).edit(chain.edit(0))


def test_turns_are_published_whole_once_and_again_when_the_settings_change(chain, setup, tmp_path) -> None:
    make_all(chain, setup, Editor(setup))
    publisher = Publisher(setup)
    videos = turn_videos(chain, str(tmp_path / "out"), CONFIG)
    for video in videos:
        assert publisher.publish(video) == video.url and video_id_of(video.url) == video.video_id
        assert probe(video.url).frames == 20
    first = Path(videos[0].url)
    before = first.stat().st_mtime_ns
    publisher.publish(videos[0])
    assert first.stat().st_mtime_ns == before
    bytes_before = first.read_bytes()
    publisher.publish(dataclasses.replace(videos[0], crf=40))
    assert first.stat().st_size < len(bytes_before)
    publisher.publish(videos[0])
    assert first.read_bytes() == bytes_before, "the same settings give the same bytes"
    compare = compare_video(chain, videos, str(tmp_path / "out"))
    publisher.compare(compare)
    assert probe(compare.url).frames == 20 and video_id_of(compare.url) == compare.video_id


def test_a_turn_at_the_sources_size_is_its_latents_enlarged(chain, setup, tmp_path) -> None:
    make_all(chain, setup, Editor(setup))
    [video, *_] = turn_videos(chain, str(tmp_path / "out"), dataclasses.replace(CONFIG, upscale="source"))
    Publisher(setup).publish(video)
    assert read_frames(video.url, 0, 1).shape == (1, 48, 64, 3)


def test_a_cropped_turn_at_the_sources_size_has_that_of_the_crop(tmp_path, tiny_model) -> None:
    clip = write_clip(tmp_path / "wide.mp4", moving_frames(20, 48, 96), rate=24)
    config = dataclasses.replace(CONFIG, fit="crop", size="32x32", upscale="source")
    [chain] = make_plan([clip], [parse_turn("pan_right")], config, resolve(tiny_model)).chains
    assert [video.size for video in turn_videos(chain, str(tmp_path / "out"), config)] == [(48, 48)]


def test_a_replaced_source_lends_its_sound_to_no_video_of_the_old_one(tmp_path, tiny_model, setup) -> None:
    clip = write_clip(tmp_path / "talk.mp4", moving_frames(20, 48, 64), audio="aac", rate=24)
    [chain] = make_plan([clip], [parse_turn("pan_right")], CONFIG, resolve(tiny_model)).chains
    make_all(chain, setup, Editor(setup))
    [video] = turn_videos(chain, str(tmp_path / "out"), CONFIG)
    [silent] = turn_videos(chain, str(tmp_path / "silent"), dataclasses.replace(CONFIG, audio=False))
    write_clip(clip, moving_frames(20, 48, 64, seed=5), audio="aac", rate=24)
    publisher = Publisher(setup)
    for publish, wanted in ((publisher.publish, video), (publisher.compare, compare_video(chain, [video], "out"))):
        with pytest.raises(VideoError, match="talk.mp4: changed since it was planned"):
            publish(wanted)
    assert publisher.publish(silent) and not probe(silent.url).audio


def test_a_model_that_changed_since_it_was_planned_with_makes_nothing_under_its_old_name(setup, tmp_path) -> None:
    folder = shutil.copytree(setup.model, tmp_path / "model")
    moved = dataclasses.replace(setup, model=str(folder))
    Editor(moved)
    index = folder / "model_index.json"
    index.write_text(index.read_text() + "\n")
    for actor in (Editor, Publisher):
        with pytest.raises(StorageError, match="model: changed since the run was planned"):
            actor(moved)
