"""The smallest instance of `mini`'s classes: an edit of two steps takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.mini import build_mini, seeded

TINY_TRANSFORMER: dict[str, Any] = {
    "depth_widths": (8, 16),
    "depth_area": 16 * 16,
    "detail_widths": (8, 8, 8, 8),  # of which the lowest two see all of a picture at once
    "detail_steps": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
}
TINY_TEXT: dict[str, Any] = {"width": 32, "layers": 1}
TINY_PIPELINE: dict[str, Any] = {"num_inference_steps": 2, "area": 32 * 32}


def build_tiny(seed: int = 0, **pipeline: Any) -> MemoryV2VPipeline:
    """`build_mini` at the size of a test; it says depths that differ, as no untrained model does."""
    made = build_mini(seed, transformer=TINY_TRANSFORMER, text=TINY_TEXT, **{**TINY_PIPELINE, **pipeline})
    with seeded(seed):
        torch.nn.init.normal_(made.transformer.depths.leave.weight, std=0.1)
    return made
