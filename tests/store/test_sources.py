"""Every kind of input becomes sources in order, and one bad entry never costs the good ones."""

from __future__ import annotations

import json
import os
import re

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.sources import SourceEntry, expand


@pytest.fixture
def folder(tmp_path):
    for name in ("b.mp4", "a.MOV", "notes.txt", "c.webm", "sub/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def urls(*inputs: object) -> list[str]:
    entries, problems = expand([str(name) for name in inputs])
    assert problems == []
    return [entry.url for entry in entries]


def problem(*inputs: object) -> str:
    entries, problems = expand([str(name) for name in inputs])
    assert entries == [] and len(problems) == 1 and "\n" not in problems[0][1]
    return ": ".join(problems[0])


def test_files_folders_and_patterns_in_the_order_given(folder):
    assert urls(folder / "notes.txt") == [str(folder / "notes.txt")], "a named file is taken whatever its name"
    assert urls(folder) == [str(folder / name) for name in ("a.MOV", "b.mp4", "c.webm")]
    assert urls(folder / "c.webm", folder / "*.mp4", folder / "*" / "*.mp4") == [
        str(folder / name) for name in ("c.webm", "b.mp4", "sub/d.mp4")
    ]
    (folder / "sub" / "deep").mkdir()
    (folder / "sub" / "deep" / "e.mp4").touch()
    assert urls(folder / "**" / "*.mp4") == [str(folder / name) for name in ("b.mp4", "sub/d.mp4", "sub/deep/e.mp4")]
    assert urls(f"file://{folder}/b.mp4") == [f"file://{folder}/b.mp4"]


def test_what_a_camcorder_or_a_mac_leaves_in_a_folder_is_told_apart(folder):
    for name in ("00001.MTS", "._b.mp4"):
        (folder / name).touch()
    assert urls(folder) == [str(folder / name) for name in ("00001.MTS", "a.MOV", "b.mp4", "c.webm")]
    assert urls(folder / "._b.mp4") == [str(folder / "._b.mp4")]


def test_a_name_that_reads_as_several_urls_is_named_and_the_others_go_on(folder):
    named = folder / "Talk :: part 1.mp4"
    named.touch()
    assert "Talk :: part 1.mp4: has '::' in its name or its folder's, which stands between URLs: rename" in problem(
        named
    )
    entries, [(name, _)] = expand([str(folder)])
    assert len(entries) == 3 and name == str(named)


def test_a_file_with_brackets_in_its_name_is_itself(folder):
    (folder / "take[1].mp4").write_bytes(b"")
    assert urls(folder / "take[1].mp4") == [str(folder / "take[1].mp4")]


def test_brackets_in_remote_names_are_names_where_such_a_file_is_there_and_what_a_pattern_matches_is_itself():
    for name in ("Take [1].mp4", "Take 1.mp4", "Talk [dQw4].mp4"):
        with fsspec.open(f"memory://brackets/{name}", "wb") as file:
            file.write(b"")
    assert urls("memory://brackets/Take [1].mp4") == ["memory://brackets/Take [1].mp4"]
    assert urls("memory://brackets/Ta*].mp4") == [
        "memory:///brackets/Take [1].mp4", "memory:///brackets/Talk [dQw4].mp4",
    ]  # fmt: skip


def test_the_question_mark_of_a_web_address_is_no_pattern_and_costs_no_request(monkeypatch):
    def asked(*_: object) -> None:
        raise AssertionError("a request")

    monkeypatch.setattr(fsspec.core, "url_to_fs", asked)
    for url in ("https://a.example/talk.mp4?X-Amz-Signature=abc", "https://a.example/get?file=x/y"):
        assert urls(url) == [url]


def test_a_row_may_hold_every_character_that_json_strings_may(folder):
    rows = [{"url": "b.mp4", "turns": ["a\u2028b c"]}, {"url": "c.webm", "turns": ["d\u0085e f"]}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "m.jsonl").write_bytes(text.encode())
    assert urls(folder / "m.jsonl") == [str(folder / "b.mp4"), str(folder / "c.webm")]


def test_other_file_systems_have_files_folders_and_patterns_too():
    for name in ("x.mp4", "y.mp4", "z.txt"):
        with fsspec.open(f"memory://sources/{name}", "wb") as file:
            file.write(b"")
    both = ["memory:///sources/x.mp4", "memory:///sources/y.mp4"]
    assert urls("memory://sources") == urls("memory://sources/") == both
    assert urls("memory://sources/*.mp4") == both
    assert urls("memory://sources/x.mp4") == ["memory://sources/x.mp4"]
    assert "matches nothing" in problem("memory://sources/*.mkv")


def test_what_is_not_there_is_named_and_the_rest_goes_on(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    entries, problems = expand([str(folder / name) for name in ("none.mp4", "b.mp4", "*.xyz", "empty")])
    assert [entry.url for entry in entries] == [str(folder / "b.mp4")]
    assert [name for name, _ in problems] == [str(folder / "none.mp4"), str(folder / "*.xyz"), str(folder / "empty")]
    for (_, line), reason in zip(problems, ("no such", "matches nothing", "no video"), strict=True):
        assert reason in line


def test_what_is_unlike_a_source_is_left_out_of_patterns_alone(folder):
    (folder / "other.mp4").touch()
    everything = urls(folder / "*.mp4")
    taken, problems = expand([str(folder / "*.mp4"), str(folder / "b.mp4")], unlike=lambda url: url.endswith("/b.mp4"))
    assert problems == [] and everything.count(str(folder / "b.mp4")) == 1
    left = [url for url in everything if not url.endswith("/b.mp4")]
    assert [entry.url for entry in taken] == [*left, str(folder / "b.mp4")]


@pytest.mark.parametrize("name", ["pipe.mp4", "pipe.jsonl"])
def test_a_pipe_is_no_source_and_nobody_waits_for_it(folder, name):
    os.mkfifo(folder / name)
    assert "is no file" in problem(folder / name)


def test_manifests_of_both_kinds_say_the_same(folder):
    rows = [
        {"url": "b.mp4", "trajectory": "sub/cam.json", "shots": None, "turns": ["pan_right", "make it night"]},
        {"url": "s3://bucket/v.mp4", "trajectory": None, "shots": "shots.txt", "turns": None},
    ]
    (folder / "plan.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows), folder / "plan.parquet")
    expected = [
        SourceEntry(f"{folder}/b.mp4", f"{folder}/sub/cam.json", None, ("pan_right", {"prompt": "make it night"})),
        SourceEntry("s3://bucket/v.mp4", None, f"{folder}/shots.txt", None),
    ]
    for name in ("plan.jsonl", "plan.parquet"):
        assert expand([str(folder / name)]) == (expected, [])
    turn = {"trajectory": "arc_left", "prompt": "at night"}
    (folder / "maps.jsonl").write_text(json.dumps({"url": "b.mp4", "turns": [turn]}))
    assert expand([str(folder / "maps.jsonl")])[0][0].turns == (turn,)


@pytest.mark.parametrize(
    "turn, expected",
    [
        ("arc_left", "arc_left"),
        ("sub/cam.json", {"trajectory": "{folder}/sub/cam.json"}),
        ({"trajectory": "cam.json", "span": "stretch"}, {"trajectory": "{folder}/cam.json", "span": "stretch"}),
        ("{trajectory: cam.json, prompt: at night}", {"trajectory": "{folder}/cam.json", "prompt": "at night"}),
        ("trajectory: my cam.json", {"trajectory": "{folder}/my cam.json"}),
        ("s3://bucket/cam.json", {"trajectory": "s3://bucket/cam.json"}),
        ({"prompt": "snow", "trajectory": None}, {"prompt": "snow", "trajectory": None}),
        ("prompt: snow", {"prompt": "snow"}),
        ("Note: make it night", {"prompt": "Note: make it night"}),
        ("turn left/../../../../etc/cam.json", {"prompt": "turn left/../../../../etc/cam.json"}),
    ],
)
def test_a_file_in_a_manifests_turn_is_the_one_in_its_folder_and_words_stay_words(folder, turn, expected):
    (folder / "plan.jsonl").write_text(json.dumps({"url": "b.mp4", "turns": [turn]}))
    [entry] = expand([str(folder / "plan.jsonl")])[0]
    if isinstance(expected, dict) and expected.get("trajectory"):
        expected = expected | {"trajectory": expected["trajectory"].format(folder=folder)}
    assert entry.turns == (expected,)


def test_an_input_whose_store_raises_a_class_of_its_own_costs_itself_alone(folder, monkeypatch):
    class NoCredentials(Exception):
        pass

    def fails(self, path, **options):
        raise NoCredentials("unable to locate\ncredentials")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "isdir", fails)
    entries, problems = expand(["memory://closed/folder", "dir:///x.mp4", "dir:///*.mp4", str(folder / "b.mp4")])
    assert urls(folder / "b.mp4") == [entry.url for entry in entries if entry.url.startswith(str(folder))]
    assert problems[0][1].startswith("cannot be read (NoCredentials: unable to locate credentials); ")
    assert problems[-1][0] == "dir:///*.mp4" and "AttributeError" in problems[-1][1]


def test_a_manifest_in_the_working_folder_or_on_another_file_system_has_its_own_folder(folder, monkeypatch):
    (folder / "plan.jsonl").write_text('{"url": "b.mp4"}')
    monkeypatch.chdir(folder)
    assert urls("plan.jsonl") == ["b.mp4"]
    with fsspec.open("memory://manifests/plan.jsonl", "wb") as file:
        file.write(b'{"url": "sub/b.mp4"}')
    assert urls("memory://manifests/plan.jsonl") == ["memory://manifests/sub/b.mp4"]


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"url": "/etc/passwd"}, "absolute"),
        ({"url": "file:///etc/passwd"}, "absolute"),
        ({"url": "~/secret.mp4"}, "absolute"),
        ({"url": "../other/b.mp4"}, "climbs out"),
        ({"url": "sub/../../b.mp4"}, "climbs out"),
        ({"url": "sub\\..\\..\\b.mp4"}, "climbs out"),
        ({"url": "b.mp4", "trajectory": "../cam.json"}, "trajectory .* climbs out"),
        ({"url": "b.mp4", "shots": "/shots.txt"}, "shots .* absolute"),
        ({"url": "simplecache::file:///etc/passwd"}, "chains"),
        ({"url": "c://../../secret.mp4"}, "file system 'c'"),
        ({"url": "d://etc/passwd"}, "file system 'd'"),
        ({"url": "generic://file:///etc/passwd"}, "file system 'generic'"),
        ({"url": "b.mp4", "shots": "git:///srv/repository:shots.txt"}, "shots .* file system 'git'"),
        ({"url": "FILE:///etc/passwd"}, "file system 'FILE'"),
        ({"url": "b.mp4", "turns": ["c://../cam.json"]}, "file system 'c'"),
        ({"url": "link.mp4"}, "link out"),
        ({"url": "b.mp4", "prmopt": "x"}, "unknown column 'prmopt'"),
        ({"trajectory": "cam.json"}, "no url"),
        ({"url": 5}, "expected a path"),
        ({"url": "b.mp4", "turns": "pan_right"}, "expected a list"),
        ({"url": "b.mp4", "turns": []}, "at least one turn"),
        ({"url": "b.mp4", "turns": [3]}, "neither a string nor a mapping"),
        ({"url": "b.mp4", "turns": ["pan_right", "/etc/cam.json"]}, "trajectory of a turn '/etc/cam.json' .* absolute"),
        ({"url": "b.mp4", "turns": ["../cam.json"]}, "climbs out"),
        ({"url": "b.mp4", "turns": ["link.mp4"]}, "link out"),
        ({"url": "b.mp4", "turns": ["colmap"]}, "'colmap/cameras.txt' is a link out"),
        ({"url": "b.mp4", "turns": [{"trajectory": "file:///cam.json", "prompt": "at night"}]}, "absolute"),
        ({"url": "b.mp4", "turns": ["{trajectory: ../cam.json, prompt: at night}"]}, "climbs out"),
        ({"url": "b.mp4", "turns": ["trajectory: /etc/my cam.json"]}, "absolute"),
        ({"url": "b.mp4", "turns": ["name: x\ntrajectory: /etc/cam.json"]}, "absolute"),
        ({"url": "b.mp4", "turns": ["{trajectory: "]}, "not readable YAML"),
        ({"url": "b.mp4", "turns": [" "]}, "a turn is empty"),
        ({"url": "b.mp4", "turns": [{"trajectory": 3}]}, "expected a path"),
        (["b.mp4"], "expected an object"),
    ],
)
def test_a_bad_row_is_named_and_the_others_go_on(folder, row, reason):
    (folder / "inside").mkdir()
    (folder / "inside" / "b.mp4").write_bytes(b"")
    (folder / "inside" / "link.mp4").symlink_to(folder / "c.webm")
    (folder / "inside" / "colmap").mkdir()
    (folder / "inside" / "colmap" / "cameras.txt").symlink_to(folder / "c.webm")
    plan = folder / "inside" / "plan.jsonl"
    plan.write_text("\n".join(['{"url": "b.mp4"}', json.dumps(row), "{broken", '{"url": "b.mp4"}']))
    entries, problems = expand([str(plan)])
    assert [entry.url for entry in entries] == [f"{folder}/inside/b.mp4"] * 2
    assert [name for name, _ in problems] == [f"{plan}:2", f"{plan}:3"]
    assert re.search(reason, problems[0][1]) and "not JSON" in problems[1][1]


def test_a_row_in_another_encoding_or_too_deep_to_be_read_costs_no_other(folder):
    strange = [
        b'{"url": "caf\xe9.mp4"}',
        b"[" * 100_000,
        b'{"url": "b.mp4", "turns": ["{prompt: ' + b"[" * 5000 + b'"]}',
    ]
    rows = [b'\xef\xbb\xbf{"url": "b.mp4"}', *strange, b'{"url": "b.mp4"}']
    (folder / "plan.jsonl").write_bytes(b"\n".join(rows))
    entries, problems = expand([f"{folder}/plan.jsonl"])
    assert [entry.url for entry in entries] == [f"{folder}/b.mp4"] * 2
    assert [name for name, _ in problems] == [f"{folder}/plan.jsonl:{number}" for number in (2, 3, 4)]


def test_a_manifest_of_nothing_is_a_problem(folder):
    (folder / "empty.jsonl").write_text("\n")
    assert "no rows" in problem(folder / "empty.jsonl")
    (folder / "text.parquet").write_text("not parquet")
    assert "not a Parquet file" in problem(folder / "text.parquet")
    assert "no such file" in problem(folder / "none.jsonl")
