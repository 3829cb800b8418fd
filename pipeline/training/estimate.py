"""What a training will take, before it begins: from shapes alone, and one measured rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .network import EVERY
from .recipe import Recipe
from .tuning import DEPTHS, DETAILS


@dataclass(frozen=True)
class Estimate:
    """parameters, trained: counts. memory: bytes of one process, weights to activations. operations: of one step of one
    process, two per multiply-add."""

    parameters: int
    trained: int
    memory: float
    operations: float


def estimate(
    transformer: Any,
    recipe: Recipe,
    latent: tuple[int, int, int],
    trainable: Callable[[str], bool] | None,
    checkpointing: bool = False,
    processes: int = 1,
) -> Estimate:
    """transformer: a `MemoryWanTransformer3DModel`, on the meta device if you like; the text encoder is left out.
    latent: (T, H, W) of a window. trainable: which parameters take part, None for all. processes: over which parameters
    are spread."""
    config = transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    counts = [size // patch for size, patch in zip(latent, config.patch_size, strict=True)]
    window = counts[0] * counts[1] * counts[2]
    memory = sum(_tokens(window, transformer.kernel_of(rank)) for rank in range(recipe.memories)) / 2  # on average
    conditioning = window + memory * (1 - recipe.memory_dropout)
    block = sum(each.numel() for each in transformer.blocks.parameters())
    crossed = sum(each.numel() for name, each in transformer.blocks.named_parameters() if "attn2" in name)
    targets = recipe.batch * recipe.targets
    # Forwards, and twice that backwards: a parameter meets every token once; queries meet keys twice. Only targets meet
    # the text, and of that attention half of the parameters.
    linear = 2 * ((block - crossed / 2) * targets * window + (block - crossed) * recipe.batch * conditioning)
    keys = window + conditioning
    attention = 4 * len(transformer.blocks) * dim * (targets * window * keys + recipe.batch * conditioning**2)
    parameters = sum(each.numel() for each in transformer.parameters())
    sizes = {f"transformer.{name}": each.numel() for name, each in transformer.named_parameters()}
    moved = {name: size for name, size in sizes.items() if trainable is None or trainable(name)}
    trained = sum(moved.values())
    # Kept per token and block for the way back: about a dozen vectors of the model's width and three of the ffn's.
    width = dim if checkpointing else 12 * dim + 3 * config.ffn_dim
    kept = 4 * width * len(transformer.blocks) * (targets * window + recipe.batch * conditioning)
    # Copying along rays keeps four pictures per candidate: it, its error, its share and their product.
    candidates = config.copied_videos * config.copied_points + 1 if config.copied_videos else 0
    kept += 4 * targets * latent[0] * latent[1] * latent[2] * candidates * 4 * config.out_channels
    looked = 0.0
    pictures, area = targets * math.ceil(latent[0] / EVERY), latent[1] * latent[2]
    if moved and all(name.startswith((DEPTHS, DETAILS)) for name in moved):  # nothing else is asked
        linear = attention = kept = 0.0
    if any(name.startswith(DEPTHS) for name in moved):
        looked += pictures * transformer.depths.operations(transformer.depths.area)
        kept += 4 * pictures * transformer.depths.kept(transformer.depths.area)
    if any(name.startswith(DETAILS) for name in moved):
        looked += pictures * transformer.details.operations(area)
        kept += 4 * pictures * transformer.details.kept(area)
    # weights; of the trained ones gradients, their averages and at most two moments
    memory_bytes = (4 * parameters + 4 * 4 * trained) / processes + kept
    return Estimate(
        parameters, trained, memory_bytes, 3 * ((linear + attention) * (4 / 3 if checkpointing else 1) + looked)
    )


def _tokens(window: int, kernel: tuple[int, int, int]) -> float:
    return window / (kernel[0] * kernel[1] * kernel[2])


def measured_rate(device: str, precision: torch.dtype, threads: int) -> float:
    """Operations per second of a matrix product that is no larger than a small model's: what a step reaches at best."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        side = 4096 if device == "cuda" else 512
        one = torch.rand(side, side, device=device, dtype=precision)
        best = 0.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(4):
                one @ one
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 4 * 2 * side**3 / (time.perf_counter() - began))
        return best
    finally:
        torch.set_num_threads(before)
