"""Latents kept on disk, for models whose codec takes longer than their training step: every window is encoded once.

One file per window, published whole; whoever finds one missing makes it. So several processes may fill a folder
together and be killed at any time, and what is there is never made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from actors.training_data import Encoded
from pipeline.clip import Clip
from pipeline.training.samples import Window, starts
from storage.atomic import published
from storage.errors import reading
from storage.fingerprint import folder_digest


class Kept:
    """`Encoded` with a memory. folder: of this codec and size alone (see `latents_folder`). digests: of every row's
    video, after which its files are named: clips that are added to a data set leave the others' latents in place."""

    def __init__(self, encoded: Encoded, folder: Path, digests: Sequence[str]) -> None:
        self.encoded, self.folder, self.digests = encoded, folder, digests

    def __call__(self, windows: Sequence[Window], length: int) -> torch.Tensor:
        """(N, C, T', H', W') float32."""
        return torch.stack([self._one(each, length) for each in windows])

    def fill(self, clips: Sequence[Clip], length: int, part: int = 0, parts: int = 1) -> Iterator[tuple[int, int]]:
        """Make what is missing of every `parts`-th window, from the `part`-th on; after each, (how many of them are
        there, how many there will be)."""
        mine = [Window(clip, at) for clip in clips for at in starts(clip, length)][part::parts]
        missing = [each for each in mine if not self._path(each, length).exists()]
        for number, each in enumerate(missing, start=1 + len(mine) - len(missing)):
            self._one(each, length)
            yield number, len(mine)

    def _one(self, window: Window, length: int) -> torch.Tensor:
        path = self._path(window, length)
        if path.exists():
            with reading(str(path)):
                return torch.from_numpy(np.load(path))
        latent = self.encoded([window], length)[0].cpu()
        with published(str(path)) as temporary, open(temporary, "wb") as file:
            np.save(file, latent.numpy())
        return latent

    def _path(self, window: Window, length: int) -> Path:
        return self.folder / f"{self.digests[window.clip.row]}-{window.start:06d}-{length}.npy"


def latents_folder(out: str, model: str, height: int, width: int) -> Path:
    """Where the latents lie that the codec of a model's folder makes of windows of a size."""
    key = json.dumps([folder_digest(f"{model}/vae"), height, width])
    return Path(out) / "latents" / hashlib.sha256(key.encode()).hexdigest()[:16]
