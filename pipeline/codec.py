"""The `vae` component of a pipeline as a codec (see `pixels`): diffusers' Wan VAE, or a stand-in for one, which saved
pipelines name as `pipeline.codec.PixelCodec`."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.modeling_utils import ModelMixin

from .pixels import Codec, Pixels
from .spec import compression_of


class PixelCodec(ModelMixin, ConfigMixin):
    """`Pixels` as a component that diffusers saves and loads."""

    @register_to_config
    def __init__(self, mean: float = 0.45, std: float = 0.27) -> None:
        super().__init__()
        # Diffusers asks every model for its device and dtype, and a model without any tensor has none to tell.
        self.register_buffer("place", torch.zeros(1))

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.config.mean, self.config.std, self.device)


class WanCodec:
    """`AutoencoderKLWan` behind the same interface: latents are (mode - mean) / std of the posterior.

    The VAE keeps its causal cache on the module while it works: one codec is not re-entrant.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.channels: int = vae.config.z_dim
        self.temporal_compression, self.spatial_compression = compression_of(vae.config)

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, H, W, 3) uint8, T = 1 + c n, to (C, 1 + n, H', W') float32."""
        if (len(frames) - 1) % self.temporal_compression:
            raise ValueError(
                f"Wan's VAE takes 1 + {self.temporal_compression}n frames and would drop the rest silently: got "
                f"{len(frames)} frames; pad or cut them first"
            )
        pixels = frames.permute(3, 0, 1, 2)[None].float().div(127.5).sub(1)
        mode = self.vae.encode(pixels.to(self._device, self.vae.dtype)).latent_dist.mode().float()
        mean, std = self._statistics(mode.device)
        return ((mode - mean) / std)[0]

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(C, 1 + n, H', W') to (1 + c n, H, W, 3) uint8."""
        mean, std = self._statistics(self._device)
        raw = latent[None].to(self._device).float() * std + mean
        pixels = self.vae.decode(raw.to(self.vae.dtype)).sample[0].float().add(1).mul(127.5)
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()

    @property
    def _device(self) -> torch.device:
        """Where the VAE will be when it is called: with model offloading that is not where it is now."""
        hook = getattr(self.vae, "_hf_hook", None)
        return getattr(hook, "execution_device", None) or self.vae.device

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, self.channels, 1, 1, 1)
        mean = torch.tensor(self.vae.config.latents_mean, device=device).view(shape)
        return mean, torch.tensor(self.vae.config.latents_std, device=device).view(shape)


def codec_of(vae: PixelCodec | AutoencoderKLWan) -> Codec:
    """The codec of a pipeline's `vae` component."""
    return WanCodec(vae) if isinstance(vae, AutoencoderKLWan) else vae.pixels
