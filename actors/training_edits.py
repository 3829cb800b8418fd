"""Edits of the model itself kept on disk, from which its details are learned: an edit takes as long as dozens of steps
of that, so each is made once and seen again and again.

One file per batch of them, published whole; several processes may fill a folder together and be killed at any time.
Which edits a number stands for is drawn from it, so what is made again is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.training.batch import Batch, Covered
from pipeline.training.samples import Draw
from storage.atomic import published
from storage.errors import reading

TRIES = 20  # batches that are drawn for one of which edits make something up


class Edits:
    """The batches 0 to count - 1 of `edited` targets. folder: of a folder for each key, all that they follow from, as
    JSON takes it. make: the batch of a number, at a try; None where nothing of it is made up."""

    def __init__(self, folder: Path, key: Any, count: int, make: Callable[[int, int], Batch | None]) -> None:
        self.folder = folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.count, self.make = count, make

    def fill(self, part: int = 0, parts: int = 1) -> Iterator[tuple[int, int]]:
        """Make what is missing of every `parts`-th, from the `part`-th on; after each, (how many of them are there, how
        many there will be)."""
        mine = range(part, self.count, parts)
        missing = [each for each in self.missing() if each in mine]
        for made, each in enumerate(missing, start=1 + len(mine) - len(missing)):
            self._keep(each)
            yield made, len(mine)

    def missing(self) -> list[int]:
        return [each for each in range(self.count) if not self._path(each).exists()]

    def __call__(self, number: int) -> Batch:
        """As it was made, in half precision in between."""
        with reading(str(self._path(number))), safe_open(self._path(number), "pt") as file:
            known = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            said = json.loads(file.metadata()["batch"])
        draw = Draw(said["task"], said["length"], (), False, False, None, None)
        view = {name: known.get(name) for name in said["view"]}
        covered = Covered(known["shown"], known["share"])
        words, scenes = tuple(said["instructions"]), tuple(said["scenes"])
        return Batch(draw, known["clean"], known.get("plain"), None, view, None, (), words, scenes, covered)

    def _keep(self, number: int) -> None:
        made = (self.make(number, attempt) for attempt in range(TRIES))
        batch = next((each for each in made if each is not None), None)
        if batch is None:
            raise RuntimeError(
                f"edits {number}: of {TRIES} batches nothing is made up, expected cameras that move or instructions"
            )
        assert batch.covered is not None
        tensors = {"clean": batch.clean, "plain": batch.plain, **batch.covered._asdict(), **batch.view}
        halves = {
            name: value.cpu().to(torch.float32 if name in batch.view else torch.float16).contiguous()
            for name, value in tensors.items()
            if value is not None
        }
        said = {"task": batch.draw.task, "length": batch.draw.length, "view": [*batch.view]}
        said |= {"instructions": batch.instructions, "scenes": batch.scenes}
        with published(str(self._path(number))) as temporary:
            save_file(halves, temporary, metadata={"batch": json.dumps(said)})

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"
