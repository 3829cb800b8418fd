"""What a run leaves to read: `results.parquet`, a row per edit, and `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.chain import Chain
from storage.library import Library
from storage.publish import published

SCHEMA = pa.schema(
    [
        ("status", pa.string()),  # done, left or failed for an edit; failed or warning for a source as a whole
        ("source", pa.string()),
        ("fingerprint", pa.string()),
        ("turn", pa.int32()),
        ("label", pa.string()),
        ("segment", pa.int32()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("id", pa.string()),
        ("memories", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("seconds", pa.float64()),
        ("worker", pa.string()),
        ("attempt", pa.int32()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("video", pa.string()),
        ("message", pa.string()),
    ]
)


def results(
    chains: Sequence[Chain],
    library: Library,
    failed: Mapping[str, str],
    messages: Sequence[tuple[str, str, str]],
    video: Mapping[str, str],
) -> pa.Table:
    """One row per edit of the plan, then one per (status, source, message) about a source as a whole.

    failed: chain name → why it was given up. video: id of an edit → URL of the published file that it is part of.
    """
    rows: list[dict[str, Any]] = []
    for chain in chains:
        stored = {row["id"]: row for row in library.rows(chain.fingerprint).to_pylist()}
        for index, id in enumerate(chain.ids):
            turn, segment = divmod(index, len(chain.segments))
            found = stored.get(id)
            row = {
                "status": "done" if found else "failed" if chain.name in failed else "left",
                "source": chain.url,
                "fingerprint": chain.fingerprint,
                "turn": turn + 1,
                "label": chain.turns[turn].label,
                "segment": segment,
                "start": chain.segments[segment].start,
                "stop": chain.segments[segment].stop,
                "id": id,
                "video": video.get(id),
                "message": None if found else failed.get(chain.name),
            }
            if found:
                row |= {key: found[key] for key in ("memories", "scores", "seconds", "worker", "attempt", "created_at")}
            rows.append(row)
    rows += [{"status": status, "source": source, "message": message} for status, source, message in messages]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_results(folder: str, table: pa.Table, summary: dict[str, Any]) -> None:
    """Write both files into `folder`, each whole or not at all."""
    with published(f"{folder}/results.parquet") as path:
        pq.write_table(table, path)
    with published(f"{folder}/summary.json") as path:
        with open(path, "w") as file:
            file.write(json.dumps(summary, indent=2, sort_keys=True) + "\n")


def read_results(folder: str) -> pa.Table:
    """The table of a finished run."""
    with fsspec.open(f"{folder}/results.parquet", "rb") as file:
        return pq.read_table(file)
