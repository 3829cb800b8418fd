"""ReCamMaster (KwaiVGI): Wan2.1-T2V-1.3B that follows a target camera. The paper's base for novel view synthesis.

Every block adds `cam_encoder(pose)` to the modulated input of its self-attention and passes the attention's result
through `projector`. Target and source are one sequence in time, target first; the source is clean, but modulated with
the target's timestep, and both halves carry the target's camera, relative to the source's first one, in metres.
"""

from __future__ import annotations

from .base import MEMORY, SAMPLER, WAN_1_3B, Base

RECAMMASTER = Base(
    name="recammaster",
    title="ReCamMaster on Wan2.1-T2V-1.3B, camera turns",
    licence="MIT (code), Apache-2.0 (Wan); the weights as their page says",
    repository="KwaiVGI/ReCamMaster-Wan2.1",
    checkpoint="step20000.ckpt",
    components="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    frame=(16, 4, 8),
    network=WAN_1_3B,
    condition={
        **MEMORY,
        "attention": "joint",
        "cameras": "per_block",
        "source": "tokens",
        "source_modulation": "target",
        "source_camera": "target",
    },
    defaults={**SAMPLER, "trained_steps": 20_000, "learned": ("camera",)},
    brings=(".cam_encoder.", ".projector."),
)
