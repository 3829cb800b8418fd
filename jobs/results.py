"""What a run leaves to read: `results.parquet`, a row per edit, and `summary.json`."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.chain import Chain
from jobs.plan import Note
from storage.atomic import published
from storage.library import Library

STORED = ("memories", "scores", "seconds", "worker", "attempt", "created_at")  # columns taken over from the library
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
    notes: Sequence[Note],
    videos: Mapping[str, Sequence[str]],
) -> pa.Table:
    """One row per edit of the plan, then one per note. videos: URL of a published file → the edits it is made of."""
    rows: list[dict[str, Any]] = []
    video = {id: url for url, ids in videos.items() for id in ids}
    failed = {note.source: note.message for note in notes if note.status == "failed"}
    for chain in chains:
        stored = {row["id"]: row for row in library.rows(chain.fingerprint, ["id", *STORED]).to_pylist()}
        for index, id in enumerate(chain.ids):
            turn, segment = divmod(index, len(chain.segments))
            found = stored.get(id)
            row = {
                "status": "done" if found else "failed" if chain.url in failed else "left",
                "source": chain.url,
                "fingerprint": chain.fingerprint,
                "turn": turn + 1,
                "label": chain.turns[turn].label,
                "segment": segment,
                "start": chain.segments[segment].start,
                "stop": chain.segments[segment].stop,
                "id": id,
                "video": video.get(id),
                "message": None if found else failed.get(chain.url),
            }
            if found:
                row |= {key: found[key] for key in STORED}
            rows.append(row)
    rows += [dataclasses.asdict(note) for note in notes]
    for row in rows:  # a file's name may be any bytes
        row |= {key: _text(row.get(key)) for key in ("source", "video", "message")}
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _text(value: str | None) -> str | None:
    return value if value is None else value.encode("utf-8", "backslashreplace").decode()


def count_edits(table: pa.Table) -> dict[str, int]:
    """How many edits are done, left or failed; notes do not count."""
    return dict(Counter(row["status"] for row in table.select(["status", "id"]).to_pylist() if row["id"]))


def write_results(folder: str, table: pa.Table, summary: dict[str, Any]) -> None:
    """Write both files into `folder`, each whole or not at all."""
    with published(f"{folder}/results.parquet") as path:
        pq.write_table(table, path)
    with published(f"{folder}/summary.json") as path:
        with open(path, "w") as file:
            file.write(json.dumps(summary, indent=2, sort_keys=True) + "\n")
