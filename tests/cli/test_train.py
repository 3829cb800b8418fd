"""`memory-v2v train` from its command line to its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.main import main
from pipeline.memory_pipeline import MemoryV2VPipeline
from tests.training import logged, validated

SHORT = ["height=32", "width=32", "steps=30", "batch=2", "targets=2", "warmup=2", "validation_batches=1"]


@pytest.fixture
def command(tiny_scenes: str, tiny_model: str, tmp_path: Path):
    """The command with its data, model and out; further words win."""
    return lambda *words: main(
        ["train", "--data", tiny_scenes, "--out", str(tmp_path / "out"), "--model", tiny_model, *SHORT, *words]
    )


def test_train_writes_a_model_and_the_same_command_again_does_nothing(command, tmp_path, capfd):
    assert command("learning_rate=1e-2") == 0
    said = capfd.readouterr().err
    assert "30 steps of 1 x 2 scenes x 2 targets, each 16 frames of 32x32" in said
    assert "of memory per process" in said and "step 30/30 | validation_loss" in said and "targets/s | ETA" in said
    losses = validated(tmp_path / "out")
    assert losses[30] < losses[0]
    model = tmp_path / "out" / "model"
    assert MemoryV2VPipeline.from_pretrained(model).spec.trained
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert command("learning_rate=1e-2") == 0
    assert "nothing to do: 30 steps are taken already" in capfd.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert command("steps=32") == 0
    assert [line["step"] for line in logged(tmp_path / "out") if "resumed" in line] == [30]


def test_a_dry_run_says_what_it_would_take_and_leaves_nothing(command, tmp_path, capfd):
    assert command("--dry-run", "tune=paper", "--workers", "2") == 0
    said = capfd.readouterr().err
    assert "30 steps of 2 x 2 scenes" in said and "GFLOP/s" in said
    assert not (tmp_path / "out").exists()


def test_settings_may_come_from_a_file_and_the_command_line_wins(command, tmp_path, capfd):
    (tmp_path / "short.yaml").write_text("steps: 7\nbatch: 3\nworkers: 2\n")
    assert command("--config", str(tmp_path / "short.yaml"), "--dry-run") == 0
    assert "30 steps of 2 x 2 scenes" in capfd.readouterr().err
    for words in (["--workers", "0"], ["workers=0"]):
        assert command("--config", str(tmp_path / "short.yaml"), *words, "--dry-run") == 0
        assert "30 steps of 1 x 2 scenes" in capfd.readouterr().err
    (tmp_path / "wrong.yaml").write_text("stepps: 7\n")
    assert command("--config", str(tmp_path / "wrong.yaml"), "--dry-run") == 2
    assert "setting 'stepps' does not exist; the nearest is 'steps'" in capfd.readouterr().err
    (tmp_path / "wrong.yaml").write_text("steps: 7\nseed: 1\nsteps: 8\n")
    assert command("--config", str(tmp_path / "wrong.yaml"), "--dry-run") == 2
    assert "the key 'steps' in line 3 was given before" in capfd.readouterr().err
    (tmp_path / "wrong.yaml").write_text("data: [a, b]\n")
    assert main(["train", "--config", str(tmp_path / "wrong.yaml"), "--out", "out"]) == 2
    assert "has data: ['a', 'b'], expected text" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["tune=everything"],
            "'tune' is 'everything', expected one of all, paper, words, empty, depths, details, lora",
        ),
        (["tune=depths"], "has no depths to learn from, expected clips made with depth=true"),
        (["batch=0"], "batch must be at least 1, got 0"),
        (["height=30"], "takes multiples of 8 pixels"),
        (["frames=15"], "of so many frames, 16"),
        (["frames=64"], "finds clips of 64 frames or more"),
        (["frames=64", "--dry-run"], "finds clips of 64 frames or more"),
        (["--model", "maxi"], "model 'maxi' is not there"),
        (["--data", "nowhere"], "no data set of clips is there; make one with `memory-v2v synthesize --out`"),
        (["sharding=full"], "set optimizer=adamw"),
        (["sharding=full", "optimizer=adamw"], "expected processes to spread over: set --workers"),
        (["camera_dropout=0.1"], "this model places tokens on camera rays and has none without"),
        (["learning"], "'learning' is not a setting"),
        (["--out", "s3://bucket/out"], "expected a folder that all nodes mount"),
    ],
)
def test_what_cannot_be_started_is_one_line_and_exit_code_2(command, words, says, capfd):
    assert command(*words) == 2
    said = capfd.readouterr().err
    assert says in said and "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("memory-v2v: ")


def test_a_truncated_data_set_ends_the_training_with_exit_code_1_and_says_which_clip(
    command, tiny_scenes, tmp_path, capfd
):
    shutil.copytree(tiny_scenes, tmp_path / "scenes")
    for blob in (tmp_path / "scenes").glob("**/*.blob"):
        blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    assert command("--data", str(tmp_path / "scenes")) == 1
    said = capfd.readouterr().err
    assert "failed: " in said and "cannot be read" in said and "the newest checkpoint stays" in said
    assert "once that is mended the same command goes on" in said
    assert "Traceback" not in said
