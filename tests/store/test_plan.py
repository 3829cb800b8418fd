"""A plan from real files: what every source becomes, and a line for everything that is wrong with one."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from jobs.config import ConfigError, EditConfig
from jobs.model import Model, ModelError, resolve
from jobs.plan import Plan, make_plan
from jobs.turn import TurnError, parse_turn
from pipeline.spec import ModelSpec
from pipeline.trajectory import default_intrinsics, preset
from pipeline.trajectory_formats import write_json
from storage.errors import StorageFault
from storage.fingerprint import file_digest
from tests.generated import moving_frames, write_clip

STILL = np.repeat(moving_frames(1, 48, 64), 40, axis=0)


@pytest.fixture
def still(tmp_path: Path) -> str:
    return write_clip(tmp_path / "still.mp4", STILL, rate=24)


@pytest.fixture
def plan(tiny_model: str):
    def make(inputs, *turns, config: EditConfig | None = None, **more) -> Plan:
        specs = [parse_turn(turn) for turn in turns or ("pan_right",)]
        return make_plan([str(name) for name in inputs], specs, config or EditConfig(), resolve(tiny_model), **more)

    return make


def test_a_still_source_is_cut_into_full_segments_of_the_models_size(plan, still) -> None:
    made = plan([still], "pan_right", "arc_left")
    [chain] = made.chains
    assert made.notes == []
    assert [(s.start, s.stop, s.keep) for s in chain.segments] == [(0, 16, 0), (16, 32, 16), (24, 40, 32)]
    assert (chain.fit.height, chain.fit.width, chain.frames) == (24, 32, (16, 16, 16))
    assert len(chain) == 6 and len(chain.targets[0]) == 40


def test_a_pattern_that_reaches_the_output_folder_takes_none_of_the_jobs_own_videos(plan, tmp_path, still) -> None:
    out = tmp_path / "edited"
    for number, name in enumerate(("still-0123/turn-01-pan_right.mp4", "still-0123/compare.mp4", "extra/own.mp4")):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_clip(out / name, STILL[: 20 + number], rate=24)
    made = plan([tmp_path / "**/*.mp4"], out=str(out))
    assert [chain.url for chain in made.chains] == [f"{out}/extra/own.mp4", still] and made.notes == []
    [chain] = plan([out / "still-0123/turn-01-pan_right.mp4"], out=str(out)).chains
    assert chain.info.frames == 20, "named, it is a source as any"
    assert len(plan([tmp_path / "**/*.mp4"], out=str(tmp_path / "elsewhere")).chains) == 4


@pytest.mark.parametrize("name", ["attention", "merge"])
def test_a_setting_that_the_model_cannot_take_is_refused_before_any_source_is_looked_at(name) -> None:
    published = Model(
        "recammaster", "0" * 64, ModelSpec((4, 8), (1, 2, 2), 81, 480 * 832, 50, True, ("camera",), False, False)
    )
    asked = EditConfig(**{name: {"attention": "cached", "merge": "merge"}[name]})
    with pytest.raises(ConfigError, match=f"setting '{name}' is .* but this model .*: leave it out"):
        make_plan(["nowhere.mp4"], [parse_turn("pan_right")], asked, published)


def test_a_plainly_moving_camera_is_warned_about_unless_its_path_is_given(plan, tmp_path, still) -> None:
    moving = write_clip(tmp_path / "moving.mp4", moving_frames(40, 48, 64), rate=24)
    [note] = plan([moving]).notes
    assert note.status == "warning" and "camera moves" in note.message and "moving.mp4" in note.message
    path = tmp_path / "path.json"
    path.write_text(write_json(preset("arc_left", 40, default_intrinsics(64 / 48))))
    assert plan([moving], source_trajectory=str(path)).notes == []
    assert plan([moving], "make it winter").notes == [], "a turn of words needs no camera"


def test_a_source_that_is_read_otherwise_than_a_player_shows_it_is_warned_about(plan, tmp_path) -> None:
    grey = write_clip(tmp_path / "grey.mp4", STILL, rate=24, options={"x264-params": "transfer=smpte2084"})
    [note] = plan([grey]).notes
    assert note.status == "warning" and note.message.startswith(f"{grey}: its HDR (PQ) is not converted")


def test_the_sources_own_path_is_part_of_its_ids_and_must_have_a_pose_per_frame(plan, tmp_path, still) -> None:
    path = tmp_path / "path.json"
    filmed = preset("arc_left", 50, default_intrinsics(64 / 48))[10:]  # not from where its world begins
    path.write_text(write_json(filmed))
    with_path = plan([still], source_trajectory=str(path)).chains[0]
    assert not set(with_path.ids) & set(plan([still]).chains[0].ids)
    np.testing.assert_allclose(with_path.camera.c2w, filmed.relative_to(filmed.c2w[0]).c2w, atol=1e-6)
    path.write_text(write_json(preset("arc_left", 39, default_intrinsics(64 / 48))))
    [note] = plan([still], source_trajectory=str(path)).notes
    assert note.status == "failed" and "39 poses, expected 40" in note.message
    with pytest.raises(TurnError, match="one source, 2 were given"):
        plan([still, write_clip(tmp_path / "b.mp4", STILL[:20])], source_trajectory=str(path))


def test_a_turns_path_is_in_the_same_world_as_the_sources_wherever_that_begins(plan, tmp_path, still) -> None:
    lens = default_intrinsics(64 / 48)
    filmed, wanted = preset("arc_left", 50, lens)[10:], preset("arc_right", 50, lens)[10:]
    targets = []
    for origin in (np.eye(3, 4), filmed.c2w[0]):  # the second: relative to the source's first camera
        for name, path in (("source", filmed), ("turn", wanted)):
            (tmp_path / f"{name}.json").write_text(write_json(path.relative_to(origin)))
        turns = str(tmp_path / "turn.json"), str(tmp_path / "source.json"), "pan_right"
        [made] = plan([still], *turns, source_trajectory=str(tmp_path / "source.json")).chains
        np.testing.assert_allclose(made.targets[1].c2w, made.camera.c2w, atol=1e-5)
        np.testing.assert_allclose(made.targets[2].c2w[0], np.eye(3, 4), atol=1e-5)
        targets.append(made.targets[0].c2w)
    np.testing.assert_allclose(*targets, atol=1e-5)
    np.testing.assert_allclose(targets[0], wanted.relative_to(filmed.c2w[0]).c2w, atol=1e-5)


def test_a_turns_path_from_the_origin_beside_a_source_that_begins_elsewhere_gets_a_warning(
    plan, tmp_path, still
) -> None:
    lens = default_intrinsics(64 / 48)
    filmed, pan = preset("arc_left", 50, lens)[10:], preset("pan_right", 40, lens)
    for name, path in (("source", filmed), ("near", filmed.relative_to(filmed.c2w[0])), ("pan", pan)):
        (tmp_path / f"{name}.json").write_text(write_json(path))
    source, near, turn = (str(tmp_path / f"{name}.json") for name in ("source", "near", "pan"))
    [warning] = plan([still], turn, "pan_right", source, source_trajectory=source).notes
    assert warning.status == "warning" and "begins at the origin, and the file of the source's" in warning.message
    assert not plan([still], turn, source_trajectory=near).notes


def test_presets_have_the_sources_lens_and_words_alone_the_camera_of_what_they_edit(plan, still) -> None:
    words = "{prompt: make it night, input: %s}"
    made = plan([still], "arc_left", words % "previous", words % "source").chains[0]
    for target in made.targets:
        np.testing.assert_array_equal(target.intrinsics, made.camera.intrinsics)
    assert made.camera.intrinsics[0, 0] != made.camera.intrinsics[0, 1], "which is not that of a square"
    np.testing.assert_array_equal(made.targets[1].c2w, made.targets[0].c2w)
    np.testing.assert_array_equal(made.targets[2].c2w, made.camera.c2w)


def test_hard_cuts_are_found_where_that_is_asked_for_of_one_source_or_of_many(plan, tmp_path) -> None:
    clips = []
    for name, cut in (("one", 11), ("two", 25)):
        frames = np.concatenate([STILL[:cut], 255 - STILL[cut:]])
        clips.append(write_clip(tmp_path / f"{name}.mp4", frames, rate=24))
    made = plan(clips, shots="auto")
    starts = [{segment.shot: segment.start for segment in reversed(chain.segments)} for chain in made.chains]
    assert starts == [{0: 0, 1: 11}, {0: 0, 1: 25}]
    (tmp_path / "rows.jsonl").write_text('{"url": "one.mp4", "shots": "auto"}\n{"url": "two.mp4"}')
    assert [chain.segments[-1].shot for chain in plan([tmp_path / "rows.jsonl"]).chains] == [1, 0]


def test_segments_keep_to_the_shots_of_a_file(plan, tmp_path, still) -> None:
    shots = tmp_path / "shots.txt"
    shots.write_text("0 10\n30")
    segments = plan([still], shots=str(shots)).chains[0].segments
    assert [(s.shot, s.start, s.stop) for s in segments] == [(0, 0, 10), (1, 10, 26), (1, 14, 30), (2, 30, 40)]
    shots.write_text("ten")
    [note] = plan([still], shots=str(shots)).notes
    assert "not a list of shot boundaries" in note.message
    for wrong in (b"[30.7]", b"[1e999]", b"\xff\xfe"):
        shots.write_bytes(wrong)
        [note] = plan([still], shots=str(shots)).notes
        assert "shots.txt is not a list of shot boundaries" in note.message
    [note] = plan([still], shots=str(tmp_path)).notes
    assert "is a folder, expected a file" in note.message
    shots.write_text("[50]")
    [note] = plan([still], shots=str(shots)).notes
    assert "50" in note.message and "still.mp4" in note.message


def test_a_path_that_travels_far_from_the_sphere_is_warned_about(plan, still) -> None:
    [note] = plan([still], "zoom_in", config=EditConfig(radius=5.0)).notes
    assert note.status == "warning" and "travels 2.0 m" in note.message and "radius" in note.message
    assert plan([still], "zoom_in", config=EditConfig(radius=50.0)).notes == []


def test_a_file_that_is_exchanged_while_it_is_planned_is_left_out(plan, still, monkeypatch) -> None:
    def digest(url: str) -> str:  # a copy that had begun before is complete now
        write_clip(Path(url), moving_frames(48, 48, 64), rate=24)
        return file_digest(url)

    monkeypatch.setattr("jobs.plan.file_digest", digest)
    made = plan([still])
    assert not made.chains and [note.source for note in made.failed] == [still]
    assert "changed since it was planned; run the command again" in made.failed[0].message


def test_the_same_bytes_listed_twice_are_taken_once(plan, tmp_path, still) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(Path(still).read_bytes())
    made = plan([still, still, copy])
    assert [chain.url for chain in made.chains] == [still]
    assert [note.source for note in made.failed] == [still, str(copy)]
    assert "listed twice" in made.failed[0].message and "same bytes" in made.failed[1].message


def test_a_slide_show_of_a_frame_in_a_quarter_of_a_minute_can_be_filmed_from_elsewhere(plan, tmp_path) -> None:
    slides = write_clip(tmp_path / "slides.mp4", STILL[:4], rate=Fraction(1, 15))
    made = plan([slides])
    assert made.notes == [] and len(made.chains) == 1


def test_clips_of_one_length_share_their_paths(plan, tmp_path, still) -> None:
    other = write_clip(tmp_path / "other.mp4", STILL[::-1] // 2, rate=24)
    one, two = plan([still, other], "pan_right", "arc_left").chains
    assert one.camera is two.camera and all(a is b for a, b in zip(one.targets, two.targets, strict=True))
    assert not set(one.ids) & set(two.ids)


def test_a_manifest_gives_each_source_its_own_turns(plan, tmp_path, still) -> None:
    other = write_clip(tmp_path / "other.mp4", STILL[:20, ::-1], rate=24)
    manifest = tmp_path / "m.jsonl"
    rows = [{"url": "still.mp4"}, {"url": Path(other).name, "turns": ["arc_left", {"prompt": "at night"}]}]
    manifest.write_text("\n".join(json.dumps(row) for row in [*rows, {"url": "../x.mp4"}, {"url": other}]))
    made = plan([manifest])
    assert [[turn.label for turn in chain.turns] for chain in made.chains] == [["pan_right"], ["arc_left", "text"]]
    assert len(made.failed) == 2, "a path that climbs out and an absolute one"


def test_what_is_wrong_with_a_manifests_row_names_the_row(plan, tmp_path, still) -> None:
    manifest = tmp_path / "m.jsonl"
    rows = [{"url": "still.mp4"}, {"url": "still.mp4", "turns": ["pan_rihgt.json"]}, {"url": "gone.mp4"}]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    failed = plan([manifest], "pan_right").failed
    assert [note.message.startswith(f"{manifest}:{number}: ") for number, note in zip((2, 3), failed, strict=True)] == [
        True, True,
    ]  # fmt: skip


def test_a_limit_takes_the_first_sources_only(plan, tmp_path, still) -> None:
    other = write_clip(tmp_path / "other.mp4", STILL[:20], rate=24)
    assert [chain.url for chain in plan([still, other], limit=1).chains] == [still]


def test_a_model_that_is_none_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(ModelError, match="is not there: expected mini"):
        resolve(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="not a MemoryV2VPipeline"):
        resolve(str(tmp_path))


def test_an_untrained_mini_is_built_once_and_then_found(tiny_model) -> None:
    first = resolve("mini-cpu")
    assert resolve("mini-cpu") == first and not first.spec.trained
    assert (first.spec.segment_frames, first.spec.frames_for(2)) == (16, 4)


def test_a_file_about_the_source_whose_server_fails_is_not_said_to_be_missing(plan, tmp_path, still, server) -> None:
    url = server(503, "a.json")
    for about in ({"source_trajectory": url}, {"shots": url}):
        with pytest.raises(StorageFault, match=f"{url}: its server fails or does not answer .*; check address"):
            plan([still], **about)
    (tmp_path / "m.jsonl").write_text(json.dumps({"url": "still.mp4", "trajectory": url}))
    [note] = plan([tmp_path / "m.jsonl"]).failed
    assert f"{url}: its server fails or does not answer" in note.message
    with pytest.raises(ConfigError, match="is not there: check the path"):
        plan([still], source_trajectory=server(404, "a.json"))
