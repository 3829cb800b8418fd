"""kill -9 of a whole run, and a full disk, in the middle: the same command goes on, and the bytes are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import lance
import psutil
import pytest

from jobs.config import EditConfig
from jobs.main import main
from jobs.model import resolve
from jobs.plan import make_plan
from jobs.turn import parse_turn
from tests.by_hand import edit_by_hand, new_setup
from tests.cli.test_edit import files
from tests.generated import moving_frames, write_clip

pytestmark = pytest.mark.usefixtures("ray_cluster")


TURNS = ["pan_right", "arc_left", "tilt_up"]


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return write_clip(tmp_path / "clip.mp4", moving_frames(64, 48, 64), rate=24, audio="aac")


@pytest.fixture
def words(clip: str, tiny_model: str) -> list[str]:
    return ["edit", clip, *(word for turn in TURNS for word in ("--turn", turn)), "--model", tiny_model]


def committed(out: Path) -> int:
    try:
        return lance.dataset(str(out / "library" / "default.lance")).count_rows()
    except (ValueError, OSError):
        return 0


@contextmanager
def running(words: list[str], out: Path, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command, once so many edits are committed; with all of its processes it is killed at the end."""
    # A Ray of its own: the tests' cluster must survive. In its own process group, as from a shell.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "jobs.main", *words, "--out", str(out), "--workers", "1", "steps=6"]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while committed(out) < count:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline, "no edit was committed in two minutes"
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_run_killed_in_the_middle_goes_on_and_gives_the_bytes_of_an_undisturbed_one(
    words, clip, tiny_model, tmp_path, capfd
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with running(words, killed, 3):
        pass
    there = committed(killed)
    assert 3 <= there < 12, "the run was killed before or after the middle"
    assert main([*words, "--out", str(killed), "steps=6"]) == 0
    said = capfd.readouterr().err
    assert f"{there} edits done, {12 - there} to do" in said and f"{12 - there} edits made" in said
    config = EditConfig(steps=6)
    chains = make_plan([clip], [parse_turn(turn) for turn in TURNS], config, resolve(tiny_model)).chains
    edit_by_hand(chains, new_setup(tiny_model, tmp_path / "whole.lance", config), whole)
    assert files(killed) and {Path(k).name: v for k, v in files(killed).items()} == {
        Path(k).name: v for k, v in files(whole).items()
    }


def test_what_a_clusters_scheduler_ends_says_so_and_where_to_go_on(words, tmp_path, capfd) -> None:
    def terminate() -> None:
        while not committed(tmp_path / "out"):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    Thread(target=terminate, daemon=True).start()
    try:
        assert main([*words, "--out", str(tmp_path / "out"), "steps=6"]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capfd.readouterr().err
    assert "stopped: interrupted" in said and "the same command goes on from there" in said


def test_a_run_whose_ray_has_died_ends_in_one_line_and_the_same_command_goes_on(words, tmp_path) -> None:
    with running(words, tmp_path / "out", 1) as process:
        [raylet] = [each for each in psutil.Process(process.pid).children() if each.name() == "raylet"]
        editors = [each for each in raylet.children() if each.cmdline()[0].startswith("ray::Editor")]
        for each in (raylet, *editors):
            each.kill()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "stopped: the Ray of this machine has died" in said.decode()
    assert "the same command goes on from there" in said.decode()


def test_a_full_disk_stops_the_run_in_one_line_and_room_lets_it_go_on(words, tmp_path, capfd) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        assert main([*words, "--out", str(disk / "out"), "latent_dtype=float32"]) == 1
        said = capfd.readouterr().err
        assert "No space left on device" in said or "free space" in said
        there = committed(disk / "out")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert main([*words, "--out", str(disk / "out"), "latent_dtype=float32"]) == 0
        assert f"{there} edits done" in capfd.readouterr().err
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
