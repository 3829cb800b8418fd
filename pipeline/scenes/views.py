"""What rendering gives, and what all ways of rendering must agree on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SKY = 255  # in `Views.objects`
HORIZON = 40.0  # metres: where an open ground ends
LAMP = 0.25  # metres: half the edge of the lamp; with several samples per pixel it makes shadows soft


@dataclass(frozen=True, eq=False)
class Views:
    """colour (S, V, H, W, 3) uint8 sRGB; depth (S, V, H, W) float32 metres along the optical axis, infinite for the
    sky; objects (S, V, H, W) uint8: 0 the room or the ground, 1 + index of the thing, SKY."""

    colour: torch.Tensor
    depth: torch.Tensor
    objects: torch.Tensor
