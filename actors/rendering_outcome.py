"""How far the rendering of a data set is, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Rendered:
    """left: scenes neither rendered nor given up. rendered, frames: scenes and frames of this run. committed: scenes in
    the data set. lost: what was given up, by the scene's name, and why. stopped: why the rest was not begun."""

    left: int = 0
    rendered: int = 0
    frames: int = 0
    committed: int = 0
    lost: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None

    @property
    def failed(self) -> int:
        return len(self.lost)
