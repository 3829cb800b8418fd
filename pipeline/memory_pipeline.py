"""One edit: source video, cameras, prompt and memories in; an edited latent, or pictures, out.

    pipe = MemoryV2VPipeline.from_pretrained(folder)
    edit = pipe(source=frames, source_trajectory=still, target_trajectory=pan, memories=[...], generator=generator)
    edit.latents  # (C, T', H', W') float32: what becomes a memory
    pipe.decode(edit.latents)  # (T, H, W, 3) uint8

An edit is one segment of one video: there is no batch axis at this surface. All trajectories of a call share one frame
of reference, this segment's first source camera. Everything is a function of the inputs and the generator.

What diffusers' users know works here too: `load_lora_weights`, `enable_model_cpu_offload`,
`transformer.compile_repeated_blocks`, `transformer.set_attention_backend`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from .codec import PixelCodec, codec_of
from .memory_cache import MemoryCache
from .pixels import Codec
from .prompt import clean
from .spec import LEARNED, ModelSpec, compression_of, words_of
from .text_encoder import WordEncoder
from .trajectory import Trajectory, default_intrinsics
from .transformer import ConditioningVideo, MemoryWanTransformer3DModel

logger = logging.get_logger(__name__)


@dataclass
class MemoryVideo:
    """A past edit as the model sees it.

    latent: (C, T', H', W') normalised, any number of latent frames, picture size as the target's.
    trajectory: its camera relative to this segment's first source camera, one pose per frame; None without cameras.
    start: signed frames from this segment's first frame to the memory's first.
    preceding: this is the segment just before, which text models place nearer than other memories.
    source: like latent, of an edit that kept its source's camera, what it was made from. A model that copies leaves
        what has moved since; without it a later instruction on that camera may repeat what moved.
    """

    latent: torch.Tensor
    trajectory: Trajectory | None = None
    start: int = 0
    preceding: bool = False
    source: torch.Tensor | None = None


@dataclass
class MemoryV2VPipelineOutput(BaseOutput):
    """latents: (C, T', H', W') float32, the edit. frames: (T, H, W, 3) uint8, where pictures were asked for.

    cache_bytes: what the keys and values of conditioning and words took, with joint attention of words alone.
    rank_correlations: by merge point, of the memory frames' responsiveness between the first pass and each later one,
    where asked for; of cached attention.
    """

    latents: torch.Tensor
    frames: np.ndarray | None = None
    cache_bytes: int = 0
    rank_correlations: dict[int, list[float]] | None = None


class MemoryV2VPipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Memory-conditioned video-to-video editing with `MemoryWanTransformer3DModel`.

    Components: `vae` is a `PixelCodec` or an `AutoencoderKLWan`; `text_encoder` and `tokenizer` may be absent (then
    only the empty prompt is accepted). The remaining arguments are the model's own defaults and travel with it:
        prediction: what the transformer predicts, "velocity" (noise - sample) or "sample".
        num_inference_steps, shift, guidance_scale: of the sampler.
        segment_frames: frames of one edit. area: pixels of a frame the model is meant for.
        text_length: text tokens, padded with zeros as Wan does. trained_steps: 0 marks random weights.
        learned: which of LEARNED the weights were trained for; edits that need others are warned of.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    transformer: MemoryWanTransformer3DModel
    vae: PixelCodec | AutoencoderKLWan
    scheduler: FlowMatchEulerDiscreteScheduler
    text_encoder: Any
    tokenizer: Any

    def __init__(
        self,
        transformer: MemoryWanTransformer3DModel,
        vae: PixelCodec | AutoencoderKLWan,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoder: WordEncoder | UMT5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        prediction: str = "velocity",
        num_inference_steps: int = 50,
        shift: float = 5.0,
        guidance_scale: float = 5.0,
        segment_frames: int = 81,
        area: int = 480 * 832,
        text_length: int = 512,
        trained_steps: int = 0,
        learned: list[str] | tuple[str, ...] = LEARNED,
    ) -> None:
        super().__init__()
        if prediction not in ("velocity", "sample"):
            raise ValueError(f"prediction must be 'velocity' or 'sample', got {prediction!r}")
        if transformer.config.get("copied_videos") and prediction != "sample":
            raise ValueError(f"this transformer copies along rays and predicts the sample, got {prediction=}")
        self.register_modules(
            transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(
            prediction=prediction,
            num_inference_steps=num_inference_steps,
            shift=shift,
            guidance_scale=guidance_scale,
            segment_frames=segment_frames,
            area=area,
            text_length=text_length,
            trained_steps=trained_steps,
            learned=tuple(learned),
        )

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> MemoryV2VPipeline:
        """Diffusers' own, then bit-equal to the pipeline that was saved.

        Weights mapped from a file lie where its header happens to end, and matrix products on the CPU differ in their
        last bits with the alignment of their operands; so the weights move to memory of torch's own.
        """
        pipe = super().from_pretrained(*args, **kwargs)
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                for parameter in component.parameters():
                    if parameter.device.type == "cpu":
                        parameter.data = parameter.data.clone()
        return pipe

    # What the model takes.

    @property
    def num_timesteps(self) -> int:
        """Steps of the edit under way or last made, which diffusers' callbacks ask for."""
        return self._num_timesteps

    @property
    def codec(self) -> Codec:
        """The `vae` component behind the interface of codecs."""
        return codec_of(self.vae)

    @property
    def spec(self) -> ModelSpec:
        """The shapes it takes and its defaults."""
        words = words_of(self.tokenizer.get_vocab()) if isinstance(self.text_encoder, WordEncoder) else frozenset()
        return ModelSpec.of(self.config, self.transformer.config, compression_of(self.vae.config), words)

    def encode(self, frames: np.ndarray | torch.Tensor) -> torch.Tensor:
        """(T, H, W, 3) uint8 to the normalised latent (C, T', H', W') float32."""
        frames = _tensor(frames)
        self._check_frames(frames)
        return self.codec.encode(frames)

    def decode(self, latent: torch.Tensor) -> np.ndarray:
        """(C, T', H', W') to (T, H, W, 3) uint8."""
        return self.codec.decode(latent.to(self._execution_device)).numpy()

    # One edit.

    @torch.no_grad()
    def __call__(
        self,
        source: np.ndarray | torch.Tensor | None = None,
        source_trajectory: Trajectory | None = None,
        target_trajectory: Trajectory | None = None,
        prompt: str = "",
        negative_prompt: str | None = None,
        memories: Iterable[MemoryVideo] = (),
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        shift: float | None = None,
        frame_rate: float = 24.0,
        generator: torch.Generator | None = None,
        attention: str | None = None,
        merge: str | None = None,
        cache_dtype: torch.dtype | None = None,
        cache_device: torch.device | str | None = None,
        track_responsiveness: bool = False,
        attention_kwargs: dict[str, Any] | None = None,
        output_type: str = "latent",
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> MemoryV2VPipelineOutput:
        """Edit one segment.

        source: frames (T, H, W, 3) uint8 or their latent; None to generate without (then num_frames, height and width
            are needed; with a source they default to its own and may not differ from it).
        source_trajectory, target_trajectory: one camera per frame. A target camera makes this a camera task: then
            every memory needs a trajectory, and a source without one is taken to stand still at the origin. Without it
            only models that place tokens on rays look at cameras: the target has the source's.
        memories: most relevant first: rank decides the tokenizer.
        frame_rate: frames per second, for models whose positions know time in seconds.
        attention, merge: as of the transformer's forward; None for the model's own.
        cache_dtype, cache_device: where the keys and values of conditioning and words (with joint attention of words
            alone) live between steps; None for the model's.
            torch.float8_e4m3fn takes half of bfloat16, "cpu" none of the accelerator's memory. (Frames that a model
            copies from stay there, in float32.)
        track_responsiveness: measure `rank_correlations` of the output.
        attention_kwargs: {"scale": ...} of LoRA adapters.
        num_inference_steps, guidance_scale, shift: None for the model's own. The second, unguided pass is made only if
            guidance_scale > 1 and the negative prompt differs from the prompt, since equal passes cancel.
        output_type: "latent", or "np" for pictures as well.
        callback_on_step_end: called as (pipe, step, timestep, tensors); tensors it returns replace ours. It may set
            `pipe._interrupt`: no further step is made then; and `pipe._guidance_scale`, of the steps that follow
            (diffusers' SDCFGCutoffCallback does).
        Raises ValueError that says what was expected and what was given.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = self.config.guidance_scale if guidance_scale is None else guidance_scale
        shift = self.config.shift if shift is None else shift
        device, dtype = self._execution_device, self.transformer.dtype  # each looks at all modules: not per step
        if isinstance(memories, MemoryVideo):
            raise ValueError("memories must be a list of MemoryVideo, got one of them: put it into a list")
        memories = list(memories or ())  # it may be a generator, and is looked at twice
        self.check_inputs(
            source, source_trajectory, target_trajectory, prompt, negative_prompt, memories, steps, guidance, shift,
            frame_rate, generator, output_type, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        source_latent = self._source_latent(source)
        shape = self._target_shape(source_latent, num_frames, height, width)
        self._check_sizes(shape, source_trajectory, target_trajectory, memories)

        prompt_embeds, negative_prompt_embeds = self.encode_prompt(prompt), None
        if guidance > 1 and clean(prompt) != clean(negative_prompt or ""):
            negative_prompt_embeds = self.encode_prompt(negative_prompt or None)
        aspect = shape[3] / shape[2]
        camera = target_trajectory or source_trajectory
        lens = default_intrinsics(aspect) if camera is None else camera.intrinsics[0]
        if self.transformer.config.positions == "frustum" and target_trajectory is None:
            # Every token needs a ray. Without a target camera it is the source's own, or one that stands still.
            target_trajectory = source_trajectory or Trajectory.static(self._frames(shape[1]), lens)
        elif target_trajectory is None:
            source_trajectory, memories = None, [replace(each, trajectory=None) for each in memories]
        if target_trajectory is not None and source_trajectory is None and source_latent is not None:
            source_trajectory = Trajectory.static(self._frames_of(source_latent), lens)
        cache = MemoryCache(cache_dtype, cache_device, track_responsiveness)
        conditioning: dict[str, Any] = {
            "source": None,
            "memories": [self._conditioning(memory, lens, frame_rate, device, dtype) for memory in memories],
            "attention": attention,
            "merge": merge,
            "cache": cache,
            "attention_kwargs": attention_kwargs,
        }
        if source_latent is not None:
            video = MemoryVideo(source_latent, source_trajectory)
            conditioning["source"] = self._conditioning(video, lens, frame_rate, device, dtype)
        for name, known in self._view(target_trajectory, 0, frame_rate, device).items():
            conditioning[f"target_{name}"] = known
        latents = randn_tensor((1, *shape), generator=generator, device=device, dtype=torch.float32)
        timesteps = self.set_steps(steps, shift, device)
        self._num_timesteps = len(timesteps)
        self._interrupt, self._guidance_scale = False, guidance
        with self.progress_bar(total=len(timesteps)) as progress:
            for step, t in enumerate(timesteps):
                if self._interrupt:
                    break
                conditioning["paint"] = prompt_embeds if step + 1 == len(timesteps) else None
                latents, _ = self.denoise(
                    latents, step, prompt_embeds, negative_prompt_embeds, self._guidance_scale, generator, conditioning
                )
                if callback_on_step_end is not None:
                    values: dict[str, Any] = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    asked = {name: values[name] for name in callback_on_step_end_tensor_inputs}
                    values |= callback_on_step_end(self, step, t, asked) or {}
                    latents, prompt_embeds = values["latents"], values["prompt_embeds"]
                    negative_prompt_embeds = values["negative_prompt_embeds"]
                progress.update()

        pictures = self.decode(latents[0]) if output_type == "np" else None
        self.maybe_free_model_hooks()
        return MemoryV2VPipelineOutput(
            latents=latents[0],
            frames=pictures,
            cache_bytes=cache.bytes,
            rank_correlations=cache.rank_correlations() if track_responsiveness else None,
        )

    def set_steps(self, steps: int, shift: float, device: torch.device | str | None = None) -> torch.Tensor:
        """The scheduler's timesteps (steps,) of an edit."""
        self.scheduler.set_shift(shift)
        # Explicit sigmas: left to itself this scheduler derives them from limits that are shifted already.
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1].tolist(), device=device)
        timesteps: torch.Tensor = self.scheduler.timesteps
        return timesteps

    def denoise(
        self,
        latents: torch.Tensor,
        step: int,
        words: torch.Tensor,
        away: torch.Tensor | None,
        guidance: float,
        generator: torch.Generator | None,
        conditioning: dict[str, Any],
    ) -> tuple[torch.Tensor, Any]:
        """One of the steps that `set_steps` has set. latents (B, C, T, H, W) float32; words (B, L, text width), and
        away, like these, for a second pass where guidance is above 1; conditioning: the transformer's other arguments.
        Returns latents in less noise, and what the transformer said."""
        t = self.scheduler.timesteps[step]
        noisy = (latents.to(words.dtype), t.expand(len(latents)))
        guided = away is not None and guidance > 1
        asked = conditioning | {"generator": generator}
        output: Any = self.transformer(*noisy, words, raw=guided, **asked)
        if guided:
            output = self.transformer(*noisy, away, toward=(output, guidance), **asked)
        prediction = output.sample.float()
        if self.config.prediction == "sample":
            prediction = (latents - prediction) / self.scheduler.sigmas[step]
        return self.scheduler.step(prediction, t, latents, generator=generator, return_dict=False)[0], output

    def encode_prompt(self, prompt: str | None | Sequence[str | None]) -> torch.Tensor:
        """(prompts, text_length, text width): the encoder's states, then zeros, as Wan pads its text.

        None is a prompt that is not known, the unguided side of guidance. Published encoders read it as an empty one;
        to that of `mini` an empty one asks for no change.
        """
        given = [prompt] if prompt is None or isinstance(prompt, str) else prompt
        prompts = [each or "" for each in given]
        length, device = self.config.text_length, self._execution_device
        dtype = self.transformer.dtype
        if self.text_encoder is None:
            return torch.zeros(len(prompts), length, self.transformer.config.text_dim, device=device, dtype=dtype)
        tokens = self.tokenizer([clean(each) for each in prompts]).input_ids
        for each, own in zip(prompts, tokens, strict=True):
            if len(own) > length:
                logger.warning(f"the prompt has {len(own)} tokens, only the first {length} are read: {each!r}")
        # One call whatever the prompts are: processes that share a model's parameters must all make it.
        longest = max(1, *(min(len(each), length) for each in tokens))
        padding = self.tokenizer.pad_token_id or 0
        # The mark of the end stays at the end, as published tokenizers cut.
        end = getattr(self.tokenizer, "eos_token_id", None)
        tokens = [each[: length - 1] + [end] if len(each) > length and each[-1] == end else each for each in tokens]
        ids = torch.tensor([(each + [padding] * longest)[:longest] for each in tokens], device=device)
        mask = torch.tensor([[int(place < len(each)) for place in range(longest)] for each in tokens], device=device)
        said = self.text_encoder(ids, attention_mask=mask).last_hidden_state
        states = torch.nn.functional.pad(said * mask[..., None], (0, 0, 0, length - longest))
        if getattr(self.text_encoder.config, "empty_prompt", False):
            empty = [each is not None and not own for each, own in zip(given, tokens, strict=True)]
            states = torch.where(torch.tensor(empty, device=device)[:, None, None], said[:, :1], states)
        return states.to(dtype)

    def check_inputs(
        self,
        source: Any,
        source_trajectory: Trajectory | None,
        target_trajectory: Trajectory | None,
        prompt: str,
        negative_prompt: str | None,
        memories: Sequence[MemoryVideo],
        steps: int,
        guidance: float,
        shift: float,
        frame_rate: float,
        generator: torch.Generator | None,
        output_type: str,
        callback_tensors: Sequence[str],
    ) -> None:
        """Raise ValueError, saying expected and got, unless the call makes sense, as far as that can be told before
        anything is encoded."""
        if not isinstance(steps, Integral) or steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, a whole number, got {steps!r}")
        for name, number in (("frame_rate", frame_rate), ("shift", shift)):
            if not isinstance(number, Real) or not 0 < number < math.inf:
                raise ValueError(f"{name} must be positive, got {number!r}")
        if not isinstance(guidance, Real) or not math.isfinite(guidance):
            raise ValueError(f"guidance_scale must be a number, got {guidance!r}")
        if output_type not in ("latent", "np"):
            raise ValueError(f"output_type must be 'latent' or 'np', got {output_type!r}")
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt or "")):
            if not isinstance(text, str):
                raise ValueError(f"{name} must be one string, got {type(text).__name__}")
            if clean(text) and self.text_encoder is None:
                raise ValueError(f"this model has no text encoder and takes only an empty {name}, got {text!r}")
        if not isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(
                f"the scheduler must be a FlowMatchEulerDiscreteScheduler, got {type(self.scheduler).__name__}"
            )
        for rank, memory in enumerate(memories):
            if not isinstance(memory, MemoryVideo):
                kind = type(memory).__name__
                raise ValueError(f"memory {rank} must be a MemoryVideo, got {kind}: MemoryVideo(latent, trajectory)")
            if not isinstance(memory.start, Real) or not math.isfinite(memory.start):
                raise ValueError(f"memory {rank} starts at {memory.start!r}, expected frames from the target's first")
        paths = {"source_trajectory": source_trajectory, "target_trajectory": target_trajectory}
        paths |= {f"trajectory of memory {rank}": memory.trajectory for rank, memory in enumerate(memories)}
        for name, trajectory in paths.items():
            if not isinstance(trajectory, Trajectory | None):
                kind = type(trajectory).__name__
                raise ValueError(
                    f"{name} must be a Trajectory, got {kind}: Trajectory(c2w, intrinsics), or "
                    "preset(name, frames, intrinsics)"
                )
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(
                f"generator must be a torch.Generator, got {type(generator).__name__}: torch.Generator().manual_seed(0)"
            )
        if not isinstance(source, np.ndarray | torch.Tensor | None):
            raise ValueError(
                "source must be an array or a tensor, frames (T, H, W, 3) uint8 or a latent, got "
                f"{type(source).__name__}"
            )
        if unknown := set(callback_tensors) - set(self._callback_tensor_inputs):
            raise ValueError(f"callbacks may ask for {self._callback_tensor_inputs}, got {sorted(unknown)}")
        if source_trajectory is not None and source is None:
            raise ValueError("source_trajectory was given without a source")

    # Inside.

    def _check_sizes(
        self,
        shape: tuple[int, int, int, int],
        source_trajectory: Trajectory | None,
        target_trajectory: Trajectory | None,
        memories: Sequence[MemoryVideo],
    ) -> None:
        """As `check_inputs`, of what must fit the target's latent of this shape."""
        frames = self._frames(shape[1])
        for name, trajectory in (("source", source_trajectory), ("target", target_trajectory)):
            if trajectory is not None and len(trajectory) != frames:
                raise ValueError(f"{name}_trajectory needs one camera per frame, {frames}, got {len(trajectory)}")
        for rank, memory in enumerate(memories):
            name = f"memory {rank}"
            self._check_latent(name, memory.latent)
            size = tuple(memory.latent.shape[2:])
            if memory.source is not None:
                self._check_latent(f"source of {name}", memory.source)
                if memory.source.shape != memory.latent.shape:
                    raise ValueError(
                        f"source of {name} must be like its latent, {tuple(memory.latent.shape)}, got "
                        f"{tuple(memory.source.shape)}"
                    )
            if size != tuple(shape[2:]):
                raise ValueError(
                    f"{name} must have the target's latent size {tuple(shape[2:])}, got {size}: "
                    "memories of another resolution are not supported"
                )
            if memory.trajectory is None and target_trajectory is not None:
                raise ValueError(f"{name} has no trajectory, but with a target camera every memory needs one")
            own = self._frames_of(memory.latent)
            if memory.trajectory is not None and len(memory.trajectory) != own:
                raise ValueError(f"{name} needs one camera per frame, {own}, got {len(memory.trajectory)}")

    def _source_latent(self, source: np.ndarray | torch.Tensor | None) -> torch.Tensor | None:
        if source is None:
            return None
        source = _tensor(source)
        if source.dtype == torch.uint8:
            frames = self.spec.frames_for(len(source))
            if frames != len(source):
                raise ValueError(f"the model takes {frames} frames, got a source of {len(source)}: pad or cut it first")
            return self.encode(source)
        self._check_latent("source", source)
        return source

    def _target_shape(
        self, source: torch.Tensor | None, num_frames: int | None, height: int | None, width: int | None
    ) -> tuple[int, int, int, int]:
        """(C, T', H', W') of the target; a source and the given sizes must agree."""
        asked = (num_frames, height, width)
        sizes: Any
        if source is not None:
            scale = self.codec.spatial_compression
            sizes = (self._frames_of(source), source.shape[2] * scale, source.shape[3] * scale)
            if any(given not in (None, own) for given, own in zip(asked, sizes, strict=True)):
                raise ValueError(f"num_frames, height and width must be the source's {sizes} or None, got {asked}")
        elif None in asked:
            raise ValueError(f"without a source num_frames, height and width are needed, got {asked}")
        else:
            sizes = asked
        frames, rows, columns = sizes
        multiple, codec = self.spec.size_multiple, self.codec
        if rows % multiple or columns % multiple or min(rows, columns) < 1:
            raise ValueError(f"height and width must be multiples of {multiple}, got {rows}x{columns}")
        if frames != self.spec.frames_for(frames):
            raise ValueError(
                f"the model takes {self.spec.frames_for(frames)} frames, got {frames}: pad or cut the clip"
            )
        time, scale = codec.temporal_compression, codec.spatial_compression
        return codec.channels, 1 + (frames - 1) // time, rows // scale, columns // scale

    def _check_frames(self, frames: torch.Tensor) -> None:
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            raise ValueError(f"frames must be (T, H, W, 3) uint8, got {tuple(frames.shape)} {frames.dtype}")
        scale = self.codec.spatial_compression
        if frames.shape[1] % scale or frames.shape[2] % scale:
            raise ValueError(f"the codec takes sizes in multiples of {scale}, got {frames.shape[1]}x{frames.shape[2]}")

    def _check_latent(self, name: str, latent: torch.Tensor) -> None:
        if not isinstance(latent, torch.Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(latent).__name__}")
        if not latent.is_floating_point() or latent.ndim != 4 or latent.shape[0] != self.codec.channels:
            raise ValueError(
                f"{name} must be a floating-point latent ({self.codec.channels}, T', H', W'), or frames "
                f"(T, H, W, 3) uint8 where frames are allowed, got {tuple(latent.shape)} {latent.dtype}"
            )
        if not latent.isfinite().all():
            raise ValueError(f"{name} has values that are no finite numbers, expected a latent as `encode` makes them")

    def _frames(self, latent_frames: int) -> int:
        return 1 + self.codec.temporal_compression * (latent_frames - 1)

    def _frames_of(self, latent: torch.Tensor) -> int:
        return self._frames(latent.shape[1])

    def _conditioning(
        self, video: MemoryVideo, lens: np.ndarray, frame_rate: float, device: torch.device, dtype: torch.dtype
    ) -> ConditioningVideo:
        # A fresh copy even where nothing is converted: the alignment of foreign memory shows in a result's last bits.
        latent, source = (
            None if each is None
            else each[None].to(device, dtype, copy=True, memory_format=torch.contiguous_format)
            for each in (video.latent, video.source)
        )  # fmt: skip
        trajectory = video.trajectory
        if trajectory is None and self.transformer.config.positions == "frustum":
            trajectory = Trajectory.static(self._frames_of(video.latent), lens)
        view = self._view(trajectory, video.start, frame_rate, device)
        return ConditioningVideo(latent, **view, preceding=video.preceding, source=source)  # type: ignore[arg-type]

    def _view(
        self, trajectory: Trajectory | None, start: int, frame_rate: float, device: torch.device | str
    ) -> dict[str, torch.Tensor | None]:
        """Poses (1, T', 3, 4), intrinsics (1, T', 4) and times (1, T') in seconds of a video's latent frames: the
        camera of the last frame of every latent frame, as published (every 4th for Wan)."""
        if trajectory is None:
            return {"poses": None, "intrinsics": None, "times": None}
        every = self.codec.temporal_compression
        poses, intrinsics = (
            torch.tensor(each[::every], dtype=torch.float32, device=device)[None]
            for each in (trajectory.c2w, trajectory.intrinsics)
        )
        times = (start + torch.arange(0, len(trajectory), every, device=device)).float() / frame_rate
        return {"poses": poses, "intrinsics": intrinsics, "times": times[None]}


def _tensor(values: np.ndarray | torch.Tensor) -> torch.Tensor:
    """An array as a tensor of its own, since torch takes no negative strides and may write where numpy must not."""
    return torch.from_numpy(np.array(values, order="C")) if isinstance(values, np.ndarray) else values
