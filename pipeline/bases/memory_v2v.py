"""Memory-V2V (DHCAI): the paper's own checkpoint for novel view synthesis, ReCamMaster with tokenizers and compressors.

Neither its code nor its parameter names are published. The names of Wan and ReCamMaster are taken as known and all of
them must be there; beyond them, a module is placed where its shapes fit exactly one of ours, and the rest is listed.
Published: every video carries its own camera. Assumed, since only the base tells: the source is modulated with the
target's timestep.
"""

from __future__ import annotations

from .base import MEMORY, SAMPLER, WAN_1_3B, Base

MEMORY_V2V = Base(
    name="memory-v2v",
    title="Memory-V2V on ReCamMaster, camera turns, as far as its names can be guessed",
    licence="as its page says",
    repository="DHCAI/Memory-V2V",
    checkpoint="memoryv2v.ckpt",
    components="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    frame=(16, 4, 8),
    network=WAN_1_3B,
    condition={
        **MEMORY,
        "attention": "joint",
        "cameras": "per_block",
        "source": "tokens",
        "source_modulation": "target",
        "source_camera": "own",
    },
    # The paper says 1-2 K steps; anything above zero says that it is trained.
    defaults={**SAMPLER, "trained_steps": 1_000, "learned": ("camera", "memory")},
    brings=(".cam_encoder.", ".projector."),
    partial=True,
)
