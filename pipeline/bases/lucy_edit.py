"""LucyEdit (Decart): Wan2.2-5B that edits by instruction. The paper's base for text-guided editing.

The source's latent lies beside the noisy one on the channels, 48 + 48 of 96, so it has no tokens of its own. It knows
no cameras. The published pipeline gives every token its own timestep, all of them equal, which is one timestep.
"""

from __future__ import annotations

from .base import MEMORY, SAMPLER, WAN_5B_CHANNELS, Base

LUCY_EDIT = Base(
    name="lucy-edit",
    title="Lucy Edit on Wan2.2-5B, text turns",
    licence="non-commercial (Decart)",
    repository="decart-ai/Lucy-Edit-Dev",
    checkpoint=None,
    components="decart-ai/Lucy-Edit-Dev",
    frame=(48, 4, 16),
    network=WAN_5B_CHANNELS,
    condition={**MEMORY, "attention": "joint", "cameras": "extrinsics", "source": "channels"},
    # The number of its training steps is not published; anything above zero says that it is trained.
    defaults={**SAMPLER, "trained_steps": 1, "learned": ("text",)},
)
