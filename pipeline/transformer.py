"""The Wan transformer that remembers: a noisy target that looks at a clean source and clean memories.

The *target* keeps the base model's own patch embedding, positions and modulation, so that without conditioning the
model is the stock `WanTransformer3DModel`, bit for bit. The *source* and the *memories* are each embedded by a
convolution whose kernel is a multiple of the base patch (Memory-V2V's dynamic tokenizers: coarser for the less
relevant), placed in their own range of rotary positions, and modulated as what they are, latents at timestep 0.

Letters in shapes: B batch, C channels, T latent frames, H W latent height and width, D width of the model,
N tokens of the target, M tokens of the conditioning, L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (diffusers looks it up here to reload us)
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.utils import apply_lora_scale
from torch import nn

from .agreement import Leaders, MadeUp, leading
from .blocks import MemoryWanTransformerBlock
from .cameras import over_token_frames, plucker, token_rays
from .conditioning import CHOICES, ConditioningVideo, check, choice
from .copying import Copying, Sight, sights
from .depths import Depths
from .details import STEPS, Details, painted
from .memory_cache import Keys, MemoryCache, once
from .merging import Compressor, fraction
from .outlines import Outlines, outlines_of
from .parallax import parallax
from .passes import Merging, Pass
from .positions import Rotary, frustum_places, frustum_rotary, grid_places, grid_rotary
from .remembered import remembered
from .surface import Met
from .tokenizers import Group, Kernel, Tokenizers, Tokens, Where, pad_to, unpatchify

# Parameters that a base model does not have.
NEW = (
    "tokenizers.",
    "role_embedding",
    "camera_embedding.",
    "compressor.",
    "copying.",
    "depths.",
    "details.",
    ".cam_encoder.",
    ".projector.",
)


@dataclass
class MemoryTransformerOutput(Transformer2DModelOutput):
    """sample (B, C, T, H, W): the prediction. Of a model that copies (see `copying`) also own, like the sample: what it
    makes up itself, and what it says of the copies, logits (B, T, V P + 1, h, w) and log_depths (B, T, P, h, w); and
    made_up: what of the sample is, where `copying` knows."""

    own: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    log_depths: torch.Tensor | None = None
    made_up: MadeUp | None = None

    def toward(self, other: MemoryTransformerOutput, scale: float) -> MemoryTransformerOutput:
        """All this and `scale` times the way to the other, in float32: guidance, where scale is above 1."""
        return MemoryTransformerOutput(
            **{name: value.float() + scale * (other[name].float() - value.float()) for name, value in self.items()}
        )


class MemoryWanTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` with a source, memories and cameras; the base's parameter names are unchanged.

    Beyond the base's arguments:
        source_kernel: tokenizer of the source, in multiples of the base patch (frames, rows, columns).
        memory_kernels: tokenizers of the memories by rank, most relevant first; the last entry repeats.
        roles: tell source and memories apart by a learned vector each, for models where they share tokenizer and range.
        attention: "cached": conditioning attends to conditioning only, and its keys and values serve every step.
            "joint": all attend to all, as published. A call may say otherwise.
        cameras: "extrinsics", the paper's linear layer of the 3x4 pose of each token's frames; "plucker", a linear
            layer of the token's own centre ray; "per_block", ReCamMaster's layer in every block.
        positions: "grid", the base's time, row and column; "frustum", points on camera rays (see `positions`), at
            `frustum_depths` (nearest, farthest) metres.
        ranges: of grid positions in time, in target lengths T. "forward": target 0, source or preceding segment T,
            (other) memories 2T, as published. "reversed": 0, -T, -2T, for a model that was trained on targets
            extended forward and now looks back.
        source: "tokens", or "channels" where the base takes the source beside the target in its input channels.
        source_modulation, source_camera: "target" gives the source tokens the target's timestep and camera (as
            ReCamMaster does); such a source cannot be cached.
        merge: what happens to memory frames of low responsiveness at the entries of the blocks at `merge_at`
            (fractions of the depth): "merge" them with a learnable compressor over `merge_kernel` tokens, "discard"
            them, or nothing. A call may say otherwise, but only a model configured to merge has a compressor. Memories
            that the target copies from (`copied_videos`) are left whole.
        copied_videos: how many conditioning videos, the source and then the first memories, the target may copy pixels
            from (see `copying`); 0 for a model without this. copied_points: depths of a ray at which it looks. Outside
            of training, what the frames of such a model's target make up agrees along rays (see `agreement`).
        depth_widths: of a model that copies, of the network that says how far away what the source and memories show is
            (see `depths`): in use they are looked up where the target's rays meet that; () for one without. depth_area:
            pixels that it looks at.
        detail_widths: of a model with depth_widths, of the network that paints what is made up beside a source (see
            `details`); () for one without. Untrained it knows no colours. detail_steps: in which it paints.
    New parameters: `tokenizers.<t>x<h>x<w>` (one per distinct kernel); `role_embedding` and `camera_embedding`, zero at
    first so that a base model is unchanged by them, or the blocks' `cam_encoder` and `projector`; `compressor`;
    `copying`; `depths`; `details`.
    """

    _no_split_modules = ["MemoryWanTransformerBlock"]
    _repeated_blocks = ["MemoryWanTransformerBlock"]
    _skip_layerwise_casting_patterns = [
        *WanTransformer3DModel._skip_layerwise_casting_patterns,
        "tokenizers",
        "camera_embedding",
        "cam_encoder",
        "copying",
        "depths",
        "details",
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
        roles: bool = False,
        attention: str = "cached",
        cameras: str = "extrinsics",
        positions: str = "grid",
        frustum_depths: tuple[float, float] = (1.0, 8.0),
        ranges: str = "forward",
        source: str = "tokens",
        source_modulation: str = "clean",
        source_camera: str = "own",
        merge: str = "off",
        merge_at: Sequence[float] = (1 / 3, 2 / 3),
        merge_kernel: tuple[int, int] = (2, 2),
        copied_videos: int = 0,
        copied_points: int = 3,
        depth_widths: Sequence[int] = (),
        depth_area: int = 48 * 48,
        detail_widths: Sequence[int] = (),
        detail_steps: int = STEPS,
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
        for name, choices in CHOICES.items():
            choice(name, self.config[name], choices)
        if not memory_kernels:
            raise ValueError("memory_kernels is empty, expected the kernels of memories by rank")
        if outside := [depth for depth in merge_at if not 0 <= depth < 1]:
            raise ValueError(f"merge_at has {outside[0]}, expected shares of the depth, at least 0 and below 1")
        if detail_steps < 2:  # an edit that keeps the camera leaves the first out
            raise ValueError(f"detail_steps must be at least 2, got {detail_steps}")
        dim, heads = num_attention_heads * attention_head_dim, num_attention_heads
        per_block = cameras == "per_block"
        self.blocks = nn.ModuleList(
            MemoryWanTransformerBlock(
                dim, ffn_dim, heads, qk_norm, cross_attn_norm, eps, added_kv_proj_dim, cameras=per_block
            )
            for _ in range(num_layers)
        )
        self.tokenizers = Tokenizers([source_kernel, *memory_kernels], patch_size, self.latent_channels, dim)
        self.role_embedding = nn.Parameter(torch.zeros(2, dim)) if roles else None
        if not per_block:
            self.camera_embedding = nn.Linear(6 if cameras == "plucker" else 12, dim)
        self.compressor = Compressor(dim, merge_kernel) if merge == "merge" else None
        self.copying = None
        if copied_videos:
            if positions != "frustum":
                raise ValueError(f"copied_videos needs the rays of positions='frustum', got positions={positions!r}")
            if source != "tokens" or source_camera != "own":
                raise ValueError(
                    "copied_videos needs a source beside the target, with its own camera: expected source='tokens' and "
                    f"source_camera='own', got {source=} and {source_camera=}"
                )
            self.copying = Copying(dim, patch_size, copied_videos, copied_points)
        looks = copied_videos and depth_widths
        self.depths = Depths(self.latent_channels, depth_widths, depth_area) if looks else None
        paints = looks and detail_widths
        self.details = Details(self.latent_channels, detail_widths, text_dim) if paints else None
        self.initialise_conditioning()

    @property
    def latent_channels(self) -> int:
        """Channels of one video's latent."""
        return self.config.in_channels // (2 if self.config.source == "channels" else 1)

    @property
    def merge_points(self) -> list[int]:
        """Blocks at whose entry memory is merged."""
        return sorted({round(depth * len(self.blocks)) for depth in self.config.merge_at})

    @torch.no_grad()
    def initialise_conditioning(self) -> None:
        """Start the new parameters so that a base model is unchanged by them (see each)."""
        base: Any = self.patch_embedding
        self.tokenizers.initialise(base)
        if self.role_embedding is not None:
            nn.init.zeros_(self.role_embedding)
        if self.config.cameras != "per_block":
            nn.init.zeros_(self.camera_embedding.weight)
            nn.init.zeros_(self.camera_embedding.bias)
        block: Any
        for block in self.blocks:
            block.initialise_cameras()
        if self.compressor is not None:
            self.compressor.initialise()
        if self.copying is not None:
            self.copying.initialise()
        if self.depths is not None:
            self.depths.initialise()
        if self.details is not None:
            self.details.initialise()

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
        missing = {key for key in loaded.missing_keys if not any(new in key for new in NEW)}
        if missing or loaded.unexpected_keys:
            raise ValueError(
                f"base model does not fit: missing {sorted(missing)}, unexpected {sorted(loaded.unexpected_keys)}; "
                "expected exactly the parameters of diffusers' WanTransformer3DModel"
            )
        for name in loaded.missing_keys:
            module, _, parameter = name.rpartition(".")
            getattr(model.get_submodule(module), parameter).data = model.get_parameter(name).to(base.dtype)
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
        target_intrinsics: torch.Tensor | None = None,
        target_times: torch.Tensor | None = None,
        cache: MemoryCache | None = None,
        attention: str | None = None,
        merge: str | None = None,
        merge_share: float | None = None,
        memory_kernels: Sequence[Kernel] | None = None,
        raw: bool = False,
        toward: tuple[MemoryTransformerOutput, float] | None = None,
        paint: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> MemoryTransformerOutput | tuple[torch.Tensor]:
        """One prediction for the noisy target.

        hidden_states (B, C, T, H, W); timestep (B,) = 1000 sigma; encoder_hidden_states (B, L, text_dim); source and
        memories as described at `ConditioningVideo`, memories most relevant first; target_poses (B, T, 3, 4),
        target_intrinsics (B, T, 4) and target_times (B, T) as theirs. The other arguments are the base's.
        cache: filled by its first call, and then read instead of source and memories, which may be given again or left
            out, but not be others. With joint attention it keeps no more than what no step changes, and they must be
            given again.
        merge_share, memory_kernels: training draws them at random; None for what the number of memories and the
            model's configuration say.
        raw: without copying, the sample what the model makes up itself.
        toward: for guidance, the output (raw will do) of a pass with other words, and a scale. What this pass says goes
            that far on the way from itself to the other, and copying comes after that.
        paint: of the last step of an edit, like encoder_hidden_states, the words by which what is made up is painted
            (see `details`) in noise of `generator`; None paints nothing. Nor is a batch painted in which some rows
            share their rays with the source and others do not.
        attention, merge: None for the model's own. With cached attention, source and memories may have fewer rows
            than the target, B = n * theirs, n targets for each one after another. If one row's camera is its source's,
            all look sources and memories up along their rays, as if no depths were known.
        Returns a `MemoryTransformerOutput`, its sample of the target's shape (channels: out_channels), or the sample in
        a tuple. Raises ValueError, saying expected and got.
        """
        config = self.config
        attention = choice("attention", attention or config.attention, CHOICES["attention"])
        merge = choice("merge", merge or config.merge, CHOICES["merge"])
        target_video = ConditioningVideo(hidden_states, target_poses, target_intrinsics, target_times)
        check(self, target_video, source, memories, attention, merge, cache)
        filled = cache is not None and cache.complete
        if cache is not None and not filled:
            cache.clear()
            cache.target, cache.attention = target_video, attention
            cache.shown = [*((source,) if source else ()), *memories]
        if config.source == "channels":
            put = partial(_beside, hidden_states, source)
            beside = once(cache, "beside", put)
            target_video = replace(target_video, latent=torch.cat([hidden_states, beside], dim=1))
            source = None
        if source is not None and config.source_camera == "target":
            source = replace(source, poses=target_poses, intrinsics=target_intrinsics)
        if not (source or memories or filled or target_poses is not None or config.positions == "frustum"):
            stock = super().forward(target_video.latent, timestep, encoder_hidden_states, encoder_hidden_states_image)
            output = MemoryTransformerOutput(sample=stock.sample)
            output = output if toward is None else output.toward(*toward)
            return output if return_dict else (output.sample,)

        place = partial(self._where, target_video, None, 0)
        where = once(cache, "where", place)
        target = self._tokens(target_video, None, where)
        text: Any
        # An edit's words and cameras come to the same at every step; images among the words are rare and not kept.
        keeps = cache is not None and encoder_hidden_states_image is None and self.config.added_kv_proj_dim is None
        if cache is not None and keeps:
            text = cache.text(encoder_hidden_states, partial(self._text_keys, encoder_hidden_states))
            encoder_hidden_states = encoder_hidden_states[:, :0]
        seen: list[Sight | Met | None] = []
        leaders: Leaders | None = None
        outlines: Outlines | None = None
        if self.copying is not None:
            videos = self._copied(source, memories, cache)
            if not raw and not self.training:  # there every frame is taught what it makes up, and all may be copied
                lead = partial(leading, target_video)
                leaders = once(cache, "leaders", lead)
                outline = partial(outlines_of, target_video, videos[0])
                outlines = once(cache, "outlines", outline)
            if not raw:
                look = partial(self._seen, target_video, videos, outlines)
                seen = once(cache, "seen", look)
        temb, modulation, embedded, image = self.condition_embedder(
            timestep, encoder_hidden_states, encoder_hidden_states_image
        )
        if not keeps:
            text = embedded if image is None else torch.cat([image, embedded], dim=1)
        joint = attention == "joint" and bool(source or memories)
        conditioning = None
        if (source or memories) and (joint or not filled):
            tokens = partial(self._conditioning, source, memories, hidden_states.shape[2], memory_kernels)
            conditioning = once(cache if joint else None, "conditioning", tokens)
        share = fraction(len(memories)) if merge_share is None else merge_share
        modulation = modulation.unflatten(1, (6, -1))
        clean = None
        if conditioning is not None:
            modulate = partial(self._clean_modulation, modulation)
            clean = once(cache, "clean", modulate)
        merges = conditioning is not None and any(group.merges for group in conditioning.groups)
        run = self._pass(text, modulation, clean, merge if merges and share else "off", share)
        if joint:
            assert conditioning is not None
            noisy = len(target)
            if source is not None and config.source_modulation == "target":
                noisy += math.prod(self._grid(source, tuple(config.source_kernel))[1])
            states = run.joint(target, conditioning, noisy, cache)
        else:
            states = run.cached(target, cache, conditioning)

        shift, scale = (self.scale_shift_table.to(temb.device) + temb.unsqueeze(1)).chunk(2, dim=1)
        states = (self.norm_out(states.float()) * (1 + scale) + shift).type_as(states)
        made = unpatchify(self.proj_out(states), config.patch_size, hidden_states.shape[2:])
        output = MemoryTransformerOutput(sample=made)
        if self.copying is not None:
            output = MemoryTransformerOutput(made, made, *self.copying.said(states, hidden_states.shape[2:]))
        if toward is not None:
            output = output.toward(*toward)
        if self.copying is not None and not raw:
            sigma = timestep / 1000
            said = (output.own, output.logits, output.log_depths)
            output.sample, output.made_up = self.copying(*said, hidden_states, sigma, seen, leaders, outlines)
            if paint is not None and self.details is not None and output.made_up is not None:
                soft, steps = output.sample.float(), self.config.detail_steps
                sample = painted(self.details, soft, output.made_up, paint, generator, steps)
                output.sample = sample.to(output.sample.dtype)
        return output if return_dict else (output.sample,)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Diffusers' own, whose arguments are `torch.compile`'s."""
        # A block is called alone, beside a cache, for its projections, with gradients and without, for several lengths:
        # at torch's limit of 8 variants it would run uncompiled without a word, or raise where fullgraph is asked for.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        super().compile_repeated_blocks(*args, **kwargs)

    def kernel_of(self, rank: int, kernels: Sequence[Kernel] | None = None) -> Kernel:
        """The tokenizer of the memory at this rank, 0 the most relevant, in multiples of the base patch."""
        kernels = self.config.memory_kernels if kernels is None else kernels
        return tuple(kernels[min(rank, len(kernels) - 1)])

    # Inside.

    def _places(
        self,
        source: ConditioningVideo | None,
        memories: Sequence[ConditioningVideo],
        span: int,
        kernels: Sequence[Kernel] | None = None,
    ) -> Iterator[tuple[ConditioningVideo, Kernel, int]]:
        """(video, kernel, first temporal position) of each conditioning video, in the order of the sequence.

        The published ranges, `span` = T target tokens long: target 0..T-1, source (or, in its absence, the preceding
        segment) T..2T-1, all other memories share 2T..3T-1.
        """
        if self.config.ranges == "reversed":
            span = -span
        if source is not None:
            yield source, tuple(self.config.source_kernel), span
        for rank, memory in enumerate(memories):
            near = memory.preceding and source is None
            yield memory, self.kernel_of(rank, kernels), span if near else 2 * span

    def _conditioning(
        self,
        source: ConditioningVideo | None,
        memories: Sequence[ConditioningVideo],
        frames: int,
        kernels: Sequence[Kernel] | None = None,
    ) -> Tokens:
        """The tokens of all conditioning; the source's come first. Never merged are those of the source and of what the
        target copies from: they say where in it to look."""
        span = frames // self.config.patch_size[0]
        whole = max(1, self.config.copied_videos)
        return Tokens.join(
            [
                self._tokens(video, kernel, self._where(video, kernel, offset), rank > 0, rank >= whole)
                for rank, (video, kernel, offset) in enumerate(
                    self._places(source, memories, span, kernels), start=int(source is None)
                )
            ]
        )

    def _copied(
        self, source: ConditioningVideo | None, memories: Sequence[ConditioningVideo], cache: MemoryCache | None
    ) -> list[ConditioningVideo | None]:
        """The videos that the target copies from, the source's place first; a cache keeps those it was filled with."""
        videos = [source, *memories][: self.config.copied_videos]
        return once(cache, "videos", lambda: videos)

    def _seen(
        self, target: ConditioningVideo, videos: Sequence[ConditioningVideo | None], outlines: Outlines | None
    ) -> list[Sight | Met | None]:
        """What of these videos the target may copy. In training all of their rays are looked along."""
        source, *memories = videos
        if self.depths is None or self.training or source is None or outlines is not None:
            return sights(target, [video and replace(video, surface=None) for video in videos], outlines)
        assert source.intrinsics is not None  # see conditioning.check
        if source.surface is None:
            source = replace(source, surface=parallax(self.depths(source.latent, source.intrinsics), source))
        known = [source]
        for memory in memories:
            assert memory is not None and memory.intrinsics is not None
            if memory.surface is None:
                memory = replace(memory, surface=remembered(self.depths, memory, known))
            known.append(memory)
        return sights(target, known, outlines)

    def _where(self, video: ConditioningVideo, kernel: Kernel | None, offset: int) -> Where:
        """Where the tokens of one video are, and what is added to them for its cameras."""
        config = self.config
        size, counts = self._grid(video, kernel)
        added: torch.Tensor | None = None
        cameras: torch.Tensor | None = None
        rays: Any = None
        if video.poses is not None and (config.cameras == "plucker" or config.positions == "frustum"):
            assert video.intrinsics is not None  # see conditioning.check
            with torch.autocast(video.poses.device.type, enabled=False):  # positions are never rounded
                rays = token_rays(video.poses, video.intrinsics, video.latent.shape[3:], size, counts)
        if video.poses is not None and config.cameras == "plucker":
            added = self.camera_embedding(plucker(*rays).to(video.latent.dtype))
        elif video.poses is not None:
            mean = over_token_frames(video.poses, size[0]).flatten(2)
            if config.cameras == "per_block":
                cameras = mean[:, :, None].expand(-1, -1, counts[1] * counts[2], -1).flatten(1, 2)
            else:
                added = self.camera_embedding(mean.to(video.latent.dtype))[:, :, None, None]
        if config.positions == "frustum":
            assert video.times is not None
            origins, directions = rays
            places = frustum_places(origins, directions, over_token_frames(video.times, size[0]).float())
        else:
            places = grid_places(counts, kernel or (1, 1, 1), offset, video.latent.device)
        return Where(places, added, cameras)

    def _tokens(
        self,
        video: ConditioningVideo,
        kernel: Kernel | None,
        where: Where,
        memory: bool = False,
        merges: bool = False,
    ) -> Tokens:
        """Tokens (B, tokens, D) of one video; `kernel` None is the base's own embedding. memory: it is one, not the
        source. merges: whether its frames may be merged."""
        embedding = self.patch_embedding if kernel is None else self.tokenizers.of(kernel)
        states = embedding(pad_to(video.latent, self._grid(video, kernel)[0]))
        frames, rows, columns = states.shape[2:]
        states = states.movedim(1, -1)  # (B, F, h, w, D)
        if self.role_embedding is not None and kernel is not None:
            states = states + self.role_embedding[int(memory)].to(states.dtype)
        if where.added is not None:
            states = states + where.added.to(states.dtype)
        return Tokens(
            states.flatten(1, 3).contiguous(), where.places, where.cameras, (Group(frames, rows, columns, merges),)
        )

    def _grid(self, video: ConditioningVideo, kernel: Kernel | None) -> tuple[list[int], list[int]]:
        """What a token of a video covers, and how many there are; both in frames, rows and columns."""
        # Not asked of the embedding, which an adapter may have wrapped.
        size = [each * part for each, part in zip(kernel or (1, 1, 1), self.config.patch_size, strict=True)]
        return size, [-(-length // each) for length, each in zip(video.latent.shape[2:], size, strict=True)]

    def _text_keys(self, states: torch.Tensor) -> Iterator[Keys]:
        """Keys and values of a text (B, L, text_dim) in the cross-attention of every block."""
        if (states == states[:, :1]).all():  # as of no words at all: to attend to equal ones is to attend to one
            states = states[:, :1]
        text = self.condition_embedder.text_embedder(states)
        nothing = (text[:, :0], text, None, None, None, 0, None, None, "text")
        return (self._call(block, *nothing) for block in self.blocks)

    def _rotary(self, places: torch.Tensor) -> Rotary:
        config = self.config
        if config.positions == "frustum":
            heads, head_dim = config.num_attention_heads, config.attention_head_dim
            return frustum_rotary(places, heads, head_dim, config.frustum_depths)
        return grid_rotary(places, (self.rope.t_dim, self.rope.h_dim, self.rope.w_dim))

    def _clean_modulation(self, like: torch.Tensor) -> torch.Tensor:
        """(1, 6, D): that of timestep 0, on the device and in the dtype of `like`."""
        embedder = self.condition_embedder
        clean = embedder.timesteps_proj(torch.zeros(1, device=like.device))
        clean = clean.to(next(embedder.time_embedder.parameters()).dtype)
        clean = embedder.time_proj(embedder.act_fn(embedder.time_embedder(clean).type_as(like)))
        return clean.unflatten(1, (6, -1))

    def _pass(self, text: Any, modulation: torch.Tensor, clean: torch.Tensor | None, merge: str, share: float) -> Pass:
        merging = Merging()
        if merge != "off":
            compressor = self.compressor if merge == "merge" else None
            merging = Merging(tuple(self.merge_points), share, compressor)
        return Pass(self.blocks, self._call, self._rotary, text, modulation, clean, merging)

    def _call(self, block: nn.Module, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)


def _beside(target: torch.Tensor, source: ConditioningVideo | None) -> torch.Tensor:
    """What goes beside the target's channels: the source, once for each target that shares it, or nothing."""
    if source is None:
        return torch.zeros_like(target)
    return source.latent.repeat_interleave(len(target) // len(source.latent), dim=0)
