"""What is made up has details, which no token knows of.

A token makes up a patch, and where nothing is known it is blurred: walls have no edge, things run out into what is
behind them. So where the camera moves, the frames that lead (see `agreement`) are painted anew in the last step, as far
as they are made up, and the others take it from these. The painter is a small diffusion model of its own, a network
that sees pixels (see `unet`): it is shown the picture, soft as it is, how much of every pixel is made up, and noise,
and says what is under both, as SR3 does with small pictures (Saharia et al., 2021). It learns from any pictures, parts
of which are made soft for it.

Letters in shapes: N pictures, C channels, H W height and width, and as in `agreement`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from .agreement import MadeUp, settled
from .unet import UNet

# From noise to a picture, with fresh noise at each: what is wrong at one is not carried on to the next. The last ones
# take away what those before left of it.
SIGMAS = (1.0, 0.8, 0.62, 0.47, 0.35, 0.25, 0.17, 0.11, 0.06, 0.03)


TOLD = 256  # numbers that a picture's noise and words are told in
WAVES = 6  # of which the noise is told, each of half the length of the one before


class Details(UNet):
    """widths: channels of the levels. text_dim: width of the words."""

    def __init__(self, channels: int, widths: Sequence[int], text_dim: int) -> None:
        super().__init__(3 * channels + 1, widths, channels, "detail_widths", TOLD, whole=2)
        self.tell = nn.Sequential(nn.Linear(2 * WAVES + text_dim, TOLD), nn.SiLU(), nn.Linear(TOLD, TOLD), nn.SiLU())

    @torch.no_grad()
    def initialise(self) -> None:
        """At first all is of the mean colour."""
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        noisy: torch.Tensor,
        shown: torch.Tensor,
        share: torch.Tensor,
        source: torch.Tensor,
        words: torch.Tensor,
        sigma: torch.Tensor,
    ) -> torch.Tensor:
        """(N, C, H, W) float32, the picture with details. noisy (N, C, H, W): it in noise of sigma (N,). shown (N, C,
        H, W): the picture, soft as far as its pixels are made up; share (N, 1, H, W), in 0..1: how far that is. source,
        like shown: what was there before, or as shown where nobody knows. words (N, L, text_dim) of the instruction."""
        height, width = shown.shape[2:]
        given = torch.cat([noisy, shown, source, 2 * share - 1], dim=1).float()
        beyond = (0, -width % self.multiple, 0, -height % self.multiple)
        given = F.pad(given, beyond, mode="replicate") if any(beyond) else given
        said = words.float()
        said = said.sum(dim=1) / said.any(dim=2).sum(dim=1, keepdim=True).clamp(min=1)  # the mean, but of padding
        waves = sigma.float()[:, None] * math.pi * 2.0 ** torch.arange(WAVES, device=sigma.device)
        told = self.tell(torch.cat([waves.sin(), waves.cos(), said], dim=1).to(self.enter.weight.dtype))
        return self.through(given, told=told)[..., :height, :width]


def painted(
    details: Details,
    sample: torch.Tensor,
    made_up: MadeUp,
    words: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """A clip (B, C, T, H, W) with details where it is made up and a frame that leads shows the same. words (B, L,
    text_dim)."""
    frames = made_up.leaders.frames
    source = sample if made_up.source is None else made_up.source
    shown, share, source = (
        each[:, :, frames].transpose(1, 2).flatten(0, 1) for each in (sample, made_up.share, source)
    )
    words = words.repeat_interleave(len(frames), dim=0)
    picture = shown
    for level in SIGMAS:
        sigma = torch.full((len(shown),), level, device=shown.device)
        noise = randn_tensor(shown.shape, generator=generator, device=shown.device, dtype=shown.dtype)
        found = details(torch.lerp(picture, noise, level), shown, share, source, words, sigma)
        picture = torch.lerp(shown, found, share)
    whole = sample.clone()
    whole[:, :, frames] = picture.unflatten(0, (len(sample), -1)).transpose(1, 2)
    return torch.lerp(sample, settled(whole, made_up.depths, made_up.leaders), made_up.share)
