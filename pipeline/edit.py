"""An edit: one denoising of one segment of one source in one turn, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.fit import Fit
from pipeline.segments import Segment
from pipeline.trajectory import Trajectory


@dataclass(frozen=True)
class Edit:
    """Everything that decides the bits of one edit, beside the model and the configuration.

    identity: what the source's file looked like when it was planned; another one would be another source.
    frames: what the network sees, `segment.frames` rounded up to what the codec takes; the last frame is repeated.
    rate: frames per second of the source.
    camera, target: trajectories of the input and of the result, `frames` poses each, in the source's world, with
        intrinsics as seen in the model's frame.
    inputs: ids of the edits whose latents this turn's segments up to this one edit; () edits the source's own frames.
    by: what the memories are ranked by, `coverage` (camera turns) or `descriptor` (text turns).
    candidates: ids of the ancestors that memories may come from. preceding: the one just before this segment, or "".
    opening: the one of this turn that opens the segment's shot, or "". In a text turn these two are the first memories:
        the one before, as in the paper, keeps the cut between segments unseen; the one that opens the shot, where what
        the words ask for was invented, keeps it from drifting away (docs/mini.md).
    seed: of the initial noise; derived from the id.
    """

    id: str
    parent: str
    source: str
    url: str
    identity: tuple[Any, ...]
    turn: int
    segment: Segment
    frames: int
    rate: float
    fit: Fit
    camera: Trajectory = field(repr=False)
    target: Trajectory = field(repr=False)
    prompt: str
    negative_prompt: str
    inputs: tuple[str, ...] = field(repr=False)
    by: str
    candidates: tuple[str, ...] = field(repr=False)
    preceding: str
    opening: str
    seed: int

    @property
    def input(self) -> str:
        """Id of the edit whose latent is edited; "" for the source's own frames."""
        return self.inputs[-1] if self.inputs else ""
