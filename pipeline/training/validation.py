"""How good the averaged weights are, always on the same windows, noise and levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch

from .batch import Batch, Depths, Encode, collate
from .network import EVERY, beside, pictures
from .objective import corrupted, depths_off, weighted_error
from .recipe import Recipe
from .samples import TASKS, Corpus
from .softened import Softened, detail_error, softened
from .trainer import Trainer

LEVELS = (1.0, 0.6)  # sigma: from nothing but the conditioning, and with most of the layout still there
SEED = 71


def validation_batches(
    corpus: Corpus, encode: Encode, count: int = 4, every: int = 1, tokenizers: int = 2, depths: Depths | None = None
) -> list[Batch]:
    """`count` batches of every task that the clips allow; always the same ones, whatever is trained. tokenizers: as
    for `Corpus.draw`; the rest as for `collate`."""
    batches = []
    for number, task in enumerate(TASKS):
        if not corpus.shares[task]:
            continue
        for index in range(count):
            random = np.random.default_rng([SEED, number, index])
            batches.append(collate(corpus.draw(random, task, tokenizers), encode, every, depths))
    return batches


def validation_recipe(recipe: Recipe) -> Recipe:
    """What validation draws: one target per scene, memories always, nothing dropped, nothing foreign."""
    return replace(
        recipe, targets=1, memory_dropout=0.0, memory_dropout_text=0.0, source_dropout=0.0, text_dropout=0.0,
        foreign=0.0, memory_noise=0.0, camera_dropout=0.0, memories=min(recipe.memories, 3),
    )  # fmt: skip


@torch.no_grad()
def validate(trainer: Trainer, batches: Sequence[Batch], std: float) -> dict[str, float]:
    """Mean error of the clean latent's prediction, and PSNR in dB of pictures by task and level.

    std: grey levels (of 1) per unit of the latent. Keys: `validation_loss`; `psnr_<task>_<level>`;
    `memory_gain_<task>`: dB at level 1 with memories over without; `depths_off`: by how much what is said of them is
    off in the mean over all that are known, in log metres, where that is trained; `details_off`: the error of painted
    details, likewise; these alone where nothing else is.
    """
    errors: dict[str, list[float]] = {}
    alone: dict[str, list[float]] = {}  # the same batches at level 1 without their memories
    off: list[float] = []
    details: list[float] = []
    device = next(iter(trainer.parameters.values())).device
    with trainer.averaged():
        for index, stored in enumerate(batches):
            batch = stored.to(device)
            if trainer.surface and batch.depths is not None and (known := ~batch.depths[:, ::EVERY].isnan()).any():
                surface = beside(trainer.network, batch, surface=True).surface
                assert surface is not None  # it was asked for
                off.append(float(depths_off(surface, batch.depths).abs().sum() / known.sum()))
            if trainer.details:
                seen = pictures(stored.to("cpu"))
                soft = softened(seen, torch.Generator().manual_seed(SEED + index))
                soft = Softened(*(each.to(device) for each in soft))
                painted = beside(trainer.network, batch, soft=soft).details
                assert painted is not None  # as before
                details.append(float(detail_error(painted, seen.clean.to(device), soft).mean()))
            if trainer.alone:  # nothing else changes
                continue
            noise = torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(SEED + index)).to(device)
            for level in LEVELS:
                error = _error(trainer, batch, noise, level)
                errors.setdefault(f"{batch.draw.task}_{level:g}", []).append(error)
            if batch.memories and batch.source is not None:
                bare = replace(batch, memories=(), draw=replace(batch.draw, merge_share=None))
                alone.setdefault(batch.draw.task, []).append(_error(trainer, bare, noise, 1.0))
    means = {name: fmean(values) for name, values in errors.items()}
    result = {"validation_loss": fmean(means.values())} if means else {}
    for name, error in means.items():
        result[f"psnr_{name}"] = -10 * math.log10(max(error * std**2, 1e-10))
    for task, values in alone.items():
        result[f"memory_gain_{task}"] = 10 * math.log10(fmean(values) / means[f"{task}_1"])
    if off:
        result["depths_off"] = fmean(off)
    if details:
        result["details_off"] = fmean(details)
    return result


def _error(trainer: Trainer, batch: Batch, noise: torch.Tensor, level: float) -> float:
    """Mean squared error of the clean latent as the model sees it in noise of this level."""
    sigma = torch.full((len(noise),), level, device=noise.device)
    noisy = corrupted(batch.clean, noise, sigma)
    prediction = trainer.network(batch, noisy, sigma).sample
    if trainer.pipe.config.prediction == "velocity":
        prediction = noisy - level * prediction
    return float(weighted_error(prediction, batch.clean, None, 1.0).mean())
