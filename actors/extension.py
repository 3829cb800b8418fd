"""Pairs of a data set, of which the edited clip is made longer by a model: scenes like any others to the rendering."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.clip import Clip

if TYPE_CHECKING:
    from storage.clip_row import ClipRow
    from storage.clips import ClipDataset

# Raised whenever the same pair and the same model no longer give the same clips.
EXTENDER = "extended-1"


@dataclass(frozen=True)
class Extending:
    """How pairs become longer: all that decides a data set's bytes beside the pairs.

    scenes: URL of the data set they are in. model: folder, and model_digest of its content. extension: frames that are
    added. k: segments that the model is shown, at most.
    """

    scenes: str
    model: str
    model_digest: str
    extension: int
    k: int


@dataclass(frozen=True)
class PairsTask:
    """Clips of one scene: edited ones, and those of the same cameras before the edit. In the order of their rows."""

    clips: tuple[Clip, ...]

    @property
    def scene(self) -> int:
        return self.clips[0].scene

    @property
    def name(self) -> str:
        return f"scene {self.scene}"

    def rows(self, extending: Extending) -> list[ClipRow]:
        """The clips as they were, the edited ones longer."""
        rows = _scenes(extending.scenes).whole(self.clips)
        return [_longer(row, extending) if row.variant else row for row in rows]


def _longer(row: ClipRow, extending: Extending) -> ClipRow:
    from pipeline.extension import extended

    def seed(segment: int) -> int:
        drawn_for = f"{EXTENDER}/{row.scene}/{row.variant}/{row.camera}/{segment}"
        return int.from_bytes(hashlib.sha256(drawn_for.encode()).digest()[:7], "big")

    video, path = extended(
        _pipeline(extending.model, extending.model_digest),
        row.video,
        row.trajectory,
        row.rate,
        frames=extending.extension,
        k=extending.k,
        seed=seed,
        first=last_shot(row.shots),
    )
    shots = np.append(row.shots, np.full(extending.extension, row.shots[-1], np.int32))
    return replace(row, kind="extended", video=video, trajectory=path, shots=shots, extended=extending.extension)


def last_shot(shots: np.ndarray) -> int:
    """First frame of a clip's last shot, from the shot (T,) of every frame."""
    cuts = np.flatnonzero(np.diff(shots))
    return int(cuts[-1]) + 1 if len(cuts) else 0


# Once per process, and only in one that has something to extend: a model takes seconds to load.


@lru_cache(maxsize=1)
def _scenes(url: str) -> ClipDataset:
    # Here and not at the top: Lance must not be there before Ray has forked.
    from storage.clips import ClipDataset

    return ClipDataset.open(url)


@lru_cache(maxsize=1)
def _pipeline(folder: str, digest: str) -> Any:
    from pipeline.memory_pipeline import MemoryV2VPipeline
    from storage.fingerprint import check_folder

    pipe = MemoryV2VPipeline.from_pretrained(folder)
    check_folder(folder, digest)
    pipe.set_progress_bar_config(disable=True)
    # Diffusers would take it from the environment, and the kernels decide the last bits.
    pipe.transformer.set_attention_backend("native")
    return pipe
