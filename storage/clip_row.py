"""One row of a data set of clips: a clip with its pixels, and the Arrow row it is stored as."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.splits import split_of
from pipeline.trajectory import Trajectory
from storage.errors import StorageError

# Blobs of what else a renderer knows of each pixel; a data set has these columns only where it was made with them.
CHANNELS: dict[str, np.dtype[Any]] = {"depth": np.dtype("<f4"), "objects": np.dtype("u1")}

# Every clip goes into its commit's pack file, however large it is: a reader holds one open file per commit, and with a
# file per clip (Lance's way above 4 MB) it would run out of them.
PACKED = 1 << 40


@dataclass(frozen=True, eq=False)
class ClipRow:
    """One camera's video of one variant of one scene.

    scene: its seed below 2**40, or `real_scene(...)`. camera: 0 is the source's. variant: 0 as it was, 1 and above as
    edited by `instruction`. kind: "rendered", "real" or "extended". rate: frames per second. trajectory: T poses in the
    scene's world. shots (T,) int32. licence: of the pixels. source: the video it was cut from, "" for rendered ones.
    video (T, H, W, 3) uint8 RGB. depth (T, H, W) float32 metres along the optical axis, inf for the sky, NaN
    where nobody knows, or None.
    objects (T, H, W) uint8, or None. extended: frames at its end that a model made, 0 unless kind is "extended".
    """

    scene: int
    camera: int
    variant: int
    kind: str
    instruction: str
    rate: float
    trajectory: Trajectory
    shots: NDArray[np.int32]
    licence: str
    source: str
    video: NDArray[np.uint8]
    depth: NDArray[np.float32] | None = None
    objects: NDArray[np.uint8] | None = None
    extended: int = 0

    @property
    def id(self) -> str:
        return f"{self.scene}/{self.variant}/{self.camera}"

    @property
    def nbytes(self) -> int:
        """Bytes of all its blobs."""
        return sum(array.nbytes for array in (self.video, self.depth, self.objects) if array is not None)


def schema(channels: Sequence[str], metadata: dict[str, str]) -> pa.Schema:
    """The columns of a data set of clips. `id` is the unenforced primary key, by which appends are idempotent."""
    columns: dict[str, pa.DataType] = {
        "scene": pa.int64(),
        "camera": pa.int32(),
        "variant": pa.int32(),
        "kind": pa.string(),
        "instruction": pa.string(),
        "split": pa.string(),
        "rate": pa.float64(),
        "frames": pa.int32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "c2w": pa.list_(pa.list_(pa.float64(), 12)),
        "intrinsics": pa.list_(pa.list_(pa.float64(), 4)),
        "shots": pa.list_(pa.int32()),
        "extended": pa.int32(),  # younger than version 1 of the format: where it is missing nothing is extended
        "licence": pa.string(),
        "source": pa.string(),
        "generator": pa.string(),
        "sha256": pa.string(),  # of the video blob
    }
    fields = [pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"})]
    fields += [pa.field(name, type_, nullable=False) for name, type_ in columns.items()]
    fields += [lance.blob_field(name, nullable=False, dedicated_size_threshold=PACKED) for name in ("video", *channels)]
    return pa.schema(fields, metadata=metadata)


def check(row: ClipRow, channels: Sequence[str]) -> None:
    """StorageError where a row does not hold together: what the store itself would take and no reader could use."""
    frames = len(row.trajectory)
    size = row.video.shape[:3]
    faults = [
        (row.video.dtype != np.uint8 or row.video.ndim != 4 or row.video.shape[3] != 3 or not row.video.size,
         f"its video is {row.video.dtype} {row.video.shape}; expected uint8 (T, H, W, 3)"),
        (row.video.shape[0] != frames, f"it has {row.video.shape[0]} frames and {frames} poses; expected one each"),
        (row.shots.shape != (frames,), f"its shots have shape {row.shots.shape}; expected ({frames},)"),
        (not row.rate > 0, f"its rate is {row.rate}; expected frames per second above 0"),
        (bool(row.variant) != bool(row.instruction),
         f"it is variant {row.variant} with instruction {row.instruction!r}; expected one for edited variants only"),
        (bool(row.extended) != (row.kind == "extended") or not 0 <= row.extended < frames,
         f"it is {row.kind} with {row.extended} of {frames} frames from a model; expected any in extended clips only"),
    ]  # fmt: skip
    for name in channels:
        array = getattr(row, name)
        if array is None:
            faults.append((True, f"it has no {name}, which this data set holds of every clip"))
        else:
            faults.append((array.shape != size, f"its {name} has shape {array.shape}; expected {size}"))
    for fault, says in faults:
        if fault:
            raise StorageError(f"clip {row.id}: {says}")


def table(rows: Sequence[ClipRow], schema: pa.Schema, generator: str) -> pa.Table:
    """Clips as rows of `schema`."""
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for row in rows:
        video = np.ascontiguousarray(row.video).tobytes()
        values = vars(row) | {
            "id": row.id,
            "split": split_of(row.scene),
            "frames": row.video.shape[0],
            "height": row.video.shape[1],
            "width": row.video.shape[2],
            "c2w": row.trajectory.c2w.reshape(-1, 12).tolist(),
            "intrinsics": row.trajectory.intrinsics.tolist(),
            "shots": row.shots.tolist(),
            "generator": generator,
            "sha256": hashlib.sha256(video).hexdigest(),
            "video": video,
        }
        for name, column in columns.items():
            value = values[name]
            column.append(value.astype(CHANNELS[name]).tobytes() if name in CHANNELS else value)
    arrays = [
        lance.blob_array(columns[field.name])
        if field.name == "video" or field.name in CHANNELS
        else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
