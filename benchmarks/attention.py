"""What remembering costs: naive context, the paper's scheme and ours, by the number of ancestors in the library.

    python -m benchmarks.attention [--quick]

One edit is 20 steps with guidance, from a source, including the retrieval of its memories and their reading from a
library of 1,000. Schemes, all on the same weights:
    naive   every ancestor at the source's resolution, joint attention.
    paper   every ancestor through the dynamic tokenizers, joint attention, merging.
    ours    the 8 best ancestors, cached attention, merging.
`mini` is measured on one core, in CPU seconds, so that a busy machine does not show. Steps after the first do the same
work, so an edit is its first step and 19 times a later one; the last is not run, since what a camera turn paints in it
is the same for all schemes. The 1.3B shape is counted (benchmarks/operations.py), and measured where there is a GPU.
Extrapolated figures (*) are the largest measured one times the ratio of the counts. Last line: the figures as JSON.
"""

from __future__ import annotations

import os

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import argparse  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import defaultdict  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks import attention_gpu  # noqa: E402
from benchmarks.operations import WAN_1_3B, WAN_LATENT, Operations, Scheme, tokens  # noqa: E402
from pipeline.coverage import Sphere, coverage  # noqa: E402
from pipeline.memory_pipeline import MemoryV2VPipeline, MemoryVideo  # noqa: E402
from pipeline.mini import build_mini  # noqa: E402
from pipeline.retrieval import select  # noqa: E402
from pipeline.trajectory import PRESETS, Trajectory, default_intrinsics, preset  # noqa: E402
from pipeline.transformer import MemoryWanTransformer3DModel  # noqa: E402
from storage.library import Library  # noqa: E402
from storage.memory import Memory  # noqa: E402

ANCESTORS = (0, 1, 4, 16, 64, 256, 1000)
STEPS, KEPT, SIZE, FRAMES = 20, 8, 48, 16
FINE = (1, 1, 1)
SINGLE = Scheme("joint", "off")
SCHEMES = {
    "naive": Scheme("joint", "off", (FINE,)),
    "paper": Scheme("joint", "merge"),
    "ours": Scheme("cached", "merge"),
}
LENS = default_intrinsics(1.0)
TARGET = preset("arc_left", FRAMES, LENS)


def fill(library: Library, count: int) -> list[str]:
    """Ancestors as turns leave them: other paths, earlier and later segments, latents of the model's size."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    ids: list[str] = []
    while len(ids) < count:
        batch = []
        for number in range(len(ids), min(len(ids) + 50, count)):
            path = preset(PRESETS[number % 10], 81, LENS)[: random.integers(FRAMES, 82)].resampled(FRAMES)
            batch.append(
                Memory(
                    id=hashlib.sha256(str(number).encode()).hexdigest(),
                    parent="",
                    source="clip",
                    turn=number // 20,
                    segment=number % 20,
                    shot=0,
                    start=FRAMES * (number % 20),
                    stop=FRAMES * (number % 20 + 1),
                    trajectory=path,
                    descriptor=np.zeros(8, np.float32),
                    latent=torch.randn(3, FRAMES, SIZE, SIZE).half(),
                    model="mini",
                    prompt="",
                    seed=number,
                    attempt=1,
                    memories=(),
                    scores=(),
                    seconds=0.0,
                    worker="",
                )
            )
        library.commit(batch)
        ids += [memory.id for memory in batch]
    library.compact()
    return ids


class Mini:
    """`mini` and a library of ancestors."""

    def __init__(self, pipe: MemoryV2VPipeline, library: Library, ids: list[str]) -> None:
        self.pipe, self.library, self.ids = pipe, library, ids
        self.table = pipe.transformer.config.memory_kernels
        self.source = torch.randn(3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        self.cache_bytes = 0
        self.retrieval = 0.0
        self.rank_correlations: Any = None

    def memories(self, among: int, k: int) -> list[MemoryVideo]:
        """Retrieve and read the best `k` among the first ancestors."""
        if not among:
            return []
        choices = select(
            self.library.candidates("clip", self.ids[:among]),
            k=k,
            start=0,
            turn=1000,
            segment=0,
            target_coverage=coverage(TARGET, self.library.sphere),
        )
        read = {memory.id: memory for memory in self.library.read([choice.id for choice in choices], "clip")}
        return [
            MemoryVideo(read[choice.id].latent.float(), read[choice.id].trajectory, read[choice.id].start)
            for choice in choices
        ]

    def edit(self, scheme: Scheme, among: int, k: int, steps: int, track: bool = False) -> float:
        """CPU seconds of an edit of 20 steps, of which the first `steps` are run: one in which all is done that is
        done once, and others."""
        self.pipe.transformer.register_to_config(memory_kernels=scheme.kernels or self.table)
        marks = [time.process_time()]
        memories = self.memories(among, k)
        self.retrieval = time.process_time() - marks[0]

        def mark(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
            marks.append(time.process_time())
            pipe._interrupt = step + 1 == steps
            return {}

        result = self.pipe(
            source=self.source,
            source_trajectory=Trajectory.static(FRAMES, LENS),
            target_trajectory=TARGET,
            prompt="a red carpet",
            memories=memories,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(2),
            attention=scheme.attention,
            merge=scheme.merge,
            track_responsiveness=track,
            callback_on_step_end=mark,
        )
        self.rank_correlations = result.rank_correlations
        self.pipe.transformer.register_to_config(memory_kernels=self.table)
        self.cache_bytes = result.cache_bytes
        first, *later = np.diff(marks)
        return float(first + (STEPS - 1) * min(later, default=0.0))


def measure(mini: Mini, quick: bool) -> dict[str, Any]:
    """The table of `mini`, and its figures."""
    counts = Operations(mini.pipe.transformer.config, (FRAMES, SIZE, SIZE), mini.pipe.config.text_length, unguided=1)
    rounds = 8 if quick else 12
    others = [among for among in ANCESTORS if among not in (0, 1000)]
    times: dict[tuple[str, int], list[float]] = defaultdict(list)

    def time_once(name: str, scheme: Scheme, among: int, k: int, steps: int) -> None:
        times[name, among].append(mini.edit(scheme, among, k, steps))

    def ratio(one: tuple[str, int], other: tuple[str, int]) -> float:
        """The median of two that were timed in the same rounds, one after the other."""
        return float(np.median(np.divide(times[one], times[other])))

    mini.edit(SCHEMES["ours"], 4, 4, 1)  # warm up
    cache_bytes = {}
    # In turns, so that a busy moment of the machine hits all of them; what is compared comes one after the other.
    for number in range(3 * rounds):
        time_once("single", SINGLE, 0, 0, 3)
        for among in (KEPT, 0, 1000, *(others if number < rounds else ())):
            time_once("ours", SCHEMES["ours"], among, KEPT, 3)
            cache_bytes[among] = mini.cache_bytes
    retrieval = mini.retrieval
    for number in range(rounds):
        time_once("paper", SCHEMES["paper"], 64, 64, 2)
        time_once("paper, not merging", SINGLE, 64, 64, 2)
        for among in (1, 4, 16):
            time_once("paper", SCHEMES["paper"], among, among, 2)
        for among in (1, 4) if quick or number else (1, 4, 16):
            time_once("naive", SCHEMES["naive"], among, among, 2)
    usual = {which: float(np.median(found)) for which, found in times.items()}
    single = usual["single", 0]
    print(f"\nmini, {FRAMES} frames of {SIZE}x{SIZE}, {STEPS} steps with guidance, one core; {single:.1f} s is 1.00")
    print(f"{'ancestors':>10}{'naive':>12}{'paper':>12}{'ours':>12}{'cache of ours':>16}")
    for among in ANCESTORS:
        line = f"{among:>10,}"
        for name in ("naive", "paper"):
            if not among:
                line += f"{1.0:>11.2f} "
                continue
            last = max(n for which, n in times if which == name and n <= among)
            scale = counts.edit(SCHEMES[name], among) / counts.edit(SCHEMES[name], last)
            line += f"{usual[name, last] * scale / single:>11.2f}{'*' if last != among else ' '}"
        print(line + f"{usual['ours', among] / single:>11.2f} {cache_bytes[among] / 1e6:>13.1f} MB")
    print(f"retrieval among 1,000 and reading of {KEPT}: {retrieval * 1e3:.0f} ms of CPU")
    counted = counts.edit(SCHEMES["ours"], KEPT) / counts.edit(SINGLE, 0)
    print(f"ours with {KEPT} memories by counted operations: {counted:.3f}")
    return {
        "mini_ours_8_vs_single_joint": round(ratio(("ours", KEPT), ("single", 0)), 3),
        "mini_ours_1000_vs_ours_0": round(ratio(("ours", 1000), ("ours", 0)), 3),
        "mini_merging_saving_joint_64": round(1 - ratio(("paper", 64), ("paper, not merging", 64)), 3),
        "mini_ours_8_vs_single_joint_counted": round(counted, 3),
        "cache_mb_8": round(cache_bytes[KEPT] / 1e6, 1),
    }


def peak_mb(mini: Mini, among: int) -> float:
    """Greatest resident memory during one of our edits, of the whole process."""
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    mini.edit(SCHEMES["ours"], among, KEPT, STEPS)
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def inspect(mini: Mini) -> dict[str, Any]:
    """What an edit holds, by the size of the library, and how long its first step's responsiveness stays true."""
    peaks = {among: peak_mb(mini, among) for among in (KEPT, 1000, KEPT, 1000)}
    print(f"peak memory of the process: {peaks[KEPT]:.0f} MB with {KEPT} ancestors, {peaks[1000]:.0f} MB with 1,000")
    mini.edit(SCHEMES["ours"], 1000, KEPT, STEPS, track=True)
    correlation = float(np.mean([np.mean(values) for values in mini.rank_correlations.values()]))
    print(f"rank correlation of responsiveness, first step and later ones: {correlation:.2f} (untrained weights)")
    return {
        "mini_peak_mb_8": round(peaks[KEPT]),
        "mini_peak_mb_1000": round(peaks[1000]),
        "responsiveness_rank_correlation": round(correlation, 3),
    }


def count() -> dict[str, Any]:
    """The table of the 1.3B shape by counted operations, and its figures."""
    config = SimpleNamespace(**wan_config())
    counts = Operations(config, WAN_LATENT, 512)
    single = counts.edit(SINGLE, 0)
    print(f"\nWan 1.3B, 81 frames of 480x832, by counted operations; {single / 1e15:.1f} PFLOP is 1.00")
    print(f"{'ancestors':>10}{'naive':>12}{'paper':>12}{'ours':>12}{'cache of ours':>16}")
    for among in ANCESTORS:
        ratios = [counts.edit(SCHEMES[name], among) / single for name in ("naive", "paper")]
        if not among:
            ratios = [1.0, 1.0]
        kept = min(among, KEPT)
        ours = counts.edit(SCHEMES["ours"], kept) / single
        size = counts.kept_tokens(SCHEMES["ours"], kept) * counts.dim * 2 * 2
        print(f"{among:>10,}{ratios[0]:>11.2f} {ratios[1]:>11.2f} {ours:>11.2f} {size / 1e6:>10,.0f} MB bf16")
    ours, joint = SCHEMES["ours"], SCHEMES["paper"]
    before = tokens(counts.groups(ours, KEPT))
    size = counts.kept_tokens(ours, KEPT) * counts.dim * 2 * 2
    print(f"{KEPT} memories and the source: {before:,} tokens in every block before merging")
    return {
        "wan_ours_8_vs_single_joint": round(counts.edit(ours, KEPT) / single, 3),
        "wan_ours_1000_vs_ours_0": round(counts.edit(ours, KEPT) / counts.edit(ours, 0), 3),
        "wan_merging_saving_joint_16": round(1 - counts.edit(joint, 16) / counts.edit(SINGLE, 16), 3),
        "wan_measured_on": "counted",
        "wan_cache_mb_8": round(size / 1e6),
    }


def wan_config() -> dict[str, Any]:
    with torch.device("meta"):
        return dict(MemoryWanTransformer3DModel(**WAN_1_3B).config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, naive context up to 4: a few minutes")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    pipe = build_mini(size="gpu")  # as it is shipped
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        library = Library.open(f"{folder}/library.lance", model="mini", sphere=Sphere(), descriptor_dim=8)
        ids = fill(library, max(ANCESTORS))
        print(f"a library of {len(ids):,} memories, made in {time.perf_counter() - began:.0f} s", flush=True)
        mini = Mini(pipe, library, ids)
        figures = measure(mini, quick) | inspect(mini)
    figures |= count()
    if torch.cuda.is_available():
        figures |= attention_gpu.measure(wan_config(), WAN_LATENT, torch.device("cuda"), STEPS, KEPT)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
