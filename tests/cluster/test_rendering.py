"""The rendering loop on a real Ray, with real deaths: the same rows in the same order, whoever rendered them."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.rendering import FAILURES_IN_A_ROW, Rendering
from actors.rendering_outcome import Rendered
from pipeline.scenes import Filming
from storage.clip_row import ClipRow
from storage.clips import ClipDataset
from tests.clips import Broken, Deadly, Sweeping, Task, clip_row

pytestmark = pytest.mark.usefixtures("ray_cluster")
FILMING = Filming(
    height=8, width=8, frames=2, cameras=2, edits=0, edited_cameras=1, rates=(24.0,), channels=(), samples=1, licence=""
)  # fmt: skip


def rendered(data: ClipDataset, tasks: list[Task], workers: int = 2, group: float = 0, retries: int = 1) -> Rendered:
    return Rendering(
        tasks, FILMING, workers=workers, options={"num_cpus": 0.1, "max_restarts": 0, "max_task_retries": 0},
        commit=data.append, group=group, retries=retries, state=Rendered(),
    )()  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> ClipDataset:
    return ClipDataset.create(str(tmp_path / "clips.lance"), {})


def scenes(data: ClipDataset) -> list[int]:
    return [clip.scene for clip in data.clips() if clip.camera == 0]


def test_scenes_are_committed_in_their_order_whoever_ends_first(data: ClipDataset) -> None:
    state = rendered(data, [Task(seed) for seed in range(10)], group=3 * 2 * 384)
    assert scenes(data) == list(range(10))
    assert (data.read([4], [0], 2)[0] == clip_row(2, 0, size=(2, 8, 8)).video).all()
    assert (state.rendered, state.committed, state.left, state.frames) == (10, 10, 0, 40)


def test_a_scene_whose_renderer_dies_is_rendered_again_in_its_place(data: ClipDataset, tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    deadly = Deadly(1, folder=str(tmp_path / "deaths"))
    state = rendered(data, [Task(0), deadly, Task(2), Task(3)], workers=2)
    assert scenes(data) == [0, 1, 2, 3]
    assert not state.lost


def test_a_scene_that_keeps_killing_renderers_is_given_up_by_name(data: ClipDataset, tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    deadly = Deadly(1, folder=str(tmp_path / "deaths"), times=5)
    state = rendered(data, [Task(0), deadly, Task(2)], workers=1, retries=1)
    assert scenes(data) == [0, 2]
    assert state.lost == {"scene 1": "its renderer died 2 times; give it more memory, or make the clips smaller"}


def test_renderers_that_were_lost_while_idle_are_no_scenes_fault(data: ClipDataset, tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    sweeping = Sweeping(2, folder=str(tmp_path / "deaths"), times=2)
    state = rendered(data, [Task(0), Task(1), sweeping], workers=3, retries=2)
    assert scenes(data) == [0, 1, 2] and not state.lost, "it died twice itself, and the others not under it"


def test_a_scene_that_cannot_be_rendered_is_named_and_the_others_go_on(data: ClipDataset) -> None:
    state = rendered(data, [Task(0), Broken(1), Task(2)])
    assert scenes(data) == [0, 2]
    [(name, reason)] = state.lost.items()
    assert name == "scene 1" and "scene 1 cannot be rendered: ZeroDivisionError: a scene without extent" in reason
    assert not state.stopped


def test_when_no_scene_can_be_rendered_the_rest_is_not_tried(data: ClipDataset) -> None:
    state = rendered(data, [Task(0), *(Broken(seed) for seed in range(1, 99))], workers=1)
    assert len(state.lost) == FAILURES_IN_A_ROW
    assert state.stopped and "in a row" in state.stopped
    assert scenes(data) == [0]


def test_renderers_that_no_node_has_room_for_are_waited_for_in_words(data: ClipDataset, monkeypatch) -> None:
    monkeypatch.setattr("actors.waiting.SILENCE", 0.5)
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt  # as the user does who reads it

    state = Rendering(
        [Task(0)], FILMING, workers=1, options={"num_cpus": 1000}, commit=data.append, group=0, retries=0,
        state=Rendered(), notify=tell,
    )()  # fmt: skip
    [line] = said
    assert line.startswith(
        "no renderer has started in 0 s: each asks for 1000 CPUs and 0 GPUs on one node, free in all"
    )
    assert state.stopped == "interrupted" and state.left == 1


def test_when_this_machines_ray_has_died_the_run_ends_in_words(data: ClipDataset, monkeypatch) -> None:
    monkeypatch.setattr("actors.rendering.here_is_alive", lambda: False)  # its renderers will never answer
    state = rendered(data, [Task(0)], workers=1)
    assert state.stopped == "the Ray of this machine has died" and state.left == 1


def test_what_keeps_a_commit_from_happening_ends_the_run_with_its_own_words(data: ClipDataset) -> None:
    def commit(rows: list[ClipRow]) -> None:
        raise OSError("no space left")

    run = Rendering(
        [Task(seed) for seed in range(4)], FILMING, workers=2, options={"num_cpus": 0.1},
        commit=commit, group=0, retries=0, state=Rendered(),
    )  # fmt: skip
    with pytest.raises(OSError, match="no space left"):
        run()
    assert len(data) == 0
