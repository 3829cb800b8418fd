from __future__ import annotations

import dataclasses
import os
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.chain import Chain
from jobs.config import EditConfig, fields_that
from jobs.turn import Turn
from pipeline.fit import fit
from pipeline.segments import segments
from pipeline.trajectory import Trajectory, default_intrinsics, preset
from storage.video import VideoInfo

FRAMES = 40
INTRINSICS = default_intrinsics(1.0)
INFO = VideoInfo("clips/my clip.mp4", FRAMES, 64, 64, Fraction(25), Fraction(1, 25), None, False, 0)


def chain(
    *turns: Turn,
    config: EditConfig | None = None,
    model: str = "m",
    fingerprint: str = "f" * 64,
    cuts=(),
    length: int = 16,
) -> Chain:
    config = config or EditConfig()
    still = Trajectory.static(FRAMES, INTRINSICS)
    windows = segments(FRAMES, length, config.overlap, cuts)
    return Chain(
        info=INFO,
        fingerprint=fingerprint,
        identity=(1, 2, 3),
        fit=fit((64, 64), config.fit, None, 32 * 32, 8),
        segments=tuple(windows),
        frames=tuple(-(-window.frames // 4) * 4 for window in windows),
        turns=turns,
        camera=still,
        targets=tuple(preset(t.trajectory, FRAMES, INTRINSICS) if t.trajectory else still for t in turns),
        config=config,
        model=model,
    )


PAN, ARC, TILT = (Turn(trajectory=name) for name in ("pan_right", "arc_left", "tilt_up"))


def test_the_same_plan_has_the_same_ids_and_no_two_edits_share_one() -> None:
    ids = chain(PAN, ARC).ids
    assert ids == chain(PAN, ARC).ids
    assert len(set(ids)) == len(ids) == 6
    assert all(len(id) == 64 and set(id) <= set("0123456789abcdef") for id in ids)


def test_a_turn_on_the_source_has_its_camera_and_one_on_the_last_turn_the_last_turns() -> None:
    made = chain(PAN, ARC, dataclasses.replace(TILT, input="previous"))
    first = slice(0, 16)
    for turn, camera in ((0, made.camera), (1, made.camera), (2, made.targets[1])):
        np.testing.assert_array_equal(made.edit(3 * turn).camera.c2w, camera.c2w[first])
        np.testing.assert_array_equal(made.edit(3 * turn).target.c2w, made.targets[turn].c2w[first])
    assert made.edit(3).input == "" and made.edit(6).input == made.ids[3]


def test_a_segment_that_is_filled_up_repeats_its_last_pose() -> None:
    made = chain(PAN, cuts=(9,))
    [short] = [made.edit(s) for s, each in enumerate(made.segments) if each.frames == 9]
    assert len(short.target.c2w) == 12
    np.testing.assert_array_equal(short.target.c2w[9:], np.repeat(made.targets[0].c2w[8:9], 3, axis=0))


def test_a_path_and_words_alone_on_the_same_camera_are_other_edits() -> None:
    still = Trajectory.static(FRAMES, INTRINSICS)
    path, words = (
        dataclasses.replace(chain(turn), targets=(still,))
        for turn in (Turn(trajectory="pan_right", prompt="x"), Turn(prompt="x"))
    )
    assert not set(path.ids) & set(words.ids), "one ranks memories by view, the other by descriptor"


def test_a_changed_third_turn_keeps_the_first_two_and_renames_all_from_there_on() -> None:
    before, after = chain(PAN, ARC, TILT, PAN), chain(PAN, ARC, PAN, PAN)
    assert before.ids[:6] == after.ids[:6]
    assert not set(before.ids[6:]) & set(after.ids)


def test_a_branch_never_sees_its_siblings_memories() -> None:
    one, other = chain(PAN, ARC, TILT), chain(PAN, TILT, TILT)
    shared = set(one.ids) & set(other.ids)
    for index in range(len(other)):
        assert not set(other.edit(index).candidates) & (set(one.ids) - shared)


@pytest.mark.parametrize("name", fields_that(affect_bits=True))
def test_one_changed_field_that_affects_bits_renames_every_edit(name: str) -> None:
    other = {
        "size": "64x64", "fit": "crop", "segment_frames": 16, "overlap": 4, "k": 5, "policy": "greedy", "blend": 0.4,
        "radius": 21.0, "points": 2048, "text_memories": "all_turns", "latent_dtype": "float32", "steps": 3,
        "guidance": 3.0, "attention": "joint", "merge": "off", "shift": 3.0, "seed": 1, "dtype": "bfloat16",
        "threads": 2,
    }  # fmt: skip
    changed = dataclasses.replace(EditConfig(), **{name: other[name]})
    assert not set(chain(PAN, ARC).ids) & set(chain(PAN, ARC, config=changed).ids)


@pytest.mark.parametrize("name", fields_that(affect_bits=False))
def test_a_changed_field_that_does_not_affect_bits_renames_none(name: str) -> None:
    default = getattr(EditConfig(), name)
    other = {"upscale": "source", "failure_budget": 3}.get(
        name, not default if isinstance(default, bool) else (default or 0) + 1 if not isinstance(default, str) else None
    )
    assert other is not None
    changed = dataclasses.replace(EditConfig(), **{name: other})
    assert chain(PAN, ARC).ids == chain(PAN, ARC, config=changed).ids


def test_another_model_source_prompt_or_shot_renames_every_edit() -> None:
    ids = set(chain(PAN).ids)
    assert not ids & set(chain(PAN, model="n").ids)
    assert not ids & set(chain(PAN, fingerprint="e" * 64).ids)
    assert not ids & set(chain(dataclasses.replace(PAN, prompt="at night")).ids)
    assert not ids & set(chain(dataclasses.replace(PAN, negative_prompt="blur")).ids)
    assert not ids & set(chain(dataclasses.replace(PAN, input="previous")).ids)
    assert chain(PAN, cuts=(20,)).ids != chain(PAN).ids


def test_every_edit_has_a_seed_of_its_own_that_the_plans_seed_decides() -> None:
    def seeds(seed: int) -> list[int]:
        made = chain(PAN, ARC, config=EditConfig(seed=seed))
        return [made.edit(index).seed for index in range(len(made))]

    assert seeds(0) == seeds(0) and len({*seeds(0), *seeds(1)}) == 12


def test_a_name_of_a_turn_is_no_part_of_its_ids() -> None:
    assert chain(dataclasses.replace(PAN, name="first look")).ids == chain(PAN).ids


@given(st.lists(st.sampled_from([PAN, ARC, TILT, Turn(prompt="at night")]), min_size=1, max_size=4), st.integers(8, 40))
def test_every_edit_is_the_child_of_the_one_before_and_sees_only_ancestors(turns: list[Turn], length: int) -> None:
    plan = chain(*turns, length=length)
    for index in range(len(plan)):
        edit = plan.edit(index)
        assert edit.id == plan.ids[index]
        assert edit.parent == (plan.ids[index - 1] if index else "")
        assert set(edit.candidates) <= set(plan.ids[:index])
        assert edit.preceding in {"", edit.parent}
        assert len(edit.target) == len(edit.camera) == edit.frames >= edit.segment.frames
        assert 0 <= edit.seed < 2**63


def test_a_camera_turn_ranks_all_ancestors_by_view_and_a_text_turn_its_own_by_descriptor() -> None:
    plan = chain(PAN, Turn(prompt="at night"))
    camera, text = plan.edit(2), plan.edit(5)
    assert camera.by == "coverage" and camera.candidates == plan.ids[:2]
    assert text.by == "descriptor" and text.candidates == plan.ids[3:5] and text.preceding == plan.ids[4]
    asked = chain(PAN, Turn(prompt="at night"), config=EditConfig(text_memories="all_turns"))
    assert asked.edit(5).candidates == asked.ids[:5]


def test_a_camera_turn_is_shown_only_what_was_told_the_same() -> None:
    night, previous = dataclasses.replace(ARC, prompt="at night"), {"input": "previous"}
    day = dataclasses.replace(TILT, prompt="")
    plan = chain(PAN, night, TILT, day, length=FRAMES)
    assert [plan.edit(turn).candidates for turn in range(4)] == [(), (), plan.ids[1:2], plan.ids[:1]]
    # What is edited again keeps its look, whatever it is told then.
    plan = chain(
        PAN, night, dataclasses.replace(day, **previous), dataclasses.replace(TILT, **previous),
        dataclasses.replace(PAN, prompt="in winter", **previous), dataclasses.replace(PAN, prompt="in winter"),
        length=FRAMES,
    )  # fmt: skip
    assert plan.looks == ((), ("at night",), ("at night",), ("at night",), ("at night", "in winter"), ("in winter",))
    assert [plan.edit(turn).candidates for turn in (2, 3, 4, 5)] == [plan.ids[1:2], plan.ids[1:3], (), ()]


def test_what_was_told_is_compared_as_the_model_reads_it_and_whatever_guidance_led_away_from() -> None:
    night, spaced = (dataclasses.replace(PAN, prompt=text) for text in ("at night", "  at\nnight "))
    starless = dataclasses.replace(night, negative_prompt="stars")
    plan = chain(night, spaced, starless, PAN, length=FRAMES)
    assert [plan.edit(turn).candidates for turn in range(4)] == [(), plan.ids[:1], plan.ids[:2], plan.ids[:3]]


def test_the_opening_of_an_edit_is_the_first_segment_of_its_shot_in_its_own_turn() -> None:
    plan = chain(PAN, Turn(prompt="at night"), cuts=(20,), length=8)
    shots = [segment.shot for segment in plan.segments]
    assert shots.count(0) > 1 and shots.count(1) > 1
    count = len(shots)
    for turn in (0, 1):
        ids = plan.turn_ids(turn)
        for s in range(count):
            opens = shots.index(shots[s])
            assert plan.edit(turn * count + s).opening == ("" if opens == s else ids[opens])


@given(
    cuts=st.sets(st.integers(1, FRAMES - 1), min_size=1, max_size=4),
    memories=st.sampled_from(["same_turn", "all_turns"]),
    placed=st.booleans(),
)
def test_after_a_cut_nothing_is_remembered_from_before_it_but_views_of_a_camera_whose_path_is_known(
    cuts, memories, placed
) -> None:
    config = EditConfig(text_memories=memories)
    plan = chain(PAN, Turn(prompt="at night"), ARC, config=config, cuts=sorted(cuts), length=8)
    plan = dataclasses.replace(plan, placed=placed)
    told = [(), ("at night",), ("at night",)]
    count = len(plan.segments)
    for index in range(len(plan)):
        edit, s = plan.edit(index), index % count
        before = range(index - s, index) if edit.by == "descriptor" and memories == "same_turn" else range(index)
        if edit.by == "coverage":
            before = [each for each in before if told[each // count] == told[index // count]]
        if not placed or edit.by == "descriptor":
            before = [each for each in before if plan.segments[each % count].shot == edit.segment.shot]
        assert list(edit.candidates) == [plan.ids[each] for each in before]
        goes_on = s and plan.segments[s - 1].shot == edit.segment.shot
        assert edit.preceding == (plan.ids[index - 1] if goes_on else "")
    assert not set(plan.ids) & set(dataclasses.replace(plan, placed=not placed).ids)


def test_a_turn_without_a_prompt_keeps_the_one_in_force_until_it_is_cleared() -> None:
    plan = chain(PAN, Turn(prompt="at night"), ARC, dataclasses.replace(TILT, prompt=""), PAN)
    assert plan.prompts == ("", "at night", "at night", "", "")


def test_a_turn_on_the_previous_result_edits_that_turns_latent_of_the_same_segment_and_from_its_camera() -> None:
    plan = chain(PAN, dataclasses.replace(ARC, input="previous"))
    assert plan.edit(0).input == ""
    assert plan.edit(4).input == plan.ids[1] and plan.edit(4).inputs == plan.ids[:2]
    assert plan.edit(0).inputs == ()
    assert plan.edit(4).camera.digest == plan.edit(1).target.digest
    first = chain(dataclasses.replace(ARC, input="previous"))
    assert first.edit(0).input == "", "the first turn has only the source to edit"


def test_the_folder_of_a_source_tells_its_stem_and_its_fingerprint() -> None:
    assert chain(PAN).name == "my_clip-ffffffffffffffff"
    long = dataclasses.replace(chain(PAN), info=dataclasses.replace(INFO, url="é" * 250 + ".mp4"))
    wide = dataclasses.replace(chain(PAN), info=dataclasses.replace(INFO, url="x" * 250 + ".mp4"))
    signed = dataclasses.replace(INFO, url="https://store.example/my%20clip.mp4?key=a/b/c&signature=d.e")
    assert dataclasses.replace(chain(PAN), info=signed).name == "my_20clip-ffffffffffffffff"
    assert long.name == "source-ffffffffffffffff" and wide.name == "x" * 100 + "-ffffffffffffffff"


def test_processes_that_run_elsewhere_find_a_source_named_from_here() -> None:
    assert chain(PAN).edit(0).url == chain(PAN).found.url == os.path.abspath(INFO.url)
    away = dataclasses.replace(chain(PAN), info=dataclasses.replace(INFO, url="s3://bucket/clip.mp4"))
    assert away.edit(0).url == away.found.url == "s3://bucket/clip.mp4"
