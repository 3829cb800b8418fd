from __future__ import annotations

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from actors.librarian import Librarian
from storage.library import Library, LibraryError
from tests.memories import PLACE, a_memory, edit_id


@pytest.fixture
def librarian(ray_cluster, tmp_path):
    actor = ray.remote(Librarian).options(num_cpus=0).remote(str(tmp_path / "library.lance"), **PLACE, create=True)
    yield actor
    ray.kill(actor)


def test_memories_sent_by_many_callers_are_committed_in_groups_and_read_back_equal(librarian, tmp_path):
    memories = [a_memory(i, size=64) for i in range(40)]
    assert ray.get([librarian.commit.remote(memory) for memory in memories]) == [edit_id(i) for i in range(40)]
    stats = ray.get(librarian.stats.remote())
    assert stats["memories"] == 40 and stats["commits"] < 40
    stored = Library.open(str(tmp_path / "library.lance"), **PLACE).read([memory.id for memory in memories])
    for put, got in zip(memories, stored, strict=True):
        assert torch.equal(put.latent, got.latent) and np.array_equal(put.trajectory.c2w, got.trajectory.c2w)


def test_a_bad_memory_is_its_callers_error_and_the_librarian_lives_on(librarian):
    bad = librarian.commit.remote(a_memory("bad", latent=torch.zeros(0)))
    good = librarian.commit.remote(a_memory("good"))
    with pytest.raises(RayTaskError) as refused:
        ray.get(bad)
    assert isinstance(refused.value.cause, LibraryError) and "is empty" in str(refused.value.cause)
    assert ray.get(good) == edit_id("good")


def test_a_killed_librarians_successor_finds_what_was_acknowledged_and_goes_on(ray_cluster, tmp_path):
    url = str(tmp_path / "library.lance")
    actor = ray.remote(Librarian).options(num_cpus=0)
    first = actor.remote(url, **PLACE, create=True)
    done = ray.get([first.commit.remote(a_memory(i)) for i in range(5)])
    doubtful = [first.commit.remote(a_memory(i)) for i in range(5, 10)]
    ray.kill(first)
    ray.wait(doubtful, num_returns=len(doubtful), timeout=10)
    second = actor.remote(url, **PLACE)
    assert set(done) <= Library.open(url, **PLACE).holds(done)
    ray.get([second.commit.remote(a_memory(i)) for i in range(10)])
    ids = Library.open(url, **PLACE).rows()["id"].to_pylist()
    assert sorted(ids) == sorted(edit_id(i) for i in range(10))
    ray.kill(second)
