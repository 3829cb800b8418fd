"""A memory: what one edit leaves behind, and the Arrow row it is stored as."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.coverage import Sphere, coverage
from pipeline.trajectory import Trajectory

NUMBERS = ("trajectory", "intrinsics", "descriptor")  # columns of many numbers a row
MEND = "restore the library from a copy, or add --fresh to the command: it makes all edits of its sources anew"
LATENT_DTYPES = ("float32", "bfloat16", "float16", "float64", "uint8")


class LibraryError(ValueError):
    """A library or a memory that cannot be used; the message names it, what was found, what was expected and what to
    do about it."""


@dataclass(frozen=True, eq=False)
class Memory:
    """One committed edit.

    id, parent: edit ids ("" where there is no parent). source: fingerprint of the source video. turn, segment, shot:
    indices; start, stop: the segment's frames of the source. trajectory: the target cameras in the source's world.
    descriptor: (D,) float32. latent: the model's own output, (C, T', H', W'), never re-encoded frames. model: the
    model's digest. memories, scores: the ids this edit was shown, and how well each had scored. seconds: what the edit
    took, on `worker`, at its `attempt`-th execution.
    """

    id: str
    parent: str
    source: str
    turn: int
    segment: int
    shot: int
    start: int
    stop: int
    trajectory: Trajectory
    descriptor: NDArray[np.float32]
    latent: torch.Tensor
    model: str
    prompt: str
    seed: int
    attempt: int
    memories: tuple[str, ...]
    scores: tuple[float, ...]
    seconds: float
    worker: str


def schema(sphere: Sphere, descriptor_dim: int, metadata: dict[str, str]) -> pa.Schema:
    """The columns of a library.

    `id` is the unenforced primary key: merge_insert then finds two racing commits of one id. It must carry no scalar
    index, which would switch that check off. Trajectories are float64 although float32 would do for a camera: a
    memory read back must equal the one that was committed, or a rebuilt coverage could differ in a bit."""
    columns: dict[str, pa.DataType] = {
        "parent": pa.string(),
        "source": pa.string(),
        "turn": pa.int32(),
        "segment": pa.int32(),
        "shot": pa.int32(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "trajectory": pa.list_(pa.list_(pa.float64(), 12)),
        "intrinsics": pa.list_(pa.list_(pa.float64(), 4)),
        "coverage": pa.binary(sphere.bytes),
        "descriptor": pa.list_(pa.float32(), descriptor_dim),
        "latent_dtype": pa.string(),
        "latent_shape": pa.list_(pa.int64()),
        "sha256": pa.string(),
        "created_at": pa.timestamp("us", tz="UTC"),
        "model": pa.string(),
        "prompt": pa.string(),
        "seed": pa.uint64(),
        "attempt": pa.int32(),
        "memories": pa.list_(pa.string()),
        "scores": pa.list_(pa.float64()),
        "seconds": pa.float64(),
        "worker": pa.string(),
    }
    fields = [pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"})]
    fields += [pa.field(name, type_, nullable=False) for name, type_ in columns.items()]
    fields.append(lance.blob_field("latent", nullable=False))
    return pa.schema(fields, metadata=metadata)


def check(memory: Memory, *, model: str, descriptor_dim: int) -> None:
    """LibraryError where a memory does not fit the library: what the store itself would take and never give back."""
    dtype = str(memory.latent.dtype).removeprefix("torch.")
    faults = [
        (not memory.id, "its id is empty; an edit id is a sha256"),
        (not memory.source, "its source is empty; a source is a sha256"),
        (
            memory.model != model,
            f"it was made by model {memory.model!r}; this library holds those of {model!r}",
        ),
        (
            memory.descriptor.shape != (descriptor_dim,),
            f"its descriptor has shape {memory.descriptor.shape}; expected ({descriptor_dim},)",
        ),
        (memory.latent.numel() == 0, f"its latent of shape {tuple(memory.latent.shape)} is empty"),
        (dtype not in LATENT_DTYPES, f"its latent is {dtype}; expected one of {', '.join(LATENT_DTYPES)}"),
        (
            dtype in LATENT_DTYPES and dtype != "uint8" and not bool(torch.isfinite(memory.latent).all()),
            "its latent holds NaN or infinite numbers; the edit must be made again",
        ),
        (
            len(memory.memories) != len(memory.scores),
            f"it lists {len(memory.memories)} memories but {len(memory.scores)} scores; one score each",
        ),
    ]
    for fault, says in faults:
        if fault:
            raise LibraryError(f"memory {memory.id or '(no id)'}: {says}")


def table(memories: Sequence[Memory], sphere: Sphere, schema: pa.Schema) -> pa.Table:
    """Memories as rows of `schema`; coverage is computed here, checksums and time stamps are set here."""
    now = datetime.now(UTC)
    latents = [_bytes(memory.latent) for memory in memories]
    rows: dict[str, list[Any]] = {name: [] for name in schema.names if name != "latent"}
    for memory, latent in zip(memories, latents, strict=True):
        row = vars(memory) | {
            "trajectory": memory.trajectory.c2w.reshape(-1, 12).tolist(),
            "intrinsics": memory.trajectory.intrinsics.tolist(),
            "coverage": coverage(memory.trajectory, sphere).tobytes(),
            "descriptor": memory.descriptor,
            "latent_dtype": str(memory.latent.dtype).removeprefix("torch."),
            "latent_shape": list(memory.latent.shape),
            "sha256": hashlib.sha256(latent).hexdigest(),
            "created_at": now,
        }
        for name, column in rows.items():
            column.append(row[name])
    arrays = [
        lance.blob_array(latents) if field.name == "latent" else pa.array(rows[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def memory(rows: pa.Table, index: int, latent: bytes, library: str) -> Memory:
    """A stored row and its blob as a Memory. LibraryError where the bytes are not those that were committed."""
    row = {name: rows[name][index].as_py() for name in rows.column_names if name not in NUMBERS}
    found = hashlib.sha256(latent).hexdigest()
    shape, dtype = tuple(row["latent_shape"]), getattr(torch, row["latent_dtype"])
    if found != row["sha256"] or len(latent) != math.prod(shape) * dtype.itemsize:
        raise LibraryError(
            f"memory {row['id']} in {library} is damaged: its latent has {len(latent)} bytes with sha256 {found}, "
            f"expected {math.prod(shape) * dtype.itemsize} with {row['sha256']}; {MEND}"
        )
    return Memory(
        id=row["id"],
        parent=row["parent"],
        source=row["source"],
        turn=row["turn"],
        segment=row["segment"],
        shot=row["shot"],
        start=row["start"],
        stop=row["stop"],
        trajectory=trajectory(rows, index),
        descriptor=numbers(rows["descriptor"], index).copy(),
        latent=torch.frombuffer(bytearray(latent), dtype=dtype).reshape(shape),
        model=row["model"],
        prompt=row["prompt"],
        seed=row["seed"],
        attempt=row["attempt"],
        memories=tuple(row["memories"]),
        scores=tuple(row["scores"]),
        seconds=row["seconds"],
        worker=row["worker"],
    )


def trajectory(rows: pa.Table | pa.RecordBatch, index: int) -> Trajectory:
    """The stored trajectory of a row, equal to the committed one to the last bit."""
    c2w, intrinsics = (numbers(rows[name], index).copy() for name in ("trajectory", "intrinsics"))
    return Trajectory(c2w.reshape(-1, 3, 4), intrinsics.reshape(-1, 4))


def numbers(column: pa.Array | pa.ChunkedArray, index: int | None = None) -> NDArray[Any]:
    """All numbers in a column of lists, or in one of its rows, as one flat array, without a Python object for each."""
    if index is not None:
        values = column[index].values
    else:
        values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False)


def _bytes(latent: torch.Tensor) -> bytes:
    # By way of uint8: numpy has no bfloat16.
    return latent.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
