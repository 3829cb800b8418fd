"""ReCamMaster's published semantics in plain torch, read independently of diffusers and of our own transformer.

One sequence in time, target first, then the clean source; positions 0 to 2T - 1; one timestep for all of it; the
target's camera on both halves, in every block added to the modulated input of the self-attention, whose result passes
a projector. Parameters carry the original names, so this is also the list of names and shapes at full size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=1e-6) for _ in range(2))

    def forward(self, x, context, turn=None):
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
        q, k, v = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (q, k, v))
        if turn is not None:
            q, k = rotated(q, turn), rotated(k, turn)
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


def rotated(x, turn):
    """Neighbouring entries are a complex number; `turn` (tokens, pairs) complex of length 1."""
    return torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turn).flatten(-2).to(x.dtype)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, ffn: int):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(dim, heads), Attention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)  # before the text; the only one with weights
        self.ffn = nn.Sequential(nn.Linear(dim, ffn), nn.GELU(approximate="tanh"), nn.Linear(ffn, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.cam_encoder = nn.Linear(12, dim)
        self.projector = nn.Linear(dim, dim)

    def forward(self, x, text, time, camera, turn):
        shift, scale, gate, shift2, scale2, gate2 = (self.modulation + time).unbind(dim=1)
        plain = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        seen = plain * (1 + scale[:, None]) + shift[:, None] + self.cam_encoder(camera)
        x = x + gate[:, None] * self.projector(self.self_attn(seen, seen, turn))
        x = x + self.cross_attn(self.norm3(x), text)
        plain = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return x + gate2[:, None] * self.ffn(plain * (1 + scale2[:, None]) + shift2[:, None])


class Head(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)


class ReCamMaster(nn.Module):
    """Patches of 1x2x2 latents."""

    def __init__(self, *, heads: int, head_dim: int, channels: int, text: int, freq: int, ffn: int, layers: int):
        super().__init__()
        dim = heads * head_dim
        self.freq, self.head_dim, self.channels = freq, head_dim, channels
        self.patch_embedding = nn.Conv3d(channels, dim, (1, 2, 2), stride=(1, 2, 2))
        self.text_embedding = nn.Sequential(nn.Linear(text, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, heads, ffn) for _ in range(layers))
        self.head = Head(dim, 4 * channels)

    def forward(self, target, source, timestep, text, poses):
        """target, source (B, C, T, H, W); timestep (B,); text (B, L, text); poses (B, T, 3, 4) of the target's camera,
        relative to the source's first. Returns the target's prediction (B, C, T, H, W)."""
        frames = target.shape[2]
        grid = self.patch_embedding(torch.cat([target, source], dim=2))
        _, _, twice, rows, columns = grid.shape
        x = grid.flatten(2).transpose(1, 2)
        # one camera per latent frame, the target's again for the source, the same for all tokens of a frame
        camera = poses.flatten(2).repeat(1, 2, 1).repeat_interleave(rows * columns, dim=1)
        angle = timestep.double()[:, None] * 10000 ** -(torch.arange(self.freq // 2).double() / (self.freq // 2))
        time = self.time_embedding(torch.cat([angle.cos(), angle.sin()], dim=1).float())
        six = self.time_projection(time).unflatten(1, (6, -1))
        text = self.text_embedding(text)
        turn = self.turns(twice, rows, columns)
        for block in self.blocks:
            x = block(x, text, six, camera, turn)
        shift, scale = (self.head.modulation + time[:, None]).unbind(dim=1)
        x = self.head.head(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None])
        x = x.view(-1, twice, rows, columns, 1, 2, 2, self.channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(-1, self.channels, twice, 2 * rows, 2 * columns)[:, :, :frames]

    def turns(self, *grid: int):
        """(tokens, head_dim / 2) complex: pairs for time, rows, columns, a third each, time takes the rest."""
        third = self.head_dim // 6
        pairs = (self.head_dim // 2 - 2 * third, third, third)
        axes = []
        for axis, (count, pair) in enumerate(zip(grid, pairs, strict=True)):
            angle = torch.outer(torch.arange(count).double(), 10000 ** -(torch.arange(pair).double() / pair))
            shape = [count if each == axis else 1 for each in range(3)]
            axes.append(torch.polar(torch.ones_like(angle), angle).view(*shape, pair).expand(*grid, pair))
        return torch.cat(axes, dim=-1).flatten(0, 2)


def shaken(model: ReCamMaster, seed: int = 0) -> ReCamMaster:
    """Random weights everywhere, cameras, projectors and norms too: nothing may hide behind a zero or a one."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=random)
            if "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.3 * noise)
            else:
                value.copy_(noise * (0.3 if value.ndim < 2 else value[0].numel() ** -0.5))
    return model.eval()
