"""Trajectory files: ReCamMaster's JSON, COLMAP's text model, our plain JSON. Strings in, Trajectory out, and back.

Every error names the frame (or the line) and says what was expected. Files of ReCamMaster and COLMAP are in worlds of
their own: the first comes out relative to its first camera, the second as it is unless `relative` is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.trajectory import Array, Trajectory, TrajectoryError, compose, inverse, quaternion

FORMAT = "memory-v2v/trajectory"
COLMAP = ("cameras.txt", "images.txt")  # what is read of a folder of its text format
VERSION = 1

# --- ReCamMaster -------------------------------------------------------------------------------------------------
# {"frame0": {"cam01": "[r r r 0] [r r r 0] [r r r 0] [x y z 1] ", ...}, ...}: camera-to-world for row vectors,
# centimetres, Unreal's axes (x forward, y right, z up; left-handed). Camera columns (right, up, forward), up turned
# down, give OpenCV's camera in a left-handed world: absolute poses mirror, relative ones are right.
_COLUMNS = [1, 2, 0]
_FLIP = np.array([1.0, -1.0, 1.0])


def read_recammaster(text: str, camera: str | None, intrinsics: ArrayLike) -> Trajectory:
    """One camera ("cam01" ... "cam10") of ReCamMaster's JSON, relative to that camera's first frame, metres.

    The file has no intrinsics: `intrinsics` (4,) or (T, 4) normalised are taken. `camera` may be None where the file
    holds only one."""
    frames = _object(text, "ReCamMaster JSON")
    numbered = {}
    for name, cameras in frames.items():
        match = re.fullmatch(r"frame(\d+)", name)
        if not match or not isinstance(cameras, dict):
            raise TrajectoryError(f"ReCamMaster JSON: found key {name!r}; expected frame0, frame1, ... of cameras")
        numbered[int(match[1])] = cameras
    for frame in range(len(numbered)):
        if frame not in numbered:
            raise TrajectoryError(f"frame {frame}: missing, although the file has {len(numbered)} frames")
    if not numbered:
        raise TrajectoryError("ReCamMaster JSON: no frames; expected frame0, frame1, ...")
    if camera is None:
        if len(numbered[0]) != 1:
            raise TrajectoryError(f"ReCamMaster JSON holds several cameras; choose one of {', '.join(numbered[0])}")
        camera = next(iter(numbered[0]))
    poses = np.empty((len(numbered), 3, 4))
    for frame in range(len(numbered)):
        if camera not in numbered[frame]:
            raise TrajectoryError(f"frame {frame}: no camera {camera!r}; found {', '.join(numbered[frame]) or 'none'}")
        rows = _rows(str(numbered[frame][camera]), frame, camera)
        poses[frame, :, :3] = rows[:3, :3].T[:, _COLUMNS] * _FLIP
        poses[frame, :, 3] = rows[3, :3] / 100
    first = poses[0]
    if not np.isfinite(first).all() or abs(abs(np.linalg.det(first[:, :3])) - 1) > 1e-2:
        raise TrajectoryError(f"frame 0: camera {camera} is no rotation and position: {first.tolist()}")
    return Trajectory(compose(inverse(first), poses), np.asarray(intrinsics))


def write_recammaster(trajectory: Trajectory, camera: str = "cam01") -> str:
    """`trajectory` as ReCamMaster's JSON with one camera. Intrinsics are lost: the format has no place for them."""
    world = np.eye(3)[:, _COLUMNS] * _FLIP  # what the reader makes of the identity
    frames = {}
    for frame, pose in enumerate(trajectory.c2w):
        mirrored = world @ pose
        rows = np.zeros((4, 4))
        rows[_COLUMNS, :3] = (mirrored[:, :3] * _FLIP).T
        rows[3] = [*mirrored[:, 3] * 100, 1]
        line = " ".join("[" + " ".join(f"{number:.12g}" for number in row) + "]" for row in rows)
        frames[f"frame{frame}"] = {camera: line + " "}
    return json.dumps(frames, indent=4) + "\n"


def _rows(line: str, frame: int, camera: str) -> Array:
    try:
        rows = np.array([[float(number) for number in row.split()] for row in re.findall(r"\[([^\]]*)\]", line)])
    except ValueError:
        rows = np.empty(0)
    if rows.shape != (4, 4):
        raise TrajectoryError(f"frame {frame}: camera {camera} is {line!r}; expected four rows [a b c d] of numbers")
    return rows


# --- COLMAP ------------------------------------------------------------------------------------------------------
# Model -> number of focal lengths, then the principal point, then distortion.
_MODELS = {"SIMPLE_PINHOLE": 1, "PINHOLE": 2, "SIMPLE_RADIAL": 1, "RADIAL": 1, "OPENCV": 2}
_DISTORTION = {"SIMPLE_PINHOLE": 0, "PINHOLE": 0, "SIMPLE_RADIAL": 1, "RADIAL": 2, "OPENCV": 4}
DISTORTION_TOLERANCE = 0.02  # of the half diagonal, at the corners of the image


def read_colmap(cameras_txt: str, images_txt: str, relative: bool = False) -> Trajectory:
    """COLMAP's text model: the images, sorted by name with numbers in numeric order (frame2 before frame10).

    COLMAP's quaternions are world-to-camera and its world and scale are arbitrary; with `relative` the poses come out
    relative to the first image's camera. Distortion (SIMPLE_RADIAL, RADIAL, OPENCV) is ignored while it moves no image
    corner by more than 2 % of the half diagonal, and refused beyond: undistort such images first."""
    cameras = _colmap_cameras(cameras_txt)
    images: dict[str, tuple[Array, Array]] = {}
    for number, line in _lines(images_txt):
        fields = line.split()
        if len(fields) % 3 == 0 and _numeric(fields):
            continue  # the second line of an image: X, Y, POINT3D_ID of its points; some writers leave it out
        where = f"images.txt line {number}"
        if len(fields) < 10 or not _numeric(fields[:9]):
            raise TrajectoryError(
                f"{where}: found {line[:60]!r}; expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
            )
        name = line.split(maxsplit=9)[9].strip()
        if name in images:
            raise TrajectoryError(f"{where}: image {name!r} is there twice; names must be unique")
        if fields[8] not in cameras:
            raise TrajectoryError(f"{where}: image {name!r} uses camera {fields[8]}, which is not in cameras.txt")
        q, t = np.array(fields[1:5], dtype=float), np.array(fields[5:8], dtype=float)
        if not np.isfinite([*q, *t]).all() or np.linalg.norm(q) < 1e-6:
            raise TrajectoryError(f"{where}: image {name!r} has no rotation: quaternion {q.tolist()}, t {t.tolist()}")
        images[name] = (inverse(np.concatenate([_matrix(q), t[:, None]], axis=1)), cameras[fields[8]])
    if not images:
        raise TrajectoryError("images.txt: no image in it; did the reconstruction register any?")
    ordered = [images[name] for name in sorted(images, key=_natural)]
    trajectory = Trajectory(np.stack([pose for pose, _ in ordered]), np.stack([camera for _, camera in ordered]))
    return trajectory.relative_to(trajectory.c2w[0]) if relative else trajectory


def write_colmap(
    trajectory: Trajectory, width: int, height: int, names: Sequence[str] | None = None
) -> tuple[str, str]:
    """(cameras.txt, images.txt) with PINHOLE cameras for frames of `width` x `height`, one per distinct intrinsics;
    `names` are the images' names (frame_00000.png, ... by default)."""
    names = [f"frame_{i:05d}.png" for i in range(len(trajectory))] if names is None else list(names)
    if len(names) != len(trajectory):
        raise TrajectoryError(f"{len(names)} names for {len(trajectory)} frames; expected one each")
    ids: dict[tuple[float, ...], int] = {}
    cameras, images = ["# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"], ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"]
    turns = quaternion(trajectory.c2w[:, :, :3].transpose(0, 2, 1))
    for frame, name in enumerate(names):
        pixels = trajectory.intrinsics[frame] * [width, height, width, height]
        key = tuple(pixels.tolist())
        if key not in ids:
            ids[key] = len(ids) + 1
            cameras.append(f"{ids[key]} PINHOLE {width} {height} {_join(key)}")
        position = inverse(trajectory.c2w[frame])[:, 3]
        images += [f"{frame + 1} {_join(turns[frame])} {_join(position)} {ids[key]} {name}", ""]
    return "\n".join(cameras) + "\n", "\n".join(images) + "\n"


def _colmap_cameras(text: str) -> dict[str, Array]:
    cameras = {}
    for number, line in _lines(text):
        where, fields = f"cameras.txt line {number}", line.split()
        model = fields[1] if len(fields) > 1 else line
        if model not in _MODELS:
            raise TrajectoryError(f"{where}: camera model {model!r}; expected one of {', '.join(_MODELS)}")
        focals, extra = _MODELS[model], _DISTORTION[model]
        if len(fields) != 4 + focals + 2 + extra or not _numeric(fields[2:]):
            raise TrajectoryError(
                f"{where}: {model} takes {focals + 2 + extra} parameters after its size; found {line!r}"
            )
        width, height, *parameters = (float(field) for field in fields[2:])
        fx, fy = parameters[0], parameters[focals - 1]
        cx, cy, *distortion = parameters[focals:]
        if not (width > 0 and height > 0 and fx > 0 and fy > 0):
            raise TrajectoryError(f"{where}: size and focal length must be positive; found {line!r}")
        corners = np.array([[(x - cx) / fx, (y - cy) / fy] for x in (0, width) for y in (0, height)])
        moved = float(np.linalg.norm(_distortion(corners, distortion) * [fx, fy], axis=1).max())
        moved /= np.hypot(width, height) / 2
        if not moved <= DISTORTION_TOLERANCE:
            raise TrajectoryError(
                f"{where}: the distortion {distortion} moves an image corner by {moved:.1%} of the half diagonal "
                f"(at most {DISTORTION_TOLERANCE:.0%} is ignored); undistort first (colmap image_undistorter)"
            )
        cameras[fields[0]] = np.array([fx / width, fy / height, cx / width, cy / height])
    return cameras


def _distortion(points: Array, distortion: list[float]) -> Array:
    """(N, 2) by how much COLMAP's radial (k1, k2) and tangential (p1, p2) terms move normalised `points`."""
    k1, k2, p1, p2 = (*distortion, 0.0, 0.0, 0.0, 0.0)[:4]
    x, y = points.T
    square = x * x + y * y
    radial = k1 * square + k2 * square**2
    along = 2 * p1 * x * y + p2 * (square + 2 * x * x)
    across = 2 * p2 * x * y + p1 * (square + 2 * y * y)
    return np.stack([x * radial + along, y * radial + across], axis=1)


def _matrix(q: Array) -> Array:
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _lines(text: str) -> list[tuple[int, str]]:
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]


def _numeric(fields: Sequence[str]) -> bool:
    try:
        [float(field) for field in fields]
    except ValueError:
        return False
    return True


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], name


def _join(numbers: ArrayLike | NDArray) -> str:
    return " ".join(f"{number:.12g}" for number in np.asarray(numbers, dtype=float))


# --- ours --------------------------------------------------------------------------------------------------------


def read_json(text: str, intrinsics: ArrayLike | None = None) -> Trajectory:
    """Our plain JSON: {"format": "memory-v2v/trajectory", "version": 1, "c2w": [3x4, ...], "intrinsics": [4] or
    [[4], ...]}, numbers as in Trajectory. "intrinsics" may be left out where the caller gives `intrinsics`."""
    content = _object(text, "trajectory JSON")
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise TrajectoryError(
            f"trajectory JSON: format {content.get('format')!r}, version {content.get('version')!r}; expected "
            f"{FORMAT!r}, version {VERSION}"
        )
    unknown = set(content) - {"format", "version", "c2w", "intrinsics"}
    if unknown:
        raise TrajectoryError(f"trajectory JSON: unknown key {sorted(unknown)[0]!r}; known: c2w, intrinsics")
    poses = content.get("c2w")
    if not isinstance(poses, list) or not poses:
        raise TrajectoryError('trajectory JSON: "c2w" must be a list of 3x4 poses, one per frame')
    given = content.get("intrinsics", intrinsics)
    if given is None:
        raise TrajectoryError('trajectory JSON: no "intrinsics" [fx/W, fy/H, cx/W, cy/H]; add them')
    return Trajectory(np.stack([_pose(pose, frame) for frame, pose in enumerate(poses)]), given)


def write_json(trajectory: Trajectory) -> str:
    """`trajectory` as our plain JSON, exactly: one pose per line; intrinsics once where all frames share them."""
    same = (trajectory.intrinsics == trajectory.intrinsics[0]).all()
    intrinsics = trajectory.intrinsics[0] if same else trajectory.intrinsics
    poses = ",\n    ".join(json.dumps(pose.tolist()) for pose in trajectory.c2w)
    return (
        f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION},\n'
        f'  "intrinsics": {json.dumps(intrinsics.tolist())},\n  "c2w": [\n    {poses}\n  ]\n}}\n'
    )


def parse_trajectory(
    text: str, *, intrinsics: ArrayLike | None = None, camera: str | None = None, origin: ArrayLike | None = None
) -> Trajectory:
    """A single-file format by its content: our JSON, relative to the pose `origin` of its world where that is given; or
    ReCamMaster's (`camera` chooses among several; `intrinsics` are then needed). COLMAP's model is two files: see
    `read_colmap`."""
    content = _object(text, "trajectory file")
    if "format" in content:
        ours = read_json(text, intrinsics)
        return ours if origin is None else ours.relative_to(origin)
    if any(name.startswith("frame") for name in content):
        if intrinsics is None:
            raise TrajectoryError("ReCamMaster JSON has no intrinsics; give them")
        return read_recammaster(text, camera, intrinsics)
    raise TrajectoryError(
        f'trajectory file: found keys {sorted(content)[:3]}; expected {{"format": "{FORMAT}", ...}} or ReCamMaster\'s '
        '{"frame0": {"cam01": ...}}'
    )


def _pose(pose: object, frame: int) -> Array:
    try:
        array = np.array(pose, dtype=float)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (3, 4):
        raise TrajectoryError(f"frame {frame}: the pose is {str(pose)[:80]}; expected 3 rows of 4 numbers [R | t]")
    return array


def _object(text: str, what: str) -> dict:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise TrajectoryError(f"{what}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise TrajectoryError(f"{what}: found a {type(content).__name__}; expected an object")
    return content
