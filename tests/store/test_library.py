from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch

import storage.library
from pipeline.coverage import Sphere, coverage
from storage.errors import StorageFault
from storage.library import SCHEMA_VERSION, Library, LibraryError
from storage.lock import in_use
from storage.memory import numbers
from tests.generated import small_disk
from tests.memories import DIM, PLACE, SPHERE, a_memory, edit_id

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(tmp_path) -> str:
    return str(tmp_path / "library.lance")


@pytest.fixture
def library(url) -> Library:
    return Library.open(url, **PLACE)


def files_with(folder: str, marker: bytes) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file() and marker in path.read_bytes()]


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


# ---- what goes in comes out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_memory_is_read_back_equal_to_the_last_bit(library, dtype):
    put = a_memory("e", latent=torch.randn(3, 4, 8, 8).to(dtype))
    library.commit([put])
    [got] = library.read([put.id])
    assert got.latent.dtype == dtype and torch.equal(got.latent, put.latent)
    assert np.array_equal(got.trajectory.c2w, put.trajectory.c2w)
    assert np.array_equal(got.trajectory.intrinsics, put.trajectory.intrinsics)
    assert np.array_equal(got.descriptor, put.descriptor) and got.descriptor.dtype == np.float32
    for name in set(vars(put)) - {"latent", "trajectory", "descriptor"}:
        assert getattr(got, name) == getattr(put, name), name


def test_a_latent_that_is_a_view_with_strides_is_stored_as_it_looks(library):
    latent = torch.randn(8, 8, 4, 3).permute(3, 2, 1, 0)
    library.commit([a_memory("e", latent=latent)])
    assert torch.equal(library.read([edit_id("e")])[0].latent, latent)


def test_memories_are_read_in_the_order_asked_for_large_latents_and_small_ones_mixed(library):
    names = ["a", "b", "c", "d", "e", "f"]
    library.commit([a_memory(name, size=128 if i % 2 else 4) for i, name in enumerate(names)])
    order = ["d", "a", "f", "c", "a"]
    for got, name in zip(library.read([edit_id(n) for n in order]), order, strict=True):
        assert got.id == edit_id(name)
        assert torch.equal(got.latent, a_memory(name, size=128 if names.index(name) % 2 else 4).latent)


def test_candidates_come_in_the_order_asked_for_with_the_coverage_of_their_trajectories(library):
    memories = [a_memory(i) for i in range(5)]
    library.commit(memories)
    library.commit([a_memory("elsewhere", source="other")])
    picked = [memories[3], memories[0], memories[4]]
    found = library.candidates("bikes", [memory.id for memory in picked])
    assert found.ids == [memory.id for memory in picked]
    assert found.turns.tolist() == [memory.turn for memory in picked]
    assert found.segments.tolist() == [memory.segment for memory in picked]
    assert found.starts.tolist() == [memory.start for memory in picked]
    assert np.array_equal(found.coverage, [coverage(memory.trajectory, SPHERE) for memory in picked])
    assert np.array_equal(found.descriptors, [memory.descriptor for memory in picked])
    assert found.descriptors.dtype == np.float32 and found.coverage.dtype == np.uint8


def test_candidates_that_are_ranked_by_view_alone_come_without_descriptors(library):
    library.commit([a_memory(i) for i in range(3)])
    ids = [edit_id(i) for i in (2, 0)]
    whole, views = library.candidates("bikes", ids), library.candidates("bikes", ids, descriptors=False)
    assert views.descriptors.shape == (2, 0) and whole.descriptors.shape == (2, DIM)
    assert np.array_equal(views.coverage, whole.coverage) and views.ids == whole.ids


def test_no_ids_give_no_memories_and_empty_candidates(library):
    assert library.read([]) == [] and library.memories_used([]) == {} and library.holds([]) == set()
    assert len(library.candidates("bikes", [])) == 0


def test_committed_and_rows_tell_what_is_there_by_source(library):
    library.commit([a_memory(1), a_memory(2), a_memory(3, source="it's another")])
    assert library.committed("bikes") == {edit_id(1), edit_id(2)}
    assert library.committed("it's another") == {edit_id(3)}
    assert library.committed("nobody") == set()
    assert library.rows().num_rows == 3 == len(library)
    rows = library.rows("bikes")
    assert "latent" not in rows.column_names and set(rows["id"].to_pylist()) == {edit_id(1), edit_id(2)}
    assert library.memories_used([edit_id(1)]) == {edit_id(1): (edit_id("x"), edit_id("y"))}


def test_a_reader_opened_before_a_commit_sees_it(url, library):
    reader = Library.open(url, **PLACE, create=False)
    library.commit([a_memory(1)])
    assert reader.read([edit_id(1)])[0].id == edit_id(1)
    assert reader.holds([edit_id(1), edit_id(2)]) == {edit_id(1)}


def test_a_source_narrows_what_is_looked_through(library):
    library.commit([a_memory(1), a_memory(2, source="it's another")])
    assert [memory.id for memory in library.read([edit_id(2)], source="it's another")] == [edit_id(2)]
    assert library.memories_used([edit_id(1)], source="bikes") == {edit_id(1): (edit_id("x"), edit_id("y"))}
    for ask in (library.read, library.memories_used):
        with pytest.raises(LibraryError, match=f"lacks 1 of 2 memories, the first is {edit_id(1)}"):
            ask([edit_id(2), edit_id(1)], source="it's another")


def test_thousands_of_descriptors_become_one_array_without_an_object_for_each_number():
    wanted = np.arange(3375 * 1280, dtype=np.float32).reshape(3375, 1280)
    column = pa.FixedSizeListArray.from_arrays(pa.array(wanted.ravel()), 1280)
    column = pa.chunked_array([column.slice(3000), column.slice(0, 3000)])
    tracemalloc.start()
    found = numbers(column)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 2 * wanted.nbytes, "eight times as much by way of Python lists"
    assert np.array_equal(found.reshape(-1, 1280), np.roll(wanted, 375, axis=0))
    assert np.array_equal(numbers(column, 374), wanted[3374])


def test_a_memory_that_is_not_there_is_named(library):
    library.commit([a_memory(1)])
    with pytest.raises(LibraryError, match=f"lacks 1 of 2 memories, the first is {edit_id(2)}"):
        library.read([edit_id(1), edit_id(2)])


# ---- commits are idempotent


def test_committing_again_in_any_company_changes_nothing(library):
    library.commit([a_memory(1), a_memory(2)])
    library.commit([a_memory(2, prompt="changed"), a_memory(3), a_memory(3, prompt="later"), a_memory(1)])
    assert sorted(library.rows()["id"].to_pylist()) == sorted(map(edit_id, [1, 2, 3]))
    assert library.read([edit_id(2)])[0].prompt == a_memory(2).prompt
    assert library.read([edit_id(3)])[0].prompt == a_memory(3).prompt


def test_two_processes_that_race_with_the_same_memories_leave_each_once(url, library):
    script = """
import random, sys
from storage.library import Library
from tests.generated import small_disk
from tests.memories import PLACE, a_memory
library = Library.open(sys.argv[1], **PLACE)
order = random.Random(int(sys.argv[2])).sample(range(24), 24)
for at in range(0, 24, 3):
    library.commit([a_memory(i) for i in order[at:at + 3]])
"""
    racers = [python(script, url, seed) for seed in "12"]
    for racer in racers:
        _, errors = racer.communicate(timeout=100)
        assert racer.returncode == 0, errors
    assert sorted(library.rows()["id"].to_pylist()) == sorted(map(edit_id, range(24)))


def test_what_a_killed_writer_had_acknowledged_is_there_exactly_once(url, library):
    script = """
import itertools, sys
from storage.library import Library
from tests.generated import small_disk
from tests.memories import PLACE, a_memory
library = Library.open(sys.argv[1], **PLACE)
for i in itertools.count(int(sys.argv[2])):
    library.commit([a_memory(f"{i}{x}", size=64) for x in "ab"])
    print(i, flush=True)
"""
    acknowledged: list[int] = []
    for life in range(2):
        writer = python(script, url, str(1000 * life))
        assert writer.stdout is not None
        acknowledged += [int(writer.stdout.readline())]  # it is at work
        time.sleep(0.3 + 0.0137 * life)
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.communicate()[0].split()]
    assert len(acknowledged) > 2
    ids = library.rows()["id"].to_pylist()
    assert len(ids) == len(set(ids)) and len(ids) % 2 == 0, "a group is there whole or not at all"
    wanted = [edit_id(f"{i}{x}") for i in acknowledged for x in "ab"]
    assert set(wanted) <= set(ids)
    for got in library.read(wanted):
        assert got.latent.shape == (3, 4, 64, 64)
    library.commit([a_memory(f"{acknowledged[-1] + 1}a", size=64)])  # and the next writer goes on
    assert library.holds([edit_id(f"{acknowledged[-1] + 1}a")])


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": ""}, "its id is empty"),
        ({"model": "model-b"}, "made by model 'model-b'.*holds those of 'model-a'"),
        ({"descriptor": np.zeros(3, np.float32)}, r"shape \(3,\); expected \(8,\)"),
        ({"latent": torch.zeros(3, 0, 8, 8)}, "is empty"),
        ({"latent": torch.full((1, 1, 2, 2), float("nan"))}, "NaN"),
        ({"latent": torch.zeros(1, dtype=torch.complex64)}, "complex64; expected one of"),
        ({"scores": (0.5,)}, "2 memories but 1 scores"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused_and_nothing_of_its_batch_goes_in(library, changes, says):
    with pytest.raises(LibraryError, match=says):
        library.commit([a_memory("good"), a_memory("bad", **changes)])
    assert len(library) == 0


def test_a_library_of_another_model_is_refused_in_one_line(url, library):
    with pytest.raises(LibraryError, match="holds memories of model model-a, this run uses model-b") as refused:
        Library.open(url, **PLACE | {"model": "model-b"})
    assert "\n" not in str(refused.value)


def test_a_library_of_another_schema_version_descriptor_size_or_kind_is_refused(tmp_path, url, library):
    with pytest.raises(LibraryError, match=f"descriptors of {DIM} numbers, this run makes 9"):
        Library.open(url, **PLACE | {"descriptor_dim": 9})
    lance.dataset(url).update_schema_metadata({"memory_v2v.schema": "0"})
    with pytest.raises(LibraryError, match=f"schema version 0, expected {SCHEMA_VERSION}"):
        Library.open(url, **PLACE)
    lance.dataset(url).update_schema_metadata({"memory_v2v.schema": None})
    with pytest.raises(LibraryError, match="not a memory-v2v library"):
        Library.open(url, **PLACE)


def test_a_library_that_is_a_file_or_not_there_is_refused_by_name(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(LibraryError, match=r"notes\.txt is a file; a library is a folder"):
        Library.open(str(tmp_path / "notes.txt"), **PLACE)
    for fleeting in ("memory://x", "simplecache::memory://x"):
        with pytest.raises(LibraryError, match=f"{fleeting} would live in one process alone; .* name a folder or sto"):
            Library.open(fleeting, **PLACE)
    with pytest.raises(LibraryError, match=r"no library at .*nowhere"):
        Library.open(str(tmp_path / "nowhere"), **PLACE, create=False)
    assert not (tmp_path / "nowhere").exists()


# ---- coverage belongs to a sphere


def test_another_sphere_rebuilds_the_coverage_and_commits_go_on_with_it(url, library):
    library.commit([a_memory(1), a_memory(2)])
    wider = Sphere(points=1024, radius=50.0)
    with pytest.raises(
        LibraryError, match="coverage of 512 points at 20.0 m, expected 1024 points at 50.0 m: another run"
    ):
        Library.open(url, **PLACE | {"sphere": wider}, create=False)
    writer = Library.open(url, **PLACE | {"sphere": wider})
    writer.commit([a_memory(3)])
    found = Library.open(url, **PLACE | {"sphere": wider}, create=False).candidates("bikes", [*map(edit_id, [3, 1, 2])])
    assert np.array_equal(found.coverage, [coverage(a_memory(i).trajectory, wider) for i in (3, 1, 2)])
    assert torch.equal(writer.read([edit_id(1)])[0].latent, a_memory(1).latent)


def test_a_library_in_use_keeps_its_sphere_and_where_it_could_not_its_users_notice(url, library, monkeypatch):
    monkeypatch.setattr("storage.lock.GRACE", 0.1)
    library.commit([a_memory(1)])
    wider = PLACE | {"sphere": Sphere(points=1024, radius=50.0)}
    kept = r"is using the library .*: its coverage stays as it is, of 512 points at 20.0 m"
    with in_use(url), pytest.raises(LibraryError, match=kept):
        Library.open(url, **wider)
    assert np.array_equal(
        library.candidates("bikes", [edit_id(1)]).coverage[0], coverage(a_memory(1).trajectory, SPHERE)
    )
    Library.open(url, **wider)
    for what in (lambda: library.commit([a_memory(2)]), lambda: library.candidates("bikes", [edit_id(1)])):
        with pytest.raises(
            LibraryError, match=r"coverage of 1024 points at 50.0 m, expected 512 points at 20.0 m: another run"
        ):
            what()
    lance.dataset(url).update_schema_metadata({"memory_v2v.sphere_points": "being rebuilt"})
    lance.dataset(url).drop_columns(["coverage"])  # as a rebuild does on its way
    for what in (lambda: library.commit([a_memory(2)]), lambda: library.candidates("bikes", [edit_id(1)])):
        with pytest.raises(LibraryError, match=r"coverage being rebuilt, expected 512 points at 20.0 m"):
            what()
    assert len(library) == 1


def test_of_two_runs_that_ask_for_another_sphere_one_rebuilds_the_coverage(url, library, monkeypatch):
    library.commit([a_memory(1)])
    wider, alone = PLACE | {"sphere": Sphere(points=1024, radius=50.0)}, storage.library.alone

    def after_the_other(*asked):
        monkeypatch.setattr(storage.library, "alone", alone)
        Library.open(url, **wider)
        monkeypatch.setattr(storage.library, "_rebuild_coverage", lambda *_: pytest.fail("rebuilt twice"))
        return alone(*asked)

    monkeypatch.setattr(storage.library, "alone", after_the_other)
    both = Library.open(url, **wider)
    both.commit([a_memory(2)])
    assert len(both.candidates("bikes", [edit_id(1), edit_id(2)])) == 2 and both.sphere == wider["sphere"]


def test_without_a_sphere_a_library_is_taken_as_it_is_found(tmp_path, url, library):
    library.commit([a_memory(1)])
    before = lance.dataset(url).version
    found = Library.open(url, **PLACE | {"sphere": None})
    assert found.sphere == SPHERE and found.committed("bikes") == {edit_id(1)}
    assert len(found.candidates("bikes", [edit_id(1)])) == 1
    assert lance.dataset(url).version == before
    with pytest.raises(LibraryError, match="give the sphere of a new one"):
        Library.open(str(tmp_path / "new"), **PLACE | {"sphere": None})
    lance.dataset(url).update_schema_metadata({"memory_v2v.sphere_points": "being rebuilt"})
    cut_off = Library.open(url, **PLACE | {"sphere": None}, create=False)
    assert cut_off.committed("bikes") == {edit_id(1)}
    with pytest.raises(LibraryError, match="while its coverage was being rebuilt; run"):
        cut_off.candidates("bikes", [edit_id(1)])


@pytest.mark.parametrize("without_column", [False, True])
def test_a_rebuild_that_was_cut_off_is_finished_by_the_next_open(url, library, without_column):
    library.commit([a_memory(1)])
    dataset = lance.dataset(url)
    dataset.update_schema_metadata({"memory_v2v.sphere_points": "being rebuilt"})
    if without_column:
        dataset.drop_columns(["coverage"])
    found = Library.open(url, **PLACE).candidates("bikes", [edit_id(1)])
    assert np.array_equal(found.coverage[0], coverage(a_memory(1).trajectory, SPHERE))


# ---- damage


@pytest.mark.parametrize("size", [8, 256], ids=["inline", "in a file of its own"])
def test_a_flipped_byte_of_a_latent_is_found_by_its_checksum(url, library, size):
    put = a_memory("damaged", size=size)
    library.commit([put, a_memory("sound", size=size)])
    raw = put.latent.view(torch.uint8).numpy().tobytes()
    [path] = files_with(url, raw)
    path.write_bytes(path.read_bytes().replace(raw, bytes([raw[0] ^ 1]) + raw[1:]))
    reader = Library.open(url, **PLACE, create=False)
    assert reader.read([edit_id("sound")])[0].id == edit_id("sound")
    with pytest.raises(
        LibraryError, match=f"memory {put.id} in .* is damaged: .*expected .*; restore the library .*--fresh"
    ):
        reader.read([put.id])


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 1000)], ids=["gone", "cut off"])
def test_a_latent_whose_file_is_damaged_is_said_in_one_line_and_erasing_mends_it(url, library, damage):
    put = a_memory("damaged", size=256)
    library.commit([put])
    [path] = Path(url).rglob("*.blob")
    damage(path)
    reader = Library.open(url, **PLACE)
    with pytest.raises(LibraryError, match="latents in .* are damaged: .*; restore the library .*--fresh") as caught:
        reader.read([put.id])
    assert "\n" not in str(caught.value)
    reader.erase([put.source])
    reader.commit([put])
    assert torch.equal(reader.read([put.id])[0].latent, put.latent)


@pytest.mark.parametrize("size", [0, 1000], ids=["empty", "all zeros"])
def test_rows_whose_file_is_damaged_name_the_library_and_deleting_it_mends_it(url, library, size):
    library.commit([a_memory(1)])
    [path] = Path(url).glob("data/*.lance")
    path.write_bytes(bytes(size))
    reader = Library.open(url, **PLACE)
    for what in (
        lambda: reader.committed("bikes"),
        lambda: reader.holds([edit_id(1)]),
        lambda: reader.candidates("bikes", [edit_id(1)]),
        lambda: reader.read([edit_id(1)]),
        reader.rows,
        lambda: Library.open(url, **PLACE | {"sphere": Sphere(1024, 20.0)}),
    ):
        with pytest.raises(
            StorageFault, match=f"{url}: .* cannot be .*; .* restore it from a copy, or delete it"
        ) as told:
            what()
        assert "\n" not in str(told.value)
    shutil.rmtree(url)
    again = Library.open(url, **PLACE)
    again.commit([a_memory(1)])
    assert again.committed("bikes") == {edit_id(1)}


def test_an_erasure_that_cannot_find_a_sources_rows_says_that_the_library_is_to_be_restored_or_deleted(url, library):
    for i in range(2):
        library.commit([a_memory(i)])
    for path in Path(url).glob("data/*.lance"):
        path.write_bytes(bytes(1000))
    with pytest.raises(StorageFault, match=f"{url}: sources cannot be erased .*; .* restore it from a copy, or delete"):
        Library.open(url, **PLACE).erase(["bikes"])


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(bytes(1000)), Path.unlink], ids=["all zeros", "gone"])
@pytest.mark.parametrize("files", ["*.lance", "*.blob"], ids=["rows", "latents"])
def test_a_compaction_of_damaged_files_names_the_library_and_says_what_to_do(url, library, files, damage):
    for i in range(2):
        library.commit([a_memory(i, size=256)])
    for path in (Path(url) / "data").rglob(files):
        damage(path)
    with pytest.raises(StorageFault, match=f"{url}: cannot be compacted .*; .* restore it from a copy, or de") as told:
        Library.open(url, **PLACE).compact()
    assert "\n" not in str(told.value)


@pytest.fixture
def tiny_disk(tmp_path):
    with small_disk(tmp_path / "tiny") as place:
        yield place


def test_a_full_disk_is_an_oserror_with_the_path_and_loses_nothing_committed(tiny_disk):
    url = str(tiny_disk / "library.lance")
    library = Library.open(url, **PLACE)
    safe: list[str] = []
    with pytest.raises(OSError, match=rf"{url}: .* could not be committed with 0\.\d MB free on its disk"):
        for i in range(100):
            library.commit([a_memory(i, size=100)])  # 240 KB each
            safe.append(edit_id(i))
    assert safe
    reader = Library.open(url, **PLACE, create=False)
    assert {memory.id for memory in reader.read(safe)} == set(safe)


# ---- upkeep


def tidied(library: Library) -> None:
    library.compact()
    library.drop_versions(timedelta(0))


def test_compaction_keeps_every_memory_and_young_versions_and_drops_old_ones(url, library):
    for i in range(12):
        library.commit([a_memory(i)])
    stale = lance.dataset(url)
    library.compact()
    assert len(library._dataset.get_fragments()) == 1
    assert stale.to_table(columns=["id"]).num_rows == 12, "a reader on the version before is not disturbed"
    library.drop_versions(timedelta(0))
    assert len(library._dataset.versions()) == 1
    assert len(library.read([edit_id(i) for i in range(12)])) == 12
    library.commit([a_memory(3), a_memory("new")])
    assert len(library) == 13 and library.committed("bikes") == set(map(edit_id, [*range(12), "new"]))


def test_a_latent_that_is_compacted_away_while_it_is_read_is_read_where_it_lies_then(url, library, monkeypatch):
    for i in range(3):
        library.commit([a_memory(i, size=256)])
    reader = Library.open(url, **PLACE, create=False)
    rows = reader._rows

    def found_just_before(*arguments):
        found = rows(*arguments)
        tidied(library)
        return found

    monkeypatch.setattr(reader, "_rows", found_just_before)
    ids = [edit_id(i) for i in range(3)]
    assert [memory.id for memory in reader.read(ids)] == ids


@pytest.mark.parametrize(
    "ask",
    [
        lambda reader, ids: reader.committed("bikes"),
        lambda reader, ids: reader.holds(ids),
        lambda reader, ids: set(reader.candidates("bikes", ids).ids),
        lambda reader, ids: set(reader.memories_used(ids)),
        lambda reader, ids: set(reader.rows()["id"].to_pylist()),
        lambda reader, ids: {memory.id for memory in reader.read(ids)},
    ],
    ids=["committed", "holds", "candidates", "memories_used", "rows", "read"],
)
def test_a_version_that_is_compacted_away_before_its_rows_are_read_is_looked_for_again(url, library, monkeypatch, ask):
    ids = [edit_id(i) for i in range(3)]
    for i in range(3):
        library.commit([a_memory(i)])
    reader = Library.open(url, **PLACE, create=False)
    latest = reader._latest
    monkeypatch.setattr(reader, "_latest", lambda: (latest(), tidied(library)))
    assert ask(reader, ids) == set(ids)


def test_a_compacted_fragment_is_left_alone_by_the_next_compaction(url, library):
    library.commit([a_memory(i) for i in range(64)])
    tidied(library)
    before = {path.name for path in Path(url, "data").iterdir()}
    for i in range(3):
        library.commit([a_memory(f"late {i}")])
    tidied(library)
    assert before <= {path.name for path in Path(url, "data").iterdir()}


def test_compaction_joins_many_small_fragments_and_leaves_the_large_ones_for_ever(url, library, monkeypatch):
    for name, rows in (("SMALL", 3), ("LARGE", 12), ("MANY", 4)):
        monkeypatch.setattr(f"storage.library.{name}", rows)
    large: set[int] = set()
    for i in range(1, 61):
        library.commit([a_memory(i, size=2)])
        if i % 3 == 0:
            library.compact()
            fragments = {f.fragment_id: f.count_rows() for f in library._dataset.get_fragments()}
            assert len(fragments) <= i // 12 + 4
            assert large <= set(fragments), "a large fragment was copied again"
            large = {id_ for id_, rows in fragments.items() if rows >= 12}
    assert len(large) >= 3
    assert len(library.read([edit_id(i) for i in range(1, 61)])) == 60


def test_groups_that_are_full_from_the_start_are_joined_too_once_there_are_many(library, monkeypatch):
    for name, rows in (("SMALL", 2), ("LARGE", 8), ("MANY", 4)):
        monkeypatch.setattr(f"storage.library.{name}", rows)
    loose = []
    for i in range(4):
        library.commit([a_memory(2 * i), a_memory(2 * i + 1)])
        loose.append(library.loose())
    assert loose == [0, 0, 0, 4]
    library.compact()
    assert library.loose() == 0 and len(library._dataset.get_fragments()) == 1


@pytest.mark.parametrize("compacted_before", [False, True])
def test_an_erased_source_leaves_no_byte_in_any_file(url, library, compacted_before):
    marker = b"SECRET-4711-of-a-person"
    latent = torch.frombuffer(bytearray(marker * 4000), dtype=torch.uint8).reshape(1, 1, 1, -1)
    source = marker.decode()
    for i in range(4):
        library.commit([a_memory(i, source=source, prompt=f"{source} {i}", latent=latent), a_memory(f"kept {i}")])
    if compacted_before:
        library.compact()
    assert files_with(url, marker)
    assert library.erase([source]) == 4
    assert files_with(url, marker) == []
    assert len(library.read([edit_id(f"kept {i}") for i in range(4)])) == 4
    assert library.erase([source]) == 0 and library.committed("bikes") == {edit_id(f"kept {i}") for i in range(4)}
    library.commit([a_memory(0, source=source)])  # it may come again


def test_many_sources_are_erased_in_one_pass(url, library):
    sources = [f"person's {i}" for i in range(5)]
    for source in sources:
        library.commit([a_memory(source, source=source, prompt=f"secret of {source}"), a_memory(f"kept {source}")])
    before = len(library._dataset.versions())
    assert library.erase([]) == 0 and len(library._dataset.versions()) == before
    assert library.erase([*sources[:4], "nobody"]) == 4
    assert not any(files_with(url, f"secret of {source}".encode()) for source in sources[:4])
    assert library.committed(sources[4]) == {edit_id(sources[4])} and len(library) == 6
    assert len(library._dataset.versions()) == 1 and len(library._dataset.get_fragments()) == 1


def test_an_erasure_waits_for_a_run_that_is_ending(url, library):
    library.commit([a_memory(1)])
    held = ExitStack()
    held.enter_context(in_use(url))
    threading.Timer(0.3, held.close).start()
    assert library.erase(["bikes"]) == 1


def test_nothing_is_erased_while_another_run_uses_the_library_and_its_death_frees_it(url, library, monkeypatch):
    monkeypatch.setattr("storage.lock.GRACE", 0.1)
    library.commit([a_memory(1)])
    script = """
import sys, time
from storage.lock import in_use
with in_use(sys.argv[1]):
    print("using", flush=True)
    time.sleep(100)
"""
    other = python(script, url)
    assert other.stdout is not None and other.stdout.readline() == "using\n"
    with in_use(url):  # as many as like
        pass
    with pytest.raises(LibraryError, match=f"another run is using the library {url}: nothing was erased") as refused:
        library.erase(["bikes"])
    assert "\n" not in str(refused.value) and len(library) == 1
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert library.erase(["bikes"]) == 1
    with in_use("memory://bucket/library"), in_use(str(Path(url).parent / "nowhere" / "library")):
        pass  # where there can be no lock


def test_opening_a_library_reads_none_of_its_rows(url, library, monkeypatch):
    for i in range(3):
        library.commit([a_memory(i)])
    for name in ("scanner", "to_table", "take", "count_rows"):
        monkeypatch.setattr(lance.LanceDataset, name, None)
    assert Library.open(url, **PLACE, create=False).sphere == SPHERE


def test_a_library_that_is_deleted_while_it_is_open_is_named_in_one_line(library, url):
    library.commit([a_memory("e")])
    shutil.rmtree(url)
    for ask in (lambda: library.committed("s"), library.rows, lambda: library.read([edit_id("e")])):
        with pytest.raises(StorageFault, match=f"^{url}: cannot be read any more .*; restore it, or run") as failed:
            ask()
        assert "\n" not in str(failed.value) and ".rs" not in str(failed.value)
