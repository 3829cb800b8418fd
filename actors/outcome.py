"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What a run did; what it could not do, and why."""

    failed: dict[str, str] = field(default_factory=dict)  # source -> why it was given up
    unpublished: list[tuple[str, str]] = field(default_factory=list)  # (source, why a video of it was not written)
    stopped: str | None = None
    edits: int = 0
    seconds: float = 0.0
    editing: float = 0.0  # seconds from the first commit to the last, which is edits - 1 of them at full speed
