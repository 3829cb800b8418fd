"""Which memories an edit gets to see: a total order over its ancestors, as a pure function.

Camera edits rank by coverage (the paper's VideoFOV score), text edits by the likeness of their source segments. Equal
scores fall to what is nearer in time, then to the later turn, then to the id, so the choice never depends on the order
in which the candidates come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.coverage import fov_scores, popcounts

DECIMALS = 6  # scores are compared after rounding: what differs less is a tie
AGE_PENALTY = 0.2  # WorldMem: share of the target that the farthest memory in time must cover more than a near one

Policy = Literal["top_k", "greedy"]


@dataclass
class Candidates:
    """N ancestors as a struct of arrays.

    ids: N strings. turns, segments, starts: (N,) int; starts are the segments' first frames in the source.
    coverage: (N, B) uint8 packed bits. descriptors: (N, D) float32."""

    ids: list[str]
    turns: NDArray[np.integer]
    segments: NDArray[np.integer]
    starts: NDArray[np.integer]
    coverage: NDArray[np.uint8]
    descriptors: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name in ("turns", "segments", "starts", "coverage", "descriptors"):
            if len(getattr(self, name)) != len(self.ids):
                raise ValueError(f"candidates have {len(self.ids)} ids but {len(getattr(self, name))} {name}")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Candidates:
        """The candidates at `indices`, in that order."""
        at = np.asarray(indices, dtype=np.int64)
        return Candidates(
            [self.ids[i] for i in at],
            self.turns[at],
            self.segments[at],
            self.starts[at],
            self.coverage[at],
            self.descriptors[at],
        )


@dataclass(frozen=True)
class Choice:
    """A memory that was chosen, and its score: VideoFOV's s in [0, 1] for cameras, cosine similarity for text."""

    id: str
    score: float


def select(
    candidates: Candidates,
    *,
    k: int,
    start: int,
    turn: int,
    segment: int,
    target_coverage: NDArray[np.uint8] | None = None,
    target_descriptor: NDArray[np.float32] | None = None,
    policy: Policy = "top_k",
    blend: float = 0.5,
    first: Sequence[str] = (),
) -> list[Choice]:
    """At most `k` memories for the edit (turn, segment) whose first source frame is `start`, most relevant first.

    With `target_coverage` (B,) the VideoFOV score ranks (weight `blend`), and `target_descriptor` (D,), if also given,
    breaks its ties; with `target_descriptor` alone the cosine similarity of descriptors ranks. Then: nearer in time,
    later turn, id. `policy="greedy"` (cameras only) covers the target as WorldMem does: the memory that newly covers
    the largest share of it, minus a penalty for distance in time, again and again; once nothing new is covered, the
    ranking fills up. Memories with the ids `first` come before all others, in this order, where they are among the
    candidates (text: see `Edit.opening`). Raises ValueError for a candidate that is no ancestor."""
    if target_coverage is None and target_descriptor is None:
        raise ValueError("nothing to rank memories by: give target_coverage (cameras) or target_descriptor (text)")
    if policy not in ("top_k", "greedy"):
        raise ValueError(f"unknown retrieval policy {policy!r}; expected 'top_k' or 'greedy'")
    if policy == "greedy" and target_coverage is None:
        raise ValueError("retrieval policy 'greedy' covers a target's field of view; text edits need 'top_k'")
    _check_ancestors(candidates, turn, segment)
    if not len(candidates) or k < 1:
        return []
    likeness = None if target_descriptor is None else _cosine(candidates.descriptors, target_descriptor)
    scores = likeness if target_coverage is None else fov_scores(target_coverage, candidates.coverage, blend=blend)
    assert scores is not None
    away = np.abs(np.asarray(candidates.starts, dtype=np.int64) - start)
    ties = [-np.asarray(candidates.turns, dtype=np.int64), away]
    if target_coverage is not None and likeness is not None:
        ties.append(-np.round(likeness, DECIMALS))
    ranking = _first(k, -np.round(scores, DECIMALS), ties, candidates.ids)
    if policy == "greedy" and target_coverage is not None:
        ranking = _cover(target_coverage, candidates.coverage, away, ties, candidates.ids, ranking, k)
    ahead = [candidates.ids.index(id) for id in dict.fromkeys(first) if id in candidates.ids]
    ranking = [*ahead, *(i for i in ranking if i not in ahead)]
    return [Choice(candidates.ids[i], float(scores[i])) for i in ranking[:k]]


def _first(k: int, order: NDArray, ties: list[NDArray], ids: Sequence[str]) -> list[int]:
    """Where the `k` smallest of `order` are, in order; what is equal by the last of `ties`, then the one before, then
    by id. Only what may be among them is sorted: of a million candidates sorting takes longer than scoring."""
    most = np.partition(order, k - 1)[k - 1] if k < len(order) else np.inf
    among = np.flatnonzero(order <= most)
    names = np.array([ids[int(i)] for i in among])
    return among[np.lexsort([names, *(tie[among] for tie in ties), order[among]])[:k]].tolist()


def _cover(
    target: NDArray[np.uint8],
    memories: NDArray[np.uint8],
    away: NDArray[np.int64],
    ties: list[NDArray],
    ids: Sequence[str],
    ranking: list[int],
    k: int,
) -> list[int]:
    """WorldMem's greedy set cover, then the rest of the `ranking`."""
    size = max(int(popcounts(target[None])[0]), 1)
    penalty = AGE_PENALTY * away / max(int(away.max()), 1)
    left, chosen = target, list[int]()
    while len(chosen) < k:
        fresh = popcounts(memories, left)
        if not fresh.any():
            break
        worth = np.where(fresh > 0, np.round(fresh / size - penalty, DECIMALS), -np.inf)
        best = _first(1, -worth, ties, ids)[0]
        chosen.append(best)
        left = left & ~memories[best]
    return chosen + [i for i in ranking if i not in chosen]


def _cosine(rows: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) cosine similarity of `rows` (N, D) with `target` (D,); a zero vector is like nothing: 0."""
    if rows.shape[1:] != target.shape:
        raise ValueError(f"descriptors of {rows.shape[1:]} against a target of {target.shape}; expected equal sizes")
    many, one = rows.astype(np.float64), target.astype(np.float64)
    lengths = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    return (many * one).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)


def _check_ancestors(candidates: Candidates, turn: int, segment: int) -> None:
    """An edit's ancestors come before it, turn-major: another candidate would be a sibling's or the future's."""
    turns, segments = np.asarray(candidates.turns), np.asarray(candidates.segments)
    late = (turns > turn) | ((turns == turn) & (segments >= segment))
    if late.any():
        i = int(np.argmax(late))
        raise ValueError(
            f"memory {candidates.ids[i]} (turn {turns[i]}, segment {segments[i]}) is no ancestor of turn {turn}, "
            f"segment {segment}; candidates are the edits before it, turn-major"
        )
