"""The 1.3B shape on an accelerator: times, TFLOP/s against a measured ceiling, and peak memory.

Called by `benchmarks.attention` where there is one; random weights, bfloat16, repeated blocks compiled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.operations import Operations, Scheme
from pipeline.memory_cache import MemoryCache
from pipeline.transformer import ConditioningVideo, MemoryWanTransformer3DModel

TEXT = 512


def ceiling(device: torch.device, size: int = 8192) -> float:
    """FLOP/s of a plain bfloat16 matrix product, the best of ten."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / min(_seconds(lambda: a @ a, device) for _ in range(10))


def measure(
    config: dict[str, Any],
    latent: Sequence[int],
    device: torch.device,
    steps: int,
    memories: int,
    compiled: bool = True,
) -> dict[str, Any]:
    """Figures of `benchmarks.attention`, measured instead of counted."""
    torch.manual_seed(0)
    with device:
        model = MemoryWanTransformer3DModel(**{k: v for k, v in config.items() if not k.startswith("_")}).eval()
    model.to(torch.bfloat16)
    for block in model.blocks:
        block.norm2.float()
    if compiled:
        model.compile_repeated_blocks()
    peak = ceiling(device)
    counts = Operations(SimpleNamespace(**config), latent, TEXT)
    channels = counts.latent_channels

    def video() -> ConditioningVideo:
        return ConditioningVideo(torch.randn(1, channels, *latent, device=device, dtype=torch.bfloat16))

    call = {
        "hidden_states": video().latent,
        "timestep": torch.tensor([500.0], device=device),
        "encoder_hidden_states": torch.randn(1, TEXT, config["text_dim"], device=device, dtype=torch.bfloat16),
        "source": video(),
    }

    def edit(scheme: Scheme, count: int) -> tuple[float, float, float]:
        """Seconds of an edit, FLOP/s of its later passes, and its peak memory in GB."""
        given = {**call, "memories": [video() for _ in range(count)]}
        given |= {"attention": scheme.attention, "merge": scheme.merge}
        times = []
        torch._dynamo.reset()  # every scheme has shapes of its own; together they would exceed the limit on variants
        for passes in (2, 3):  # the first ones compile
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            cache = MemoryCache()
            times = [_seconds(lambda: model(**given, cache=cache), device) for _ in range(passes)]  # noqa: B023
        first, later = times[0], min(times[1:])
        memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
        speed = counts.one(scheme, count, filling=False) / later
        return first + (2 * steps - 1) * later, speed, memory

    print(f"\nthe same, measured in bfloat16 on {_name(device)}; a matrix product does {peak / 1e12:.0f} TFLOP/s")
    results = {}
    for name, scheme, count in (
        ("single", Scheme("joint", "off"), 0),
        (f"ours_{memories}", Scheme("cached", "merge"), memories),
        ("ours_0", Scheme("cached", "merge"), 0),
        ("paper_16", Scheme("joint", "merge"), 16),
        ("not_merging_16", Scheme("joint", "off"), 16),
    ):
        seconds, speed, memory = results[name] = edit(scheme, count)
        line = f"{name:>16}{seconds:>10.1f} s{speed / 1e12:>8.0f} TFLOP/s{speed / peak:>8.0%}{memory:>8.1f} GB"
        print(line, flush=True)
    taken = {name: result[0] for name, result in results.items()}
    return {
        "wan_ours_8_vs_single_joint": round(taken[f"ours_{memories}"] / taken["single"], 3),
        "wan_ours_1000_vs_ours_0": round(taken[f"ours_{memories}"] / taken["ours_0"], 3),
        "wan_merging_saving_joint_16": round(1 - taken["paper_16"] / taken["not_merging_16"], 3),
        "wan_measured_on": _name(device),
        "wan_share_of_ceiling": round(results[f"ours_{memories}"][1] / peak, 3),
        "wan_peak_gb_8": round(results[f"ours_{memories}"][2], 1),
    }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@torch.no_grad()
def _seconds(work: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
