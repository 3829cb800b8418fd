"""What every actor of a run is built from: paths and numbers only, so that Ray can rebuild it from its constructor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.coverage import Sphere
from pipeline.descriptor import DIMENSION

if TYPE_CHECKING:
    from storage.library import Library


@dataclass(frozen=True)
class Setup:
    """The model, the library and the settings of a run (the fields of jobs.config.EditConfig)."""

    model: str
    model_digest: str
    library: str
    settings: dict[str, Any]
    device: str = "cpu"

    @property
    def library_place(self) -> dict[str, Any]:
        """Arguments of `Library.open`."""
        return {
            "url": self.library,
            "model": self.model_digest,
            "sphere": Sphere(points=self.settings["points"], radius=self.settings["radius"]),
            "descriptor_dim": DIMENSION,
        }

    def open_library(self, create: bool = False) -> Library:
        """The run's library. Raises as `Library.open` does."""
        # Here and not at the top: Lance does not survive a fork, so only the actor's own process may import it.
        from storage.library import Library

        return Library.open(**self.library_place, create=create)
