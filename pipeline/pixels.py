"""Between pictures and latents: the interface that all codecs have, and the plainest of them, pixels as latents.

A codec takes whole frames, (T, H, W, 3) uint8, to a normalised latent, (C, T', H', W') float32, and back. Both
directions are deterministic. `temporal_compression` c says how time is grouped: T' latent frames come from exactly
1 + c (T' - 1) frames, the first frame alone and every later latent frame from the c frames that end at it; so latent
frame i ends at frame c i, which is the one whose camera it gets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch


class Codec(Protocol):
    """What the pipeline needs of a codec. Sizes in pixels must be multiples of `spatial_compression`."""

    channels: int
    temporal_compression: int
    spatial_compression: int

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, H, W, 3) uint8 to (C, T', H', W') float32."""

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(C, T', H', W') to (T, H, W, 3) uint8 on the CPU."""


@dataclass(frozen=True)
class Pixels:
    """Pixels as their own latent: (x / 255 - mean) / std, one latent frame per frame.

    `decode(encode(x)) == x` exactly, also when the latent was stored as float16 in between: the coarsest float16 step
    in its range, 2 ** -9, is an eighth of a grey level.
    """

    mean: float
    std: float
    device: torch.device | str = "cpu"
    channels = 3
    temporal_compression = 1
    spatial_compression = 1

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, H, W, 3) uint8 to (3, T, H, W) float32."""
        pixels = frames.to(self.device).permute(3, 0, 1, 2).float().div(255)
        return pixels.sub(self.mean).div(self.std).contiguous()

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(3, T, H, W) to (T, H, W, 3) uint8; values outside the range of pictures are clipped."""
        pixels = latent.float().mul(self.std).add(self.mean).mul(255)
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()


def load_codec(folder: str, device: str = "cpu") -> Codec:
    """The codec of a saved pipeline alone: who only decodes does not load the transformer, nor, for pixels, diffusers,
    whose import takes seconds."""
    name = json.loads((Path(folder) / "model_index.json").read_text())["vae"][1]
    if name == "PixelCodec":
        config = json.loads((Path(folder) / "vae" / "config.json").read_text())
        return Pixels(config["mean"], config["std"], device)
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    from .codec import WanCodec

    return WanCodec(AutoencoderKLWan.from_pretrained(folder, subfolder="vae").to(device))
