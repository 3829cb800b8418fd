"""What edits of the model itself make up, beside what is truly there: from these `pipeline.details` learns what edits
get wrong (pictures that do without edits: see `softened`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from pipeline.memory_cache import MemoryCache

from .batch import Batch, Covered
from .network import Network
from .objective import noise_of
from .recipe import Recipe
from .validation import validation_recipe

OWN = 0.75  # of the steps learn from these, where they are asked for; the others from drawn parts
LEAST = 0.01  # a clip of which no more is made up is left out


def edits_recipe(recipe: Recipe) -> Recipe:
    """What edits are drawn by, and nothing else of a recipe: as in use, each with a source, with memories and without.

    Raises ValueError where it has neither camera turns nor instructions."""
    return replace(
        validation_recipe(Recipe()), batch=recipe.batch, camera=recipe.camera, text=recipe.text, onward=0.0, still=0.0,
        turned=0.0, real=recipe.real, memories=recipe.memories, memory_dropout=recipe.memory_dropout,
        memory_dropout_text=recipe.memory_dropout_text,
    )  # fmt: skip


def all_edited(network: Network, batches: Iterable[Batch], seed: int, kind: int) -> Iterator[Batch]:
    """The `edited` ones of batches; those of which nothing is made up are left out."""
    for number, batch in enumerate(batches):
        if (found := edited(network, batch, seed, number, 0, kind)) is not None:
            yield found


@torch.no_grad()
def edited(network: Network, batch: Batch, *state: int) -> Batch | None:
    """The targets of a batch, one a scene, as edits in use make them, but for painting and in the network's precision,
    and what is `covered` there by what they make up: frames that lead alone, and clips alone of which something is made
    up, None where none is. Without source and memories, which nobody looks at then. The network is in use (`eval`).
    state: numbers that say which noise."""
    pipe, device, instructions = network.pipe, batch.clean.device, batch.instructions
    generator, config = noise_of(device, *state), pipe.config
    latents = torch.randn(batch.clean.shape, generator=generator, device=device)
    conditioning = {"source": batch.source, "memories": batch.memories, "cache": MemoryCache(), **batch.view}
    with torch.autocast(device.type, network.precision, enabled=network.precision != torch.float32):
        words = pipe.encode_prompt(instructions)
        away = pipe.encode_prompt([None] * len(instructions)) if batch.draw.task == "text" else None
        for step in range(len(pipe.set_steps(config.num_inference_steps, config.shift, device))):
            latents, said = pipe.denoise(latents, step, words, away, config.guidance_scale, generator, conditioning)
    if (made_up := said.made_up) is None:
        return None
    rows = (made_up.share.flatten(1).mean(dim=1) > LEAST).nonzero()[:, 0].tolist()
    if not rows:
        return None
    frames = made_up.leaders.frames

    def some(clips: torch.Tensor) -> torch.Tensor:
        return clips[rows][:, :, frames].float()

    before = made_up.before
    return replace(
        batch,
        clean=some(batch.clean),
        plain=None if before is None else some(before),
        depths=None,
        view={name: None if value is None else value[rows][:, frames] for name, value in batch.view.items()},
        source=None,
        memories=(),
        instructions=tuple(instructions[row] for row in rows),
        scenes=tuple(batch.scenes[row] for row in rows),
        covered=Covered(some(latents), some(made_up.share)),
    )
