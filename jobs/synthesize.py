"""The synthesize job: scenes with exact cameras and paired edits, and views of real footage, as one data set.

memory-v2v synthesize --out scenes --scenes 1000
memory-v2v synthesize --out scenes --from-videos clips/*.mp4 licence=CC-BY-4.0
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from actors.footage import PieceTask
from actors.renderer import GENERATOR, SceneTask, Task
from actors.rendering_outcome import Rendered
from jobs.command import DONE, FAILED, UsageError, megabytes, say, writable_folder
from jobs.config import SEEDS, ExtendConfig, SynthesizeConfig, bits_of
from jobs.data_card import CARD, SHEET, write_card, write_sheet
from jobs.footage import Footage, look_at
from jobs.progress import SceneProgress
from pipeline.scenes import Filming
from storage.clips import NAME, ClipDataset
from storage.errors import StorageError, StorageFault, reaching
from storage.location import local_path

RENDERED_LICENCE = "CC0-1.0"


@dataclass
class SynthesizeJob:
    """What `memory-v2v synthesize` was asked to do."""

    out: str
    scenes: int
    config: SynthesizeConfig = field(default_factory=SynthesizeConfig)
    from_videos: Sequence[str] = ()
    dry_run: bool = False


def synthesize(job: SynthesizeJob) -> int:
    """Run the job; the exit code: 0 all done, 1 some scenes failed. Raises ValueErrors of one line before any work."""
    config = job.config
    filming = filming_of(config)
    if job.scenes + config.seed > SEEDS:
        raise UsageError(f"--scenes {job.scenes} from seed {config.seed} on goes beyond the last seed, {SEEDS - 1}")
    _check_footage(job)
    out = writable_folder(job.out, create=not job.dry_run)
    url = f"{out}/{NAME}"
    data = begun(url, metadata(config), bits_of(SynthesizeConfig()))
    there = data.scenes() if data is not None else set()
    tasks: list[SceneTask | PieceTask] = [
        SceneTask(seed) for seed in range(config.seed, config.seed + job.scenes) if seed not in there
    ]
    footage = look_at(job.from_videos, config) if job.from_videos else Footage()
    for name, line in footage.problems.items():
        say(f"skipped: {line if name in line else f'{name}: {line}'}")
    for line in footage.warnings:
        say(f"warning: {line}")
    tasks += [piece for piece in footage.pieces if piece.scene not in there]
    if data is not None:
        _check_licence(data, {piece.scene for piece in footage.pieces} & there, config.licence)
    _describe(job, filming, tasks, len(there), out)
    if job.dry_run:
        return FAILED if footage.problems else DONE
    if data is None:
        data = ClipDataset.create(url, metadata(config), filming.channels)
    whole = make(tasks, filming, config, data, len(there), out)
    return DONE if whole and not footage.problems else FAILED


def filming_of(config: SynthesizeConfig) -> Filming:
    """What the renderers are told."""
    return Filming(
        height=config.height,
        width=config.width,
        frames=config.frames,
        cameras=config.cameras,
        edits=config.edits,
        edited_cameras=config.edited_cameras,
        rates=tuple(config.rates),
        channels=tuple(name for name in ("depth", "objects") if getattr(config, name)),
        samples=config.samples,
        licence=RENDERED_LICENCE,
        shots=config.shots,
    )


def _check_footage(job: SynthesizeJob) -> None:
    """Raise for what is wrong with the command whatever the videos are."""
    if job.from_videos and not job.config.licence.strip():
        raise UsageError(
            "no licence was given for --from-videos: say under which licence the footage may be used, such as "
            "licence=CC-BY-4.0; it is kept with every clip"
        )
    if job.from_videos and job.config.objects:
        raise UsageError("objects=true with --from-videos: real footage has no objects; leave one of them out")


def _check_licence(data: ClipDataset, pieces: set[int], licence: str) -> None:
    """Raise where footage that is there was kept under another licence than is said now: rows are never changed."""
    rows = data.rows(["scene", "licence", "source"]).to_pylist() if pieces else []
    for row in rows:
        if row["scene"] in pieces and row["licence"] != licence:
            raise StorageError(
                f"{data.url}: {row['source']} is there under licence {row['licence']!r}, asked for is {licence!r}; "
                "give the same, or make the footage anew in another --out"
            )


def metadata(config: SynthesizeConfig) -> dict[str, str]:
    """What a data set keeps of how it was made: a second run must agree with it."""
    return {"generator": GENERATOR, "config": json.dumps(bits_of(config))}


def begun(url: str, asked: dict[str, str], defaults: dict[str, Any]) -> ClipDataset | None:
    """The data set that an earlier run began, or None. StorageError where it was made otherwise.

    asked: what it would be kept with now. defaults: of settings younger than the data set: it was made as by them."""
    filesystem, path = fsspec.core.url_to_fs(url)
    # A run that was killed at once leaves an empty folder.
    with reaching(url):
        if not filesystem.isfile(path) and not filesystem.exists(f"{path}/_versions"):
            return None
    data = ClipDataset.open(url)
    for name in ("generator", "model"):
        was, now = (kept.get(name, "none") for kept in (data.metadata, asked))
        if was != now:
            raise StorageError(f"{url}: was made by {name} {was}, expected {now}; choose another --out")
    made, config = json.loads(data.metadata["config"]), json.loads(asked["config"])
    for key in config:
        was = made.get(key, defaults.get(key))
        if was != config[key]:
            raise StorageError(
                f"{url}: was made with {key}={json.dumps(was)}, asked for is {json.dumps(config[key])}; give "
                "the same settings to go on with it, or choose another --out"
            )
    return data


def make(
    tasks: Sequence[Task],
    filming: Any,
    config: SynthesizeConfig | ExtendConfig,
    data: ClipDataset,
    committed: int,
    out: str,
) -> bool:
    """Make what is left, write what lies beside the data set, and say how it went: whether all is there. filming: what
    all tasks share. committed: scenes that are there."""
    state = Rendered(committed=committed)
    fault: StorageError | StorageFault | None = None
    try:
        if tasks:
            _render(tasks, filming, config, data, state)
        write_card(data, f"{out}/{CARD}")
        write_sheet(data, f"{out}/{SHEET}")
    except (StorageError, StorageFault) as error:
        fault = error
    for name, reason in state.lost.items():
        say(f"failed: {reason if name in reason else f'{name}: {reason}'}")
    if state.stopped:
        say(f"stopped: {state.stopped}; what is committed stays, the same command goes on from there")
    if fault:
        say(f"failed: {fault}")
        return False
    say(f"{state.committed} scenes, {len(data)} clips in {data.url}; {CARD} and {SHEET} beside it tell what is inside")
    return not state.lost and not state.stopped


def _render(
    tasks: Sequence[Task], filming: Any, config: SynthesizeConfig | ExtendConfig, data: ClipDataset, state: Rendered
) -> None:
    """Carry out what is left, on Ray. What is all there already costs no cluster."""
    from actors.cluster import connect, nodes, places
    from actors.rendering import Rendering

    connect()
    # Scenes are rendered on CPUs, where one renderer takes one thread; a GPU is left to whoever needs one.
    where = places(config.workers, 1, [{"CPU": node.get("CPU", 0.0)} for node in nodes()])
    progress = SceneProgress()
    try:
        Rendering(
            tasks,
            filming,
            workers=where.workers,
            options=where.editors,
            commit=data.append,
            group=config.commit_mb * 1e6,
            retries=config.retries,
            state=state,
            progress=progress,
            notify=say,
        )()
    finally:
        progress.close(state)


def _describe(
    job: SynthesizeJob, filming: Filming, tasks: Sequence[SceneTask | PieceTask], there: int, out: str
) -> None:
    """What will be made and how large it will be. UsageError where the disk has no room for it."""
    clips = sum(task.clips(filming) for task in tasks)
    size = clips * filming.clip_bytes
    pieces = sum(isinstance(task, PieceTask) for task in tasks)
    real = f" ({pieces} of them pieces of real footage)" if pieces else ""
    say(f"{out}/{NAME}: {there} scenes there, {len(tasks)} to make{real}: {clips:,} clips of {filming.frames} frames "
         f"of {filming.width}x{filming.height}, {clips * filming.frames:,} frames, {megabytes(size)}")  # fmt: skip
    check_room(out, size, len(tasks))


def check_room(out: str, size: float, tasks: int) -> None:
    """UsageError where the disk has no room for `size` bytes of so many tasks."""
    place = local_path(out)
    if place is not None and Path(place).is_dir():
        free = shutil.disk_usage(place).free
        if size > free:
            raise UsageError(
                f"{out}: {megabytes(size)} are needed and {megabytes(free)} are free, room for "
                f"{math.floor(0.95 * free / size * tasks)} of these scenes: choose another --out, or fewer"
            )
