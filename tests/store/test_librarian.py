from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path

import lance
import pytest
import torch

from actors.librarian import GROUP, Librarian
from storage.library import Library, LibraryError
from tests.memories import PLACE, a_memory, edit_id


@pytest.fixture
def url(tmp_path) -> str:
    return str(tmp_path / "library.lance")


class Flaky(Library):
    """A real library on a real disk whose commits go wrong on demand, before or after the fact."""

    faults: list[str] = []  # what the next commits do; empty: they work
    batches: list[int] = []
    inside = 0
    gate = threading.Event()  # what a commit waits for

    def commit(self, memories):
        cls = type(self)
        cls.inside += 1
        assert cls.inside == 1, "two commits at a time"
        try:
            cls.batches.append(len(memories))
            fault = cls.faults.pop(0) if cls.faults else ""
            cls.gate.wait(10)
            if fault == "before":
                raise OSError("connection reset")
            if fault == "half":
                memories = memories[: len(memories) // 2]
            super().commit(memories)
            if fault:
                raise OSError("connection reset")
        finally:
            cls.inside -= 1


class FlakyLibrarian(Librarian):
    def _open(self):
        return Flaky.open(**self._place)

    async def busy(self):
        """Until a commit is under way."""
        while not Flaky.inside:
            await asyncio.sleep(0.001)


@pytest.fixture
def flaky(url):
    Flaky.faults, Flaky.batches, Flaky.inside = [], [], 0
    Flaky.gate.set()
    return FlakyLibrarian(url, create=True, **PLACE)


def test_a_commit_answers_with_the_id_once_the_memory_is_in_the_library(url):
    async def story():
        librarian = Librarian(url, create=True, **PLACE)
        assert await librarian.commit(a_memory(1)) == edit_id(1)
        assert Library.open(url, **PLACE, create=False).holds([edit_id(1)])
        assert await librarian.commit(a_memory(1)) == edit_id(1)

    asyncio.run(story())
    assert len(Library.open(url, **PLACE)) == 1


def test_the_first_commits_at_once_and_what_arrives_meanwhile_forms_one_group(url, flaky):
    async def story():
        Flaky.gate.clear()
        first = asyncio.create_task(flaky.commit(a_memory("first")))
        await flaky.busy()
        rest = [asyncio.create_task(flaky.commit(a_memory(i))) for i in range(10)]
        await asyncio.sleep(0)  # they have started
        Flaky.gate.set()
        assert await first == edit_id("first")
        await asyncio.gather(*rest)
        stats = await flaky.stats()
        assert stats["memories"] == 11 and stats["commits"] == 2 and stats["largest_group"] == 10

    asyncio.run(story())
    assert Flaky.batches == [1, 10]


def test_groups_are_bounded_and_the_event_loop_stays_awake_during_a_commit(url, flaky):
    async def story():
        Flaky.gate.clear()
        work = asyncio.gather(*(flaky.commit(a_memory(i, size=2)) for i in range(GROUP + 6)))
        await flaky.busy()
        assert (await flaky.stats())["commits"] == 0 and Flaky.inside == 1
        Flaky.gate.set()
        await work

    asyncio.run(story())
    assert Flaky.batches == [GROUP, 6]
    assert len(Library.open(url, **PLACE)) == GROUP + 6


def test_the_same_memory_from_two_callers_is_committed_once_and_both_are_answered(url, flaky):
    async def story():
        return await asyncio.gather(*(flaky.commit(a_memory(i % 3)) for i in range(9)))

    assert asyncio.run(story()) == [edit_id(i % 3) for i in range(9)]
    assert len(Library.open(url, **PLACE)) == 3


@pytest.mark.parametrize("faults", [["before"], ["after"], ["half"], ["before", "before", "after"]])
def test_a_commit_in_doubt_is_settled_by_looking_and_no_memory_is_lost_or_doubled(url, flaky, faults):
    async def story():
        Flaky.faults = list(faults)
        # A single row whose commit really failed is the caller's to make again; all others must get in.
        return await asyncio.gather(*(flaky.commit(a_memory(i)) for i in range(6)), return_exceptions=True)

    answers = asyncio.run(story())
    ids = Library.open(url, **PLACE).rows()["id"].to_pylist()
    failed = [i for i, answer in enumerate(answers) if isinstance(answer, Exception)]
    assert failed == ([0] if len(faults) == 3 else [])
    assert sorted(ids) == sorted(edit_id(i) for i in range(6) if i not in failed)


def test_one_bad_memory_of_a_group_fails_alone(url):
    async def story():
        librarian = Librarian(url, create=True, **PLACE)
        memories = [a_memory(i) for i in range(5)]
        memories[2] = a_memory(2, latent=torch.full((1, 1, 2, 2), float("inf")))
        return await asyncio.gather(*(librarian.commit(m) for m in memories), return_exceptions=True)

    answers = asyncio.run(story())
    assert isinstance(answers[2], LibraryError) and "NaN or infinite" in str(answers[2])
    assert answers[:2] + answers[3:] == [edit_id(i) for i in (0, 1, 3, 4)]
    assert len(Library.open(url, **PLACE)) == 4


def test_a_library_that_is_gone_is_every_callers_error_and_nobody_waits_for_ever(url, flaky):
    async def story():
        Flaky.faults = ["before"]
        lance.dataset(url).update_schema_metadata({"memory_v2v.model": "somebody else's"})
        return await asyncio.wait_for(
            asyncio.gather(*(flaky.commit(a_memory(i)) for i in range(3)), return_exceptions=True), 20
        )

    assert all(isinstance(answer, LibraryError) for answer in asyncio.run(story()))


def test_a_caller_that_goes_away_does_not_hold_up_the_others(url, flaky):
    async def story():
        Flaky.gate.clear()
        gone = asyncio.create_task(flaky.commit(a_memory("gone")))
        stays = asyncio.create_task(flaky.commit(a_memory("stays")))
        await flaky.busy()
        gone.cancel()
        Flaky.gate.set()
        assert await stays == edit_id("stays")

    asyncio.run(story())
    assert len(Library.open(url, **PLACE)) == 2


def test_it_compacts_on_the_way_and_a_failed_compaction_stops_nobody(url, monkeypatch):
    async def story():
        librarian = Librarian(url, create=True, **PLACE, compact_every=5)
        for i in range(12):
            if i == 8:
                monkeypatch.setattr(Library, "compact", lambda self: (_ for _ in ()).throw(OSError("no space")))
            await librarian.commit(a_memory(i))
        return await librarian.stats()

    assert asyncio.run(story())["compactions"] == 2
    library = Library.open(url, **PLACE)
    assert len(library) == 12
    assert len(lance.dataset(url).get_fragments()) == 8, "five joined into one, seven since"


def test_what_many_short_runs_left_is_compacted_by_a_later_one(url):
    Library.open(url, **PLACE)

    async def run(i):
        librarian = Librarian(url, **PLACE, compact_every=5)
        assert await librarian.ready() == url
        await librarian.commit(a_memory(i))
        return (await librarian.stats())["compactions"]

    assert [asyncio.run(run(i)) for i in range(11)] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0]
    # Lance joins what its index covers and what it does not yet apart.
    assert len(lance.dataset(url).get_fragments()) == 4 and len(Library.open(url, **PLACE)) == 11


def test_old_versions_are_dropped_at_the_start_and_then_now_and_then(url, monkeypatch):
    library, kept = Library.open(url, **PLACE), list[int]()
    for i in range(5):
        library.commit([a_memory(i)])
    drop = Library.drop_versions
    monkeypatch.setattr(
        Library, "drop_versions", lambda self: (drop(self, timedelta(0)), kept.append(len(self._dataset.versions())))
    )

    async def run(first: int) -> None:
        librarian = Librarian(url, **PLACE, compact_every=2)
        await librarian.ready()
        for i in range(first, first + 6):
            await librarian.commit(a_memory(i))

    asyncio.run(run(5))
    assert kept == [1], "there are ten minutes to the next time"
    monkeypatch.setattr("actors.librarian.DROP_EVERY", 0.0)
    asyncio.run(run(11))
    assert len(kept) >= 4 and set(kept) == {1}  # whenever fragments are looked at
    assert len(Library.open(url, **PLACE)) == 17


def test_fragments_that_are_large_already_ask_for_no_compaction(url, monkeypatch):
    monkeypatch.setattr("storage.library.SMALL", 2)
    library = Library.open(url, **PLACE)
    for i in range(0, 12, 2):
        library.commit([a_memory(i), a_memory(i + 1)])

    async def run():
        librarian = Librarian(url, **PLACE, compact_every=5)
        await librarian.commit(a_memory("new"))
        return (await librarian.stats())["compactions"]

    assert asyncio.run(run()) == 0


def test_a_librarian_makes_no_library_unless_told_to(url):
    with pytest.raises(LibraryError, match="no library at"):
        Librarian(url, **PLACE)
    assert not Path(url).exists()
    Librarian(url, **PLACE, create=True)
    assert asyncio.run(Librarian(url, **PLACE).ready()) == url


def test_nothing_is_erased_while_a_librarian_lives(url, monkeypatch):
    library = Library.open(url, **PLACE)
    library.commit([a_memory(1)])
    librarian = Librarian(url, **PLACE)
    monkeypatch.setattr("storage.lock.GRACE", 0.1)
    with pytest.raises(LibraryError, match="another run is using the library"):
        library.erase(["bikes"])
    del librarian
    assert library.erase(["bikes"]) == 1


def test_no_thread_is_left_that_would_keep_the_process_alive(url):
    before = threading.active_count()

    async def story():
        await Librarian(url, create=True, **PLACE).commit(a_memory(1))

    asyncio.run(story())
    assert threading.active_count() == before
