"""The run loop on a real Ray, with real kills: whatever dies, the same latents are committed, each once."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import ray

from actors.cluster import ClusterError, Places, answers, places, training_device
from actors.run import Run, SourceWork
from actors.scheduler import Scheduler
from actors.setup import Setup
from jobs.chain import Chain
from jobs.config import EditConfig
from jobs.model import resolve
from jobs.plan import make_plan
from jobs.published import compare_video, turn_videos
from jobs.turn import parse_turn
from storage.publish import video_id_of
from tests.by_hand import edit_by_hand, new_setup
from tests.generated import moving_frames, write_clip

pytestmark = pytest.mark.usefixtures("ray_cluster")
CONFIG = EditConfig()


@pytest.fixture
def chains(tmp_path: Path, tiny_model: str) -> list[Chain]:
    clips = [write_clip(tmp_path / f"{n}.mp4", moving_frames(40, 48, 64, seed=n), rate=24) for n in range(2)]
    return make_plan(clips, [parse_turn("pan_right"), parse_turn("arc_left")], CONFIG, resolve(tiny_model)).chains


@pytest.fixture
def setup(tmp_path: Path, tiny_model: str) -> Setup:
    return new_setup(tiny_model, tmp_path / "library.lance")


def work(chains: list[Chain], out: Path) -> list[SourceWork]:
    made = []
    for chain in chains:
        videos = turn_videos(chain, str(out), CONFIG)
        costs = [chain.cost(index) for index in range(len(chain))]
        made.append(
            SourceWork(chain.name, chain.ids, costs, (), chain.edit, videos, compare_video(chain, videos, str(out)))
        )
    return made


def latents(setup: Setup) -> dict[str, bytes]:
    library = setup.open_library()
    ids = library.rows().column("id").to_pylist()
    assert len(ids) == len(set(ids))
    return {memory.id: memory.latent.numpy().tobytes() for memory in library.read(ids)}


def processes(title: str) -> list[psutil.Process]:
    """Live actor processes of this cluster, and of no other on this machine, by Ray's process title."""
    session = Path(ray._private.worker._global_node.get_session_dir_path()).name
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith(title):
            raylet = process.parent()
            if raylet is not None and any(session in word for word in raylet.cmdline()):
                found.append(process)
    return found


class Kill:
    """A progress callback that kills one process of each of these actor classes, once so many edits are done."""

    def __init__(self, after: dict[str, int]) -> None:
        self.left = dict(after)

    def __call__(self, scheduler: Scheduler) -> None:
        for title in [title for title, after in self.left.items() if scheduler.edits.done >= after]:
            for process in processes(title)[:1]:
                os.kill(process.pid, signal.SIGKILL)
                del self.left[title]


def test_killed_actors_and_a_source_that_vanishes_change_nothing_in_what_becomes_of_the_others(
    chains, setup, tmp_path, tiny_model
) -> None:
    clip = write_clip(tmp_path / "gone.mp4", moving_frames(40, 48, 64, seed=2), rate=24)
    [gone] = make_plan([clip], [parse_turn("pan_right")], CONFIG, resolve(tiny_model)).chains
    Path(gone.url).unlink()
    two = Places(workers=2, num_cpus=0.5, num_gpus=0)
    kill = Kill({"ray::Editor": 2, "ray::Librarian": 4, "ray::Publisher": 6})
    outcome = Run(work([gone, *chains], tmp_path / "out"), Scheduler(), setup, two, progress=kill)()
    assert not kill.left, f"none of {list(kill.left)} was found to kill"
    assert list(outcome.failed) == [gone.name] and gone.url in outcome.failed[gone.name]
    assert not outcome.stopped and not outcome.unpublished, outcome
    assert outcome.edits == 12
    alone = new_setup(tiny_model, tmp_path / "alone.lance")
    edit_by_hand(chains, alone, tmp_path / "alone")
    assert latents(setup) == latents(alone)
    for source in work(chains, tmp_path / "out"):
        for video in source.videos:
            assert video_id_of(video.url) == video.video_id
            same = video.url.replace(str(tmp_path / "out"), str(tmp_path / "alone"))
            assert Path(video.url).read_bytes() == Path(same).read_bytes()
    assert ray.cluster_resources()["CPU"] == pytest.approx(ray.available_resources().get("CPU", 0), abs=1.1)


def test_editors_that_were_lost_while_idle_are_no_edits_fault(setup, tmp_path, tiny_model, monkeypatch) -> None:
    clips = [write_clip(tmp_path / f"{n}.mp4", moving_frames(n, 48, 64, seed=n), rate=24) for n in (16, 160)]
    short, long = make_plan(clips, [parse_turn("pan_right")], CONFIG, resolve(tiny_model)).chains
    lost, said = list[int](), list[str]()
    monkeypatch.setattr("actors.waiting.SILENCE", 0.0)

    def lose_all(scheduler: Scheduler) -> None:
        if not lost and scheduler.healthy_workers < 2:
            time.sleep(1)  # the long source is not to end before the second editor has started
        elif not lost and scheduler.sources.done == 1 and len(scheduler.idle_workers) == 1:
            lost.extend(process.pid for process in processes("ray::Editor"))
            for pid in lost:
                os.kill(pid, signal.SIGKILL)

    sources, two = work([short, long], tmp_path / "out"), Places(2, 0.5, 0)
    outcome = Run(sources, Scheduler(losses=2), setup, two, progress=lose_all, notify=said.append)()
    assert len(lost) == 2, "the short source was to end first"
    assert not outcome.failed and not outcome.stopped and outcome.edits == 11, outcome
    assert len(said) == 2 and all("no editor has started" in line for line in said), "at the start and after the loss"


def test_a_model_that_cannot_be_loaded_stops_the_run_with_its_reason(chains, setup, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("actors.run.FAILED_STARTS", 2)
    broken = dataclasses.replace(setup, model=str(tmp_path / "nowhere"))
    outcome = Run(work(chains[:1], tmp_path / "out"), Scheduler(), broken, Places(1, 0.5, 0))()
    assert outcome.edits == 0 and "no editor could start" in str(outcome.stopped) and "nowhere" in str(outcome.stopped)


@pytest.mark.parametrize(
    ("asked", "threads", "nodes", "expected"),
    [
        (0, 1, [{"CPU": 2.0}], Places(2, 0.9, 0.0)),
        (4, 1, [{"CPU": 2.0}], Places(4, 0.45, 0.0)),
        (0, 4, [{"CPU": 16.0}], Places(4, 3.6, 0.0)),
        (0, 1, [{"CPU": 64.0, "GPU": 8.0}], Places(8, 1.0, 0.9)),
        (4, 1, [{"CPU": 64.0, "GPU": 2.0}], Places(4, 1.0, 0.45)),
        (3, 1, [{"CPU": 64.0, "GPU": 2.0}], Places(3, 1.0, 0.45)),
        (0, 4, [{"CPU": 2.0}, {"CPU": 2.0}], Places(1, 1.8, 0.0)),
    ],
)
def test_editors_share_a_small_machine_in_fractions_and_take_a_gpu_each_where_there_are(
    asked, threads, nodes, expected
) -> None:
    assert places(asked, threads, nodes) == expected


def test_a_cluster_without_room_is_refused_with_what_is_missing() -> None:
    with pytest.raises(ClusterError, match="0 CPUs"):
        places(1, 1, [])
    with pytest.raises(ClusterError, match="ask for fewer"):
        places(500, 1, [{"CPU": 2.0}])


def test_an_address_at_which_nobody_listens_is_named_at_once_and_others_are_rays_to_look_up() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Ray answers at {address} .*check RAY_ADDRESS"):
            answers(address)
        taken.listen()
        answers(address)
    for other in ("local", "auto", "ray://127.0.0.1:1"):
        answers(other)


def test_a_training_is_where_the_cluster_has_gpus_and_takes_no_more_processes_than_these() -> None:
    head, worker = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}
    assert training_device(2, [head]) == "cpu"
    assert training_device(2, [head, worker]) == "cuda"  # whatever the machine of the command has
    with pytest.raises(ClusterError, match="--workers is 3 and the cluster has 2 GPUs"):
        training_device(3, [head, worker])
