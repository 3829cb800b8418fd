"""What a base model says of itself: the interface that makes the method independent of the model it extends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# Raised when the same sources would give another folder; a test holds it against the parameters and configurations.
FORMAT = 3

COMPONENTS = ("vae", "text_encoder", "tokenizer")


class BaseError(ValueError):
    """A base model that cannot be found, read or placed. One line: what was expected, what found, the remedy."""


@dataclass(frozen=True)
class Base:
    """One base model, as data. The four things that a base decides:

    encode, decode: `components`, the repository of its vae (with text encoder and tokenizer), used through
        `pipeline.codec.codec_of`; `frame`, (channels, frames, pixels) per latent, is what that codec must give.
    transformer: `network`, the arguments of diffusers' WanTransformer3DModel, and where the weights lie: the file
        `checkpoint` of `repository` under the original names, or, where that is None, its folder `transformer` in
        diffusers' layout. `brings` are the parts of parameter names beyond the stock model's that the weights hold too.
    condition: how source, cameras and memories reach the network, as arguments of MemoryWanTransformer3DModel.
    defaults: of the sampler and of a segment, as arguments of MemoryV2VPipeline.

    partial: the names in the checkpoint are not published, so what cannot be placed is listed instead of refused.
    """

    name: str
    title: str
    licence: str
    repository: str
    checkpoint: str | None
    components: str
    frame: tuple[int, int, int]
    network: Mapping[str, Any]
    condition: Mapping[str, Any]
    defaults: Mapping[str, Any]
    brings: tuple[str, ...] = ()
    partial: bool = False

    def what_is_needed(self) -> str:
        """For messages: the files of a local folder."""
        weights = self.checkpoint or "transformer/"
        where = f"{weights} of {self.repository}"
        rest = "/, ".join(COMPONENTS) + "/"
        if self.components == self.repository:
            return f"{weights}, {rest} of {self.repository}"
        return f"{where} beside {rest} of {self.components}"


# Diffusers' names for the published sizes; patch, norms and text width are the same for all.
_WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "attention_head_dim": 128,
    "text_dim": 4096,
    "freq_dim": 256,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
}
WAN_1_3B: Mapping[str, Any] = MappingProxyType(
    {**_WAN, "num_attention_heads": 12, "ffn_dim": 8960, "in_channels": 16, "out_channels": 16}
)
# Wan2.2-5B with the source's latent beside the target's on the channels.
WAN_5B_CHANNELS: Mapping[str, Any] = MappingProxyType(
    {**_WAN, "num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 96, "out_channels": 48}
)

# The paper's tokenizers, in multiples of the base patch 1x2x2: 1x2x2 for the source, 1x4x4 for the three most
# relevant memories, 1x8x8 for the others; and its merging, at the entries of blocks 10 and 20 of 30.
MEMORY: Mapping[str, Any] = MappingProxyType(
    {
        "source_kernel": (1, 1, 1),
        "memory_kernels": ((1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 4, 4)),
        "merge": "merge",
        "merge_at": (1 / 3, 2 / 3),
    }
)

# What all three were published with.
SAMPLER: Mapping[str, Any] = MappingProxyType(
    {
        "prediction": "velocity",
        "num_inference_steps": 50,
        "shift": 5.0,
        "guidance_scale": 5.0,
        "segment_frames": 81,
        "area": 480 * 832,
        "text_length": 512,
    }
)
