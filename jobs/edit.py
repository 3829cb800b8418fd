"""The edit job: a plan in; edited videos, a library of memories and a table of results out.

memory-v2v edit clip.mp4 --turn pan_right --turn arc_left --out results
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import fsspec
import numpy as np

from actors.outcome import Outcome
from actors.publication import CompareVideo, TurnVideo
from jobs.command import DONE, FAILED, UsageError, say, writable_folder
from jobs.config import EditConfig
from jobs.model import Model, resolve
from jobs.plan import Note, Plan, make_plan
from jobs.progress import Progress, duration
from jobs.published import compare_video, published_videos, turn_videos
from jobs.results import count_edits, results, write_results
from jobs.turn import Turn
from pipeline.coverage import Sphere
from pipeline.spec import ModelSpec
from storage.errors import reaching
from storage.library import Library
from storage.location import absolute
from storage.publish import video_id_of

DEFAULT_OWNER = "default"
LIBRARY = "library"  # folder of the owners' data sets, in the output folder


@dataclass
class EditJob:
    """What `memory-v2v edit` was asked to do."""

    inputs: Sequence[str]
    turns: Sequence[Turn]
    out: str
    config: EditConfig = field(default_factory=EditConfig)
    library: str | None = None
    owner: str = DEFAULT_OWNER
    model: str = "mini"
    limit: int | None = None
    source_trajectory: str | None = None
    shots: str | None = None
    dry_run: bool = False
    fresh: bool = False


def edit(job: EditJob) -> int:
    """Run the job; the exit code: 0 all done, 1 some sources failed. Raises ValueErrors of one line before any work."""
    began = time.time()
    out = writable_folder(job.out, create=not job.dry_run)
    library_url = library_of(job, out)
    if job.owner != DEFAULT_OWNER:  # nothing of an owner's is another's
        out = f"{out}/{job.owner}"
    model = resolve(job.model)
    if not model.spec.trained:
        say(f"model '{job.model}' is untrained: its weights are random and what it makes is noise; all else is real")
    plan = make_plan(
        job.inputs, job.turns or [Turn()] * job.fresh, job.config, model,
        out=out, limit=job.limit, source_trajectory=job.source_trajectory, shots=job.shots,
    )  # fmt: skip
    for note in plan.notes:
        say(f"{'skipped' if note.status == 'failed' else note.status}: {note.message}")
    turns = list(dict.fromkeys(turn for chain in plan.chains for turn in chain.turns))
    for line in unlearned(turns, job.config, model.spec):
        say(f"warning: model '{job.model}' {line}")
    library = _open_library(library_url, job.config, model, create=not job.dry_run)
    if job.fresh and not job.dry_run and library is not None:
        say(f"--fresh forgot {erase(plan, library, out)}")
    committed = {chain.name: library.committed(chain.fingerprint) if library else set() for chain in plan.chains}
    if job.fresh and job.dry_run:
        forgotten = sum(map(len, committed.values()))
        say(f"--fresh would forget {forgotten} memories and {len(published_videos(plan.chains, out))} videos")
        committed = {chain.name: set() for chain in plan.chains}
    if job.fresh and not job.turns:  # of sources without turns that was all
        plan.chains = [chain for chain in plan.chains if chain.turns != (Turn(),)]
    if plan.chains or not job.fresh:
        _describe(plan, committed, library, job.config, model)
    if job.dry_run or library is None:
        return FAILED if plan.failed else DONE

    videos = {chain.name: turn_videos(chain, out, job.config) for chain in plan.chains}
    outcome = _run(job.config, plan, committed, videos, library_url, model, out)

    notes = _notes(plan, outcome)
    for note in notes[len(plan.notes) :]:
        say(f"{note.status}: {note.message}")
    if outcome.stopped:
        say(f"stopped: {outcome.stopped}")
        say(f"{outcome.edits} edits were committed in this run; the same command goes on from there")
    published = {video.url: video.ids for chain in plan.chains for video in videos[chain.name] if _is_whole([video])}
    whole = [chain for chain in plan.chains if all(video.url in published for video in videos[chain.name])]
    done = {"done": len(whole), "failed": len(plan.chains) + len(plan.failed) - len(whole)}
    try:
        table = results(plan.chains, library, notes, published)
        summary = {
            "sources": done,
            "edits": count_edits(table),
            "edits_in_this_run": outcome.edits,
            "seconds": round(time.time() - began, 3),
            "stopped": outcome.stopped,
            "notes": [dataclasses.asdict(note) for note in notes],
            "turns": [dataclasses.asdict(turn) for turn in job.turns],
            "config": dataclasses.asdict(job.config),
            "model": {"name": job.model, "digest": model.digest, "trained": model.spec.trained},
            "library": library_url,
        }
        write_results(out, table, summary)
        where = f"results in {out}/results.parquet, "
    except (ValueError, OSError) as error:  # edits and videos are there all the same
        notes.append(Note("failed", out, str(error)))
        say(f"failed: {error}")
        where = ""
    for chain in whole:
        say(f"{chain.url}: {len(chain.turns)} turns at {_size(videos[chain.name][0])} in {out}/{chain.name}")
    say(f"{len(whole)} of {sum(done.values())} videos done, {outcome.edits} edits made; "
        f"{where}memories in {library_url}")  # fmt: skip
    missed = any(note.status == "failed" for note in notes) or len(whole) < len(plan.chains)
    return FAILED if missed or outcome.stopped else DONE  # stopped: a comparison may be missing


# ---- the parts


def unlearned(turns: Sequence[Turn], config: EditConfig, spec: ModelSpec) -> list[str]:
    """What these turns ask of a model that its weights were not trained for."""
    lines, learned = [], spec.learned
    if "camera" not in learned and (moves := [turn.label for turn in turns if turn.trajectory]):
        lines.append(
            f"has not learned to move the camera: {moves[0]} will look like its source; fine-tune it on cameras"
        )
    if "text" not in learned and any(turn.prompt and not turn.trajectory for turn in turns):
        lines.append("has not learned instructions: what a prompt asks for will not be done; fine-tune it on text")
    if "memory" not in learned and config.k:
        lines.append("has not learned to look at memories: fine-tune it (tune=paper), or set k=0")
    words = {word for turn in turns for word in re.findall(r"[^\W\d_]+", (turn.prompt or "").lower())}
    if spec.words and (others := sorted(words - spec.words)):
        lines.append(f"has few words, and not {', '.join(others)}: what it makes of them need not be what they say")
    return lines


def library_of(job: EditJob, out: str) -> str:
    """URL of the owner's dataset. Owners are kept apart by dataset, so that no query can cross from one to another."""
    if not job.owner or not all(c.isalnum() or c in "-_." for c in job.owner) or job.owner.startswith("."):
        raise UsageError(f"owner '{job.owner}' has characters other than letters, digits, '-', '_' and '.'")
    if job.owner == LIBRARY:  # it would be the folder of all owners' memories
        raise UsageError(f"owner '{job.owner}' is the name of the libraries' folder; choose another")
    return f"{absolute(job.library or f'{out}/{LIBRARY}').rstrip('/')}/{job.owner}.lance"


def erase(plan: Plan, library: Library, out: str) -> str:
    """Forget the plan's sources and what was published of them (`--fresh`). Returns how much that was, for people."""
    count = library.erase([chain.fingerprint for chain in plan.chains])
    videos = published_videos(plan.chains, out)
    for filesystem, path in videos:
        filesystem.rm(path)
        folder = posixpath.dirname(path)
        if filesystem.isdir(folder) and not filesystem.ls(folder):
            filesystem.rmdir(folder)
    return f"{count} memories and {len(videos)} videos"


def _notes(plan: Plan, outcome: Outcome) -> list[Note]:
    """What the plan had to say of the sources, and then what the run has."""
    notes = list(plan.notes)
    for chain in plan.chains:
        if chain.name in outcome.failed:
            notes.append(Note("failed", chain.url, f"{chain.url}: {outcome.failed[chain.name]}"))
    for name, reason in outcome.unpublished:
        url = next(chain.url for chain in plan.chains if chain.name == name)
        notes.append(Note("failed", url, reason))
    return notes


def _run(
    config: EditConfig,
    plan: Plan,
    committed: dict[str, set[str]],
    videos: dict[str, list[TurnVideo]],
    library_url: str,
    model: Model,
    out: str,
) -> Outcome:
    """Carry out what is left, on Ray. What is all there already costs no cluster."""
    compares = {c.name: compare_video(c, videos[c.name], out) for c in plan.chains if config.compare}
    todo = [
        chain
        for chain in plan.chains
        if not committed[chain.name].issuperset(chain.ids)
        or not _is_whole(videos[chain.name])
        or (chain.name in compares and not _is_whole([compares[chain.name]]))
    ]
    if not todo:
        return Outcome()

    # Here and not at the top: the loop brings in diffusers' model code, which a finished plan can do without.
    from actors.cluster import connect, nodes, places
    from actors.run import Run, SourceWork
    from actors.scheduler import Scheduler
    from actors.setup import Setup

    connect()
    where = places(config.workers, config.threads, nodes())
    scheduler = Scheduler(retries=config.retries, failure_budget=config.failure_budget)
    progress = Progress()
    work = [
        SourceWork(
            name=chain.name,
            ids=chain.ids,
            costs=[chain.cost(index) for index in range(len(chain))],
            committed=committed[chain.name],
            edit=chain.edit,
            videos=videos[chain.name],
            compare=compares.get(chain.name),
        )
        for chain in todo
    ]
    setup = Setup(
        model=model.folder,
        model_digest=model.digest,
        library=library_url,
        settings=dataclasses.asdict(config),
        device="cuda" if where.num_gpus else "cpu",
    )
    try:
        outcome = Run(work, scheduler, setup, where, progress, say)()
    finally:
        progress.close(scheduler)
    return outcome


def _open_library(url: str, config: EditConfig, model: Model, create: bool) -> Library | None:
    from pipeline.descriptor import DIMENSION

    filesystem, path = fsspec.core.url_to_fs(url)
    with reaching(url):
        if not create and not filesystem.exists(path):
            return None
    # A dry run looks for ids only and takes the library with whatever sphere it has.
    sphere = Sphere(points=config.points, radius=config.radius) if create else None
    return Library.open(url, model=model.digest, sphere=sphere, descriptor_dim=DIMENSION, create=create)


def _describe(
    plan: Plan, committed: dict[str, set[str]], library: Library | None, config: EditConfig, model: Model
) -> None:
    """The plan in a few lines: what is done, what is left, what it may cost."""
    todo = done = 0
    for chain in plan.chains:
        there = len(committed[chain.name].intersection(chain.ids))
        done, todo = done + there, todo + len(chain) - there
        say(f"{chain.url}: {chain.info.frames} frames, {len(chain.segments)} segments x {len(chain.turns)} turns = "
            f"{len(chain)} edits at {chain.fit.width}x{chain.fit.height}, {there} done")  # fmt: skip
    seconds = library.rows(columns=["seconds"])["seconds"].to_pylist() if library else []
    steps = config.steps or model.spec.steps
    cost = (
        f"about {duration(todo * float(np.median(seconds)))} of editor time"
        if seconds
        else f"{todo * steps} denoising steps"
    )
    say(f"plan: {len(plan.chains)} videos, {done} edits done, {todo} to do" + (f" ({cost})" if todo else ""))


def _is_whole(videos: Sequence[TurnVideo | CompareVideo]) -> bool:
    return all(video_id_of(video.url) == video.video_id for video in videos)


def _size(video: TurnVideo) -> str:
    return f"{video.size[1]}x{video.size[0]}, {'the source' if video.size == video.fit.shown else 'the model'}'s scale"
