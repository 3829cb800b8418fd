"""The Wan transformer that remembers: target, source and memory tokens in one sequence.

A forward pass sees a list of videos. The *target* is the noisy one and keeps the base model's own patch embedding,
positions and modulation, so that without conditioning the model is the stock `WanTransformer3DModel`, bit for bit.
The *source* and the *memories* are clean; each is embedded by a convolution whose kernel is a multiple of the base
patch (Memory-V2V's dynamic tokenizers: coarser for the less relevant), placed in its own temporal range of the
rotary positions, and modulated as what it is, a latent at timestep 0.

Letters in shapes: B batch, C channels, T latent frames, H W latent height and width, D width of the model,
N tokens of the target, M tokens of the conditioning, L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (diffusers looks it up here to reload us)
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from diffusers.utils import apply_lora_scale
from torch import nn

Kernel = tuple[int, int, int]
Rotary = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class ConditioningVideo:
    """A clean video that the target may look at.

    latent: (B, C, T, H, W), normalised as the target's. poses: (B, T, 3, 4) camera-to-world per latent frame in the
    frame of reference shared by all videos of the call, or None where the task knows no cameras.
    """

    latent: torch.Tensor
    poses: torch.Tensor | None = None


class MemoryWanTransformerBlock(WanTransformerBlock):
    """Wan's block with two modulations: the target's (noisy, timestep t) and the conditioning's (clean, timestep 0).

    Parameters are the stock block's. Attention is joint, as published: every token attends to every other and to the
    text, so no mask is needed. Modulation is applied per part of the sequence, not per token: a per-token table
    would cost gigabytes at full size.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: Rotary,
        conditioning_temb: torch.Tensor | None = None,
        target_tokens: int = 0,
    ) -> torch.Tensor:
        """hidden_states (B, N + M, D), target first; temb and conditioning_temb (B, 6, D); returns (B, N + M, D)."""
        if conditioning_temb is None:
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
        total = hidden_states.shape[1]
        lengths = [target_tokens, total - target_tokens]
        tables = [(self.scale_shift_table + each.float()).chunk(6, dim=1) for each in (temb, conditioning_temb)]

        def modulated(norm: nn.Module, shift: int, scale: int) -> torch.Tensor:
            parts = hidden_states.split(lengths, dim=1)
            return torch.cat(
                [
                    (norm(part.float()) * (1 + table[scale]) + table[shift]).type_as(part)
                    for part, table in zip(parts, tables, strict=True)
                ],
                dim=1,
            )

        def gated(residual: torch.Tensor, gate: int) -> torch.Tensor:
            pairs = zip(hidden_states.split(lengths, dim=1), residual.split(lengths, dim=1), tables, strict=True)
            return torch.cat([(x.float() + r.float() * table[gate]).type_as(x) for x, r, table in pairs], dim=1)

        hidden_states = gated(self.attn1(modulated(self.norm1, 0, 1), None, None, rotary_emb), 2)
        normed = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.attn2(normed, encoder_hidden_states, None, None)
        return gated(self.ffn(modulated(self.norm3, 3, 4)), 5)


TransformerBlockRegistry.register(
    MemoryWanTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)


class MemoryWanTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` with a source, memories and cameras; the base's parameter names are unchanged.

    Beyond the base's arguments:
        source_kernel: tokenizer of the source, in multiples of the base patch (frames, rows, columns).
        memory_kernels: tokenizers of the memories by rank, most relevant first; the last entry repeats.
    New parameters: `tokenizers.<t>x<h>x<w>` (one per distinct kernel) and `camera_embedding`, the paper's linear
    layer E_c of the 3x4 extrinsics, zero at initialisation so that a base model is unchanged by it.
    """

    _no_split_modules = ["MemoryWanTransformerBlock"]
    _repeated_blocks = ["MemoryWanTransformerBlock"]
    _skip_layerwise_casting_patterns = [
        *WanTransformer3DModel._skip_layerwise_casting_patterns,
        "tokenizers",
        "camera_embedding",
    ]
    _cp_plan = None  # the base's plan splits one sequence evenly; ours has two parts

    @register_to_config
    def __init__(
        self,
        patch_size: Kernel = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        source_kernel: Kernel = (1, 1, 1),
        memory_kernels: Sequence[Kernel] = ((1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 4, 4)),
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        dim, heads = num_attention_heads * attention_head_dim, num_attention_heads
        self.blocks = nn.ModuleList(
            MemoryWanTransformerBlock(dim, ffn_dim, heads, qk_norm, cross_attn_norm, eps, added_kv_proj_dim)
            for _ in range(num_layers)
        )
        self.tokenizers = nn.ModuleDict()
        for kernel in sorted({tuple(source_kernel), *(tuple(each) for each in memory_kernels)}):
            size: Any = tuple(k * p for k, p in zip(kernel, patch_size, strict=True))
            self.tokenizers[_name(kernel)] = nn.Conv3d(in_channels, dim, kernel_size=size, stride=size)
        self.camera_embedding = nn.Linear(12, dim)
        self.initialise_conditioning()

    @torch.no_grad()
    def initialise_conditioning(self) -> None:
        """Start the tokenizers as the base patch embedding of the average-pooled latent, and the cameras at zero.

        Each base weight is repeated over the block it now covers and divided by the block's size.
        """
        base: Any = self.patch_embedding
        tokenizer: Any
        for name, tokenizer in self.tokenizers.items():
            weight: torch.Tensor = base.weight
            for axis, multiple in enumerate(_kernel(name)):
                weight = weight.repeat_interleave(multiple, dim=2 + axis) / multiple
            tokenizer.weight.copy_(weight)
            tokenizer.bias.copy_(base.bias)
        nn.init.zeros_(self.camera_embedding.weight)
        nn.init.zeros_(self.camera_embedding.bias)

    @classmethod
    def from_base(cls, base: WanTransformer3DModel, **config: Any) -> MemoryWanTransformer3DModel:
        """A memory model on a copy of a base model's weights; `config` overrides our own entries of the configuration.

        The base and this class must differ by exactly the new parameters; anything else raises ValueError.
        """
        known = {key: value for key, value in base.config.items() if not key.startswith("_")}
        model = cls(**{**known, **config})
        # assigned, not copied into place: a base in half precision keeps some of its modules in float32
        weights = {name: value.clone() for name, value in base.state_dict().items()}
        loaded = model.load_state_dict(weights, strict=False, assign=True)
        missing = {key for key in loaded.missing_keys if not key.startswith(("tokenizers.", "camera_embedding."))}
        if missing or loaded.unexpected_keys:
            raise ValueError(
                f"base model does not fit: missing {sorted(missing)}, unexpected {sorted(loaded.unexpected_keys)}; "
                "expected exactly the parameters of diffusers' WanTransformer3DModel"
            )
        model.tokenizers.to(base.dtype)
        model.camera_embedding.to(base.dtype)
        model.initialise_conditioning()
        return model

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        *,
        source: ConditioningVideo | None = None,
        memories: Sequence[ConditioningVideo] = (),
        target_poses: torch.Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """One prediction for the noisy target.

        hidden_states (B, C, T, H, W); timestep (B,) = 1000 sigma; encoder_hidden_states (B, L, text_dim); source and
        memories as described at `ConditioningVideo`, memories most relevant first; target_poses (B, T, 3, 4).
        The other arguments are the base's. Returns a sample of the target's shape (channels: out_channels).
        """
        if source is None and not memories and target_poses is None:
            return super().forward(
                hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image, return_dict
            )
        target, rotary = self._embed(hidden_states, None, 0, target_poses)
        parts, rotaries = [target], [rotary]
        span = hidden_states.shape[2] // self.config.patch_size[0]
        for video, kernel, offset in self._places(source, memories, span):
            tokens, rotary = self._embed(video.latent, kernel, offset, video.poses)
            parts.append(tokens)
            rotaries.append(rotary)
        sequence = torch.cat(parts, dim=1)
        rotary = (torch.cat([cos for cos, _ in rotaries], dim=1), torch.cat([sin for _, sin in rotaries], dim=1))

        temb, modulation, text, image = self.condition_embedder(
            timestep, encoder_hidden_states, encoder_hidden_states_image
        )
        if image is not None:
            text = torch.cat([image, text], dim=1)
        modulation = modulation.unflatten(1, (6, -1))
        clean = None
        if len(parts) > 1:
            _, clean, _, _ = self.condition_embedder(torch.zeros_like(timestep), encoder_hidden_states)
            clean = clean.unflatten(1, (6, -1))
        for block in self.blocks:
            arguments = (sequence, text, modulation, rotary, clean, target.shape[1])
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                sequence = self._gradient_checkpointing_func(block, *arguments)
            else:
                sequence = block(*arguments)

        shift, scale = (self.scale_shift_table.to(temb.device) + temb.unsqueeze(1)).chunk(2, dim=1)
        target = sequence[:, : target.shape[1]]
        target = (self.norm_out(target.float()) * (1 + scale) + shift).type_as(target)
        output = self._unpatchify(self.proj_out(target), hidden_states.shape)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def kernel_of(self, rank: int) -> Kernel:
        """The tokenizer of the memory at this rank, 0 the most relevant, in multiples of the base patch."""
        kernels = self.config.memory_kernels
        return tuple(kernels[min(rank, len(kernels) - 1)])

    def _places(self, source, memories, span):
        """(video, kernel, first temporal position) of each conditioning video, in the order of the sequence.

        The published ranges, in target tokens: target 0..T-1, source T..2T-1, all memories share 2T..3T-1.
        """
        if source is not None:
            yield source, tuple(self.config.source_kernel), span
        for rank, memory in enumerate(memories):
            yield memory, self.kernel_of(rank), 2 * span

    def _embed(
        self, latent: torch.Tensor, kernel: Kernel | None, offset: int, poses: torch.Tensor | None
    ) -> tuple[torch.Tensor, Rotary]:
        """Tokens (B, tokens, D) of one video and their rotary factors; `kernel` None is the base's own embedding."""
        embedding: Any = self.patch_embedding if kernel is None else self.tokenizers[_name(kernel)]
        grid = embedding(pad_to(latent, embedding.kernel_size))
        if poses is not None:
            # A token that spans several latent frames takes their mean pose, which for a linear layer is the mean of
            # the embeddings; frames added by padding repeat the last pose as they repeat the last picture.
            size = embedding.kernel_size[0]
            padded = torch.cat([poses, poses[:, -1:].expand(-1, -poses.shape[1] % size, -1, -1)], dim=1)
            mean = padded.flatten(2).unflatten(1, (-1, size)).mean(dim=2)
            camera = self.camera_embedding(mean.to(grid.dtype))
            grid = grid + camera.transpose(1, 2)[..., None, None]
        rotary = self._rotary(grid.shape[2:], kernel or (1, 1, 1), offset, grid.device)
        return grid.flatten(2).transpose(1, 2).contiguous(), rotary

    def _rotary(self, grid: Sequence[int], kernel: Kernel, offset: int, device: torch.device) -> Rotary:
        """Factors (1, tokens, 1, head dim) at the tokens' centres, in units of the base patch.

        A coarse token sits at the centre of the patches it covers: averaging their factors would not be a rotation.
        On integers this equals the base's table.
        """
        dims = (self.rope.t_dim, self.rope.h_dim, self.rope.w_dim)
        factors: list[list[torch.Tensor]] = [[], []]
        for axis, (count, multiple, dim) in enumerate(zip(grid, kernel, dims, strict=True)):
            centres = torch.arange(count, dtype=torch.float64, device=device) * multiple + (multiple - 1) / 2
            if axis == 0:
                centres += offset
            pair = get_1d_rotary_pos_embed(
                dim, centres, use_real=True, repeat_interleave_real=True, freqs_dtype=torch.float64
            )
            shape = [-1 if each == axis else 1 for each in range(3)]
            for into, table in zip(factors, pair, strict=True):
                into.append(table.view(*shape, dim).expand(*grid, dim))
        cos, sin = (torch.cat(each, dim=-1).reshape(1, math.prod(grid), 1, -1) for each in factors)
        return cos, sin

    def _unpatchify(self, tokens: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """(B, N, out_channels * patch) to (B, out_channels, T, H, W)."""
        patch = self.config.patch_size
        grid = [size // p for size, p in zip(shape[2:], patch, strict=True)]
        tokens = tokens.unflatten(2, (*patch, -1)).unflatten(1, grid)
        return tokens.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def pad_to(latent: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """Repeat the last frame, row and column of (B, C, T, H, W) until the kernel divides it."""
    t, h, w = (-size % k for size, k in zip(latent.shape[2:], kernel, strict=True))
    return F.pad(latent, (0, w, 0, h, 0, t), mode="replicate") if t or h or w else latent


def _name(kernel: Sequence[int]) -> str:
    return "x".join(map(str, kernel))


def _kernel(name: str) -> Kernel:
    t, h, w = map(int, name.split("x"))
    return t, h, w
