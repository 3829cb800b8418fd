"""Making training data and reading it: frames/s of the scene renderer, windows/s of the data set.

    python -m benchmarks.scenes [--quick]

Frames are rendered with colour, depth and objects, clips of 48 frames of random rooms, against a fragment shader that
shows the same (scenes_shader.py, ours too) with moderngl on llvmpipe, in the same run and in turns: one thread each, as
one renderer of `memory-v2v synthesize` has. The pictures are compared first. Windows: see scenes_windows.py. What is
not installed (pip install -e '.[bench]') or not there (a GPU) is null. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# llvmpipe reads it when it starts: its one thread against our one.
os.environ.setdefault("LP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks import scenes_windows
from pipeline.scenes import Scene, Views, paths, random_scene, render
from pipeline.trajectory import Trajectory

FRAMES, RATE = scenes_windows.FRAMES, 24.0
SIZES = (64, 128, 256)
ROOMS = 6


def rooms() -> list[tuple[Scene, Trajectory]]:
    """The first random scenes indoors, each with a camera that moves through it."""
    found = []
    for seed in range(1000):
        scene = random_scene(seed)
        if scene.indoors:
            found.append((scene, paths(scene, seed, 3, FRAMES, RATE, 1.0)[2]))
        if len(found) == ROOMS:
            break
    return found


def ours(scene: Scene, path: Trajectory, size: int, device: str = "cpu") -> Views:
    return render(
        [scene],
        torch.tensor(path.c2w, dtype=torch.float32, device=device)[None],
        torch.tensor(path.intrinsics, dtype=torch.float32, device=device)[None],
        torch.arange(FRAMES, device=device)[None] / RATE,
        size,
        size,
    )


def rates(renderers: dict[str, Callable[[Scene, Trajectory], object]], rounds: int) -> dict[str, float]:
    """Frames per second of each, in turns over the same clips; the best round: all else only ever takes away."""
    clips, best = rooms(), dict.fromkeys(renderers, 0.0)
    for number in range(rounds + 1):  # the first is for warming up
        for name, renderer in renderers.items():
            began = time.perf_counter()
            for scene, path in clips:
                renderer(scene, path)
            if number:
                best[name] = max(best[name], len(clips) * FRAMES / (time.perf_counter() - began))
    return best


def shader(size: int) -> Callable[[Scene, Trajectory], object] | None:
    """The rival, or None where there is none; its pictures are those of ours."""
    try:
        from benchmarks.scenes_shader import ShaderRenderer

        renderer = ShaderRenderer(FRAMES, size, size)
    except Exception as error:  # moderngl, its libraries or a display may be missing, each in its own way
        print(f"  no figures against moderngl: {type(error).__name__}: {' '.join(str(error).split())[:100]}")
        return None
    for scene, path in rooms()[:2]:
        views = ours(scene, path, size)
        colour, depth, objects = renderer.render(scene, path, RATE)
        assert (objects == views.objects[0].numpy()).mean() > 0.99, "other objects"
        assert np.median(np.abs(depth - views.depth[0].numpy())) < 1e-3, "another depth"
        off = np.abs(colour.astype(int) - views.colour[0].numpy()).max(-1)
        assert (off > 8).mean() < 0.03, "another picture"
    print(f"  moderngl renders {size}x{size} on {renderer.device}")
    return lambda scene, path: renderer.render(scene, path, RATE)


def rendering(rounds: int) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for size in SIZES:
        renderers: dict[str, Callable[[Scene, Trajectory], object]] = {
            "ours": lambda scene, path, size=size: ours(scene, path, size)
        }
        if (rival := shader(size)) is not None:
            renderers["moderngl"] = rival
        if torch.cuda.is_available():
            renderers["gpu"] = lambda scene, path, size=size: ours(scene, path, size, "cuda").colour.cpu()
        found = rates(renderers, rounds)
        print(
            f"  {size}x{size}: " + ", ".join(f"{name} {rate:.0f} frames/s" for name, rate in found.items()), flush=True
        )
        figures[f"frames_per_s_{size}"] = found["ours"]
        figures[f"vs_moderngl_{size}"] = found["ours"] / found["moderngl"] if "moderngl" in found else None
        figures[f"frames_per_s_{size}_gpu"] = found.get("gpu")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer clips: half a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    figures = rendering(1 if quick else 4)
    distinct = np.stack([ours(scene, path, scenes_windows.SIZE).colour[0].numpy() for scene, path in rooms()])
    with tempfile.TemporaryDirectory() as folder:
        figures |= scenes_windows.figures(Path(folder), 60 if quick else 600, distinct, 0.5 if quick else 3.0)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
