"""What goes wrong where nobody asks: actors that die while idle, and errors of results that nobody wants."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

# Seconds that idle actors have for an answer.
ANSWER = 10.0

K = TypeVar("K")


def lost(actors: Mapping[K, Any]) -> list[K]:
    """Which of these actors, all of them idle and with a method `ready`, do not answer any more."""
    asked = {actor.ready.remote(): name for name, actor in actors.items()}
    if asked:
        ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER, fetch_local=False)
    found = []
    for ref, name in asked.items():
        try:
            ray.get(ref, timeout=0)
        except RayError:
            found.append(name)
    return found


def forget(result: Any) -> None:
    """Of a task that has ended: Ray prints the error of a result that nobody has asked for."""
    with suppress(RayError):
        ray.get(result)
