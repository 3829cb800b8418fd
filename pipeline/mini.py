"""`mini`: the small model of the repository, an instance of the same classes by configuration.

It works on normalised pixels (no VAE), in segments of 16 frames of about 48x48, with a text encoder that is trained
along: one token for a word of the edits that it learns from. Built here it has random weights (`trained_steps` is 0);
training fills the same folder layout:

    build_mini(seed=0).save_pretrained(folder)
    MemoryV2VPipeline.from_pretrained(folder)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn

from .codec import PixelCodec
from .memory_pipeline import MemoryV2VPipeline
from .scenes.paired_edit import VOCABULARY
from .text_encoder import WordEncoder, word_tokenizer
from .transformer import MemoryWanTransformer3DModel

TRANSFORMER: dict[str, Any] = {
    "patch_size": (4, 8, 8),
    "attention_head_dim": 32,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": 128,
    "freq_dim": 256,
    "memory_kernels": ((1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 4, 4)),
    "roles": True,
    "cameras": "plucker",
    "positions": "frustum",
    "merge": "merge",
    "merge_at": (1 / 8, 1 / 4),
    "merge_kernel": (2, 2),
    "copied_videos": 3,
    "copied_points": 3,
}
# By what it is trained on: two cores in an afternoon, or a GPU in half an hour.
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {
        "num_attention_heads": 6,
        "num_layers": 6,
        "ffn_dim": 768,
        "depth_widths": (16, 32, 64, 96),
        "detail_widths": (16, 32, 64, 96),
    },
    "gpu": {
        "num_attention_heads": 8,
        "num_layers": 8,
        "ffn_dim": 1024,
        "depth_widths": (24, 48, 96, 192),
        "detail_widths": (32, 64, 160, 320),
    },
}
AREA = 48 * 48
TEXT: dict[str, Any] = {"width": 128, "layers": 3, "empty_prompt": True}
PIPELINE: dict[str, Any] = {
    "prediction": "sample",
    "num_inference_steps": 10,
    "shift": 2.0,
    "guidance_scale": 1.0,  # one pass per step, until a trained model shows that guidance pays for a second
    "segment_frames": 16,
    "text_length": 32,
}


def build_mini(
    seed: int = 0,
    *,
    size: str = "cpu",
    transformer: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    camera_std: float = 0.3,
    **pipeline: Any,
) -> MemoryV2VPipeline:
    """An untrained `mini` of one of SIZES; the same seed gives the same weights.

    `transformer` and `text` override entries of the components' configurations, other keywords the pipeline's.
    camera_std: standard deviation of the camera layer's weights. A layer that starts at zero suits the fine-tuning
    of a base; a model from scratch should see its cameras from the first step, so that layer starts like any other.
    """
    with seeded(seed):
        network = MemoryWanTransformer3DModel(**{**TRANSFORMER, **SIZES[size], **(transformer or {})})
        nn.init.normal_(network.camera_embedding.weight, std=camera_std)
        tokenizer = word_tokenizer(VOCABULARY)
        encoder = WordEncoder(**{"vocab_size": len(tokenizer), **TEXT, **(text or {})})
    return MemoryV2VPipeline(
        transformer=network.eval(),
        vae=PixelCodec(),
        # Fresh noise at every step: what a small model gets wrong in one is not carried on to the next.
        scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        **{**PIPELINE, "area": AREA, **pipeline},
    )


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global CPU generator at `seed` inside, as it was outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
