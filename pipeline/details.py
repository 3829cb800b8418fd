"""What is made up has details, which no token knows of.

A token makes up a patch, and where nothing is known it is blurred: walls have no edge, things run out into what is
behind them, patterns that an instruction asks for are dark blots. So in the last step the frames that lead (see
`agreement`) are painted anew, as far as they are made up, and the others take it from these. The painter is a small
diffusion model of its own, a network that sees pixels (see `unet`): it is shown the picture, soft as it is, how much of
every pixel is made up, what was there before and the words, and says what is under noise, as SR3 does with small
pictures (Saharia et al., 2021). It learns from any pictures, parts of which are made soft for it, and from edits of the
model itself.

Letters in shapes: N pictures, C channels, H W height and width, L text tokens, and as in `agreement`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from .agreement import KNOWN, MadeUp, settled
from .unet import UNet

STEPS = 20  # from noise to a picture, where a model does not say otherwise
# Noise with which the painting of an edit begins that keeps the camera: the picture is seen through it. What is painted
# is the edit that the transformer has decided on, and not whether there is one.
BEGUN = 0.7
# In noise of GUIDED (least and most) what is painted is driven away from what would be if places attended to themselves
# alone, by so much of the difference (perturbed-attention guidance, Ahn et al., 2024; in an interval, Kynkäänniemi et
# al., 2024): edges and patterns then go on from where they are seen. In more noise things appear that nobody asked for.
GUIDANCE, GUIDED = 0.75, (0.25, 0.7)
LEAST = 0.02  # a frame no pixel of which is made up by more than this stays as it is
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
        apart: bool = False,
    ) -> torch.Tensor:
        """(N, C, H, W) float32, the picture with details. noisy (N, C, H, W): it in noise of sigma (N,). shown (N, C,
        H, W): the picture, soft as far as its pixels are made up; share (N, 1, H, W), in 0..1: how far that is. source,
        like shown: what was there before, or as shown where nobody knows. words (N, L, text_dim) of the instruction.
        apart: every place attends to itself alone."""
        height, width = shown.shape[2:]
        given = torch.cat([noisy, shown, source, 2 * share - 1], dim=1).float()
        beyond = (0, -width % self.multiple, 0, -height % self.multiple)
        given = F.pad(given, beyond, mode="replicate") if any(beyond) else given
        said = words.float()
        said = said.sum(dim=1) / said.any(dim=2).sum(dim=1, keepdim=True).clamp(min=1)  # the mean, but of padding
        waves = sigma.float()[:, None] * math.pi * 2.0 ** torch.arange(WAVES, device=sigma.device)
        told = self.tell(torch.cat([waves.sin(), waves.cos(), said], dim=1).to(self.enter.weight.dtype))
        return self.through(given, told=told, apart=apart)[..., :height, :width]


def painted(
    details: Details,
    sample: torch.Tensor,
    made_up: MadeUp,
    words: torch.Tensor,
    generator: torch.Generator | None = None,
    steps: int = STEPS,
) -> torch.Tensor:
    """A clip (B, C, T, H, W) with details where it is made up and a frame that leads shows the same. words (B, L,
    text_dim). steps: from noise to a picture, at least 2."""
    frames = [frame for frame in made_up.leaders.frames if (made_up.share[:, :, frame] > LEAST).any()]
    if not frames:
        return sample
    before = made_up.before
    known = sample if before is None else before
    shown, share, source = (each[:, :, frames].transpose(1, 2).flatten(0, 1) for each in (sample, made_up.share, known))
    words = words.repeat_interleave(len(frames), dim=0)

    def noise() -> torch.Tensor:
        return randn_tensor(shown.shape, generator=generator, device=shown.device, dtype=shown.dtype)

    levels = [1 - step / steps for step in range(steps) if before is None or 1 - step / steps <= BEGUN]
    noisy = torch.lerp(shown, noise(), levels[0])
    for level, lower in zip(levels, [*levels[1:], 0.0], strict=True):
        sigma = torch.full((len(shown),), level, device=shown.device)
        given = (noisy, shown, share, source, words, sigma)
        found = details(*given)
        if GUIDED[0] <= level <= GUIDED[1]:
            found = found + GUIDANCE * (found - details(*given, apart=True))
        found = torch.lerp(shown, found, share)
        # Fresh noise, so that what is wrong in one step is not carried on to the next; the same where an edit is.
        under = noise() if before is None else found + (noisy - found) / level
        noisy = torch.lerp(found, under, lower)
    whole = sample.clone()
    whole[:, :, frames] = noisy.unflatten(0, (len(sample), -1)).transpose(1, 2)
    if before is None:
        return torch.lerp(sample, settled(whole, made_up.depths, made_up.leaders, known), made_up.share)
    # What has moved is as much made up as it is where it has moved to; what is remembered stays.
    both = torch.cat([whole, made_up.share], dim=1)
    both = settled(both, made_up.depths, made_up.leaders, before, KNOWN, follow=True)
    share = torch.maximum(made_up.share, both[:, -1:].clamp(0, 1) * (1 - made_up.kept))
    return torch.lerp(sample, both[:, :-1], share)
