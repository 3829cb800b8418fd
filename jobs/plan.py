"""The plan: sources times turns, made into chains. Everything that can be wrong with an input is found here, before
the first edit, and costs that input alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import fsspec
import numpy as np

from jobs.chain import Chain
from jobs.config import ConfigError, EditConfig, parse_size
from jobs.model import Model
from jobs.published import is_published
from jobs.turn import Turn, TurnError, exists, parse_turn, read_trajectory, target_trajectory
from pipeline import cuts
from pipeline.fit import fit
from pipeline.motion import APART, THUMBNAIL, moves
from pipeline.segments import segments
from pipeline.trajectory import PRESETS, Trajectory, default_intrinsics
from storage.errors import reading
from storage.fingerprint import file_digest
from storage.sources import FOUND, SourceEntry, expand
from storage.video import VideoInfo, check_unchanged, identified, iter_frames, probe, read_frames


@dataclass(frozen=True)
class Note:
    """One line about a source as a whole: that it `failed`, or a `warning`."""

    status: str
    source: str
    message: str


@dataclass
class Plan:
    """Chains to run, and a note for every input that cannot, or that deserves a word."""

    chains: list[Chain] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def failed(self) -> list[Note]:
        return [note for note in self.notes if note.status == "failed"]


def make_plan(
    inputs: Sequence[str],
    turns: Sequence[Turn],
    config: EditConfig,
    model: Model,
    *,
    out: str = "",
    limit: int | None = None,
    source_trajectory: str | None = None,
    shots: str | None = None,
) -> Plan:
    """Look at every source and lay out its chain.

    out: the job's output folder, whose videos a pattern does not take. limit: take the first so many sources.
    source_trajectory, shots: files about the one source there then is; shots may be FOUND, then for all.
    """
    entries, problems = expand(inputs, unlike=lambda url: is_published(url, out))
    plan = Plan(notes=[Note("failed", name, f"{name}: {line}") for name, line in problems])
    if limit is not None:
        entries = entries[:limit]
    if (source_trajectory or shots not in (None, FOUND)) and len(entries) > 1:
        flag = "--source-trajectory" if source_trajectory else "--shots"
        raise TurnError(f"{flag} describes one source, {len(entries)} were given: use a manifest with a column for it")

    _check_once(turns, config, model, source_trajectory, shots)
    if not turns and not any(entry.turns for entry in entries):
        raise TurnError("no turns were given: name what to do with --turn, or `turns` in a plan or manifest")

    paths: dict[str, Trajectory] = {}  # clips of one length and lens share them: they are most of what a plan holds

    def shared(path: Trajectory) -> Trajectory:
        return paths.setdefault(path.digest, path)

    def chain(entry: SourceEntry) -> tuple[Chain, list[str]] | str:
        try:
            made, warnings = _chain(
                entry, turns, config, model, source_trajectory or entry.trajectory, shots or entry.shots
            )
            return replace(made, camera=shared(made.camera), targets=tuple(map(shared, made.targets))), warnings
        except (ValueError, OSError) as error:
            return _one_line(error)
        except Exception as error:  # whatever else a storage back end raises costs this source alone
            return f"{type(error).__name__}: {_one_line(error)}"

    with ThreadPoolExecutor(config.fingerprint_threads) as pool:
        results = list(pool.map(chain, entries))
    first: dict[str, str] = {}
    for entry, result in zip(entries, results, strict=True):
        if isinstance(result, str):
            line = result if entry.url in result else f"{entry.url}: {result}"
            plan.notes.append(Note("failed", entry.url, f"{entry.row}: {line}" if entry.row else line))
            continue
        made, warnings = result
        if made.fingerprint in first:
            twin = first[made.fingerprint]
            same = "is listed twice" if twin == entry.url else f"holds the same bytes as {twin}, listed before it"
            line = f"{entry.url} {same}: remove one of them"
            plan.notes.append(Note("failed", entry.url, line))
            continue
        first[made.fingerprint] = entry.url
        plan.chains.append(made)
        plan.notes += [Note("warning", entry.url, f"{entry.url}: {warning}") for warning in warnings]
    return plan


def _check_once(
    turns: Sequence[Turn], config: EditConfig, model: Model, source_trajectory: str | None, shots: str | None
) -> None:
    """Raise for what is wrong whatever the sources are: one line then, and not one for each of them."""
    spec = model.spec
    length = config.segment_frames or spec.segment_frames
    if length != spec.frames_for(length):
        raise ConfigError(f"setting 'segment_frames' is {length}, the model takes {spec.frames_for(length)}")
    if config.attention == "cached" and not spec.caches:
        raise ConfigError(
            "setting 'attention' is 'cached', but this model gives its source the target's timestep, which changes at "
            "every step: leave it out, or take 'joint'"
        )
    if config.merge == "merge" and not spec.merges:
        raise ConfigError(
            "setting 'merge' is 'merge', but this model has no compressor: leave it out, or take 'discard' or 'off'"
        )
    segments(length, length, config.overlap)
    fit((spec.size_multiple, spec.size_multiple), config.fit, parse_size(config.size), spec.area, spec.size_multiple)
    intrinsics = default_intrinsics(1.0)
    for turn in turns:
        if turn.trajectory is not None and turn.trajectory not in PRESETS:
            read_trajectory(turn.trajectory, intrinsics, turn.camera)
    for url in (source_trajectory, shots if shots != FOUND else None):
        if url is not None and not exists(url):
            raise ConfigError(f"{url} is not there: check the path")


def _chain(
    entry: SourceEntry,
    turns: Sequence[Turn],
    config: EditConfig,
    model: Model,
    trajectory: str | None,
    shots: str | None,
) -> tuple[Chain, list[str]]:
    known = identified(entry.url)  # before all else, so that all is of one file
    info = probe(entry.url)
    if entry.turns is not None:
        turns = [parse_turn(spec) for spec in entry.turns]
    if not turns:
        raise TurnError(f"{entry.url} has no turns: give them in its manifest row, or --turn for all")
    spec = model.spec
    length = config.segment_frames or spec.segment_frames
    windows = segments(info.frames, length, config.overlap, _read_shots(shots, info) if shots else ())
    frame = fit((info.height, info.width), config.fit, parse_size(config.size), spec.area, spec.size_multiple)
    given, warnings = _camera(info, trajectory, turns)
    # One world for the source's file and those of its turns, until all are relative to the source's first camera.
    origin = given.c2w[0]
    camera = given.relative_to(origin)
    warnings += info.notes
    spans = [(window.keep, window.stop) for window in windows]  # frames that each is the first to have
    targets: list[Trajectory] = []
    for turn in turns:
        if turn.trajectory is not None:
            target = target_trajectory(turn, info.frames, camera.intrinsics[0], spans, origin)
            elsewhere = Trajectory.static(1, camera.intrinsics[0]).relative_to(origin).c2w[0]
            if np.allclose(target.c2w[0], elsewhere) and not np.allclose(target.c2w[0], camera.c2w[0]):
                warnings.append(
                    f"turn '{turn.label}' begins at the origin, and the file of the source's own trajectory does not: "
                    "both are in one world; for paths from the source's first camera give one that begins there"
                )
            if target.travel > config.radius / 4:
                warnings.append(
                    f"turn '{turn.label}' travels {target.travel:.1f} m, more than a quarter of the radius on which "
                    f"views are compared ({config.radius:g} m): set radius to several times the distance travelled"
                )
        else:
            target = targets[-1] if targets and turn.input == "previous" else camera
        targets.append(target)
    seen = lambda path: Trajectory(path.c2w, frame.intrinsics(path.intrinsics)).rounded()  # noqa: E731
    chain = Chain(
        info=info,
        identity=known,
        fingerprint=file_digest(entry.url),
        fit=frame,
        segments=tuple(windows),
        frames=tuple(spec.frames_for(window.frames) for window in windows),
        turns=tuple(turns),
        camera=seen(camera),
        targets=tuple(seen(target) for target in targets),
        config=config,
        model=model.digest,
        placed=trajectory is not None,
    )
    check_unchanged(entry.url, known)
    return chain, warnings


def _camera(info: VideoInfo, url: str | None, turns: Sequence[Turn]) -> tuple[Trajectory, list[str]]:
    """The source's own trajectory, in the world of its file or else in that of its first camera, and warnings."""
    intrinsics = default_intrinsics(info.width / info.height)
    if url is not None:
        camera = read_trajectory(url, intrinsics)
        if len(camera) != info.frames:
            raise ValueError(f"{url} has {len(camera)} poses, expected {info.frames}, one per frame of {info.url}")
        return camera, []
    camera = Trajectory.static(info.frames, intrinsics)
    if any(turn.trajectory for turn in turns) and _plainly_moves(info):
        return camera, [
            "the camera moves in the source, but no --source-trajectory says how: it is taken to stand still, "
            "so novel views are approximate"
        ]
    return camera, []


# The motion check looks at the middle of the source, so that a long one costs no more than this.
LOOK_SECONDS = 6


def _plainly_moves(info: VideoInfo) -> bool:
    look = min(info.frames, max(1, round(LOOK_SECONDS * info.rate)))
    start = (info.frames - look) // 2
    return moves(read_frames(info.url, start, start + look, size=THUMBNAIL)[:: max(1, round(APART * info.rate))])


def _read_shots(url: str, info: VideoInfo) -> tuple[int, ...]:
    """First frames of every shot but the first: a JSON list, or numbers separated by white space or commas; FOUND for
    where hard cuts are found."""
    if url == FOUND:
        return cuts.find_cuts(iter_frames(info.url, cuts.THUMBNAIL))
    with reading(url), fsspec.open(url, "rb") as file:
        content = file.read()
    try:
        text = content.decode()
        numbers = json.loads(text) if text.lstrip().startswith("[") else text.replace(",", " ").split()
        starts = tuple(int(number) for number in numbers)
        if any(isinstance(number, float) and number != start for number, start in zip(numbers, starts, strict=True)):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{url} is not a list of shot boundaries, expected frame numbers such as 30 76 137") from None
    return tuple(start for start in starts if start)


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
