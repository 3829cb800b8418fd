"""A data set of clips: what training reads, as one Lance data set with a video per row.

Videos are raw frames in one blob each, so that a training window is a byte range of it: nothing is decoded, and nothing
beside the window is read. Rows are only ever appended, whole scenes at a time, by one process; any number read.

    data = ClipDataset.open("scenes/clips.lance")
    clips = data.clips("train")
    pictures = data.read([clip.row for clip in clips[:4]], starts=[0, 8, 0, 3], length=16)  # (4, 16, H, W, 3)

Lance does not survive a fork: start loaders with *spawn*, where a data set given to them opens itself anew.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.clip import Clip
from pipeline.splits import SPLITS, family_of
from pipeline.trajectory import Trajectory, TrajectoryError
from storage.clip_row import CHANNELS, ClipRow, check, schema, table
from storage.errors import StorageError
from storage.lance_rows import KEEP, fault, insert, line, metadata_of, opened
from storage.memory import numbers

CLIPS_VERSION = "1"
NAME = "clips.lance"  # in the folder that `memory-v2v synthesize` writes
_VERSION, _GENERATOR, _PREFIX = "memory_v2v.clips", "memory_v2v.generator", "memory_v2v."

# Windows of one read fetched at a time: Lance waits for its own threads with the lock of Python released, so that a
# few together are half as fast again, on two cores, as one after the other.
THREADS = 4
CLEANED = 100  # versions between two looks for old ones

log = logging.getLogger(__name__)


class ClipDataset:
    """Open with `ClipDataset.open`, make with `ClipDataset.create`. One thread at a time.

    Raises StorageError for what is wrong with the data set, StorageFault for the disk, the network or the store."""

    def __init__(self, url: str, dataset: lance.LanceDataset) -> None:
        self.url = url
        self._dataset = dataset
        self._columns = dataset.schema.names
        self._handles: dict[str, list[Any]] = {}  # by column an open blob per row; see _opened
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="clips")
        self._index: dict[str, NDArray[Any]] = {}

    @classmethod
    def create(cls, url: str, metadata: Mapping[str, str], channels: Sequence[str] = ()) -> ClipDataset:
        """A new, empty data set. metadata: kept with it, `generator` (a version) among them. channels: which of
        CHANNELS every clip will have. Raises StorageError where there is something already."""
        found = {_PREFIX + key: value for key, value in metadata.items()} | {_VERSION: CLIPS_VERSION}
        found.setdefault(_GENERATOR, "")
        try:
            lance.write_dataset(schema(channels, found).empty_table(), url, data_storage_version="2.2")
        except OSError as error:
            if "already exists" in str(error):
                raise StorageError(f"{url}: a data set is there already; open it, or choose another folder") from error
            raise fault(url, "cannot be created", error, "check space and permissions") from error
        return cls.open(url)

    @classmethod
    def open(cls, url: str) -> ClipDataset:
        """The data set at `url`, or the one in that folder."""
        inside = [] if url.rstrip("/").endswith(".lance") else [f"{url.rstrip('/')}/{NAME}"]
        for place in [url, *inside]:
            if os.path.isfile(place):
                raise StorageError(f"{place}: is a file; a data set of clips is a folder: name that")
            dataset = opened(place)
            if dataset is not None:
                break
        else:
            raise StorageError(f"{url}: no data set of clips is there; make one with `memory-v2v synthesize --out`")
        version = metadata_of(dataset).get(_VERSION)
        if version is None:
            raise StorageError(
                f"{place}: is a Lance data set but not one of clips; name one that `memory-v2v synthesize` made"
            )
        if version != CLIPS_VERSION:
            raise StorageError(
                f"{place}: has version {version} of the format of clips, expected {CLIPS_VERSION}; use the release of "
                "memory-v2v that made it, or synthesize it anew"
            )
        return cls(place, dataset)

    def __reduce__(self) -> Any:
        return ClipDataset.open, (self.url,)

    @property
    def metadata(self) -> dict[str, str]:
        """What `create` was given, and `clips`, the version of the format."""
        return {key.removeprefix(_PREFIX): value for key, value in metadata_of(self._dataset).items()}

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(name for name in CHANNELS if name in self._columns)

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    # ---- write: one process only

    def append(self, rows: Sequence[ClipRow], keep: timedelta = KEEP) -> None:
        """Commit clips in their order, all of them or none; those whose id is there already stay as they are. keep:
        now and then versions that are older are dropped, each of which lists all the commits before it."""
        unique: dict[str, ClipRow] = {}  # Lance would insert both of two rows with one id
        for row in rows:
            check(row, self.channels)
            unique.setdefault(row.id, row)
        if not unique:
            return
        rows, generator = list(unique.values()), self.metadata["generator"]
        insert(self._dataset, self.url, f"{len(rows)} clips", lambda: table(rows, self._dataset.schema, generator))
        self._handles, self._index = {}, {}
        if self._dataset.version % CLEANED == 0:
            try:
                self._dataset.cleanup_old_versions(keep)
            except OSError as error:  # costs space, but no clip
                log.warning("old versions of %s could not be dropped: %s", self.url, line(error))

    # ---- read

    def scenes(self) -> set[int]:
        """The scenes that are there. A scene is committed whole, so each is there with all its clips."""
        return set(self.rows(["scene"])["scene"].to_pylist())

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """These columns, or all but the blobs, in the order of the rows. StorageError naming a damaged file."""
        wanted = list(columns or [name for name in self._columns if name != "video" and name not in CHANNELS])
        try:
            return self._dataset.to_table(columns=wanted)
        except (OSError, ValueError) as error:
            for fragment in self._dataset.get_fragments():
                try:
                    fragment.to_table(columns=wanted)
                except (OSError, ValueError) as damage:
                    name = fragment.data_files()[0].path
                    raise StorageError(
                        f"{self.url}: the file data/{name} is damaged or gone ({line(damage)}), expected "
                        f"{fragment.physical_rows} clips in it; restore it from a copy, or synthesize the data set anew"
                    ) from damage
            raise fault(self.url, "cannot be read", error, "check disk and network") from error

    def clips(self, split: str | None = None) -> list[Clip]:
        """All clips of a split ("train", "validation", "test"), or of all, in the order of the rows.

        StorageError where a scene, or the pieces of one real video, are in two splits: what is measured on the one
        would have been learned from the other."""
        if split is not None and split not in SPLITS:
            raise StorageError(f"{self.url}: no split '{split}'; expected one of {', '.join(SPLITS)}")
        rows = self.rows()
        self._check_splits(rows)
        small = {
            name: rows[name].to_pylist()
            for name in ("scene", "camera", "variant", "instruction", "split", "rate", "frames", "height", "width")
        }
        small["extended"] = rows["extended"].to_pylist() if "extended" in self._columns else [0] * len(rows)
        c2w = numbers(rows["c2w"]).reshape(-1, 3, 4)
        intrinsics = numbers(rows["intrinsics"]).reshape(-1, 4)
        shots = numbers(rows["shots"])
        stops = np.cumsum(small["frames"], dtype=np.int64) if len(rows) else np.zeros(0, np.int64)
        if len(rows) and not stops[-1] == len(c2w) == len(intrinsics) == len(shots):
            raise StorageError(
                f"{self.url}: its clips have {stops[-1]} frames, {len(c2w)} poses, {len(intrinsics)} intrinsics and "
                f"{len(shots)} shots, expected one of each per frame; synthesize it anew"
            )
        clips = []
        for row, stop in enumerate(stops.tolist()):
            if split is not None and small["split"][row] != split:
                continue
            part = slice(stop - small["frames"][row], stop)
            try:
                trajectory = Trajectory(c2w[part], intrinsics[part])
            except TrajectoryError as error:
                raise StorageError(f"{self.url}: the camera of row {row} cannot be used: {error}") from error
            clips.append(
                Clip(
                    row=row,
                    scene=small["scene"][row],
                    camera=small["camera"][row],
                    variant=small["variant"][row],
                    instruction=small["instruction"][row],
                    rate=small["rate"][row],
                    trajectory=trajectory,
                    shots=np.array(shots[part], np.int32),
                    height=small["height"][row],
                    width=small["width"][row],
                    extended=small["extended"][row],
                )
            )
        return clips

    def read(self, rows: Sequence[int], starts: Sequence[int], length: int) -> NDArray[np.uint8]:
        """Windows of videos: frames [start, start + length) of each row, (N, length, H, W, 3) uint8 RGB.

        Rows of one call have one size. StorageError for a window outside its clip and for a damaged file, of which it
        names the row; other rows stay readable."""
        sizes = self._sizes(rows)
        if len({tuple(size[1:]) for size in sizes}) > 1:
            raise StorageError(f"{self.url}: rows {list(rows)} have several sizes, expected one size per read")
        height, width = (int(side) for side in sizes[0, 1:]) if len(sizes) else (0, 0)
        out = np.empty((len(rows), length, height, width, 3), np.uint8)
        frame = height * width * 3
        handles = self._opened("video")
        for row, start, frames in zip(rows, starts, sizes[:, 0], strict=True):
            self._check_window(row, start, length, int(frames))

        def window(number: int) -> None:
            row = rows[number]
            try:
                found = handles[row].read_range(starts[number] * frame, length * frame)
                out[number] = np.frombuffer(found, np.uint8).reshape(length, height, width, 3)
            except (OSError, ValueError) as error:
                raise self._damaged(row, error) from error

        list(self._threads.map(window, range(len(rows))))
        return out

    def whole(self, clips: Sequence[Clip]) -> list[ClipRow]:
        """Clips of this data set with all their pixels, without depth and objects."""
        names = ["kind", "licence", "source"]
        try:
            known = self._dataset.take([clip.row for clip in clips], columns=names).to_pylist()
        except (OSError, ValueError) as error:
            raise self._damaged(clips[0].row, error) from error
        return [
            ClipRow(
                scene=clip.scene,
                camera=clip.camera,
                variant=clip.variant,
                instruction=clip.instruction,
                rate=clip.rate,
                trajectory=clip.trajectory,
                shots=clip.shots,
                video=self.read([clip.row], [0], len(clip))[0],
                extended=clip.extended,
                **words,
            )
            for clip, words in zip(clips, known, strict=True)
        ]

    def channel(self, name: str, row: int, start: int = 0, length: int | None = None) -> NDArray[Any]:
        """Depth or objects of a window of a clip, or of all of it, (length, H, W)."""
        if name not in self.channels:
            raise StorageError(
                f"{self.url}: has no {name}; it was made with {', '.join(self.channels) or 'neither depth nor objects'}"
            )
        frames, height, width = (int(each) for each in self._sizes([row])[0])
        length = frames - start if length is None else length
        self._check_window(row, start, length, frames)
        frame = height * width * CHANNELS[name].itemsize
        try:
            found = self._opened(name)[row].read_range(start * frame, length * frame)
            values: NDArray[Any] = np.frombuffer(found, CHANNELS[name])
            return values.reshape(length, height, width)
        except StorageError:  # of too few open files
            raise
        except (OSError, ValueError) as error:
            raise self._damaged(row, error) from error

    # ---- the parts

    def _check_window(self, row: int, start: int, length: int, frames: int) -> None:
        if not 0 <= start < start + length <= frames:
            raise StorageError(
                f"{self.url}: frames {start} to {start + length} of row {row} asked for, it has {frames}"
            )

    def _opened(self, column: str) -> list[Any]:
        """An open blob per row. All in one call: they then share one file handle per commit, where one call per row
        would use up the process's; and a window costs a third of what Lance's batched ranges take for it."""
        if column not in self._handles:
            rows = list(range(len(self)))
            self._allow_handles()
            self._handles[column] = self._dataset.take_blobs(column, indices=rows, buffer_size=0)
        return self._handles[column]

    def _allow_handles(self) -> None:
        """Room for an open file per commit and column beside what else is open: systems begin with 1,024."""
        commits = len(self._dataset.get_fragments())
        needed = (1 + len(CHANNELS)) * commits + 512
        least = (1 + len(self._handles)) * commits + 64  # for this column beside those that are open
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = resource.RLIM_INFINITY
        if hard != unlimited and hard < least:
            raise StorageError(
                f"{self.url}: has {least - 64} files to be open at a time, this process may have {hard}: raise its "
                f"limit (ulimit -Hn {needed})"
            )
        if soft != unlimited and soft < needed:
            most = needed if hard == unlimited else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

    def _sizes(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """(N, 3) frames, height and width of rows."""
        if not self._index:
            table = self.rows(["frames", "height", "width"])
            self._index = {name: table[name].to_numpy().astype(np.int64) for name in table.column_names}
        at = np.asarray(rows, np.int64)
        if len(at) and not (at.min() >= 0 and at.max() < len(self._index["frames"])):
            raise StorageError(f"{self.url}: no row {at.max()}; it has rows 0 to {len(self._index['frames'])}")
        return np.stack([self._index[name][at] for name in ("frames", "height", "width")], axis=-1)

    def _damaged(self, row: int, error: Exception) -> StorageError:
        scene = self._dataset.take([row], columns=["id"])["id"][0].as_py()
        return StorageError(
            f"{self.url}: clip {scene} in row {row} cannot be read ({line(error)}); its file is truncated or gone: "
            "restore it from a copy, or synthesize the data set anew; clips of other files can be read"
        )

    def _check_splits(self, rows: pa.Table) -> None:
        seen: dict[int, str] = {}
        for scene, split in zip(rows["scene"].to_pylist(), rows["split"].to_pylist(), strict=True):
            family = family_of(scene)
            if seen.setdefault(family, split) != split:
                raise StorageError(
                    f"{self.url}: scene {family} is in two splits, {seen[family]} and {split}, expected one; what is "
                    "measured on it would mean nothing: synthesize the data set anew"
                )
