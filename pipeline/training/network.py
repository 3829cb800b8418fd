"""What is trained, as one module: one `forward` for whatever wraps it in distributed training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.memory_pipeline import MemoryV2VPipeline

from .batch import Batch
from .softened import Pictures, Softened

EVERY = 4  # frames of a target: of networks beside the transformer one of so many is asked, since they look alike


class Prediction(NamedTuple):
    """sample: what the transformer says of the noisy target, like it, float32. Of a model that copies along rays also
    own, like the sample: what it makes up itself, and log_depths (B M, T, P, h, w). surface (B M, F, H, W): what
    `pipeline.depths` says of the target without noise in one of EVERY frames. details: what `pipeline.details` makes of
    pictures, like them."""

    sample: torch.Tensor
    own: torch.Tensor | None = None
    log_depths: torch.Tensor | None = None
    surface: torch.Tensor | None = None
    details: torch.Tensor | None = None


class Network(nn.Module):
    """Text encoder and transformer of a pipeline, which stay the pipeline's own.

    precision: bfloat16 runs the matrix products in it, with
    weights, sums and positions in float32.
    """

    def __init__(self, pipe: MemoryV2VPipeline, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.transformer, self.text_encoder = pipe.transformer, pipe.text_encoder
        self.precision = precision
        self._pipe = (pipe,)  # in a tuple, since a pipeline is no module but would be looked through as one

    @property
    def pipe(self) -> MemoryV2VPipeline:
        return self._pipe[0]

    def forward(
        self,
        batch: Batch,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        instructions: Sequence[str | None] | None = None,
        surface: bool = False,
        soft: Softened | None = None,
    ) -> Prediction:
        """What the transformer says of `noisy` (B M, C, T, H, W) in noise of sigma (B M,); of none at all nothing.

        instructions: other words than the batch's own, one per scene; None where they are not known. surface: whether
        that is asked for, too. soft: what details are asked of.
        """
        known = self._surface(batch) if surface else None
        painted = None if soft is None else self._details(soft, batch)
        if not len(noisy):
            return Prediction(noisy, surface=known, details=painted)
        draw, config = batch.draw, self.transformer.config
        kernels = None if draw.tokenizer is None else [memory_kernels(self.pipe)[draw.tokenizer]]
        merge = None if draw.merge_share is not None or config.merge == "off" else "off"
        with torch.autocast(noisy.device.type, self.precision, enabled=self.precision != torch.float32):
            words = batch.instructions if instructions is None else instructions
            text = self.pipe.encode_prompt(words)
            result: Any = self.transformer(
                noisy,
                1000 * sigma,
                text.repeat_interleave(len(noisy) // len(text), dim=0),
                source=batch.source,
                memories=batch.memories,
                merge=merge,
                merge_share=draw.merge_share,
                memory_kernels=kernels,
                **batch.view,
            )
        if self.transformer.config.copied_videos:
            return Prediction(result.sample.float(), result.own.float(), result.log_depths, known, painted)
        return Prediction(result.sample.float())

    def _surface(self, batch: Batch) -> torch.Tensor:
        intrinsics = batch.view["target_intrinsics"]
        assert self.transformer.depths is not None and intrinsics is not None  # who copies knows rays
        with torch.autocast(batch.clean.device.type, self.precision, enabled=self.precision != torch.float32):
            found: torch.Tensor = self.transformer.depths(batch.clean[:, :, ::EVERY], intrinsics[:, ::EVERY])
        return found

    def _details(self, soft: Softened, batch: Batch) -> torch.Tensor:
        assert self.transformer.details is not None
        with torch.autocast(soft.noisy.device.type, self.precision, enabled=self.precision != torch.float32):
            # What words mean is learned by who makes edits of them.
            words = self.pipe.encode_prompt(batch.instructions).detach()
            words = words.repeat_interleave(len(soft.noisy) // len(words), dim=0)
            found: torch.Tensor = self.transformer.details(*soft[:-1], words, soft.sigma)
        return found


def beside(network: Callable[..., Prediction], batch: Batch, **asked: Any) -> Prediction:
    """What the networks beside the transformer say of what a `Network`, or what wraps one, is asked: the transformer
    itself is not."""
    nothing = batch.clean[:0]
    return network(batch, nothing, nothing.new_zeros(0), **asked)


def pictures(batch: Batch) -> Pictures:
    """One of EVERY frames of the targets, all of `edited` ones, N in all."""
    every = EVERY if batch.covered is None else 1

    def some(clips: torch.Tensor) -> torch.Tensor:
        return clips[:, :, ::every].transpose(1, 2).flatten(0, 1)

    plain, covered = batch.plain, batch.covered
    before = None if plain is None else some(plain.repeat_interleave(len(batch.clean) // len(plain), dim=0))
    return Pictures(some(batch.clean), before, None if covered is None else (some(covered.shown), some(covered.share)))


def memory_kernels(pipe: MemoryV2VPipeline) -> list[Any]:
    """The model's distinct memory kernels, finest first."""
    return list(dict.fromkeys(tuple(each) for each in pipe.transformer.config.memory_kernels))
