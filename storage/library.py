"""The library: one owner's memories, as one Lance dataset.

A row is written once and never changed. Commits are `merge_insert` on the edit id, so committing a memory again, in
any company, changes nothing; reads look at the latest version and verify every latent's checksum. One process commits
(the Librarian), any number read.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from pipeline.coverage import Sphere, coverage
from pipeline.retrieval import Candidates
from storage.errors import StorageFault
from storage.lance_rows import KEEP, fault, insert, line, metadata_of, opened
from storage.location import fleeting
from storage.lock import alone
from storage.memory import MEND, LibraryError, Memory, check, memory, numbers, schema, table, trajectory

SCHEMA_VERSION = "1"

# Compaction copies latents, so it goes in two tiers: single commits become fragments of at least SMALL rows; only
# when there are MANY of those are they joined into LARGE ones, which are never touched again. Every latent is copied
# about twice however long the library grows, and one compaction copies at most 2 * LARGE of them beside the new ones.
SMALL, LARGE, MANY = 64, 1024, 64

# Not --fresh, which has to read the rows to find a source's.
RESTORE = "check disk and network; if its files are damaged restore it from a copy, or delete it to make all edits anew"

_SCHEMA, _MODEL = "memory_v2v.schema", "memory_v2v.model"
_POINTS, _RADIUS = "memory_v2v.sphere_points", "memory_v2v.sphere_radius"


class Library:
    """Open with `Library.open`. One thread at a time.

    Raises LibraryError for what the caller can mend, OSError (with the library's URL) for the disk, the network or a
    missing permission."""

    def __init__(self, url: str, dataset: lance.LanceDataset, sphere: Sphere | None) -> None:
        self.url = url
        self._sphere = sphere
        self.model = metadata_of(dataset)[_MODEL]
        self._dataset = dataset

    @classmethod
    def open(
        cls,
        url: str,
        *,
        model: str,
        sphere: Sphere | None,
        descriptor_dim: int,
        create: bool = True,
    ) -> Library:
        """The library at `url`, a local folder or an object store's (Lance reads credentials from the environment).

        `create=True` is for the start of a run: it makes a library where there is none, and rebuilds the coverage
        column where the library was made with another sphere, unless another run has it in use.
        `create=False` never writes, and refuses one of another sphere. `sphere=None` takes the library with the sphere
        it has. A library of another model digest, descriptor size or schema version is refused: its memories are of no
        use to this model."""
        if os.path.isfile(url):  # Lance would try for two seconds and then speak of `_versions`
            raise LibraryError(f"library {url} is a file; a library is a folder: name another place")
        if fleeting(url):
            raise LibraryError(
                f"library {url} would live in one process alone; a run has several: name a folder or store"
            )
        dataset = opened(url)
        if dataset is None:
            if not create:
                raise LibraryError(
                    f"no library at {url}; run `memory-v2v edit` with --library {os.path.dirname(url)} to make one"
                )
            if sphere is None:
                raise LibraryError(f"no library at {url} whose sphere could be taken; give the sphere of a new one")
            dataset = _create(url, model, sphere, descriptor_dim)
        _check_fits(url, dataset, model, descriptor_dim)
        found = metadata_of(dataset)
        if sphere is None:
            return cls(url, dataset, _stored_sphere(found))
        library = cls(url, dataset, sphere)
        if not create:
            library._check_sphere()
        elif _stored_sphere(found) != sphere:
            # A run under way ranks and commits by the sphere that it was started with.
            with alone(url, f"its coverage stays as it is, {_state(found)}"), _told(url, "coverage cannot be rebuilt"):
                dataset.checkout_latest()
                if _stored_sphere(metadata_of(dataset)) != sphere:  # another run may have done it meanwhile
                    _rebuild_coverage(dataset, sphere)
        return library

    @property
    def sphere(self) -> Sphere:
        """The sphere of the coverage column."""
        if self._sphere is None:
            raise LibraryError(
                f"library {self.url} was left while its coverage was being rebuilt; run `memory-v2v edit` with it, "
                "which rebuilds it"
            )
        return self._sphere

    # ---- write: one process only

    def commit(self, memories: Sequence[Memory]) -> None:
        """Store memories that are not there yet; those that are stay as they are. All of them, or none and an error."""
        unique: dict[str, Memory] = {}  # Lance would insert both of two rows with one id
        for new in memories:
            unique.setdefault(new.id, new)
        dim = self._dataset.schema.field("descriptor").type.list_size
        for new in unique.values():
            check(new, model=self.model, descriptor_dim=dim)
        if not unique:
            return

        def rows() -> pa.Table:
            self._check_sphere()
            return table(list(unique.values()), self.sphere, self._dataset.schema)

        insert(self._dataset, self.url, f"{len(unique)} memories", rows)

    def compact(self) -> None:
        """Join small fragments and bring the index up to date. Readers may go on."""
        self._latest()
        with _told(self.url, "cannot be compacted"):
            self._dataset.optimize.compact_files(target_rows_per_fragment=SMALL)
            if sum(fragment.count_rows() < LARGE for fragment in self._dataset.get_fragments()) >= MANY:
                self._dataset.optimize.compact_files(target_rows_per_fragment=LARGE, max_source_rows=2 * LARGE)
            if self._dataset.list_indices():
                self._dataset.optimize.optimize_indices()
            else:  # the process that made the library died before it had made the index
                self._dataset.create_scalar_index("source", "BTREE")

    def drop_versions(self, keep: timedelta = KEEP) -> None:
        """Delete versions older than `keep`, and the files that they alone list. Readers may go on. Takes a third of a
        millisecond for every version that stays."""
        self._latest()
        with _told(self.url, "old versions cannot be dropped"):
            # Never delete_unverified here: beside a live writer it would take the files of a commit under way. And
            # timedelta(0) would mean the default of two weeks.
            self._dataset.cleanup_old_versions(max(keep, timedelta(microseconds=1)))

    def loose(self) -> int:
        """How many fragments `compact` would join, of either tier. Looks at the manifest alone."""
        self._latest()
        rows = [fragment.count_rows() for fragment in self._dataset.get_fragments()]
        middling = sum(count < LARGE for count in rows)
        return middling if middling >= MANY else sum(count < SMALL for count in rows)

    def erase(self, sources: Sequence[str]) -> int:
        """Remove all memories of these sources and every byte of them from the files; returns how many there were.

        Files that no version lists are deleted too, and they could be somebody's commit under way. So a local library
        is refused (LibraryError) while a Librarian has it in use; on an object store, which has no locks, every other
        reader and writer of the library must have been stopped."""
        if not sources:
            return 0
        with alone(self.url, "nothing was erased"), _told(self.url, "sources cannot be erased"):
            self._latest()
            count = self._dataset.delete(_among("source", sources))["num_deleted_rows"]
            # Again even where nothing was deleted: an erasure may have been cut off before the bytes were gone.
            self._dataset.optimize.compact_files(
                target_rows_per_fragment=SMALL, materialize_deletions=True, materialize_deletions_threshold=0.0
            )
            self._dataset.create_scalar_index("source", "BTREE", replace=True)
            self._dataset.cleanup_old_versions(timedelta(microseconds=1), delete_unverified=True)
        return int(count)

    # ---- read

    def committed(self, source: str) -> set[str]:
        """Ids of a source's memories."""
        self._latest()
        rows = self._table(columns=["id"], filter=_of(source))
        return set(rows["id"].to_pylist())

    def holds(self, ids: Collection[str]) -> set[str]:
        """Which of `ids` are committed."""
        self._latest()
        rows = self._table(columns=["id"], filter=_among("id", ids))
        return set(rows["id"].to_pylist())

    def candidates(self, source: str, ids: Sequence[str], descriptors: bool = True) -> Candidates:
        """The memories `ids` of a source, in that order, as retrieval takes them; without `descriptors`, which are most
        of what there is to read, these are of no length."""
        columns = ["id", "turn", "segment", "start", "coverage"] + ["descriptor"] * descriptors
        size = self.sphere.bytes
        rows = self._rows(ids, columns, _of(source))
        dim = self._dataset.schema.field("descriptor").type.list_size
        known = numbers(rows["descriptor"]).reshape(-1, dim) if descriptors else np.zeros((len(ids), 0), np.float32)
        return Candidates(
            ids=list(ids),
            turns=rows["turn"].to_numpy(),
            segments=rows["segment"].to_numpy(),
            starts=rows["start"].to_numpy(),
            coverage=np.frombuffer(b"".join(rows["coverage"].to_pylist()), dtype=np.uint8).reshape(-1, size),
            descriptors=known,
        )

    def read(self, ids: Sequence[str], source: str | None = None) -> list[Memory]:
        """The memories `ids`, in that order, with their latents, every checksum verified. Where their one `source` is
        known, only its rows are looked through. Reopens once where a latent is not found, as `_rows` does."""
        columns = [name for name in self._dataset.schema.names if name not in ("latent", "coverage")]
        if not ids:
            return []
        for reopened in (False, True):
            if reopened:
                self._reopen()
            rows = self._rows(ids, [*columns, "_rowid"], _where(ids, source))
            try:
                blobs = self._dataset.read_blobs("latent", ids=rows["_rowid"].to_pylist(), preserve_order=True)
                break
            except (ValueError, OSError) as error:
                if not _gone(error):
                    raise fault(self.url, "latents cannot be read", error, "check the disk and the network") from error
                if reopened:
                    raise LibraryError(f"latents in {self.url} are damaged: {line(error)}; {MEND}") from error
        return [memory(rows, index, latent or b"", self.url) for index, (_, latent) in enumerate(blobs)]

    def memories_used(self, ids: Sequence[str], source: str | None = None) -> dict[str, tuple[str, ...]]:
        """For each of `ids`, if given all of one `source`, the memories that its edit was shown, best first."""
        rows = self._rows(ids, ["id", "memories"], _where(ids, source))
        return {row["id"]: tuple(row["memories"]) for row in rows.to_pylist()}

    def rows(self, source: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """These columns, or all but the latents, of one source or of all, for tables and reports."""
        self._latest()
        wanted = list(columns or [name for name in self._dataset.schema.names if name != "latent"])
        return self._table(columns=wanted, filter=None if source is None else _of(source))

    def __len__(self) -> int:
        self._latest()
        return int(self._dataset.count_rows())

    def _rows(self, ids: Sequence[str], columns: Sequence[str], where: str) -> pa.Table:
        """Rows in the order of `ids` from the latest version. Reopens once where one is not found: a version that was
        listed a moment ago may have been compacted away since."""
        self._latest()
        for reopened in (False, True):
            if reopened:
                self._reopen()
            if "coverage" in columns:
                self._check_sphere()
            rows = self._table(
                columns=[name for name in columns if name != "_rowid"],
                filter=where,
                with_row_id="_rowid" in columns,
            )
            at = {id_: index for index, id_ in enumerate(rows["id"].to_pylist())}
            missing = [id_ for id_ in ids if id_ not in at]
            if not missing:
                return rows.take(pa.array([at[id_] for id_ in ids], pa.int64()))
        raise LibraryError(
            f"library {self.url} lacks {len(missing)} of {len(ids)} memories, the first is {missing[0]}; they were "
            "erased or belong to another library: run the same command again to make them anew"
        )

    def _table(self, **what: Any) -> pa.Table:
        """Reopens once where a file is gone: the version may have been compacted away since it was looked at."""
        with _told(self.url, "memories cannot be read"):
            try:
                return self._dataset.to_table(**what)
            except (ValueError, OSError) as error:
                if not _gone(error):
                    raise
            self._reopen()
            return self._dataset.to_table(**what)

    def _latest(self) -> None:
        """Look at the newest version from now on."""
        try:
            self._dataset.checkout_latest()
        except (ValueError, OSError) as error:
            raise fault(
                self.url, "cannot be read any more", error, "restore it, or run the same command again"
            ) from error

    def _check_sphere(self) -> None:
        """Another run may have rebuilt the coverage since this was opened, where there are no locks, or since the run
        that this belongs to was started."""
        found, own = metadata_of(self._dataset), _sphere_metadata(self.sphere)
        if _stored_sphere(found) != self.sphere:
            raise LibraryError(
                f"library {self.url} has coverage {_state(found)}, expected {own[_POINTS]} points at {own[_RADIUS]} m: "
                "another run made it so; run the same command again when that has ended, which rebuilds it"
            )

    def _reopen(self) -> None:
        dataset = opened(self.url)
        if dataset is None:
            raise LibraryError(f"library {self.url} is gone; it was there when it was opened: restore it, or run again")
        self._dataset = dataset


def _gone(error: BaseException) -> bool:
    """Whether Lance says that a file is not there, or is too short."""
    return "Not found" in str(error) or "fill whole buffer" in str(error)


@contextmanager
def _told(url: str, failed: str) -> Iterator[None]:
    """Lance's own errors name no library: a StorageFault that does, and says what to do."""
    try:
        yield
    except (LibraryError, StorageFault):
        raise
    except (ValueError, OSError) as error:
        raise fault(url, failed, error, RESTORE) from error


def _create(url: str, model: str, sphere: Sphere, descriptor_dim: int) -> lance.LanceDataset:
    metadata = {_SCHEMA: SCHEMA_VERSION, _MODEL: model, **_sphere_metadata(sphere)}
    empty = schema(sphere, descriptor_dim, metadata).empty_table()
    try:
        # Stable row ids stay off: they leave an erased source's name in `_indices`.
        made = lance.write_dataset(empty, url, data_storage_version="2.2")
        made.create_scalar_index("source", "BTREE")
    except OSError as error:
        if "already exists" not in str(error):  # else another process was quicker: its library is as good
            raise fault(url, "cannot be created", error, "check space and permissions") from error
    dataset = opened(url)
    if dataset is None:
        raise OSError(f"library {url} was created but cannot be found; is the folder shared and consistent?")
    return dataset


def _check_fits(url: str, dataset: lance.LanceDataset, model: str, descriptor_dim: int) -> None:
    found = metadata_of(dataset)
    if _SCHEMA not in found:
        raise LibraryError(
            f"{url} is a Lance dataset but not a memory-v2v library, or a damaged one; name another --library, or "
            "restore it from a copy"
        )
    if found[_SCHEMA] != SCHEMA_VERSION:
        raise LibraryError(
            f"library {url} has schema version {found[_SCHEMA]}, expected {SCHEMA_VERSION}; use the release of "
            "memory-v2v that made it, or another --library"
        )
    if found[_MODEL] != model:
        raise LibraryError(
            f"library {url} holds memories of model {found[_MODEL][:16]}, this run uses {model[:16]}; a library "
            "belongs to one model: use that, or another --out or --library"
        )
    size = dataset.schema.field("descriptor").type.list_size
    if size != descriptor_dim:
        raise LibraryError(
            f"library {url} has descriptors of {size} numbers, this run makes {descriptor_dim}; use another --library"
        )


def _rebuild_coverage(dataset: lance.LanceDataset, sphere: Sphere) -> None:
    """Replace the coverage column. The metadata say so first, so that a rebuild cut off in the middle starts again."""
    dataset.update_schema_metadata({_POINTS: "being rebuilt", _RADIUS: "being rebuilt"})
    if "coverage" in dataset.schema.names:
        dataset.drop_columns(["coverage"])
    column = pa.schema([pa.field("coverage", pa.binary(sphere.bytes), nullable=False)])

    def covered(batch: pa.RecordBatch) -> pa.RecordBatch:
        seen = [coverage(trajectory(batch, index), sphere).tobytes() for index in range(batch.num_rows)]
        return pa.record_batch([pa.array(seen, column.field(0).type)], schema=column)

    dataset.add_columns(lance.batch_udf(output_schema=column)(covered), read_columns=["trajectory", "intrinsics"])
    dataset.update_schema_metadata({**_sphere_metadata(sphere)})


def _sphere_metadata(sphere: Sphere) -> dict[str, str]:
    return {_POINTS: str(sphere.points), _RADIUS: repr(float(sphere.radius))}


def _stored_sphere(found: dict[str, str]) -> Sphere | None:
    """None where a rebuild of the coverage was cut off."""
    if not found[_POINTS].isdigit():
        return None
    return Sphere(points=int(found[_POINTS]), radius=float(found[_RADIUS]))


def _state(found: dict[str, str]) -> str:
    """What a library's metadata say of its coverage, for messages."""
    return f"of {found[_POINTS]} points at {found[_RADIUS]} m" if _stored_sphere(found) else "being rebuilt"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _of(source: str) -> str:
    return f"source = {_quoted(source)}"


def _among(column: str, values: Collection[str]) -> str:
    return f"{column} IN ({', '.join(map(_quoted, values))})" if values else "false"


def _where(ids: Collection[str], source: str | None) -> str:
    # By the source first: it has an index, and ids must not have one.
    return _among("id", ids) if source is None else f"{_of(source)} AND {_among('id', ids)}"
