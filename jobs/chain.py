"""The edit chain: the edits of one source in their order, each named by the hash of all that decides its bits.

Ids are the whole bookkeeping. Two plans that share a prefix share its ids and so its work; a change anywhere gives new
ids from there on; a memory may be used by an edit if and only if it is an ancestor.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jobs.config import EditConfig, bits_of
from jobs.turn import Turn
from pipeline.edit import Edit
from pipeline.fit import Fit
from pipeline.prompt import clean
from pipeline.segments import Segment
from pipeline.trajectory import Trajectory
from storage.location import WEB, absolute
from storage.video import VideoInfo

# Raise it when our own code, or the image network of pipeline.descriptor, changes what a latent is: the ids of all
# earlier edits then no longer match.
CHAIN_VERSION = 18
LONGEST_STEM, DIGITS = 100, 16  # of a folder's name: file systems take 255 bytes


def edit_id(content: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of `content`, as 64 hexadecimal digits."""
    canonical = json.dumps({"version": CHAIN_VERSION} | content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Chain:
    """All edits of one source under one plan: turn-major, every edit the child of the one before it.

    identity: what the file looked like when its fingerprint was taken (storage.video.identity).
    camera: the source's own trajectory. placed: whether it was given, and so how shots lie to one another.
    targets: where every turn's camera goes (for a text turn, its input's own trajectory). frames: of every segment, as
    the model sees it.
    """

    info: VideoInfo
    fingerprint: str
    identity: tuple[Any, ...]
    fit: Fit
    segments: tuple[Segment, ...]
    frames: tuple[int, ...]
    turns: tuple[Turn, ...]
    camera: Trajectory
    targets: tuple[Trajectory, ...]
    config: EditConfig
    model: str
    placed: bool = False

    @property
    def url(self) -> str:
        return self.info.url

    @property
    def name(self) -> str:
        """Folder of the source's results: its stem and so many digits of its fingerprint that no two sources of a
        corpus share them."""
        url = self.url.partition("?")[0] if self.url.startswith(WEB) else self.url
        stem = posixpath.splitext(posixpath.basename(url.replace("\\", "/")))[0]
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem)[:LONGEST_STEM].strip("._-")
        return f"{stem or 'source'}-{self.digits}"

    @property
    def digits(self) -> str:
        """What the folder's name ends with, whatever the source is called."""
        return self.fingerprint[:DIGITS]

    @property
    def found(self) -> VideoInfo:
        """The source as processes find it that run elsewhere."""
        return replace(self.info, url=absolute(self.url))

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """A turn without a prompt of its own keeps the one in force."""
        prompts: list[str] = []
        for turn in self.turns:
            inherited = prompts[-1] if prompts else ""
            prompts.append(inherited if turn.prompt is None else turn.prompt)
        return tuple(prompts)

    @cached_property
    def looks(self) -> tuple[tuple[str, ...], ...]:
        """The prompts that what a turn makes has come to look like, one after the other, as the model reads them. An
        edit of the source has its own alone, one of the last turn that turn's as well, and to be told the same again
        changes nothing. (Negative prompts do not count: what to come to is the same, and they do not stay in force.)"""
        looks: list[tuple[str, ...]] = []
        for turn, prompt in zip(self.turns, map(clean, self.prompts), strict=True):
            before = looks[-1] if looks and turn.input == "previous" else ()
            looks.append(before if not prompt or before[-1:] == (prompt,) else (*before, prompt))
        return tuple(looks)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Id of every edit, in order."""
        config, ids = bits_of(self.config), []
        root = {"fingerprint": self.fingerprint, "camera": self.camera.digest, "placed": self.placed}
        parent: dict[str, Any] = {"source": root}
        for turn, target, prompt in zip(self.turns, self.targets, self.prompts, strict=True):
            instruction = {
                "target": target.digest,
                "by": "coverage" if turn.trajectory else "descriptor",
                "prompt": prompt,
                "negative_prompt": turn.negative_prompt,
                "input": turn.input,
            }
            for segment in self.segments:
                window = [segment.start, segment.stop, segment.shot]
                content = {"segment": window, "turn": instruction, "config": config, "model": self.model}
                ids.append(edit_id(parent | content))
                parent = {"parent": ids[-1]}
        return tuple(ids)

    def __len__(self) -> int:
        return len(self.turns) * len(self.segments)

    def turn_ids(self, turn: int) -> tuple[str, ...]:
        """Ids of the edits that make up the video of a turn (counted from 0)."""
        return self.ids[turn * len(self.segments) : (turn + 1) * len(self.segments)]

    def cost(self, index: int) -> float:
        """Relative cost of an edit: pixels that the network works on."""
        return float(self.frames[index % len(self.segments)] * self.fit.height * self.fit.width)

    def edit(self, index: int) -> Edit:
        """The edit at a place of the chain. Made when it is dispatched: its ancestors' ids grow with `index`."""
        t, s = divmod(index, len(self.segments))
        turn, segment, ids = self.turns[t], self.segments[s], self.ids
        same_turn = ids[t * len(self.segments) : index]
        by_descriptor = turn.trajectory is None
        first = index - s if by_descriptor and self.config.text_memories == "same_turn" else 0

        def remembers(number: int) -> bool:
            other_turn, other_segment = divmod(number, len(self.segments))
            # What looks there but was told something else would be copied against the words. (Of text turns those of
            # the same turn were told the same, and `text_memories` asks for others.)
            if not by_descriptor and self.looks[other_turn] != self.looks[t]:
                return False
            # After a cut nothing goes on from before it, and where the camera went is known only if it was given.
            across = self.placed and not by_descriptor
            return across or self.segments[other_segment].shot == segment.shot

        pool = tuple(ids[number] for number in range(first, index) if remembers(number))
        opens = next(number for number, each in enumerate(self.segments) if each.shot == segment.shot)
        return Edit(
            id=ids[index],
            parent=ids[index - 1] if index else "",
            source=self.fingerprint,
            url=absolute(self.url),
            identity=self.identity,
            turn=t + 1,
            segment=segment,
            frames=self.frames[s],
            rate=float(self.info.rate),
            fit=self.fit,
            camera=_window(
                self.camera if turn.input == "source" or t == 0 else self.targets[t - 1], segment, self.frames[s]
            ),
            target=_window(self.targets[t], segment, self.frames[s]),
            prompt=self.prompts[t],
            negative_prompt=turn.negative_prompt,
            inputs=self.turn_ids(t - 1)[: s + 1] if turn.input == "previous" and t > 0 else (),
            by="descriptor" if by_descriptor else "coverage",
            candidates=pool,
            preceding=same_turn[-1] if opens < s else "",
            opening=same_turn[opens] if opens < s else "",
            seed=int(ids[index][:15], 16),
        )


def _window(trajectory: Trajectory, segment: Segment, frames: int) -> Trajectory:
    """The poses of a segment, the last one repeated up to `frames`."""
    stop = [segment.stop - 1] * (frames - segment.frames)
    index = [*range(segment.start, segment.stop), *stop]
    return Trajectory(c2w=trajectory.c2w[index], intrinsics=trajectory.intrinsics[index])
