"""A turn: one instruction for a whole source, as a person writes it and as an edit's id sees it.

On the command line a turn is a preset (`pan_right`), a trajectory file (`move.json`, or a folder of COLMAP text), a
prompt (`"make it winter"`), or a YAML mapping of them: `{trajectory: arc_left, prompt: "at night", input: previous}`.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np

from jobs.config import nearest
from pipeline.trajectory import PRESETS, Trajectory, TrajectoryError, preset
from pipeline.trajectory_formats import COLMAP, parse_trajectory, read_colmap
from storage.errors import reaching
from storage.location import WEB
from storage.turn_text import TURN_KEYS, turn_mapping

INPUTS = ("source", "previous")
SPANS = ("exact", "stretch", "segment")
LONGEST_LABEL = 100  # of a file's name, of which file systems take 255 bytes


class TurnError(ValueError):
    """A turn that cannot be understood. One line, with the remedy."""


@dataclass(frozen=True)
class Turn:
    """One instruction.

    trajectory: a preset's name, the URL of a trajectory file, or None where the camera stays the source's own.
    prompt: None takes over the prompt in force from the turns before; "" clears it.
    input: `source` edits the original (the paper), `previous` the last turn's result.
    span: how a trajectory meets the source's frames: `exact` has one pose per frame, `stretch` is resampled over the
        whole source, `segment` is resampled over, and repeated for, every segment. To presets the first two are one.
    camera: which of the ten cameras of a ReCamMaster file.
    """

    trajectory: str | None = None
    prompt: str | None = None
    negative_prompt: str = ""
    input: str = "source"
    span: str = "exact"
    camera: str = "cam01"
    name: str | None = None

    @property
    def label(self) -> str:
        """What file names say of it: the trajectory's name; prompts stay out of names."""
        if self.name:
            text = self.name
        elif self.trajectory:
            text = posixpath.splitext(posixpath.basename(self.trajectory.rstrip("/")))[0]
        else:
            text = "text"
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:LONGEST_LABEL].strip("._") or "turn"


def parse_turn(spec: str | dict[str, Any]) -> Turn:
    """Read a SPEC of the command line or an entry of a plan's `turns`. Raises TurnError."""
    if isinstance(spec, str):
        try:
            spec = turn_mapping(spec, exists)
        except ValueError as error:
            raise TurnError(str(error)) from None
    if not isinstance(spec, dict):
        raise TurnError(
            f"turn {spec!r} is a {type(spec).__name__}, expected a preset, a trajectory file, a prompt or a mapping"
        )
    spec = {key: value for key, value in spec.items() if value is not None}  # a Parquet row holds every key
    for key in spec:
        if key not in TURN_KEYS:
            near = nearest(str(key), TURN_KEYS) or f"; expected {', '.join(TURN_KEYS)}"
            raise TurnError(f"turn {spec!r} has the key '{key}', which does not exist{near}")
    for key, value in spec.items():
        if not isinstance(value, str):
            raise TurnError(f"turn {spec!r} has {key} = {value!r}, expected text")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise TurnError(f"turn {spec!r} has half of a character in its {key}: write it whole, in UTF-8")
    turn = Turn(**spec)
    if turn.input not in INPUTS:
        raise TurnError(f"turn {spec!r} has input = {turn.input!r}, expected one of {', '.join(INPUTS)}")
    if turn.span not in SPANS:
        raise TurnError(f"turn {spec!r} has span = {turn.span!r}, expected one of {', '.join(SPANS)}")
    if not turn.trajectory and not turn.prompt:
        raise TurnError(f"turn {spec!r} has neither a trajectory nor a prompt: there is nothing to edit")
    if turn.trajectory == "":
        raise TurnError(f"turn {spec!r} has an empty trajectory, expected a preset or a file; leave the key out")
    if turn.trajectory is not None and turn.trajectory not in PRESETS and not exists(turn.trajectory):
        raise TurnError(
            f"turn '{turn.trajectory}' is no preset and no file{nearest(turn.trajectory, PRESETS)}. A prompt of one "
            f"word is written 'prompt: {turn.trajectory}'; presets are {', '.join(PRESETS)}"
        )
    return turn


def exists(url: str) -> bool:
    """Whether there is a file or folder; False too for words that only look like a URL. Raises StorageFault where a
    store or web server that could tell fails."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, TypeError):  # TypeError: of a file system that wants to be told more
        return False
    try:
        with reaching(url):
            if not url.startswith(WEB):
                return bool(filesystem.exists(path))
            filesystem.info(path)  # `exists` would say no of a server that is down
    except FileNotFoundError:
        return False
    return True


def read_trajectory(
    url: str, intrinsics: np.ndarray, camera: str = "cam01", origin: np.ndarray | None = None
) -> Trajectory:
    """Read a trajectory file: our JSON, ReCamMaster's JSON, or a folder with COLMAP's cameras.txt and images.txt.

    Poses are returned as in the file for ours, or relative to a pose `origin` (3, 4) of its world; and relative to the
    first camera for the other two, whose world is not the source's. Raises TrajectoryError.
    """
    filesystem, path = fsspec.core.url_to_fs(url)
    try:
        with reaching(url):
            colmap = filesystem.isdir(path)
            if colmap and filesystem.exists(f"{path}/images.bin") and not filesystem.exists(f"{path}/images.txt"):
                raise TrajectoryError(
                    f"{url} holds COLMAP's binary files, expected {' and '.join(COLMAP)}; make them with colmap "
                    f"model_converter --input_path {url} --output_path {url} --output_type TXT"
                )
            if not colmap and posixpath.basename(path) in COLMAP:
                raise TrajectoryError(f"{url} is one of COLMAP's files, expected the folder of {' and '.join(COLMAP)}")
            files = [f"{path}/{name}" for name in COLMAP] if colmap else [path]
            texts = [filesystem.cat_file(file).decode() for file in files]
    except FileNotFoundError:
        raise TrajectoryError(
            f"{url}: no such file, expected a trajectory as JSON or a folder with {' and '.join(COLMAP)}"
        ) from None
    except UnicodeDecodeError:
        raise TrajectoryError(
            f"{url} is not a text file, expected a trajectory as JSON or a folder of COLMAP text"
        ) from None
    try:
        if colmap:
            return read_colmap(*texts, relative=True)
        return parse_trajectory(texts[0], camera=camera, intrinsics=intrinsics, origin=origin)
    except TrajectoryError as error:
        raise TrajectoryError(f"{url}: {error}") from None


def target_trajectory(
    turn: Turn, frames: int, intrinsics: np.ndarray, spans: list[tuple[int, int]], origin: np.ndarray | None = None
) -> Trajectory:
    """The path that a turn's camera takes: `frames` poses in the source's world.

    intrinsics: (4,) of the source's first frame, used by presets and by files that have none.
    spans: (start, stop) of the frames that each segment is the first to have, for `span: segment`.
    origin: the source's first pose (3, 4) in the world of our JSON files, where the source's has another origin.
    Raises TrajectoryError where a file's length does not match.
    """
    assert turn.trajectory is not None
    if turn.trajectory in PRESETS:
        if turn.span != "segment":
            return preset(turn.trajectory, frames, intrinsics)
        return _per_segment(lambda n: preset(turn.trajectory, n, intrinsics), frames, spans)  # type: ignore[arg-type]
    path = read_trajectory(turn.trajectory, intrinsics, turn.camera, origin)
    if turn.span == "segment":
        return _per_segment(path.resampled, frames, spans)
    if len(path) != frames and turn.span == "exact":
        raise TrajectoryError(
            f"{turn.trajectory} has {len(path)} poses, expected {frames}, one per frame of the source; "
            f"to resample it write the turn as '{{trajectory: {turn.trajectory}, span: stretch}}'"
        )
    return path.resampled(frames) if len(path) != frames else path


def _per_segment(make: Any, frames: int, spans: list[tuple[int, int]]) -> Trajectory:
    c2w, intrinsics = np.zeros((frames, 3, 4)), np.zeros((frames, 4))
    for start, stop in spans:
        part = make(stop - start)
        c2w[start:stop], intrinsics[start:stop] = part.c2w, part.intrinsics
    return Trajectory(c2w=c2w, intrinsics=intrinsics)
