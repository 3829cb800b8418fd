"""Rectified flow: the noise a clean latent gets, and the loss of what the model makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.lookup import FARTHEST, NEAREST

from .batch import Batch, Covered
from .network import EVERY, Prediction, beside, pictures
from .recipe import Recipe
from .softened import Softened, detail_error, softened


def noise_of(device: torch.device | str, *state: int) -> torch.Generator:
    """The noise of a step or an edit, from numbers that say which."""
    seed = np.random.SeedSequence(state).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(seed[0]))


def noise_levels(
    count: int, shift: float, spread: float, pure: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """sigma (count,) float32 in (0, 1]: sigmoid(N(0, spread) + log shift), or exactly 1 with probability `pure`.

    A sampler with `shift` steps through shift u / (1 + (shift - 1) u), which adds log shift to the logit of u.
    """
    device = None if generator is None else generator.device
    logits = torch.randn(count, generator=generator, device=device) * spread + math.log(shift)
    whole = torch.rand(count, generator=generator, device=device) < pure
    return torch.where(whole, 1.0, torch.sigmoid(logits))


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


def depth_error(log_depths: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
    """How far the points of rays are from what the rays meet, in log metres, per row (B,): the nearest of a ray's
    points counts whole, so that others are free to try other depths, and the mean of all a tenth, so that none strays.

    log_depths (B, T, P, h, w), depths (B, T, H, W) as of a `Batch`; unknown ones count nothing."""
    # One pixel beside the middle of every cell: a mean over an edge would be the depth of nothing. A pixel's depth is
    # that of its first ray, at its upper left, so the lower right of the middle ones is the nearest.
    rows, columns = (have // want for have, want in zip(depths.shape[2:], log_depths.shape[3:], strict=True))
    wanted = depths[:, :, rows // 2 :: rows, columns // 2 :: columns]
    known = ~wanted.isnan()
    wanted = wanted.nan_to_num(1.0, posinf=FARTHEST).clamp(NEAREST, FARTHEST).log()
    off = (log_depths - wanted[:, :, None]).abs()
    return ((off.amin(2) + 0.1 * off.mean(2)) * known).flatten(1).mean(1)


def depths_off(log_depths: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
    """By how much `Prediction.surface` is off, like it, in log metres. depths (B M, T, H, W) as of a `Batch`; where
    nobody knows, 0."""
    wanted = depths[:, ::EVERY]
    off = log_depths - wanted.nan_to_num(1.0, posinf=FARTHEST).clamp(NEAREST, FARTHEST).log()
    return off.masked_fill(wanted.isnan(), 0.0)


def surface_error(log_depths: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
    """The mean of `depths_off` per row (B M,), and a quarter of that of its steps from a pixel to the next and the next
    but one: things end where they end."""
    off = depths_off(log_depths, depths)
    error = off.abs().flatten(1).mean(1)
    for far in (1, 2):
        for side in (2, 3):
            step = off.narrow(side, far, off.shape[side] - far) - off.narrow(side, 0, off.shape[side] - far)
            error = error + step.abs().flatten(1).mean(1) / 4
    return error


def varied(batch: Batch, generator: torch.Generator) -> Batch:
    """Half of the rows in a mirror, and half with their colours (the channels of pixels) changed round, if no
    instruction names any: where only networks beside the transformer are asked, as many more rooms. Source and memories
    stay, which nobody looks at then."""
    clean, depths, plain, covered = batch.clean, batch.depths, batch.plain, batch.covered
    lens = batch.view["target_intrinsics"]
    assert lens is not None  # who copies knows rays
    drawn: dict[str, Any] = {"generator": generator, "device": clean.device}
    mirrored, coloured = torch.rand(2, len(clean), 1, 1, 1, **drawn) < 0.5
    order = torch.randperm(clean.shape[1], **drawn)

    def mirror(clips: torch.Tensor) -> torch.Tensor:
        return torch.where(mirrored[..., None], clips.flip(-1), clips)

    def seen(clips: torch.Tensor) -> torch.Tensor:
        return mirror(clips if plain is not None else torch.where(coloured[..., None], clips[:, order], clips))

    clean = seen(clean)
    if covered is not None:
        covered = Covered(seen(covered.shown), mirror(covered.share))
    before = None if plain is None else mirror(plain.repeat_interleave(len(clean) // len(plain), dim=0))
    depths = None if depths is None else torch.where(mirrored, depths.flip(-1), depths)
    across = torch.tensor([1.0, 1.0, -1.0, 1.0], device=lens.device)
    beyond = torch.tensor([0.0, 0.0, 1.0, 0.0], device=lens.device)
    lens = torch.where(mirrored[..., 0], lens * across + beyond, lens)
    view = batch.view | {"target_intrinsics": lens}
    return replace(batch, clean=clean, plain=before, depths=depths, view=view, covered=covered)


def loss(
    network: Callable[..., Prediction],
    batch: Batch,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    shift: float,
    sample: bool,
    surface: bool = False,
    details: bool = False,
    alone: bool = False,
) -> torch.Tensor:
    """The loss of every target, (B M,). Everything random comes from `generator`, on the batch's device.

    network: a `Network`, or what wraps it. shift: the sampler's. sample: the network says the clean sample, else the
    velocity. surface: it says how far away things are, which is taught, too, where the data knows; details: it
    paints these, too; alone: nothing else is taught.
    """
    clean, device = batch.clean, batch.clean.device
    surface = surface and batch.depths is not None and recipe.depth_weight > 0
    if alone:
        if not (surface or details):
            raise ValueError(
                "tune=depths learns from depths, expected clips made with depth=true and depth_weight above 0"
            )
        batch = varied(batch, generator)
    details = details and (alone or recipe.detail_weight > 0)
    soft = None
    if details:
        soft = softened(pictures(batch), generator)
    if alone:  # each counts whole
        return _beside_error(beside(network, batch, surface=surface, soft=soft), batch, soft, 1.0, 1.0)
    text = batch.draw.task == "text"
    pure = recipe.pure_noise_text if text else recipe.pure_noise
    sigma = noise_levels(len(clean), shift, recipe.spread, pure, generator)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    given = (torch.rand(len(batch.instructions), generator=generator, device=device) >= recipe.text_dropout).tolist()
    instructions = tuple(each if kept else None for each, kept in zip(batch.instructions, given, strict=True))
    below = clean
    if batch.draw.guessed:
        guess = _guess(network, batch, noise, instructions, sample)
        # No further from the truth than what is sampled at this level may still be: at the end it is all but there.
        way = torch.rand(len(clean), generator=generator, device=device) * sigma
        below = torch.lerp(clean, guess, way.view(-1, 1, 1, 1, 1))
    noisy = corrupted(below, noise, sigma)
    prediction = network(batch, noisy, sigma, instructions, surface=surface, soft=soft)
    # From what lies under the noise to the noise, and the way from the truth to it made up for until sigma is 0.
    wanted = clean if sample else noise - below + (below - clean) / sigma.view(-1, 1, 1, 1, 1)
    changed = batch.changed if recipe.changed_weight != 1 else None
    error = weighted_error(prediction.sample, wanted, changed, recipe.changed_weight)
    if prediction.own is not None:
        # Where copying prevails, the mean teaches the model's own part nothing, and it would never learn what to put in
        # the place of what an instruction changes.
        error = error + recipe.own_weight * weighted_error(prediction.own, wanted, changed, recipe.changed_weight)
    if batch.depths is not None and prediction.log_depths is not None:
        error = error + recipe.depth_weight * depth_error(prediction.log_depths, batch.depths)
    return error + _beside_error(prediction, batch, soft, recipe.depth_weight, recipe.detail_weight)


def _beside_error(
    prediction: Prediction, batch: Batch, soft: Softened | None, depth_weight: float, detail_weight: float
) -> torch.Tensor:
    """(B M,): of the networks beside the transformer that were asked."""
    error = batch.clean.new_zeros(len(batch.clean))
    if prediction.surface is not None:
        assert batch.depths is not None  # see `loss`
        error = error + depth_weight * surface_error(prediction.surface, batch.depths)
    if prediction.details is not None:
        assert soft is not None  # as before
        off = detail_error(prediction.details, pictures(batch).clean, soft)
        error = error + detail_weight * off.unflatten(0, (len(batch.clean), -1)).mean(dim=1)
    return error


@torch.no_grad()
def _guess(
    network: Callable[..., Prediction],
    batch: Batch,
    noise: torch.Tensor,
    instructions: tuple[str | None, ...],
    sample: bool,
) -> torch.Tensor:
    """What the model makes of noise alone: where its sampling begins (before its frames agree: see `agreement`)."""
    said = network(batch, noise, torch.ones(len(noise), device=noise.device), instructions).sample
    return said if sample else noise - said


def noised(batch: Batch, most: float, generator: torch.Generator) -> Batch:
    """The batch with Gaussian noise on its memories, of a standard deviation drawn from 0 to `most` for each row."""
    memories = []
    for each in batch.memories:
        level = most * torch.rand(len(each.latent), 1, 1, 1, 1, generator=generator, device=generator.device)
        noise = torch.randn(each.latent.shape, generator=generator, device=generator.device) * level
        memories.append(replace(each, latent=each.latent + noise))
    return replace(batch, memories=tuple(memories))
