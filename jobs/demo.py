"""`make demo`: render a clip of a room, edit it in three turns, say where to look.

python -m jobs.demo demo
"""

from __future__ import annotations

import hashlib
import sys
import time
from fractions import Fraction
from pathlib import Path

from jobs.main import main as memory_v2v
from jobs.model import resolve
from storage.publish import video_id_of, write_video
from storage.video import VideoInfo

FRAMES, HEIGHT, WIDTH, RATE = 48, 192, 256, 24
TURNS = ("pan_right", "arc_left", "zoom_out")


def render(path: Path) -> None:
    """Write the sample clip, unless it is there."""
    id = hashlib.sha256(f"room {FRAMES} {HEIGHT}x{WIDTH} at {RATE}".encode()).hexdigest()
    if video_id_of(str(path)) == id:
        return
    from pipeline.scenes import render_clip

    print(f"rendering {path}", file=sys.stderr, flush=True)
    info = VideoInfo(str(path), FRAMES, HEIGHT, WIDTH, Fraction(RATE), Fraction(1, RATE), None, False, 0)
    write_video(str(path), render_clip(FRAMES, HEIGHT, WIDTH), source=info, video_id=id)


def main(folder: str) -> int:
    import torch

    torch.set_num_threads(1)  # on a busy machine several wait for one another, ten times as long
    began = time.monotonic()
    clip, out = Path(folder) / "room.mp4", Path(folder) / "out"
    render(clip)
    # A library belongs to one model, and an older release's may be there.
    library = out / "library" / resolve("mini").digest[:8]
    turns = [word for turn in TURNS for word in ("--turn", turn)]
    code = memory_v2v(["edit", str(clip), *turns, "--out", str(out), "--library", str(library)])
    if code == 0:
        # An older release's folder, of another name, may lie beside this one's.
        compare = max(out.glob("room-*/compare.mp4"), key=lambda file: file.stat().st_mtime_ns)
        print(f"\nin {time.monotonic() - began:.0f} s. Look at")
        print(f"  {compare}  (source and turns side by side, the memories used below)")
        print(f"  {compare.parent}  (one video per turn)")
        print(f"  {out}/results.parquet, {out}/summary.json, {library}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "demo"))
