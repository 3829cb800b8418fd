"""`mini` from nothing, on one machine with one GPU and no other library than torch, diffusers and transformers.

    python -m pipeline.training.alone --out build/mini-gpu --config configs/mini-gpu.yaml --scenes 6000

The same training as `memory-v2v train`, on scenes that are rendered into the GPU's memory first. `--out` gets
`log.jsonl`, `checkpoint.pt`, from which the same command goes on, and `model/`, the averaged weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.clip import Clip
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.mini import build_mini
from pipeline.scenes import Filming

from .network import Network, memory_kernels
from .recipe import Recipe
from .rendered import Pool, Stage, described, developed, placed, rendered_batches, scene_clips
from .samples import Corpus
from .trainer import Trainer
from .validation import validate, validation_batches, validation_recipe

EVERY = 25  # steps whose mean makes a line of the log
HELD_OUT = 1 << 30  # seed of the first of the scenes that are for validation


@dataclasses.dataclass
class Setup:
    """What a configuration file may say beside the recipe; of the same meaning as for `memory-v2v train`."""

    model: str = "mini-gpu"
    height: int = 48
    width: int = 48
    seed: int = 0
    workers: int = 0
    precision: str = "float32"
    compile: bool = False
    validate_every: int = 500
    validation_batches: int = 4
    checkpoint_minutes: float = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML, as of `memory-v2v train`")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--edits", type=int, default=8, help="of each scene")
    parser.add_argument("--frames", type=int, default=48, help="of each clip")
    parser.add_argument("--renderers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes")
    parser.add_argument("--footage", metavar="DIR", help="real clips beside the scenes: see footage_clips")
    parser.add_argument("--begin", metavar="DIR", help="a model to begin from instead of random weights")
    parser.add_argument("--minutes", type=float, default=math.inf, help="that it may take: sets `steps`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings and recipe; they win")
    given = parser.parse_intermixed_args()
    values = said(given.config.read_text().splitlines(), ":") if given.config else {}
    values |= said(given.overrides, "=")
    names = {each.name for each in dataclasses.fields(Setup)}
    known = names | {each.name for each in dataclasses.fields(Recipe)}
    if unknown := sorted(set(values) - known):
        parser.error(f"unknown settings {unknown}, expected some of {sorted(known)}")
    setup = Setup(**{key: value for key, value in values.items() if key in names})
    recipe = Recipe(**{key: value for key, value in values.items() if key not in names})
    run(given, setup, recipe)


def said(lines: Sequence[str], between: str) -> dict[str, Any]:
    """Settings by name, of lines like `steps: 100  # comment`: all that a flat YAML file needs."""
    values: dict[str, Any] = {}
    for line in lines:
        key, found, value = line.partition("#")[0].partition(between)
        if found:
            try:
                values[key.strip()] = json.loads(value)
            except ValueError:
                values[key.strip()] = value.strip()
    return values


def run(given: argparse.Namespace, setup: Setup, recipe: Recipe) -> None:
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    if given.begin:
        pipe = MemoryV2VPipeline.from_pretrained(given.begin)
    else:
        pipe = build_mini(setup.seed, size=setup.model.removeprefix("mini-"))
    pipe.to(device)
    if setup.compile:
        torch._dynamo.config.recompile_limit = 64  # as in actors/training.py: a block is called in many ways
        pipe.transformer.compile_repeated_blocks(dynamic=True)
    network = Network(pipe, None, getattr(torch, setup.precision))
    trainer = Trainer(network, recipe, setup.seed)
    begun = pipe.config.trained_steps
    checkpoint = given.out / "checkpoint.pt"
    given.out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        trainer.load_state_dict(torch.load(checkpoint, map_location=device, weights_only=True))
        if trainer.step >= recipe.steps:
            print(f"nothing to do: {trainer.step} steps are taken already; for more of them set steps", file=sys.stderr)
            return
    log = (given.out / "log.jsonl").open("a")

    def write(figures: dict[str, Any]) -> None:
        line = {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in figures.items()}
        print(json.dumps({"minutes": round((time.monotonic() - began) / 60, 2), **line}), file=log, flush=True)

    def save() -> None:
        part = checkpoint.with_suffix(".part")
        torch.save(trainer.state_dict(), part)
        part.replace(checkpoint)
        with trainer.averaged():
            pipe.register_to_config(trained_steps=begun + trainer.step, area=setup.height * setup.width)
            pipe.save_pretrained(given.out / "model")

    length, vae = pipe.config.segment_frames, pipe.vae.config
    filming = Filming(
        setup.height, setup.width, given.frames, cameras=4, edits=given.edits, edited_cameras=1,
        rates=(6.0, 12.0, 24.0), channels=("depth",), samples=2, licence="CC0-1.0",
    )  # fmt: skip
    stage = Stage(
        filming, recipe, length, pipe.spec.frames_for(1), len(memory_kernels(pipe)), setup.seed, device, given.footage
    )

    def pool(clips: int) -> Pool:
        return Pool(clips, filming, device, vae.mean, vae.std)

    held_out = _validation(stage, pool, 24, setup.validation_batches) if setup.validation_batches else []
    batches = rendered_batches(
        stage,
        range(given.scenes),
        given.renderers,
        trainer.step,
        pool,
        lambda done: write({"rendered": done}) if done % 500 == 0 or done == given.scenes else None,
    )
    saved = mark = time.monotonic()
    sums: dict[str, float] = {}
    targets = 0
    for batch in batches:
        for name, value in trainer.train_step(batch).items():
            sums[name] = sums.get(name, 0.0) + value / EVERY
        targets += len(batch.clean)
        now = time.monotonic()
        if trainer.step % EVERY == 0:
            speed = EVERY / (now - mark)
            if given.minutes < math.inf:  # as many steps as there is time for, so that the rates fall to nothing
                left = 60 * given.minutes - (now - began)
                trainer.recipe = dataclasses.replace(recipe, steps=max(1, trainer.step + round(speed * left)))
            line = {"step": trainer.step, "steps": trainer.recipe.steps, **sums, "targets": targets}
            write({**line, "steps_per_s": speed})
            sums, mark = {}, now
        last = trainer.step >= trainer.recipe.steps or now - began > 60 * given.minutes
        paused = time.monotonic()
        if held_out and (trainer.step % setup.validate_every == 0 or last):
            write({"step": trainer.step, **validate(trainer, held_out, vae.std)})
        if last or now - saved > 60 * setup.checkpoint_minutes:
            save()
            saved = now
        if last:
            break
        mark += time.monotonic() - paused
    batches.close()


def _validation(stage: Stage, pool: Any, scenes: int, count: int) -> list[Any]:
    """Batches of scenes that nobody trains on."""
    there = pool(scenes * stage.filming.clips)
    clips: list[Clip] = []
    for number in range(scenes):
        made, shots = scene_clips(HELD_OUT + number, stage.filming, len(clips))
        description = described(shots, stage.filming, stage.device)
        there.put(len(clips), *developed(description, len(made), stage.filming))
        clips += made
    corpus = Corpus(clips, stage.length, validation_recipe(stage.recipe))
    return validation_batches(corpus, lambda windows, length: there.latents(placed(windows, length), length), count)


if __name__ == "__main__":
    main()
