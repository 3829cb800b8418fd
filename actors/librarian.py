"""The Librarian: the only process that commits to a library.

It commits at once when idle; what arrives during a commit forms the next group, without a timer. A commit costs about
the same for one row as for many, so the group grows by itself to what the load asks for. A caller is answered when its
memory is committed, and not before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.coverage import Sphere
    from storage.library import Library
    from storage.memory import Memory

# Rows of one commit: bounds its memory (64 latents of 8 MB are half a gigabyte) and what one failure puts in doubt.
GROUP = 64

# Seconds, at least, between looks for old versions. Commits wait for it: thousands are kept, and each is looked at.
DROP_EVERY = 600.0

log = logging.getLogger(__name__)


class Librarian:
    """Plain asyncio; Ray wraps it from outside (`ray.remote(Librarian)`). Arguments as for `Library.open`.

    The library must be there, unless told to `create` it: on a node that does not share the folder an empty one would
    take in what nobody finds again. While the Librarian lives, nothing can be erased from a local library.

    `compact_every`: small fragments that are joined; looked for at the start, as many short runs leave them too, and
    after as many commits. Manifests grow with them: 5,000 made 1.2 GB and reads a hundred times slower.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        sphere: Sphere,
        descriptor_dim: int,
        create: bool = False,
        compact_every: int = 100,
    ) -> None:
        self._place: dict[str, Any] = {
            "url": url,
            "model": model,
            "sphere": sphere,
            "descriptor_dim": descriptor_dim,
            "create": create,
        }
        self._compact_every = compact_every
        self._next_look = 0  # at the number of fragments, when so many commits are made
        self._next_drop = time.monotonic()  # of old versions: at first those that earlier runs left
        self._lock = self._in_use()
        self._library = self._open()
        self._waiting: list[tuple[Memory, asyncio.Future[str]]] = []
        self._work: asyncio.Task[None] | None = None
        self._stats = {"memories": 0, "commits": 0, "largest_group": 0, "doubts": 0, "compactions": 0}
        self._seconds = 0.0

    async def ready(self) -> str:
        """The library's URL, once it is open. What earlier runs left to compact is begun with, and not waited for."""
        self._go_on()
        return self._library.url

    async def commit(self, memory: Memory) -> str:
        """The memory's id, once it is in the library. Idempotent. Raises what kept this one memory out."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((memory, answer))
        self._go_on()
        return await answer

    async def stats(self) -> dict[str, float]:
        """Counts since the start, and the seconds spent in commits."""
        return {**self._stats, "waiting": len(self._waiting), "seconds": self._seconds}

    def _go_on(self) -> None:
        if self._work is None:
            self._work = asyncio.create_task(self._commit_all())

    async def _commit_all(self) -> None:
        """Group after group until nobody waits, and compaction where it is due between them. Lance blocks, so it runs
        in a thread; never two at a time."""
        try:
            while True:
                if self._stats["commits"] >= self._next_look:
                    await asyncio.to_thread(self._compact)
                if not self._waiting:
                    return
                group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
                try:
                    kept_out = await asyncio.to_thread(self._commit_group, [memory for memory, _ in group])
                except BaseException as error:  # whatever happens, every caller gets an answer
                    kept_out = {memory.id: _as_exception(error) for memory, _ in group}
                for memory, answer in group:
                    if answer.done():  # the caller has gone; its memory is committed all the same
                        continue
                    reason = kept_out.get(memory.id)
                    if reason is None:
                        answer.set_result(memory.id)
                    else:
                        answer.set_exception(reason)
        finally:
            self._work = None

    def _commit_group(self, memories: list[Memory]) -> dict[str, Exception]:
        """Commit; on any doubt look what is there and commit only the missing, one at a time, so that one bad memory
        fails alone. Returns what kept out those that did not get in."""
        began = time.perf_counter()
        kept_out: dict[str, Exception] = {}
        try:
            self._library.commit(memories)
            self._stats["commits"] += 1
        except Exception as doubt:  # also an error after the fact: the commit may have happened
            self._stats["doubts"] += 1
            log.warning("group of %d in doubt, looking which are there: %s", len(memories), doubt)
            unique = {memory.id: memory for memory in memories}
            for memory in self._missing(list(unique.values())):
                try:
                    self._library.commit([memory])
                    self._stats["commits"] += 1
                except Exception as error:
                    if self._missing([memory]):
                        kept_out[memory.id] = error
        self._stats["memories"] += len({memory.id for memory in memories}) - len(kept_out)
        self._stats["largest_group"] = max(self._stats["largest_group"], len(memories))
        self._seconds += time.perf_counter() - began
        return kept_out

    def _missing(self, memories: list[Memory]) -> list[Memory]:
        self._library = self._open()
        there = self._library.holds([memory.id for memory in memories])
        return [memory for memory in memories if memory.id not in there]

    def _compact(self) -> None:
        self._next_look = self._stats["commits"] + self._compact_every  # also where it fails now
        try:
            if self._library.loose() >= self._compact_every:
                self._stats["compactions"] += 1
                self._library.compact()
            if time.monotonic() >= self._next_drop:
                self._next_drop = time.monotonic() + DROP_EVERY
                self._library.drop_versions()
        except Exception as error:  # costs time and space later, but no memory
            log.warning("library %s could not be tidied: %s", self._place["url"], error)

    def _in_use(self) -> ExitStack:
        from storage.lock import in_use

        held = ExitStack()
        held.enter_context(in_use(self._place["url"]))
        return held

    def _open(self) -> Library:
        # Here and not at the top: Lance does not survive a fork, so only the actor's own process may import it.
        from storage.library import Library

        return Library.open(**self._place)


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(f"the librarian was stopped: {error!r}")
