"""What scenes are numbered, and which split a number belongs to: by itself, so that nobody has to keep it."""

from __future__ import annotations

import hashlib
from itertools import count, islice

from .clip import REAL

# Scenes of real footage: REAL, then 42 bits of the video's content and 20 bits of its piece.
PIECES = 20
SPLITS = ("train", "validation", "test")


def real_scene(fingerprint: str, piece: int) -> int:
    """The scene number of one piece of a real video, from the video's content hash (hex, sha256).

    All pieces of a video share `family_of` and with it their split: they show the same things."""
    if not 0 <= piece < 1 << PIECES:
        raise ValueError(f"piece {piece} of a video, expected 0 to {(1 << PIECES) - 1}")
    content = int(fingerprint[:16], 16) % (1 << (62 - PIECES))
    return REAL | content << PIECES | piece


def family_of(scene: int) -> int:
    """What must not be in two splits: the scene, and of real footage the video that it is a piece of."""
    return scene >> PIECES << PIECES if scene & REAL else scene


def split_of(scene: int) -> str:
    """The split of a scene: "train" (90 %), "validation" (5 %) or "test" (5 %), by its number alone.

    Each twenty scenes (0 to 19, 20 to 39, ...) have one for validation and one for the test, at places drawn by hash:
    so that a small data set has all three."""
    family = family_of(scene)
    twenty, place = divmod(family >> PIECES if family & REAL else family, 20)
    digest = hashlib.sha256(f"split-1/{twenty}".encode()).digest()
    validation = int.from_bytes(digest[:8], "big") % 20
    test = (validation + 1 + int.from_bytes(digest[8:16], "big") % 19) % 20
    return "validation" if place == validation else "test" if place == test else "train"


def scenes_of(split: str, first: int, scenes: int) -> list[int]:
    """The first so many scenes of a split, from the number `first` on."""
    return list(islice((scene for scene in count(first) if split_of(scene) == split), scenes))
