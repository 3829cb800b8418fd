"""Which memories an edit sees: ranking, ties, greedy cover, text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.coverage import Sphere, coverage
from pipeline.retrieval import Candidates, Choice, select
from pipeline.trajectory import Trajectory, default_intrinsics, preset

LENS = default_intrinsics(832 / 480)
SPHERE = Sphere(points=1024)


def seen(*words: int) -> np.ndarray:
    """A coverage of eight words; bit i of the argument fills word i's first byte."""
    row = np.zeros((8, 8), dtype=np.uint8)
    row[list(words), 0] = 255
    return row.reshape(-1)


def memories(**of: dict) -> Candidates:
    """Candidates by id; what is not given is equal for all."""
    rows = [
        {"turn": 1, "segment": 0, "start": 0, "coverage": seen(0), "descriptor": [1, 0], **row} for row in of.values()
    ]
    return Candidates(
        ids=list(of),
        turns=np.array([row["turn"] for row in rows]),
        segments=np.array([row["segment"] for row in rows]),
        starts=np.array([row["start"] for row in rows]),
        coverage=np.stack([row["coverage"] for row in rows]),
        descriptors=np.array([row["descriptor"] for row in rows], dtype=np.float32),
    )


def ids(choices: list[Choice]) -> list[str]:
    return [choice.id for choice in choices]


WHERE = {"start": 0, "turn": 9, "segment": 0}


# --- cameras


def test_an_orbit_to_the_left_serves_a_pan_to_the_right_best() -> None:
    names = ["arc_right", "arc_left", "zoom_in", "pan_left"]
    rows = {name: {"coverage": coverage(preset(name, 17, LENS), SPHERE)} for name in names}
    target = coverage(preset("pan_right", 17, LENS), SPHERE)
    choices = select(memories(**rows), k=2, target_coverage=target, **WHERE)
    assert choices[0].id == "arc_left"
    assert 1 > choices[0].score > choices[1].score > 0


def test_equal_scores_fall_to_nearer_in_time_then_later_turn_then_id() -> None:
    candidates = memories(
        far={"start": 40, "turn": 5},
        b={"start": 20, "turn": 3},
        a={"start": -20, "turn": 3},
        late={"start": 20, "turn": 4},
    )
    choices = select(candidates, k=4, target_coverage=seen(0), **WHERE)
    assert ids(choices) == ["late", "a", "b", "far"]
    choices = select(candidates, k=4, target_coverage=seen(0), **{**WHERE, "start": 35})
    assert ids(choices) == ["far", "late", "b", "a"], "nearer to the target, wherever that is"


def test_equal_scores_fall_to_the_liker_descriptor_before_time() -> None:
    candidates = memories(near={"descriptor": [0, 1]}, alike={"start": 99, "descriptor": [1, 0]})
    choices = select(candidates, k=2, target_coverage=seen(0), target_descriptor=np.float32([1, 0]), **WHERE)
    assert ids(choices) == ["alike", "near"]
    assert choices[0].score == 1.0


@given(st.data(), st.integers(1, 12), st.integers(1, 14))
def test_the_first_k_are_those_of_a_full_sort(data: st.DataObject, count: int, k: int) -> None:
    few = st.integers(0, 2)  # so that there are ties of every kind
    turns, starts, words = (data.draw(st.lists(few, min_size=count, max_size=count)) for _ in range(3))
    names = data.draw(st.permutations([f"{number:02d}" for number in range(count)]))
    rows = {
        name: {"turn": turn, "start": start, "coverage": seen(*range(word + 1))}
        for name, turn, start, word in zip(names, turns, starts, words, strict=True)
    }
    chosen = select(memories(**rows), k=k, target_coverage=seen(0, 1, 2), **WHERE)
    scores = dict(zip(names, words, strict=True))
    order = sorted(names, key=lambda name: (-scores[name], rows[name]["start"], -rows[name]["turn"], name))
    assert ids(chosen) == order[:k]


def test_a_better_score_beats_every_tie_break() -> None:
    candidates = memories(worse={"coverage": seen(0), "turn": 8}, better={"coverage": seen(0, 1), "start": 500})
    assert ids(select(candidates, k=1, target_coverage=seen(0, 1), **WHERE)) == ["better"]


@given(st.integers(0, 10_000), st.sampled_from(["top_k", "greedy"]), st.integers(1, 9))
def test_the_choice_does_not_depend_on_the_candidates_order(seed: int, policy: str, k: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 9))
    candidates = Candidates(
        [f"m{i}" for i in random.permutation(n)],
        random.integers(0, 3, n),
        random.integers(0, 2, n),
        random.integers(0, 3, n) * 16,
        random.integers(0, 2, (n, 8)).astype(np.uint8),
        random.integers(0, 2, (n, 2)).astype(np.float32),
    )
    asked = {"k": k, "policy": policy, "target_coverage": np.ones(8, np.uint8), **WHERE}
    choices = select(candidates, **asked)  # type: ignore[arg-type]
    assert choices == select(candidates.take(random.permutation(n)), **asked)  # type: ignore[arg-type]
    assert len(set(ids(choices))) == len(choices) == min(k, n)


# --- greedy


def test_greedy_prefers_what_is_new_to_a_near_duplicate() -> None:
    candidates = memories(
        most={"coverage": seen(0, 1, 2)}, again={"coverage": seen(0, 1, 2)}, rest={"coverage": seen(3)}
    )
    target = seen(0, 1, 2, 3)
    assert ids(select(candidates, k=2, target_coverage=target, **WHERE)) == ["again", "most"]
    assert ids(select(candidates, k=2, target_coverage=target, policy="greedy", **WHERE)) == ["again", "rest"]


def test_greedy_falls_back_to_the_ranking_once_nothing_new_is_covered() -> None:
    candidates = memories(
        whole={"coverage": seen(0, 1)},
        half={"coverage": seen(0)},
        more={"coverage": seen(0, 1, 2)},
        no={"coverage": seen(5)},
    )
    choices = select(candidates, k=9, target_coverage=seen(0, 1), policy="greedy", **WHERE)
    assert ids(choices) == ["more", "whole", "half", "no"]
    assert choices[-1].score == 0


def test_greedy_lets_a_little_less_view_win_over_a_distant_time() -> None:
    words = list(range(8))
    candidates = memories(
        old={"coverage": seen(*words), "start": 1000}, near={"coverage": seen(*words[:7]), "start": 16}
    )
    target = seen(*words)
    assert ids(select(candidates, k=1, target_coverage=target, **WHERE)) == ["old"]
    assert ids(select(candidates, k=1, target_coverage=target, policy="greedy", **WHERE)) == ["near"]


# --- text


def test_text_ranks_by_the_cosine_of_descriptors() -> None:
    candidates = memories(
        aside={"descriptor": [0, 3]},
        close={"descriptor": [9, 1]},
        none={"descriptor": [0, 0]},
        behind={"descriptor": [-1, 0]},
    )
    choices = select(candidates, k=4, target_descriptor=np.float32([2, 0]), **WHERE)
    assert ids(choices) == ["close", "aside", "none", "behind"]
    assert choices[0].score == pytest.approx(9 / np.sqrt(82))
    assert choices[2].score == 0


def test_the_memories_that_are_to_come_first_do_in_their_order_and_count_among_the_k() -> None:
    candidates = memories(
        alike={"descriptor": [1, 0]}, before={"descriptor": [0, 1]}, other={"descriptor": [1, 1]},
        opening={"descriptor": [-1, 0]},
    )  # fmt: skip
    asked = {"k": 3, "target_descriptor": np.float32([1, 0]), **WHERE}
    assert ids(select(candidates, first=("before", "opening"), **asked)) == ["before", "opening", "alike"]
    assert ids(select(candidates, first=("before", "before"), **asked)) == ["before", "alike", "other"]
    assert ids(select(candidates, first=("not there", ""), **asked)) == ["alike", "other", "before"]


# --- limits


def test_nothing_is_chosen_from_nothing_or_when_nothing_is_asked_for() -> None:
    assert select(memories(a={}).take([]), k=3, target_coverage=seen(0), **WHERE) == []
    assert select(memories(a={}), k=0, target_coverage=seen(0), **WHERE) == []


@pytest.mark.parametrize(("turn", "segment"), [(1, 0), (1, 1), (0, 7)])
def test_a_candidate_that_is_no_ancestor_is_refused(turn: int, segment: int) -> None:
    with pytest.raises(ValueError, match="memory late .turn 1, segment 1. is no ancestor"):
        select(
            memories(late={"turn": 1, "segment": 1}), k=1, start=0, turn=turn, segment=segment, target_coverage=seen(0)
        )


def test_a_missing_target_and_an_unknown_policy_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to rank"):
        select(memories(a={}), k=1, **WHERE)
    with pytest.raises(ValueError, match="unknown retrieval policy 'best'"):
        select(memories(a={}), k=1, target_coverage=seen(0), policy="best", **WHERE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'top_k'"):
        select(memories(a={}), k=1, target_descriptor=np.float32([1, 0]), policy="greedy", **WHERE)
    with pytest.raises(ValueError, match="1 ids but 2 turns"):
        Candidates(["a"], np.array([1, 2]), np.array([0]), np.array([0]), seen(0)[None], np.zeros((1, 2), np.float32))


def test_a_path_that_returns_finds_the_memory_of_where_it_began() -> None:
    out = preset("pan_right", 33, LENS)
    start = Trajectory.static(1, LENS)
    rows = {"origin": {"coverage": coverage(start, SPHERE)}, "far": {"coverage": coverage(out[-1:], SPHERE)}}
    back = out.then(out[::-1])[-4:]
    assert ids(select(memories(**rows), k=1, target_coverage=coverage(back, SPHERE), **WHERE)) == ["origin"]
