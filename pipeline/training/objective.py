"""Rectified flow: the noise a clean latent gets, and the loss of what the model makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from pipeline.memory_pipeline import MemoryV2VPipeline

from .batch import Batch
from .recipe import Recipe


def noise_levels(
    count: int, shift: float, spread: float, pure: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """sigma (count,) float32 in (0, 1]: sigmoid(N(0, spread) + log shift), or exactly 1 with probability `pure`.

    A sampler with `shift` steps through shift u / (1 + (shift - 1) u), which adds log shift to the logit of u.
    """
    logits = torch.randn(count, generator=generator) * spread + math.log(shift)
    whole = torch.rand(count, generator=generator) < pure
    return torch.where(whole, torch.ones(count), torch.sigmoid(logits))


def corrupted(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t = (1 - sigma) x_0 + sigma noise, sigma (B,) over (B, C, T, H, W)."""
    sigma = sigma.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * clean + sigma * noise


def weighted_error(
    prediction: torch.Tensor, wanted: torch.Tensor, changed: torch.Tensor | None, changed_weight: float
) -> torch.Tensor:
    """Mean squared error per row (B,), pixels of `changed` (B, 1, T, H, W) weighted against 1 elsewhere."""
    error = (prediction.float() - wanted).square()
    if changed is not None and changed_weight != 1:
        error = error * torch.where(changed, changed_weight, 1.0)
    return error.flatten(1).mean(1)


def predict(
    pipe: MemoryV2VPipeline,
    batch: Batch,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    *,
    attention: str | None = None,
    instructions: tuple[str, ...] | None = None,
    network: Any = None,
) -> torch.Tensor:
    """What the transformer says of `noisy` (B M, C, T, H, W); `network` stands for it where it is wrapped."""
    draw, config = batch.draw, pipe.transformer.config
    text = torch.cat([pipe.encode_prompt(each) for each in (instructions or batch.instructions)])
    kernels = None
    if draw.tokenizer is not None:
        distinct = tokenizers(pipe)
        kernels = [distinct[draw.tokenizer]]
    merge = None if draw.merge_share is not None else "off"
    if config.merge == "off":
        merge = None
    result = (network or pipe.transformer)(
        noisy,
        1000 * sigma,
        text.repeat_interleave(len(noisy) // len(text), dim=0),
        source=batch.source,
        memories=batch.memories,
        attention=attention,
        merge=merge,
        merge_share=draw.merge_share,
        memory_kernels=kernels,
        return_dict=False,
        **batch.view,
    )
    return result[0]


def tokenizers(pipe: MemoryV2VPipeline) -> list[Any]:
    """The model's distinct memory kernels, finest first."""
    return list(dict.fromkeys(tuple(each) for each in pipe.transformer.config.memory_kernels))


def loss(
    pipe: MemoryV2VPipeline,
    batch: Batch,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    changed_weight: float = 1.0,
    attention: str | None = None,
    network: Any = None,
) -> torch.Tensor:
    """The loss of every target, (B M,). Everything random comes from `generator`, on the CPU."""
    clean, device = batch.clean, batch.clean.device
    text = batch.draw.task == "text"
    pure = recipe.pure_noise_text if text else recipe.pure_noise
    sigma = noise_levels(len(clean), pipe.config.shift, recipe.spread, pure, generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    instructions = tuple(
        "" if torch.rand((), generator=generator) < recipe.text_dropout else each for each in batch.instructions
    )
    noisy = corrupted(clean, noise, sigma)
    prediction = predict(pipe, batch, noisy, sigma, attention=attention, instructions=instructions, network=network)
    wanted = clean if pipe.config.prediction == "sample" else noise - clean
    return weighted_error(prediction, wanted, batch.changed, changed_weight)


def noised(batch: Batch, most: float, generator: torch.Generator) -> Batch:
    """The batch with Gaussian noise on its memories, of a standard deviation drawn from 0 to `most` for each row."""
    memories = []
    for each in batch.memories:
        level = most * torch.rand(len(each.latent), 1, 1, 1, 1, generator=generator)
        noise = torch.randn(each.latent.shape, generator=generator) * level
        memories.append(replace(each, latent=each.latent + noise.to(each.latent)))
    return replace(batch, memories=tuple(memories))
