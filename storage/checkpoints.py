"""Checkpoints of a training: one file each, there whole or not at all, and read without unpickling code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from storage.atomic import published
from storage.errors import StorageError, fault

NAME = re.compile(r"step-(\d{8})\.pt")
KEPT = 2


class Checkpoints:
    """The folder of a training's checkpoints, of which the newest KEPT stay."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (NAME.fullmatch(each.name) for each in self.folder.iterdir())
        return sorted(int(each[1]) for each in found if each)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write one, then remove the oldest. A full disk raises StorageFault and leaves the others as they are."""
        with published(str(self.path(step))) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # torch reports a full disk as one of its own
                raise OSError(28, f"torch could not write: {str(error).splitlines()[0]}") from error
        for old in self.steps()[:-KEPT]:
            self.path(old).unlink(missing_ok=True)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest step and its state on the CPU, None where there is none. StorageError for a damaged file,
        StorageFault where the disk fails."""
        if not self.steps():
            return None
        step = self.steps()[-1]
        path = self.path(step)
        try:
            return step, torch.load(path, map_location="cpu", weights_only=True)
        except (PermissionError, MemoryError):  # nothing is wrong with the file
            raise
        except OSError as error:
            raise fault(str(path), "cannot be read", error, "check the disk, and the limit of open files") from error
        except Exception as error:  # torch raises half a dozen kinds for a file that is cut short or is no checkpoint
            words = (str(error).splitlines() or [type(error).__name__])[0]  # an empty one's has none
            if "allocate memory" in words:  # torch has no kind of its own for it
                raise MemoryError(f"{path}: {words}") from error
            raise StorageError(
                f"{path}: not a readable checkpoint ({words[:120]}); remove it to go on from the one before, of steps "
                f"{self.steps()[:-1] or 'none'}"
            ) from error
