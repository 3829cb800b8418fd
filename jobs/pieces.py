"""The real clips of a data set as files that need no Lance to be read, for a training on a machine without it.

python -m jobs.pieces build/footage build/pieces
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from pipeline.clip import Clip
from storage.atomic import published_folder
from storage.clips import ClipDataset
from storage.errors import StorageError
from storage.location import absolute


def write_pieces(data: ClipDataset, out: Path) -> int:
    """A `.npz` for each piece of footage in the training split, as `pipeline.training.rendered.footage_clips` reads
    them, in a new folder. Returns how many, at least one; StorageError where there are none."""
    pieces: dict[int, list[Clip]] = defaultdict(list)
    for clip in data.clips("train"):
        if clip.real and not clip.extended:  # what a model added is no footage
            pieces[clip.scene].append(clip)
    if not pieces:
        raise StorageError(
            f"{data.url}: has no footage in the training split, where 9 of 10 videos are; add videos (--from-videos)"
        )
    if out.exists():
        raise FileExistsError(out)
    with published_folder(out) as folder:
        for scene, clips in sorted(pieces.items()):
            clips.sort(key=lambda clip: clip.camera)
            np.savez_compressed(
                folder / f"{scene}.npz",
                video=np.concatenate([data.read([clip.row], [0], len(clip)) for clip in clips]),
                c2w=np.stack([clip.trajectory.c2w for clip in clips]),
                intrinsics=np.stack([clip.trajectory.intrinsics for clip in clips]),
                rate=np.float64(clips[0].rate),
            )
    return len(pieces)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m jobs.pieces DATA OUT")
    out = Path(sys.argv[2])
    try:
        print(f"{write_pieces(ClipDataset.open(absolute(sys.argv[1])), out)} pieces in {out}")
    except FileExistsError:
        sys.exit(f"jobs.pieces: {out} is there already; choose another folder, or remove it")
    except (StorageError, OSError) as error:
        sys.exit(f"jobs.pieces: {error}")
