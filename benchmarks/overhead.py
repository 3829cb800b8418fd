"""What everything around the model costs: edits/s of the whole job against a bare loop over the same model.

    python -m benchmarks.overhead [--quick]

Both run in one Ray, in worker processes of the same kind with the same thread count, in turns, over edits of the same
shapes with the same numbers of memories. The job decodes, retrieves, reads, commits and publishes besides. What a
process does once (starting, loading the model, its first edit) is left out of both. Last line: {"efficiency": ...}.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import ray
import torch

from actors.cluster import connect, nodes, places
from actors.run import Run, SourceWork
from actors.scheduler import Scheduler
from actors.setup import Setup
from jobs import demo
from jobs.chain import Chain
from jobs.config import EditConfig
from jobs.model import Model, resolve
from jobs.plan import make_plan
from jobs.published import compare_video, turn_videos
from jobs.turn import parse_turn
from pipeline.memory_pipeline import MemoryV2VPipeline, MemoryVideo
from pipeline.trajectory import Trajectory, default_intrinsics, preset


class BareLoop:
    """The model and nothing else, on inputs that are already there."""

    def __init__(self, model: str, threads: int):
        torch.set_num_threads(threads)
        self.pipe = MemoryV2VPipeline.from_pretrained(model)
        self.pipe.set_progress_bar_config(disable=True)

    def run(self, height: int, width: int, frames: int, memories: list[int]) -> float:
        """Seconds for one edit per entry of `memories`, its number of memories; the first is not timed."""
        lens = default_intrinsics(width / height)
        still, pan = Trajectory.static(frames, lens), preset("pan_right", frames, lens)
        latent = torch.randn(3, frames, height, width)
        began = 0.0
        for seed, count in enumerate(memories):
            if seed == 1:
                began = time.perf_counter()
            self.pipe(
                source=latent,
                source_trajectory=still,
                target_trajectory=pan,
                memories=[MemoryVideo(latent, pan, 0)] * count,
                generator=torch.Generator().manual_seed(seed),
            )
        return time.perf_counter() - began


def job_seconds(chain: Chain, model: Model, config: EditConfig, out: str) -> float:
    """Seconds from the first commit to the last of the whole job with one worker, in a new library."""
    setup = Setup(model.folder, model.digest, f"{out}/library/default.lance", dataclasses.asdict(config))
    setup.open_library(create=True)
    videos = turn_videos(chain, out, config)
    work = SourceWork(
        chain.name, chain.ids, [1.0] * len(chain), (), chain.edit, videos, compare_video(chain, videos, out)
    )
    outcome = Run([work], Scheduler(), setup, places(1, config.threads, nodes()))()
    assert outcome.edits == len(chain) and not outcome.failed and not outcome.unpublished, outcome
    return outcome.editing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn and one round instead of three and nine")
    quick = parser.parse_args().quick
    rounds, turns = (1, ["pan_right"]) if quick else (9, ["pan_right", "arc_left", "zoom_out"])
    connect()
    config, model = EditConfig(workers=1), resolve("mini")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "room.mp4"
        demo.render(clip)
        [chain] = make_plan([str(clip)], [parse_turn(turn) for turn in turns], config, model).chains
        memories = [min(config.k, index) for index in range(len(chain))]
        bare = ray.remote(BareLoop).remote(model.folder, config.threads)
        shape = (chain.fit.height, chain.fit.width, chain.frames[0])
        for number in range(rounds):
            alone = ray.get(bare.run.remote(*shape, memories))
            whole = job_seconds(chain, model, config, f"{folder}/{number}")
            ratios.append(alone / whole)
            print(
                f"round {number + 1}: {len(chain)} edits, bare loop {alone:.1f} s, whole job {whole:.1f} s", flush=True
            )
    print(json.dumps({"efficiency": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
