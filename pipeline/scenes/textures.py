"""Procedural textures: how much of a material's second colour shows at a point of its own coordinates."""

from __future__ import annotations

import math

import torch


def mixture(texture: str, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor | float:
    """Share of the second colour, 0..1, at coordinates (R,) in periods of the texture."""
    if texture == "plain":
        return 0.0
    if texture == "checkered":
        return (((x + 0.25).floor() + (y + 0.25).floor() + (z + 0.25).floor()) % 2).abs()
    if texture == "striped":
        return (0.5 + 2 * torch.sin(2 * math.pi * (y + 0.3 * x + 0.15 * z))).clamp(0, 1)
    if texture == "dotted":
        parts = [(each + 0.5) % 1 - 0.5 for each in (x, y, z)]
        return (4 * (0.42 - torch.stack(parts).square().sum(0).sqrt())).clamp(0, 1)
    if texture == "marbled":
        wave = (2.1 * x + (3.7 * y).sin()).sin() + (2.9 * z + (2.3 * x + 1).sin()).sin() + (3.1 * y - 1.7 * z).sin()
        return 0.5 + 0.5 * torch.sin(3 * x + 2.2 * wave)
    if texture == "boards":
        board = (x + y).floor()
        grain = 0.45 + 0.3 * torch.sin(board * 12.9898)
        return torch.where((x + y - board) < 0.07, 1.0, grain)
    raise ValueError(f"unknown texture {texture!r}")
