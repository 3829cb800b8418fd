"""Wan's transformer block, for a sequence of a noisy target and clean conditioning.

Parameters are the stock block's (and ReCamMaster's two linear layers, where configured). No attention mask is ever
needed: who sees whom is decided by what is put into one call.
    joint   one call with target and conditioning: all attend to all and to the text, as published.
    cached  one call with the conditioning alone and without text, whose keys and values are kept; and one with the
            target alone, which attends to itself and to those.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanTransformerBlock,
    _get_qkv_projections,
)
from torch import nn

from .positions import Rotary

Keys = tuple[torch.Tensor, torch.Tensor]
ALONE = ("q", "k", "kv")  # projections that may be asked for and nothing else


class MemoryAttnProcessor(WanAttnProcessor):
    """Wan's processor in two halves, so that keys and values can be kept, and others' attended to."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Rotary | None = None,
        context: Keys | None = None,
        project: str = "",
    ) -> Any:
        """As Wan's; see `MemoryWanTransformerBlock.forward` for `context` and `project`."""
        if context is None and not project:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        assert rotary_emb is not None
        if project in ALONE:
            layers = {"q": attn.to_q, "k": attn.to_k, "v": attn.to_v}  # they stay beside fused ones
            return tuple(_heads(attn, name, layers[name](hidden_states), rotary_emb) for name in project)
        projected = _get_qkv_projections(attn, hidden_states, None)
        own = query, key, value = [_heads(attn, *each, rotary_emb) for each in zip("qkv", projected, strict=True)]
        if context is not None:
            # several targets may share one encoding (training): each encoding's come one after another
            copies = len(key) // len(context[0])
            shared = [each if copies == 1 else each.repeat_interleave(copies, dim=0) for each in context]
            key, value = torch.cat([key, shared[0]], dim=1), torch.cat([value, shared[1]], dim=1)
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        attended = attn.to_out[1](attn.to_out[0](attended.flatten(2, 3).type_as(query)))
        return (attended, own) if project else attended


class TextAttnProcessor(WanAttnProcessor):
    """Wan's processor for the text, whose keys and values may have been projected before."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | Keys | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Rotary | None = None,
        project: bool = False,
    ) -> Any:
        """As Wan's; encoder_hidden_states: text (B, L, D), or its keys and values (B, L, heads, d), which is all that
        `project` returns."""
        if project:
            _, key, value = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
            return attn.norm_k(key).unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))
        if not isinstance(encoder_hidden_states, tuple):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        key, value = encoder_hidden_states
        if key.shape[1] == 1:  # a single one is attended to, whatever is asked
            return attn.to_out[1](attn.to_out[0](value.flatten(2, 3).type_as(hidden_states))).expand_as(hidden_states)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](attended.flatten(2, 3).type_as(query)))


def _heads(attn: WanAttention, name: str, projected: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """A projection "q", "k" or "v" (B, N, D) as it is attended with, (B, N, heads, d)."""
    if name == "v":
        return projected.unflatten(2, (attn.heads, -1))
    norm = attn.norm_q if name == "q" else attn.norm_k
    return _turned(norm(projected).unflatten(2, (attn.heads, -1)), rotary)


def _turned(states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Wan's rotary turn of (B, N, heads, d): neighbouring channels are a pair."""
    pairs = states.to(torch.promote_types(states.dtype, torch.float32)).unflatten(-1, (-1, 2))
    cos, sin = rotary[0][..., 0::2].to(pairs.dtype), rotary[1][..., 1::2].to(pairs.dtype)
    if torch.compiler.is_compiling():  # what makes kernels there knows no complex numbers
        even, odd = pairs.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:  # the same but for rounding, several times as fast on a CPU
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).type_as(states)


class MemoryWanTransformerBlock(WanTransformerBlock):
    """Wan's block with two modulations: the target's (noisy, timestep t) and the conditioning's (clean, timestep 0).

    Modulation is applied per part of the sequence, not per token: a per-token table would cost gigabytes at full size.
    With `cameras` it has ReCamMaster's `cam_encoder`, added to the modulated input, and `projector` behind attention,
    which change nothing at initialisation.
    """

    def __init__(self, *args: Any, cameras: bool = False) -> None:
        super().__init__(*args)
        self.attn1.set_processor(MemoryAttnProcessor())
        self.attn2.set_processor(TextAttnProcessor())
        self.cam_encoder = self.projector = None
        if cameras:
            dim = self.scale_shift_table.shape[-1]
            self.cam_encoder, self.projector = nn.Linear(12, dim), nn.Linear(dim, dim)
            self.initialise_cameras()

    @torch.no_grad()
    def initialise_cameras(self) -> None:
        """Zero and identity: the base model's outputs stay what they are."""
        if self.cam_encoder is not None and self.projector is not None:
            nn.init.zeros_(self.cam_encoder.weight)
            nn.init.zeros_(self.cam_encoder.bias)
            nn.init.eye_(self.projector.weight)
            nn.init.zeros_(self.projector.bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | Keys | None,
        temb: torch.Tensor,
        rotary_emb: Rotary,
        conditioning_temb: torch.Tensor | None = None,
        target_tokens: int = 0,
        cameras: torch.Tensor | None = None,
        context: Keys | None = None,
        project: str = "",
    ) -> Any:
        """One block of a sequence (B, N, D).

        encoder_hidden_states: text (B, L, D) or its keys and values; None for conditioning, which attends to none.
        temb (B, 6, D) modulates the first `target_tokens` tokens, conditioning_temb the rest; without it, temb all.
        cameras (B, N, 12): poses of the tokens, for blocks with camera layers.
        context: keys and values (B, M, heads, d) to attend to beside the sequence's own.
        project: "also" returns (states, (queries, keys, values) of the self-attention); "q", "k" and "kv" a tuple of
            the ones named and nothing else; "text" the keys and values of the text, whatever the sequence.
        """
        if project == "text":
            return self.attn2(hidden_states, encoder_hidden_states, project=True)
        if conditioning_temb is None or target_tokens == hidden_states.shape[1]:
            stock = self.projector is None and context is None and not project
            if encoder_hidden_states is not None and stock:
                return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
            lengths, modulations = [hidden_states.shape[1]], [temb]
        else:
            lengths = [target_tokens, hidden_states.shape[1] - target_tokens]
            modulations = [temb, conditioning_temb]
        tables = [(self.scale_shift_table + each.float()).chunk(6, dim=1) for each in modulations]

        def modulated(norm: nn.Module, shift: int, scale: int) -> torch.Tensor:
            return _joined(
                (norm(part.float()) * (1 + table[scale]) + table[shift]).type_as(part)
                for part, table in zip(hidden_states.split(lengths, dim=1), tables, strict=True)
            )

        def gated(residual: torch.Tensor, gate: int) -> torch.Tensor:
            pairs = zip(hidden_states.split(lengths, dim=1), residual.split(lengths, dim=1), tables, strict=True)
            return _joined((x.float() + r.float() * table[gate]).type_as(x) for x, r, table in pairs)

        attention_input = modulated(self.norm1, 0, 1)
        if self.cam_encoder is not None and cameras is not None:
            attention_input = attention_input + self.cam_encoder(cameras.to(attention_input.dtype))
        result = self.attn1(attention_input, None, None, rotary_emb, context=context, project=project)
        if project in ALONE:
            return result
        attended, own = result if project else (result, None)
        if self.projector is not None:  # with or without cameras: it was trained as a part of the attention
            attended = self.projector(attended)
        hidden_states = gated(attended, 2)
        if encoder_hidden_states is not None:
            normed = self.norm2(hidden_states.float()).type_as(hidden_states)
            hidden_states = hidden_states + self.attn2(normed, encoder_hidden_states, None, None)
        hidden_states = gated(self.ffn(modulated(self.norm3, 3, 4)), 5)
        return (hidden_states, own) if project else hidden_states


def _joined(parts: Any) -> torch.Tensor:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
