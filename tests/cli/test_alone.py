"""`python -m pipeline.training.alone`: a training without a data set, at the size of a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.training.alone import main
from tests import ROOT

# Options come first: argparse does not take settings in two places.
TINY = ["--scenes", "2", "--edits", "1", "--frames", "16", "--renderers", "1"]
SHORT = ["model=mini-cpu", "height=16", "width=16", "batch=2", "targets=1", "memories=1", "onward=0"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch):
    """The command in this process: a new one would spend most of its time on imports."""

    def command(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["alone", *words])
        main()

    before = torch.get_float32_matmul_precision()
    yield command
    torch.set_float32_matmul_precision(before)


def logged(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def trained(out: Path) -> int:
    return MemoryV2VPipeline.from_pretrained(out / "model").config.trained_steps


def test_it_trains_validates_writes_a_model_and_goes_on_where_it_was(tmp_path: Path, here: Callable[..., None]) -> None:
    command = [sys.executable, "-m", "pipeline.training.alone", "--out", str(tmp_path), *TINY, *SHORT]
    made = subprocess.run(
        [*command, "steps=3", "validation_batches=1"], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    lines = logged(tmp_path)
    assert [line["rendered"] for line in lines if "rendered" in line] == [2]
    assert [line["step"] for line in lines if "validation_loss" in line] == [3]
    assert trained(tmp_path) == 3 and (tmp_path / "checkpoint.pt").exists()
    before = torch.load(tmp_path / "checkpoint.pt", weights_only=True)

    (tmp_path / "long.yaml").write_text("steps: 7\nvalidation_batches: 0\n")
    here("--out", str(tmp_path), *TINY, "--config", str(tmp_path / "long.yaml"), *SHORT, "steps=5")
    assert trained(tmp_path) == 5, "the command line wins over the file"
    assert logged(tmp_path)[: len(lines)] == lines
    after = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (before["step"], after["step"]) == (3, 5)
    moved = [(after["parameters"][name] - each).abs().max() for name, each in before["parameters"].items()]
    assert 0 < max(moved) < 0.1, "it went on from the weights that it had"


def test_a_setting_that_does_not_exist_is_refused_in_one_line(
    tmp_path: Path, here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        here("--out", str(tmp_path / "out"), *TINY, *SHORT, "step=3")
    assert refused.value.code == 2 and "unknown settings ['step'], expected some of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
