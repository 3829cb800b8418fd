"""`mini` from nothing, on one machine with one GPU and no other library than torch, diffusers and transformers.

    python -m pipeline.training.alone --out build/mini-gpu --config configs/mini-gpu.yaml --scenes 4000

The same training as `memory-v2v train`, on scenes that are rendered into the GPU's memory first. `--out` gets
`log.jsonl`, `checkpoint.pt`, from which the same command goes on, and `model/`, the averaged weights.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from pipeline.clip import Clip
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.mini import SIZES, build_mini
from pipeline.scenes import Filming
from pipeline.splits import scenes_of

from .edited import OWN, all_edited, edits_recipe
from .log import Log
from .network import Network, memory_kernels
from .recipe import Recipe
from .rendered import Pool, RendererError, Stage, described, developed, placed, rendered_batches, scene_clips
from .samples import CHOSEN, MADE, UNSEEN, Corpus
from .trainer import DivergedError, Trainer
from .tuning import takes_part, teaches
from .validation import validate, validation_batches, validation_recipe

REPLANNED = 25  # steps after which it is reckoned how many there is time for
MODELS, PRECISIONS = tuple(f"mini-{size}" for size in SIZES), ("float32", "bfloat16")
TUNES = ("all", "paper", "words", "empty", "depths", "details")  # as of `takes_part`, but for adapters
HELD_OUT, HELD_OUT_SCENES = 1 << 30, 24  # seed of the first of the scenes that are for validation, and how many


@dataclasses.dataclass
class Setup:
    """What a configuration file may say beside the recipe, with the meaning that it has for `memory-v2v train`; workers
    is for that alone, and read here so that its files can be given."""

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
    tune: str = "all"
    own_edits: int = 0


FIELDS: dict[type, dict[str, Any]] = {
    kind: {each.name: each.default for each in dataclasses.fields(kind)} for kind in (Setup, Recipe)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML, as of `memory-v2v train`")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        metavar="N",
        help="seed of the first of them; those of the other splits are left out",
    )
    parser.add_argument("--edits", type=int, default=8, help="of each scene")
    parser.add_argument("--frames", type=int, default=48, help="of each clip")
    parser.add_argument("--renderers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes")
    parser.add_argument("--footage", metavar="DIR", help="real clips beside the scenes, from `python -m jobs.pieces`")
    parser.add_argument("--begin", metavar="DIR", help="a model to begin from instead of random weights")
    parser.add_argument("--minutes", type=float, default=math.inf, help="that it may take from now on: sets `steps`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings and recipe; they win")
    given = parser.parse_intermixed_args()
    try:
        values = said(given.config.read_text().splitlines(), ":") if given.config else {}
        values |= said(given.overrides, "=")
        setup = Setup(**{key: value for key, value in values.items() if key in FIELDS[Setup]})
        recipe = Recipe(**{key: value for key, value in values.items() if key in FIELDS[Recipe]})
        choices = (
            ("model", setup.model, MODELS),
            ("precision", setup.precision, PRECISIONS),
            ("tune", setup.tune, TUNES),
        )
        for name, value, known in choices:
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {known}")
        if min(given.scenes, given.renderers) < 1:
            raise ValueError(f"--scenes {given.scenes} --renderers {given.renderers}, expected at least 1 of each")
        if setup.validate_every < 1:
            raise ValueError(
                f"validate_every is {setup.validate_every}, expected at least 1; for none set validation_batches=0"
            )
        if setup.own_edits < 0 or (setup.own_edits and setup.tune != "details"):
            raise ValueError(f"own_edits is {setup.own_edits} with tune={setup.tune}, expected 0, or tune=details")
        if setup.tune != "all" and not given.begin:
            raise ValueError(f"tune is {setup.tune}, expected a trained model that the rest of it is of: --begin DIR")
        if given.first < 0:
            raise ValueError(f"--first {given.first}, expected the number of a scene, 0 or more")
        if setup.seed < 0:
            raise ValueError(f"seed is {setup.seed}, expected 0 or more")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    try:
        run(given, setup, recipe)
    except (ValueError, OSError, DivergedError, RendererError) as error:
        sys.exit(f"alone: {(str(error).strip().splitlines() or [type(error).__name__])[0]}")


def said(lines: Sequence[str], between: str) -> dict[str, Any]:
    """Settings by name, of lines like `steps: 100  # comment`, which is all that a flat YAML file needs. Raises
    ValueError for other lines, names and types."""
    values: dict[str, Any] = {}
    defaults = {**FIELDS[Setup], **FIELDS[Recipe]}
    for line in lines:
        key, found, text = (part.strip() for part in line.partition("#")[0].partition(between))
        if not key:
            continue
        if not found or key not in defaults:
            raise ValueError(f"unknown setting {line!r}, expected NAME{between}VALUE with one of {sorted(defaults)}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        kind = type(defaults[key])
        value = tuple(value) if isinstance(value, list) else value
        if not (isinstance(value, kind) or (kind is float and type(value) is int)):
            raise ValueError(f"setting {key} is {text}, expected a {kind.__name__} such as {defaults[key]}")
        values[key] = value
    return values


def run(given: argparse.Namespace, setup: Setup, recipe: Recipe) -> None:
    """Train, from the checkpoint in `given.out` where there is one, until the steps or the minutes are over."""
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    if given.begin:
        pipe = MemoryV2VPipeline.from_pretrained(given.begin)
    else:
        pipe = build_mini(setup.seed, size=setup.model.removeprefix("mini-"))
    length, vae, multiple = pipe.config.segment_frames, pipe.vae.config, pipe.spec.size_multiple
    if setup.height % multiple or setup.width % multiple or given.frames < length:
        raise ValueError(
            f"clips of {given.frames} frames of {setup.width}x{setup.height}, expected at least {length} frames and "
            f"multiples of {multiple} pixels: set --frames, height and width"
        )
    pipe.to(device)
    if setup.compile:
        pipe.transformer.compile_repeated_blocks(dynamic=True)
    network = Network(pipe, getattr(torch, setup.precision))
    tasks = dataclasses.replace(recipe, text=recipe.text if given.edits else 0.0).teaches
    trainer = Trainer(network, recipe, setup.seed, trainable=takes_part(setup.tune), learned=teaches(setup.tune, tasks))
    rest = _digest({name: each for name, each in network.state_dict().items() if name not in trainer.parameters})
    checkpoint, model, journal = (given.out / name for name in ("checkpoint.pt", "model", "log.jsonl"))
    given.out.mkdir(parents=True, exist_ok=True)
    planned = recipe.steps
    if checkpoint.exists():
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError) as error:
            raise ValueError(f"{checkpoint}: not a readable checkpoint; remove it to begin anew ({error})") from error
        planned = state.pop("planned", planned)
        if state.pop("rest", rest) != rest:
            raise ValueError(f"{checkpoint}: began from another model than --begin {given.begin}; choose another --out")
        trainer.load_state_dict(state)
        del state  # as large as what is trained
        if trainer.step >= recipe.steps and given.minutes == math.inf:
            print(f"nothing to do: {trainer.step} steps are taken already; for more of them set steps", file=sys.stderr)
            return
    if given.minutes < math.inf:  # until it is known how many there is time for the rates go on as they were
        trainer.recipe = dataclasses.replace(recipe, steps=max(planned, trainer.step + 2 * REPLANNED))
    log = Log(journal, trainer.step)

    def save() -> None:
        # The model first, and each of the two whole: a training that has its last checkpoint has its model.
        try:
            part = model.with_suffix(".part")
            with trainer.averaged():
                trainer.register(setup.height * setup.width)
                pipe.save_pretrained(part)
            shutil.rmtree(model, ignore_errors=True)
            part.replace(model)
            part = checkpoint.with_suffix(".part")
            torch.save(trainer.state_dict() | {"planned": trainer.recipe.steps, "rest": rest}, part)
            part.replace(checkpoint)
        except (RuntimeError, SafetensorError) as error:  # what torch and safetensors say of a full disk
            raise OSError(f"{given.out}: cannot be written ({error}); check the free space") from error

    filming = Filming(
        setup.height, setup.width, given.frames, cameras=4, edits=given.edits, edited_cameras=1,
        rates=(6.0, 12.0, 24.0), channels=("depth",), samples=2, licence="CC0-1.0",
    )  # fmt: skip
    drawn = edits_recipe(recipe) if setup.own_edits else recipe
    stage = Stage(filming, drawn, length, pipe.spec.frames_for(1), len(memory_kernels(pipe)), setup.seed, device)

    def pool(clips: int) -> Pool:
        return Pool(clips, filming, device, vae.mean, vae.std)

    def rendered(scenes: int) -> None:
        if scenes % 500 == 0 or scenes == given.scenes:
            log.write({"step": trainer.step, "rendered": scenes})

    held_out = []
    if setup.validation_batches:
        unseen = drawn if setup.own_edits else validation_recipe(recipe)
        held_out = _validation(dataclasses.replace(stage, recipe=unseen), pool, setup.validation_batches)
    # A data set made of the same seeds keeps some for validation and test: nobody trains on those here either.
    numbers = scenes_of("train", given.first, given.scenes)
    source = rendered_batches(
        stage, numbers, given.renderers, trainer.step, pool, given.footage, rendered, before=setup.own_edits
    )
    with contextlib.closing(source) as batches:
        own = [*all_edited(network, islice(batches, setup.own_edits), setup.seed, MADE)]
        if setup.own_edits:
            if not own:
                raise ValueError(f"of {setup.own_edits} batches of edits nothing is made up: train the model first")
            log.write({"step": trainer.step, "edited": len(own), "edited_of": setup.own_edits})
            held_out = [*all_edited(network, held_out, setup.seed, UNSEEN)]
        saved, start, clock = time.monotonic(), trainer.step, 0.0
        for drawn_parts in batches:
            random = np.random.default_rng([setup.seed, trainer.step, 0, CHOSEN])
            batch = own[random.integers(len(own))] if own and random.random() < OWN else drawn_parts
            if not clock:
                clock = time.monotonic()
                log.paused(clock - log.began)
            figures = trainer.train_step(batch)
            now = time.monotonic()
            if given.minutes < math.inf and trainer.step % REPLANNED == 0:
                # As many steps as there is time for, so that the rates fall to nothing.
                speed, left = (trainer.step - start) / (now - clock), 60 * given.minutes - (now - began)
                trainer.recipe = dataclasses.replace(recipe, steps=max(1, trainer.step + round(speed * left)))
                log.write({"step": trainer.step, "steps": trainer.recipe.steps, "minutes": (now - began) / 60})
            last = trainer.step >= trainer.recipe.steps or now - began > 60 * given.minutes
            log.step(trainer.step, len(batch.clean), figures, last)
            if held_out and (trainer.step % setup.validate_every == 0 or last):
                log.write({"step": trainer.step, **validate(trainer, held_out, vae.std)})
            if last or now - saved > 60 * setup.checkpoint_minutes:
                save()
                saved = time.monotonic()
            if last:
                break
            log.paused(time.monotonic() - now)


def _digest(weights: dict[str, torch.Tensor]) -> str:
    """Of weights that are not trained: a checkpoint goes with those alone that it began with."""
    found = hashlib.sha256()
    for name, each in sorted(weights.items()):
        found.update(name.encode() + each.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _validation(stage: Stage, pool: Any, count: int) -> list[Any]:
    """Batches of scenes that nobody trains on."""
    there = pool(HELD_OUT_SCENES * stage.filming.clips)
    clips: list[Clip] = []
    for number in range(HELD_OUT_SCENES):
        made, shots = scene_clips(HELD_OUT + number, stage.filming, len(clips))
        description = described(shots, stage.filming, stage.device)
        there.put(len(clips), *developed(description, len(made), stage.filming))
        clips += made
    corpus = Corpus(clips, stage.length, stage.recipe)
    return validation_batches(
        corpus,
        lambda windows, length: there.latents(placed(windows, length), length),
        count,
        tokenizers=stage.tokenizers,
        depths=lambda windows, length: there.depths(placed(windows, length), length),
    )


if __name__ == "__main__":
    main()
