from __future__ import annotations

import json

import numpy as np
import pytest

from jobs.turn import Turn, TurnError, parse_turn, read_trajectory, target_trajectory
from pipeline.trajectory import PRESETS, TrajectoryError, default_intrinsics, preset
from pipeline.trajectory_formats import write_colmap, write_json
from storage.errors import StorageFault
from storage.turn_text import TURN_KEYS

INTRINSICS = default_intrinsics(1.0)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_camera_turn_named_after_it(name: str) -> None:
    assert parse_turn(name) == Turn(trajectory=name)
    assert parse_turn(name).label == name


def test_words_with_spaces_are_a_prompt_and_stay_out_of_the_name() -> None:
    turn = parse_turn("make it: winter, with snow")
    assert turn == Turn(prompt="make it: winter, with snow")
    assert turn.label == "text"


def test_a_mapping_may_hold_both_and_choose_its_input() -> None:
    for spec in (
        "{trajectory: arc_left, prompt: at night, input: previous}",
        {"trajectory": "arc_left", "prompt": "at night", "input": "previous"},
    ):
        assert parse_turn(spec) == Turn(trajectory="arc_left", prompt="at night", input="previous")
    assert parse_turn("prompt: winter") == parse_turn('"prompt": winter') == Turn(prompt="winter")
    assert parse_turn('prompt: "room #5"') == Turn(prompt="room #5")
    assert parse_turn("{trajectory: arc_left, prompt: null}") == Turn(trajectory="arc_left")
    assert parse_turn("camera: slow pan left") == Turn(prompt="camera: slow pan left")
    row = dict.fromkeys(TURN_KEYS) | {"prompt": "at night"}  # of a Parquet file, which holds every key
    assert parse_turn(row) == Turn(prompt="at night")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pan_rigth", ["pan_rigth", "pan_right", "no preset and no file"]),
        ("", ["empty"]),
        ("{trajectory: '', prompt: x}", ["empty trajectory", "leave the key out"]),
        ("{trajectory: pan_right, promt: x}", ["'promt'", "'prompt'"]),
        ("{trajectory: pan_right, input: last}", ["last", "source, previous"]),
        ("{trajectory: pan_right, span: twice}", ["twice", "exact, stretch, segment"]),
        ("{trajectory: [1, 2]}", ["trajectory", "[1, 2]"]),
        ("{input: previous}", ["neither a trajectory nor a prompt"]),
        ("{trajectory: pan_right", ["YAML"]),
        ("{prompt: &a [x, x], name: [*a, *a]}", ["alias"]),
        ("{prompt: " + "[" * 5000, ["YAML"]),
        ("{prompt: paint the cylinder red, the ball blue}", ["'the ball blue' without a value", "needs quotes"]),
        ("{trajectory: arc_left, prompt make it night}", ["'prompt make it night' without a value"]),
        ("{prompt: red, prompt: blue}", ["the key 'prompt' in line 1 was given before"]),
        ("prompt: room #5", ["ends at its #", "needs quotes"]),
        ("prompt:", ["neither a trajectory nor a prompt"]),
        ("prompt:red", ["'prompt:red' is no preset and no file"]),
    ],
)
def test_a_turn_that_cannot_be_understood_is_refused_in_one_line(spec: str, words: list[str]) -> None:
    with pytest.raises(TurnError) as caught:
        parse_turn(spec)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trajectory_file_is_read_whole_and_its_length_must_match(tmp_path) -> None:
    path = tmp_path / "my move.json"
    path.write_text(write_json(preset("arc_left", 20, INTRINSICS)))
    turn = parse_turn(str(path))
    assert turn.label == "my_move"
    target = target_trajectory(turn, 20, INTRINSICS, [(0, 20)])
    np.testing.assert_allclose(target.c2w, preset("arc_left", 20, INTRINSICS).c2w, atol=1e-12)
    with pytest.raises(TrajectoryError, match="20 poses, expected 30.*span: stretch"):
        target_trajectory(turn, 30, INTRINSICS, [(0, 30)])
    stretched = target_trajectory(Turn(trajectory=str(path), span="stretch"), 30, INTRINSICS, [(0, 30)])
    np.testing.assert_allclose(stretched.c2w[-1], target.c2w[-1], atol=1e-9)


def test_a_trajectory_with_nan_is_refused_with_its_frame_and_file(tmp_path) -> None:
    content = json.loads(write_json(preset("pan_right", 5, INTRINSICS)))
    content["c2w"][3][0][0] = float("nan")
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TrajectoryError, match=r"broken\.json.*3"):
        read_trajectory(str(path), INTRINSICS)


def test_a_binary_file_is_not_taken_for_a_trajectory(tmp_path) -> None:
    path = tmp_path / "noise.json"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(TrajectoryError, match=r"noise\.json is not a text file"):
        read_trajectory(str(path), INTRINSICS)


def test_a_trajectory_that_is_not_there_says_what_was_expected(tmp_path) -> None:
    with pytest.raises(
        TrajectoryError, match=r"gone\.json: no such file, expected a trajectory as JSON or a folder with "
    ):
        read_trajectory(str(tmp_path / "gone.json"), INTRINSICS)
    with pytest.raises(TrajectoryError, match=r"no such file, .* a folder with cameras\.txt and images\.txt"):
        read_trajectory(str(tmp_path), INTRINSICS)


def test_a_trajectory_whose_server_fails_or_does_not_answer_is_not_missing(server) -> None:
    for url in ("http://localhost:9/a.json", *(server(status, "a.json") for status in (503, 408, 429))):
        for ask in (lambda url: read_trajectory(url, INTRINSICS), parse_turn):
            with pytest.raises(StorageFault, match=f"{url}: its server fails or does not answer .*; check address"):
                ask(url)


@pytest.mark.parametrize("address", ["http://[x/a.json", "http:///a.json"])
def test_a_trajectory_that_its_server_lacks_or_that_has_no_server_is_missing(server, address) -> None:
    for url in (server(404, "a.json"), address):
        with pytest.raises(TurnError, match="is no preset and no file"):
            parse_turn(url)


def test_colmaps_binary_files_and_one_of_its_text_files_alone_say_what_to_give(tmp_path) -> None:
    for name in ("cameras.bin", "images.bin"):
        (tmp_path / name).write_bytes(bytes(8))
    with pytest.raises(TrajectoryError, match=r"binary files, expected cameras\.txt .* --output_type TXT"):
        read_trajectory(str(tmp_path), INTRINSICS)
    (tmp_path / "images.txt").write_text("# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME\n")
    with pytest.raises(TrajectoryError, match=r"images\.txt is one of COLMAP's files, expected the folder of "):
        read_trajectory(str(tmp_path / "images.txt"), INTRINSICS)


def test_a_folder_of_colmap_is_a_path_that_begins_where_the_source_stands(tmp_path) -> None:
    path = preset("arc_left", 12, INTRINSICS)[4:]
    for name, text in zip(("cameras.txt", "images.txt"), write_colmap(path, 64, 64), strict=True):
        (tmp_path / name).write_text(text)
    read = read_trajectory(str(tmp_path), INTRINSICS)
    np.testing.assert_allclose(read.c2w, path.relative_to(path.c2w[0]).c2w, atol=1e-6)
    assert abs(path.c2w[0] - np.eye(3, 4)).max() > 0.1, "which is elsewhere in COLMAP's world"


def test_presets_stretch_whatever_the_span_says() -> None:
    for span in ("exact", "stretch"):
        target = target_trajectory(Turn(trajectory="arc_left", span=span), 20, INTRINSICS, [(0, 20)])
        np.testing.assert_array_equal(target.c2w, preset("arc_left", 20, INTRINSICS).c2w)


def test_a_file_may_repeat_in_every_segment(tmp_path) -> None:
    path = tmp_path / "move.json"
    path.write_text(write_json(preset("arc_left", 12, INTRINSICS)))
    turn = Turn(trajectory=str(path), span="segment")
    target = target_trajectory(turn, 20, INTRINSICS, [(0, 8), (8, 20)])
    whole = read_trajectory(str(path), INTRINSICS)
    np.testing.assert_allclose(target.c2w[:8], whole.resampled(8).c2w)
    np.testing.assert_allclose(target.c2w[8:], whole.c2w)


def test_a_path_may_repeat_in_every_segment() -> None:
    target = target_trajectory(
        Turn(trajectory="pan_right", span="segment"), 20, INTRINSICS, [(0, 8), (8, 16), (16, 20)]
    )
    once = preset("pan_right", 8, INTRINSICS)
    np.testing.assert_array_equal(target.c2w[:8], once.c2w)
    np.testing.assert_array_equal(target.c2w[8:16], once.c2w)
    np.testing.assert_allclose(target.c2w[19], once.c2w[-1])
