"""`memory-v2v edit` from its command line to its files, on one Ray and with the smallest model."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.outcome import Outcome
from jobs.config import EditConfig
from jobs.main import main
from jobs.model import resolve
from jobs.plan import make_plan
from jobs.turn import parse_turn
from pipeline.coverage import Sphere
from pipeline.descriptor import DIMENSION
from pipeline.pixels import load_codec
from storage.fingerprint import folder_digest
from storage.library import Library
from storage.video import probe, read_frames
from tests.by_hand import edit_by_hand, new_setup
from tests.generated import moving_frames, write_clip

pytestmark = pytest.mark.usefixtures("ray_cluster")
TEXT = "{prompt: a red jacket, input: previous}"
TURNS = ["--turn", "pan_right", "--turn", "arc_left", "--turn", TEXT]
FRAMES = 40  # two and a half segments of 16


def run(*words: str | Path, out: Path, model: str) -> tuple[int, str]:
    """The command: its exit code and what it printed."""
    with io.StringIO() as said, redirect_stdout(said), redirect_stderr(said):
        code = main(["edit", *map(str, words), "--out", str(out), "--model", model])
        return code, said.getvalue()


@pytest.fixture
def edit(tiny_model: str, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """The command in a folder of the test's own."""
    return lambda *words, out="out", model=tiny_model: run(*words, out=tmp_path / out, model=model)


@dataclass(frozen=True)
class Edited:
    """A finished run that several tests look at: a clip in three turns."""

    clip: Path
    out: Path
    said: str

    @property
    def folder(self) -> Path:
        [folder] = self.out.glob("clip-*")
        return folder


@pytest.fixture(scope="module")
def edited(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Edited:
    folder = tmp_path_factory.mktemp("edited")
    clip = write_clip(folder / "clip.mp4", moving_frames(FRAMES, 48, 64), rate=24, audio="aac")
    code, said = run(clip, *TURNS, out=folder / "out", model=tiny_model)
    assert code == 0, said
    return Edited(Path(clip), folder / "out", said)


@pytest.fixture
def clip(edited: Edited) -> Path:
    return edited.clip


def files(folder: Path) -> dict[str, str]:
    """Digest of every published video below a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*/*.mp4"))
    }


def table(out: Path) -> tuple[list[dict], list[dict]]:
    """Rows of results.parquet: about edits, and about sources as a whole."""
    rows = pq.read_table(out / "results.parquet").to_pylist()
    return [row for row in rows if row["id"]], [row for row in rows if not row["id"]]


def latents(out: Path, model: str, sphere: Sphere | None = None) -> dict[str, bytes]:
    url = f"{out}/library/default.lance"
    sphere = sphere or Sphere()
    library = Library.open(url, model=folder_digest(model), sphere=sphere, descriptor_dim=DIMENSION, create=False)
    ids = library.rows().column("id").to_pylist()
    return {memory.id: memory.latent.numpy().tobytes() for memory in library.read(ids)}


def test_three_turns_give_three_videos_a_comparison_a_library_and_a_table(edited, tiny_model) -> None:
    assert "untrained" in edited.said and "9 edits made" in edited.said
    assert sorted(p.name for p in edited.folder.iterdir()) == [
        "compare.mp4", "turn-01-pan_right.mp4", "turn-02-arc_left.mp4", "turn-03-text.mp4",
    ]  # fmt: skip
    source = probe(str(edited.clip))
    for path in edited.folder.glob("turn-*.mp4"):
        info = probe(str(path))
        assert (info.frames, info.rate, info.audio) == (source.frames, source.rate, True)
        assert info.height % 2 == 0 and abs(info.width / info.height - 64 / 48) < 0.1
    rows, notes = table(edited.out)
    assert [note["status"] for note in notes] == ["warning"] and "camera moves" in notes[0]["message"]
    assert [(row["turn"], row["segment"], row["status"]) for row in rows] == [
        (turn, segment, "done") for turn in (1, 2, 3) for segment in (0, 1, 2)
    ]
    assert set(latents(edited.out, tiny_model)) == {row["id"] for row in rows}
    assert {Path(row["video"]).name for row in rows} == {path.name for path in edited.folder.glob("turn-*.mp4")}
    summary = json.loads((edited.out / "summary.json").read_text())
    assert summary["sources"] == {"done": 1, "failed": 0} and summary["edits"] == {"done": 9}


def test_every_edit_remembers_its_ancestors_and_a_text_turn_its_own_segments_the_preceding_first(edited) -> None:
    rows, _ = table(edited.out)
    ids = [row["id"] for row in rows]
    for index, row in enumerate(rows[:6]):
        assert set(row["memories"]) <= set(ids[:index]) and len(row["memories"]) == min(4, index) == len(row["scores"])
    text = rows[6:]
    assert text[0]["memories"] == [] and text[1]["memories"] == [text[0]["id"]]
    assert text[2]["memories"] == [text[1]["id"], text[0]["id"]]


def test_the_same_command_again_finds_all_done_and_writes_no_video_anew(edited, tiny_model) -> None:
    before = {path: path.stat().st_mtime_ns for path in edited.folder.iterdir()}
    code, said = run(edited.clip, *TURNS, out=edited.out, model=tiny_model)
    assert code == 0 and "9 edits done, 0 to do" in said and "0 edits made" in said
    assert {path: path.stat().st_mtime_ns for path in edited.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TURNS[:4], "--turn", "tilt_up"], "6 edits done, 3 to do"),
        ([*TURNS[:2], "--turn", "tilt_up", *TURNS[4:]], "3 edits done, 6 to do"),
        ([*TURNS, "--turn", "tilt_up"], "9 edits done, 3 to do"),
        ([*TURNS, "seed=1"], "0 edits done, 9 to do"),
        ([*TURNS, "radius=50"], "0 edits done, 9 to do"),
        ([*TURNS, "crf=30", "--workers", "7"], "9 edits done, 0 to do"),
        ([*TURNS, "--fresh"], "--fresh would forget 9 memories and 4 videos"),
        ([*TURNS, "--fresh"], "0 edits done, 9 to do"),
    ],
)
def test_a_dry_run_tells_what_a_changed_plan_shares_with_what_was_done(edited, tiny_model, words, said) -> None:
    code, printed = run(edited.clip, *words, "--dry-run", out=edited.out, model=tiny_model)
    assert code == 0 and said in printed


def test_a_run_that_was_stopped_is_no_success_also_where_only_a_comparison_is_missing(
    edited, tiny_model, tmp_path, monkeypatch
) -> None:
    shutil.copytree(edited.out, tmp_path / "copy")
    monkeypatch.setattr("jobs.edit._run", lambda *_: Outcome(stopped="interrupted"))
    code, said = run(edited.clip, *TURNS, out=tmp_path / "copy", model=tiny_model)
    assert code == 1 and "stopped: interrupted" in said and "1 of 1 videos done" in said


def test_changed_publish_settings_publish_again_without_an_edit(edited, tiny_model, tmp_path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(edited.out, out)
    code, said = run(edited.clip, *TURNS, "upscale=source", "crf=30", out=out, model=tiny_model)
    assert code == 0 and "0 edits made" in said
    assert {(probe(str(p)).height, probe(str(p)).width) for p in out.glob("clip-*/turn-*")} == {(48, 64)}


def test_a_source_is_forgotten_with_all_its_videos_whatever_it_was_called_and_without_an_edit(
    edited, tiny_model, tmp_path
) -> None:
    out, renamed = tmp_path / "copy", tmp_path / "-renamed.mp4"
    shutil.copytree(edited.out, out)
    shutil.copy(edited.clip, renamed)
    code, said = run(renamed, *TURNS, out=out, model=tiny_model)
    assert code == 0 and "0 edits made" in said
    assert sorted(path.name.rpartition("-")[0] for path in out.glob("*-*")) == ["clip", "renamed"]
    [folder] = out.glob("clip-*")
    (folder / ".turn-01-pan_right.mp4.0123456789ab.partial").touch()  # as a killed publisher leaves
    code, said = run(renamed, "--fresh", "--dry-run", out=out, model=tiny_model)
    assert code == 0 and "--fresh would forget 9 memories and 9 videos" in said and "plan:" not in said
    code, said = run(renamed, "--fresh", out=out, model=tiny_model)
    assert code == 0 and "--fresh forgot 9 memories and 9 videos" in said
    assert not list(out.glob("*-*")) and not latents(out, tiny_model)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sources"] == {"done": 0, "failed": 0} and table(out) == ([], []), "also of what was only forgotten"


def test_a_damaged_latent_is_not_called_kept_and_the_advice_that_is_given_helps(edited, tiny_model, tmp_path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(edited.out, out)
    before = latents(out, tiny_model)
    last = list(before.values())[-1]
    [path] = [path for path in (out / "library").rglob("*") if path.is_file() and last in path.read_bytes()]
    path.write_bytes(path.read_bytes().replace(last, bytes(len(last))))
    code, said = run(edited.clip, *TURNS, "crf=30", out=out, model=tiny_model)
    assert code == 1 and "is damaged" in said and "add --fresh" in said and "kept" not in said
    code, said = run(edited.clip, *TURNS, "--fresh", out=out, model=tiny_model)
    assert code == 0 and latents(out, tiny_model) == before


def test_nothing_of_an_owners_is_anothers(edited, tiny_model, tmp_path, monkeypatch) -> None:
    out = tmp_path / "copy"
    shutil.copytree(edited.out, out)
    before = files(out)
    monkeypatch.setattr("jobs.edit._run", lambda *_: Outcome())
    code, said = run(edited.clip, *TURNS, "--owner", "bob", out=out, model=tiny_model)
    assert code == 1 and "0 edits done, 9 to do" in said and "0 of 1 videos done" in said
    assert json.loads((out / "summary.json").read_text())["edits"] == {"done": 9}
    assert json.loads((out / "bob/summary.json").read_text())["edits"] == {"left": 9}
    [theirs] = [out / "bob" / edited.folder.name]
    shutil.copytree(edited.folder, theirs)
    code, said = run(edited.clip, "--owner", "bob", "--fresh", out=out, model=tiny_model)
    assert code == 0 and "--fresh forgot 0 memories and 4 videos" in said
    assert files(out) == before and not theirs.exists()


def test_a_name_that_is_no_text_has_its_results_too(edited, tiny_model, tmp_path, monkeypatch) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"\xff.mp4")
    shutil.copy(edited.clip, odd)
    monkeypatch.setattr("jobs.edit._run", lambda *_: Outcome())
    code, _ = run(os.fsdecode(odd), *TURNS, out=tmp_path / "out", model=tiny_model)
    assert code == 1
    rows, notes = table(tmp_path / "out")
    assert {row["source"] for row in [*rows, *notes]} == {f"{tmp_path}/\\udcff.mp4"}


def test_of_a_manifest_a_fresh_start_forgets_all_and_edits_only_what_has_turns(edited, tiny_model, tmp_path) -> None:
    rows = [{"url": edited.clip.name, "turns": ["pan_right"]}, {"url": "other.mp4"}]
    write_clip(edited.clip.parent / "other.mp4", moving_frames(20, 48, 64, seed=1), rate=24)
    plan = edited.clip.parent / "rows.jsonl"
    plan.write_text("\n".join(map(json.dumps, rows)))
    code, said = run(plan, "--fresh", "--dry-run", out=edited.out, model=tiny_model)
    assert code == 0 and "--fresh would forget 9 memories and 4 videos" in said, said
    assert "plan: 1 videos" in said and "3 to do" in said, said


def test_two_workers_make_what_is_made_by_hand_and_a_fresh_start_makes_it_again(edit, tmp_path, tiny_model) -> None:
    clips = [
        write_clip(tmp_path / f"{number}.mp4", moving_frames(frames, 48, 64, seed=number), rate=24)
        for number, frames in enumerate((40, 20, 4))
    ]
    out, library = tmp_path / "out [1]", tmp_path / "out [1]" / "library" / "default.lance"
    chains = make_plan(clips, [parse_turn("pan_right")], EditConfig(), resolve(tiny_model)).chains
    edit_by_hand(chains, new_setup(tiny_model, library), out)
    by_hand = latents(out, tiny_model), files(out)
    assert len(by_hand[0]) == 3 + 2 + 1 and len(by_hand[1]) == 3 * 2
    [compared] = out.glob("0-*/compare.mp4")
    compared.with_name("turn-02-tilt_up.mp4").touch()  # of a plan that had a second turn
    code, said = edit(*clips, *TURNS[:2], "--workers", "2", "--fresh", out=out)
    assert code == 0 and "6 edits made" in said, said
    assert (latents(out, tiny_model), files(out)) == by_hand


def test_one_perturbed_weight_renames_every_edit_and_the_old_library_refuses_it(edited, tmp_path, tiny_model) -> None:
    other = tmp_path / "perturbed"
    shutil.copytree(tiny_model, other)
    path = next((other / "transformer").glob("*.safetensors"))
    weights = load_file(path)
    weights[sorted(weights)[0]].view(-1)[0] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    code, said = run(edited.clip, *TURNS, out=edited.out, model=str(other))
    assert code == 2 and "holds memories of model" in said and "--library" in said
    code, said = run(edited.clip, *TURNS, "--library", tmp_path, "--dry-run", out=edited.out, model=str(other))
    assert code == 0 and "0 edits done, 9 to do" in said


def test_a_folder_with_bad_files_among_good_ones_finishes_the_good_ones(edit, clip, tmp_path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    shutil.copy(clip, folder / "a_good.mp4")
    (folder / "b_text.mp4").write_text("this is no video\n" * 100)
    whole = clip.read_bytes()
    (folder / "c_truncated.mp4").write_bytes(whole[: len(whole) // 2])
    shutil.copy(clip, folder / "d_copy.mp4")
    write_clip(folder / "e_one_frame.mp4", moving_frames(1, 48, 64))
    write_clip(folder / "f_two_frames.mp4", moving_frames(2, 48, 64))
    (folder / "g_empty.mp4").write_bytes(b"")
    code, said = edit(folder, "--turn", "pan_right", tmp_path / "missing.mp4", "--workers", "1")
    assert code == 1
    for name in ("b_text.mp4", "c_truncated.mp4", "d_copy.mp4", "g_empty.mp4", "missing.mp4"):
        lines = [line for line in said.splitlines() if line.startswith("skipped") and name in line]
        assert len(lines) == 1, said
    out = tmp_path / "out"
    assert {p.parent.name.rpartition("-")[0]: probe(str(p)).frames for p in out.glob("*/turn-01-*.mp4")} == {
        "a_good": FRAMES, "e_one_frame": 1, "f_two_frames": 2,
    }  # fmt: skip
    assert json.loads((out / "summary.json").read_text())["sources"] == {"done": 3, "failed": 5}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--turn", "pan_rigth"], "'pan_right'"),
        ([], "no turns"),
        (["--turn", "pan_right", "wrokers=2"], "'workers'"),
        (["--turn", "winter"], "A prompt of one word is written 'prompt: winter'"),
        (["--turn", "pan_right", "--steps", "4"], "unknown option --steps; settings are written without dashes"),
        (["--turn", "pan_right", "k=[1"], "'k'"),
        (["--turn", "pan_right", "shift=.inf"], "'shift'"),
        (["--turn", "pan_right", "size=97x128"], "97x128"),
        (["--turn", "pan_right", "overlap=16"], "overlap is 16"),
        (["--turn", "pan_right", "segment_frames=15"], "takes 16"),
        (["--turn", "pan_right", "--owner", "../else"], "owner '../else'"),
        (["--turn", "pan_right", "--owner", "library"], "owner 'library'"),
        (["--turn", "pan_right", "--limit", "0"], "--limit is 0"),
        (["--turn", "pan_right", "--shots", "nowhere.txt"], "nowhere.txt is not there"),
        (["--turn", "pan_right", "--workers", "5000"], "ask for fewer with workers=N"),
        (["--turn", "{trajectory: broken.json}"], "broken.json"),
    ],
)
def test_a_command_that_cannot_be_understood_exits_with_two_and_one_line(
    edit, clip, tmp_path, monkeypatch, words, expected
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"format": "memory-v2v/trajectory", "c2w": [[NaN]]}')
    code, said = edit(clip, *words)
    lines = [line for line in said.splitlines() if line.startswith("memory-v2v: ")]
    assert code == 2 and len(lines) == 1 and expected in lines[0], said


class NoCredentials(Exception):
    """As botocore's, which is of no kind that Python knows."""


class Locked(fsspec.AbstractFileSystem):
    """A store that lets nobody in."""

    protocol = "locked"

    def info(self, path, **_):
        raise NoCredentials("unable to locate credentials")

    ls = exists = isfile = _open = info


@pytest.mark.parametrize(
    "words",
    [
        ["edit", "CLIP", "--turn", "locked://b/path.json", "--out", "out"],
        ["edit", "CLIP", "--turn", "pan_right", "--out", "locked://b/out", "--dry-run"],
        ["edit", "CLIP", "--turn", "pan_right", "--out", "locked://b/out", "--fresh", "--dry-run"],
        ["edit", "CLIP", "--turn", "pan_right", "--out", "out", "--library", "locked://b/library", "--dry-run"],
        ["edit", "--plan", "locked://b/plan.yaml", "--out", "out"],
        ["synthesize", "--scenes", "1", "--out", "locked://b/scenes"],
        ["train", "--config", "locked://b/train.yaml"],
    ],
)
def test_a_store_that_lets_nobody_in_is_one_line(words, clip, tiny_model, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    fsspec.register_implementation("locked", Locked, clobber=True)
    words = [str(clip) if word == "CLIP" else word for word in words]
    assert main([*words, *(["--model", tiny_model] if words[0] == "edit" else [])]) == 2
    said = capfd.readouterr().err
    line = said.splitlines()[-1]
    assert line.startswith("memory-v2v: ") and "locked://b/" in line and "NoCredentials: unable to locate" in line
    assert "Traceback" not in said


@pytest.mark.parametrize("words", [["edit", "a.mp4", "--turn", "pan_right"], ["synthesize", "--scenes", "1"]])
def test_an_output_folder_that_would_end_with_the_process_is_refused(words, capfd) -> None:
    for out in ("memory://out", "simplecache::memory://out"):
        for more in ([], ["--dry-run"]):
            assert main([*words, "--out", out, *more]) == 2
            assert f"output folder {out} would live in one process alone" in capfd.readouterr().err


def test_an_output_folder_that_is_a_file_or_cannot_be_made_exits_with_two(edit, clip, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    code, said = edit(clip, "--turn", "pan_right", out="file")
    assert code == 2 and "is a file" in said
    code, said = edit(clip, "--turn", "pan_right", out="file/below")
    assert code == 2 and "cannot be made" in said


def test_a_plan_file_says_it_all_and_the_command_line_wins(edit, clip, tmp_path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        json.dumps({"inputs": [str(clip)], "turns": ["pan_right", {"prompt": "at night"}], "config": {"seed": 3}})
    )
    code, said = edit("--plan", plan, "--dry-run")
    assert code == 0 and "6 to do" in said
    code, said = edit("--plan", plan, "--turn", "arc_left", "--dry-run")
    assert code == 0 and "3 to do" in said
    assert not list((tmp_path / "out").glob("*")), "a dry run writes nothing"
    for text, word in (
        ("inputs: [a.mp4]\nturn: [pan_right]\n", "'turn'"),
        ("inputs: [a.mp4]\nturns: pan_right\n", "a list"),
        ("inputs: [a.mp4]\nowner: 5\n", "text"),
        ("inputs: [1]\nturns: [pan_right]\n", "list of names"),
        ("config: [a]\n", "a mapping"),
        ("[a", "cannot be read"),
        ("turns: [pan_right]\nturns: [arc_left]\n", "the key 'turns' in line 2 was given before; keep one"),
    ):
        plan.write_text(text)
        code, said = edit("--plan", plan)
        assert code == 2 and word in said and said.count("\n") == 1, said


def test_what_a_turn_publishes_is_what_its_latents_decode_to(edited, tiny_model) -> None:
    path = edited.folder / "turn-01-pan_right.mp4"
    rows, _ = table(edited.out)
    latent = torch.frombuffer(bytearray(latents(edited.out, tiny_model)[rows[0]["id"]]), dtype=torch.float16)
    info = probe(str(path))
    decoded = load_codec(tiny_model).decode(latent.reshape(3, 16, info.height, info.width).float()).numpy()
    shown = read_frames(str(path), 0, 16)
    # On noise the halved chroma is lost and takes some brightness with it; what remains is plainly the same picture.
    luma = np.array([0.2126, 0.7152, 0.0722])
    pairs = ((0, 0), (9, 9), (0, 9))
    alike = [np.corrcoef((decoded[i] @ luma).ravel(), (shown[j] @ luma).ravel())[0, 1] for i, j in pairs]
    assert min(alike[:2]) > 0.8 > 0.5 > alike[2], alike
