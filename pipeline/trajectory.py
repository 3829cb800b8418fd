"""Camera trajectories: where the camera is, and how it looks, in every frame of a video.

Axes are OpenCV's (x right, y down, z forward), lengths are metres, poses are camera-to-world in the source's world,
which is the source's first camera. Intrinsics are divided by the frame's width and height, so they hold at any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Files carry six digits or fewer, so a good rotation is orthonormal to about 1e-5; a wrong convention is off by 1.
ROTATION_TOLERANCE = 1e-3
ROUNDING = 1e-5  # of numbers with six digits, or in float32: left as they are


class TrajectoryError(ValueError):
    """A trajectory that cannot be used; the message names the frame, the value found and the remedy."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One camera pose and one set of intrinsics per frame.

    c2w: (T, 3, 4) float64, camera-to-world [R | t], metres. intrinsics: (T, 4) float64, (fx/W, fy/H, cx/W, cy/H);
    (4,) is taken for every frame. Both become read-only copies. Raises TrajectoryError naming the first bad frame:
    not finite, a rotation that is not orthonormal or mirrors (det -1), a focal length that is not positive. A rotation
    that is nearly orthonormal becomes the nearest that is, since errors add up where poses are composed.
    """

    c2w: Array
    intrinsics: Array

    def __post_init__(self) -> None:
        c2w = _floats(self.c2w, "c2w")
        if c2w.ndim != 3 or c2w.shape[1:] != (3, 4) or not len(c2w):
            raise TrajectoryError(f"c2w has shape {c2w.shape}; expected (frames, 3, 4) with at least one frame")
        intrinsics = _floats(self.intrinsics, "intrinsics")
        if intrinsics.shape == (4,):
            intrinsics = np.tile(intrinsics, (len(c2w), 1))
        if intrinsics.shape != (len(c2w), 4):
            raise TrajectoryError(
                f"intrinsics have shape {intrinsics.shape}; expected (4,) or ({len(c2w)}, 4), one row per pose"
            )
        error = _check(c2w, intrinsics)
        if (off := error > ROUNDING).any():
            left, _, right = np.linalg.svd(c2w[off, :, :3])
            c2w[off, :, :3] = left @ right
        c2w.setflags(write=False)
        intrinsics.setflags(write=False)
        object.__setattr__(self, "c2w", c2w)
        object.__setattr__(self, "intrinsics", intrinsics)

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, frames: slice) -> Trajectory:
        """The trajectory of a range of frames, in the same world."""
        if not isinstance(frames, slice):
            raise TypeError(f"a trajectory is cut by a slice of frames, not by {frames!r}")
        if not len(range(*frames.indices(len(self)))):
            raise TrajectoryError(f"no frame in [{frames.start}:{frames.stop}] of a trajectory of {len(self)} frames")
        return Trajectory(self.c2w[frames], self.intrinsics[frames])

    def relative_to(self, pose: ArrayLike) -> Trajectory:
        """The same trajectory in the world whose origin is `pose` (3, 4) camera-to-world."""
        return Trajectory(compose(inverse(_floats(pose, "pose")), self.c2w), self.intrinsics)

    def then(self, other: Trajectory) -> Trajectory:
        """This trajectory, continued by `other` from my last pose: `other`'s first pose *is* my last one and is not
        repeated, so the length is len(self) + len(other) - 1 (a pan of 41 frames and the pan back make 81)."""
        onward = compose(self.c2w[-1], other.relative_to(other.c2w[0]).c2w)
        return Trajectory(
            np.concatenate([self.c2w, onward[1:]]), np.concatenate([self.intrinsics, other.intrinsics[1:]])
        )

    def resampled(self, length: int) -> Trajectory:
        """The same path in `length` frames, evenly spaced in time from the first pose to the last: positions and
        intrinsics linear, rotations along the shortest arc (slerp). Length 1 is the first pose."""
        if length < 1:
            raise TrajectoryError(f"cannot resample to {length} frames; a trajectory has at least one")
        at = np.linspace(0.0, len(self) - 1.0, length)
        before = np.minimum(at.astype(int), max(len(self) - 2, 0))
        after = np.minimum(before + 1, len(self) - 1)
        part = at - before
        rotation = self.c2w[before, :, :3]
        turn = _axis_angle(rotation.transpose(0, 2, 1) @ self.c2w[after, :, :3])
        c2w = np.empty((length, 3, 4))
        c2w[:, :, :3] = rotation @ _rotation(turn * part[:, None])
        c2w[:, :, 3] = _mix(self.c2w[before, :, 3], self.c2w[after, :, 3], part)
        return Trajectory(c2w, _mix(self.intrinsics[before], self.intrinsics[after], part))

    @property
    def travel(self) -> float:
        """Greatest distance of the camera from the origin of its world, in metres."""
        return float(np.linalg.norm(self.c2w[:, :, 3], axis=1).max())

    @property
    def digest(self) -> str:
        """sha256 of the poses and intrinsics rounded to 1e-6: equal wherever the numbers were computed, unless one
        lies on the edge of a rounding step. Part of the edit id."""
        numbers = np.concatenate([self.c2w.reshape(len(self), 12), self.intrinsics], axis=1)
        rounded = np.rint(numbers * 1e6).astype("<i8")  # integers: no -0.0, no platform's float formatting
        return hashlib.sha256(b"trajectory-1" + rounded.tobytes()).hexdigest()

    def rounded(self) -> Trajectory:
        """This trajectory with exactly the numbers that its digest stands for: what is computed from it is then the
        same wherever the digest is."""
        return Trajectory(np.rint(self.c2w * 1e6) / 1e6, np.rint(self.intrinsics * 1e6) / 1e6)

    @classmethod
    def static(cls, length: int, intrinsics: ArrayLike) -> Trajectory:
        """A camera that stays at the origin of its world for `length` frames."""
        if length < 1:
            raise TrajectoryError(f"a trajectory of {length} frames was asked for; it has at least one")
        return cls(np.tile(np.eye(3, 4), (length, 1, 1)), _floats(intrinsics, "intrinsics"))


def default_intrinsics(aspect: float, hfov_degrees: float = 52.7) -> Array:
    """(4,) normalised intrinsics of a centred camera with square pixels: `aspect` = width / height, horizontal field
    of view in degrees (52.7 is ReCamMaster's 24 mm lens at 832 x 480)."""
    if not 0 < aspect < np.inf:
        raise TrajectoryError(f"aspect is {aspect}; expected width / height of the frame, a positive number")
    if not 0 < hfov_degrees < 180:
        raise TrajectoryError(f"horizontal field of view is {hfov_degrees} degrees; expected between 0 and 180")
    focal = 0.5 / np.tan(np.radians(hfov_degrees) / 2)
    return np.array([focal, focal * aspect, 0.5, 0.5])


def compose(outer: Array, inner: Array) -> Array:
    """outer o inner for rigid maps [R | t], (..., 3, 4) each, broadcast against one another."""
    rotation = outer[..., :3] @ inner[..., :3]
    position = outer[..., :3] @ inner[..., 3:] + outer[..., 3:]
    return np.concatenate([rotation, position], axis=-1)


def inverse(pose: Array) -> Array:
    """The inverse of rigid maps (..., 3, 4): camera-to-world to world-to-camera and back."""
    back = np.swapaxes(pose[..., :3], -1, -2)
    return np.concatenate([back, -back @ pose[..., 3:]], axis=-1)


# --- ReCamMaster's ten presets -----------------------------------------------------------------------------------
# Measured from its camera_extrinsics.json: motions have round figures (20 and 10 degrees, 2 and 1 m, an arc of 30
# degrees round a point 4 m ahead), of which the last of the 81 frames has come 160/161.
REACH = 160 / 161
FOCUS = 4.0  # metres ahead of the first camera: the point that translations and arcs keep looking at


def _pan(s: Array) -> tuple[Array, Array, Array]:
    return np.radians(20) * s, 0 * s, _position(s)


def _tilt(s: Array) -> tuple[Array, Array, Array]:
    return 0 * s, np.radians(10) * s, _position(s)


def _zoom(s: Array) -> tuple[Array, Array, Array]:
    return 0 * s, 0 * s, _position(s, z=2 * s)


def _translate(s: Array) -> tuple[Array, Array, Array]:
    return 0 * s, -np.arctan(s / FOCUS), _position(s, y=-s)


def _arc(s: Array) -> tuple[Array, Array, Array]:
    # The camera runs along the chord, not the circle, and looks at the focus.
    x, z = FOCUS * np.sin(np.radians(30)) * s, FOCUS * (1 - np.cos(np.radians(30))) * np.abs(s)
    return -np.arctan2(x, FOCUS - z), 0 * s, _position(s, x=x, z=z)


# name -> (law, sign); a law maps progress s (T,) in [-1, 1] to yaw, pitch (radians) and position (T, 3).
_LAWS: dict[str, tuple[Callable[[Array], tuple[Array, Array, Array]], int]] = {
    "pan_right": (_pan, 1),
    "pan_left": (_pan, -1),
    "tilt_up": (_tilt, 1),
    "tilt_down": (_tilt, -1),
    "zoom_in": (_zoom, 1),
    "zoom_out": (_zoom, -1),
    "translate_up": (_translate, 1),
    "translate_down": (_translate, -1),
    "arc_left": (_arc, -1),
    "arc_right": (_arc, 1),
}
PRESETS: tuple[str, ...] = tuple(_LAWS)  # in the order of ReCamMaster's cam01 ... cam10


def preset(name: str, length: int, intrinsics: ArrayLike) -> Trajectory:
    """One of ReCamMaster's ten trajectories in `length` frames, from the identity pose; length 1 is the start pose.

    With 81 frames it equals the published JSON (relative poses) to its six digits. Unknown name: TrajectoryError."""
    if name not in _LAWS:
        nearest = get_close_matches(name.lower().replace("-", "_"), PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise TrajectoryError(f"unknown preset {name!r}; {hint}known presets: {', '.join(PRESETS)}")
    if length < 1:
        raise TrajectoryError(f"preset {name!r} was asked for {length} frames; it has at least one")
    law, sign = _LAWS[name]
    yaw, pitch, position = law(sign * REACH * np.linspace(0.0, 1.0, length))
    across, up = np.zeros((length, 3)), np.zeros((length, 3))
    across[:, 1], up[:, 0] = yaw, pitch
    rotation = _rotation(across) @ _rotation(up)  # yaw about y (+ to the right), then pitch about x (+ upwards)
    return Trajectory(np.concatenate([rotation, position[:, :, None]], axis=2), _floats(intrinsics, "intrinsics"))


def _position(s: Array, x: Array | None = None, y: Array | None = None, z: Array | None = None) -> Array:
    return np.stack([np.zeros_like(s) if part is None else part for part in (x, y, z)], axis=-1)


def _rotation(axis_angle: Array) -> Array:
    """(N, 3) rotation vectors to (N, 3, 3) matrices (Rodrigues)."""
    angle = np.linalg.norm(axis_angle, axis=1)
    x, y, z = (axis_angle / np.where(angle > 0, angle, 1.0)[:, None]).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    sin, cos = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.eye(3) + sin * cross + (1 - cos) * cross @ cross


def _axis_angle(rotation: Array) -> Array:
    """(N, 3, 3) matrices to (N, 3) rotation vectors, by way of the quaternion, which is exact at every angle."""
    w, vector = np.split(quaternion(rotation), [1], axis=1)
    sine = np.linalg.norm(vector, axis=1, keepdims=True)
    angle = 2 * np.arctan2(sine, w)
    return vector * (angle / np.where(sine > 0, sine, 1.0))


def quaternion(rotation: Array) -> Array:
    """(N, 3, 3) rotations to (N, 4) unit quaternions (w, x, y, z) with w >= 0."""
    r = rotation
    trace = np.trace(r, axis1=1, axis2=2)
    # Row i is 4 q_i q: the row with the largest q_i is the well-conditioned one (Shepperd).
    rows = np.empty((len(r), 4, 4))
    rows[:, 0, 0] = 1 + trace
    for i in range(3):
        rows[:, i + 1, i + 1] = 1 + 2 * r[:, i, i] - trace
        j, k = (i + 1) % 3, (i + 2) % 3
        rows[:, 0, i + 1] = rows[:, i + 1, 0] = r[:, k, j] - r[:, j, k]
        rows[:, j + 1, k + 1] = rows[:, k + 1, j + 1] = r[:, k, j] + r[:, j, k]
    best = rows[np.arange(len(r)), np.argmax(np.einsum("nii->ni", rows), axis=1)]
    unit = best / np.linalg.norm(best, axis=1, keepdims=True)
    return np.where(unit[:, :1] < 0, -unit, unit)


def _mix(first: Array, second: Array, part: Array) -> Array:
    return first + (second - first) * part[:, None]


def _floats(values: ArrayLike, name: str) -> Array:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TrajectoryError(f"{name} is not an array of numbers of one shape: {error}") from None


def _check(c2w: Array, intrinsics: Array) -> Array:
    """How far each frame's rotation is from an orthonormal one, (T,)."""
    for what, numbers in (("pose", c2w.reshape(len(c2w), 12)), ("intrinsics", intrinsics)):
        bad = _first(~np.isfinite(numbers).all(axis=1))
        if bad is not None:
            raise TrajectoryError(f"frame {bad}: the {what} {numbers[bad].tolist()} are not all finite numbers")
    rotation = c2w[:, :, :3]
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    bad = _first(error > ROTATION_TOLERANCE)
    if bad is not None:
        raise TrajectoryError(
            f"frame {bad}: the rotation is not orthonormal (|R R^T - 1| = {error[bad]:.3g}, at most "
            f"{ROTATION_TOLERANCE} allowed); poses are 3x4 [R | t] camera-to-world without scale"
        )
    bad = _first(np.linalg.det(rotation) < 0)
    if bad is not None:
        raise TrajectoryError(
            f"frame {bad}: the rotation mirrors (determinant -1, expected +1); convert the axes to OpenCV's "
            "(x right, y down, z forward)"
        )
    bad = _first((intrinsics[:, :2] <= 0).any(axis=1))
    if bad is not None:
        raise TrajectoryError(
            f"frame {bad}: focal lengths (fx/W, fy/H) are {intrinsics[bad, :2].tolist()}; both must be positive"
        )
    return np.asarray(error)


def _first(bad: ArrayLike) -> int | None:
    return int(np.argmax(bad)) if np.any(bad) else None
