"""`memory-v2v synthesize --extend` from its command line to what a training draws of it, on one Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jobs.config import SynthesizeConfig, bits_of
from pipeline.splits import split_of
from pipeline.training.recipe import Recipe
from pipeline.training.samples import Corpus
from storage.clips import ClipDataset
from tests.cli.test_synthesize import content, run
from tests.clips import clip_row
from tests.tiny import build_tiny

FRAMES, ADDED = 16, 24  # a segment of the tiny model; one and a half more
SMALL = ["height=16", "width=16", f"frames={FRAMES}", "cameras=3", "edits=1"]


@dataclass(frozen=True)
class Made:
    """Two scenes of which two cameras saw the edit, and what two workers made of them."""

    scenes: Path
    out: Path
    said: str


@pytest.fixture(scope="module")
def made(ray_cluster, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("extend")
    assert run("--scenes", "2", *SMALL, "depth=true", out=folder / "scenes")[0] == 0
    code, said = run(*words(folder / "scenes", tiny_model), "--workers", "2", out=folder / "out")
    assert code == 0, said
    return Made(folder / "scenes", folder / "out", said)


def words(scenes: Path, model: str) -> list[str]:
    return ["--extend", str(scenes), "--model", model, f"extension={ADDED}"]


def test_pairs_are_taken_over_and_their_edited_clips_are_longer(made: Made, tiny_model: str) -> None:
    assert f"0 scenes there, 2 to make: 8 clips, of which model '{tiny_model}' makes 4 longer by 24 frames" in made.said
    assert "is untrained" in made.said
    scenes, data = ClipDataset.open(str(made.scenes)), ClipDataset.open(str(made.out))
    before = {(clip.scene, clip.variant, clip.camera): clip for clip in scenes.clips()}
    clips = data.clips()
    assert [(clip.scene, clip.variant, clip.camera) for clip in clips] == [
        key for key in before if (key[0], 1, key[2]) in before
    ]
    for clip in clips:
        was = before[clip.scene, clip.variant, clip.camera]
        assert len(clip) == FRAMES + clip.extended and clip.extended == (ADDED if clip.variant else 0)
        assert (data.read([clip.row], [0], FRAMES) == scenes.read([was.row], [0], FRAMES)).all()
        assert (clip.trajectory.c2w[:FRAMES] == was.trajectory.c2w).all()
        assert (clip.instruction, clip.rate) == (was.instruction, was.rate) and not clip.shots.any()
    added = [data.read([clip.row], [FRAMES], ADDED) for clip in clips if clip.extended]
    assert all((one != other).any() for number, one in enumerate(added) for other in added[:number])


def test_the_data_set_says_what_a_model_made_and_which(made: Made) -> None:
    data = ClipDataset.open(str(made.out))
    rows = data.rows(["scene", "variant", "kind", "split", "licence", "extended"]).to_pylist()
    assert {(row["variant"], row["kind"], row["extended"]) for row in rows} == {
        (0, "rendered", 0), (1, "extended", ADDED),
    }  # fmt: skip
    assert all(row["licence"] == "CC0-1.0" and row["split"] == split_of(row["scene"]) for row in rows)
    kept, scenes = data.metadata, ClipDataset.open(str(made.scenes)).metadata
    assert json.loads(kept["config"]) == json.loads(scenes["config"]) | {"extension": ADDED, "k": 4}
    card = (made.out / "README.md").read_text()
    assert "| rendered clips | clips of real footage | extended clips |" in card
    assert "Clips of `kind` extended" in card and f"`{kept['model']}`" in card and len(kept["model"]) == 64
    assert "extended" not in (made.scenes / "README.md").read_text()


def test_one_worker_that_goes_on_where_it_stopped_makes_the_same_bytes(
    made: Made, tiny_model: str, tmp_path: Path
) -> None:
    assert run("--scenes", "1", *SMALL, "depth=true", out=tmp_path / "scenes")[0] == 0
    code, said = run(*words(tmp_path / "scenes", tiny_model), "--workers", "1", out=tmp_path / "out")
    assert code == 0 and "1 scenes, 4 clips in" in said
    code, said = run(*words(made.scenes, tiny_model), "--workers", "1", out=tmp_path / "out")
    assert code == 0 and "1 scenes there, 1 to make" in said
    assert content(tmp_path / "out") == content(made.out)
    one, two = (added(each) for each in (tmp_path / "out", made.out))
    assert (one == two).all()
    code, said = run(*words(made.scenes, tiny_model), out=tmp_path / "out")
    assert code == 0 and "2 scenes there, 0 to make" in said


def added(out: Path) -> np.ndarray:
    """All frames that the model made, which `content` does not look at."""
    data = ClipDataset.open(str(out))
    rows = [clip.row for clip in data.clips() if clip.extended]
    return data.read(rows, [FRAMES] * len(rows), ADDED)


def test_a_training_learns_the_pair_and_remembers_what_was_added(made: Made) -> None:
    recipe = Recipe(memory_dropout_text=0.0, foreign=0.0)
    corpus = Corpus(ClipDataset.open(str(made.out)).clips(), FRAMES, recipe)
    samples = [each for seed in range(5) for each in corpus.draw(np.random.default_rng(seed), "text").samples]
    assert all(each.targets[0].start == each.before.start == 0 for each in samples)
    assert any(memory.start >= FRAMES for each in samples for memory in each.memories)


def test_a_data_set_that_another_model_or_job_began_is_not_gone_on_with(made: Made, tmp_path: Path) -> None:
    build_tiny(seed=1).save_pretrained(tmp_path / "other")
    code, said = run(*words(made.scenes, str(tmp_path / "other")), out=made.out)
    assert code == 2 and "was made by model " in said and "choose another --out" in said
    code, said = run(*words(made.scenes, str(tmp_path / "other")), out=made.scenes)
    assert code == 2 and "was made by generator 1, expected 1+extended-1" in said
    code, said = run("--scenes", "3", *SMALL, out=made.out)
    assert code == 2 and "was made by generator 1+extended-1, expected 1" in said


def test_other_settings_and_what_is_extended_already_are_refused(made: Made, tiny_model: str, tmp_path: Path) -> None:
    code, said = run(*words(made.scenes, tiny_model), "k=2", out=made.out)
    assert code == 2 and "was made with k=4, asked for is 2" in said
    code, said = run(*words(made.out, tiny_model), out=tmp_path / "out")
    assert code == 2 and "clip 0/1/0 was extended by 24 frames before" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("frames", "side", "variants", "shots", "says"),
    [
        (FRAMES, 16, 1, 1, "holds no edited clip beside the same camera's clip before the edit"),
        (FRAMES, 12, 2, 1, "clip 0/0/0 is 12x12, expected multiples of 8 pixels for model"),
        (15, 16, 2, 1, "clip 0/1/0 has 15 frames in its last shot, expected at least the 16 of a segment"),
        (FRAMES, 16, 2, 2, "clip 0/1/0 has 8 frames in its last shot, expected at least the 16 of a segment"),
    ],
)
def test_scenes_that_a_model_cannot_go_on_with_are_refused_in_one_line(
    frames: int, side: int, variants: int, shots: int, says: str, tiny_model: str, tmp_path: Path, capsys
) -> None:
    data = ClipDataset.create(str(tmp_path / "scenes" / "clips.lance"), {"config": json.dumps(CONFIG)})
    numbers = np.arange(frames, dtype=np.int32) * shots // frames
    data.append([clip_row(0, 0, variant, (frames, side, side), shots=numbers) for variant in range(variants)])
    code, said = run("--extend", tmp_path / "scenes", "--model", tiny_model, out=tmp_path / "out")
    assert code == 2 and says in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


CONFIG = bits_of(SynthesizeConfig())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--extend", "nowhere"], "no data set of clips is there"),
        (["--extend", "scenes", "--scenes", "2"], "--scenes with --extend"),
        (["--extend", "scenes", "k=0"], "setting 'k' is 0, expected at least 1"),
        (["--extend", "scenes", "extension=0"], "setting 'extension' is 0, expected at least 1"),
        (["--extend", "scenes", "frames=8"], "setting 'frames' belongs to synthesize without --extend"),
        (["--scenes", "2", "--model", "mini"], "--model is mini, expected none"),
    ],
)
def test_what_cannot_start_is_said_in_one_line_and_leaves_nothing(given: list[str], says: str, tmp_path: Path) -> None:
    code, said = run(*given, out=tmp_path / "out")
    assert code == 2 and len(said.splitlines()) == 1 and said.startswith("memory-v2v: ") and says in said
    assert not (tmp_path / "out").exists()
