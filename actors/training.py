"""The training loop: what every process of a training runs, alone or as one of several.

A process draws its own samples from (seed, step, rank), so what is trained on does not depend on who was restarted
when. Only the first process validates, draws sheets and writes checkpoints; whoever starts resumes from the newest one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.log import Log
from actors.training_data import Windows, ahead, encoder
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.training.batch import Batch, collate
from pipeline.training.network import Network, memory_kernels
from pipeline.training.recipe import Recipe
from pipeline.training.samples import Corpus
from pipeline.training.trainer import Trainer
from pipeline.training.validation import validate, validation_batches, validation_recipe

LOG, MODEL, CHECKPOINTS, SHEETS = "log.jsonl", "model", "checkpoints", "sheets"


@dataclass(frozen=True)
class TrainingSetup:
    """Paths and numbers only, so that any process can be started from it.

    data: a data set of clips. out: folder of log, checkpoints, sheets and the trained model. model: folder of the
    pipeline to begin from. height, width, frames: of a window. tune: "all", or "paper" for what the paper tunes.
    precision: "float32" or "bfloat16" for the matrix products. threads: of torch, per process.
    """

    data: str
    out: str
    model: str
    recipe: Recipe
    height: int
    width: int
    frames: int
    seed: int = 0
    attention: str | None = None
    tune: str = "all"
    precision: str = "float32"
    device: str = "cpu"
    threads: int = 1
    compile: bool = False
    gradient_checkpointing: bool = False
    checkpoint_minutes: float = 5.0
    validate_every: int = 500
    validation_batches: int = 4
    sheet_every: int = 1000


def train(
    setup: TrainingSetup,
    rank: int = 0,
    wrap: Callable[[Network], Any] = lambda network: network,
    report: Callable[[dict[str, Any]], None] = lambda figures: None,
) -> None:
    """Train to the last step, going on from the newest checkpoint. report: called with every line of the log.

    Raises DivergedError where the loss is no number any more; the newest checkpoint stays as it was before.
    """
    # Here and not at the top: Lance does not survive a fork, so only the process that reads may import it.
    from storage.checkpoints import Checkpoints
    from storage.clips import ClipDataset

    if setup.device == "cpu":
        torch.set_num_threads(setup.threads)
    pipe = MemoryV2VPipeline.from_pretrained(setup.model).to(setup.device)
    begun = pipe.config.trained_steps
    if setup.gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    if setup.compile:
        pipe.transformer.compile_repeated_blocks()
    network = Network(pipe, setup.attention, getattr(torch, setup.precision))
    trainer = Trainer(network, setup.recipe, setup.seed, rank, trained_names(setup), wrap)
    checkpoints = Checkpoints(Path(setup.out) / CHECKPOINTS)
    found = checkpoints.latest()
    if found is not None:
        trainer.load_state_dict(found[1])
    log = Log(Path(setup.out) / LOG, trainer.step, report) if rank == 0 else None

    data = ClipDataset.open(setup.data)
    windows = Windows(data, setup.height, setup.width)
    encode, every = encoder(pipe.codec), pipe.codec.temporal_compression
    corpus = Corpus(data.clips("train"), setup.frames, setup.recipe)
    kernels = len(memory_kernels(pipe))

    def make(step: int) -> Batch:
        random = np.random.default_rng([setup.seed, step, rank])
        return collate(corpus.draw(random, tokenizers=kernels), windows, encode, every)

    held_out: list[Batch] = []
    if rank == 0 and (clips := data.clips("validation")):
        unseen = Corpus(clips, setup.frames, validation_recipe(setup.recipe))
        held_out = validation_batches(unseen, windows, encode, setup.validation_batches, every)

    def save() -> None:
        checkpoints.save(trainer.step, trainer.state_dict())
        with trainer.averaged():
            pipe.register_to_config(trained_steps=begun + trainer.step)
            _save_model(pipe, Path(setup.out) / MODEL)

    saved = time.monotonic()
    for batch in ahead(make, trainer.step, setup.recipe.steps):
        figures = trainer.train_step(batch.to(setup.device))
        if log is None:
            continue
        log.step(trainer.step, len(batch.clean), figures)
        began = time.monotonic()
        last = trainer.step == setup.recipe.steps
        if held_out and (trainer.step % setup.validate_every == 0 or last):
            log.write({"step": trainer.step, **validate(trainer, held_out, _std(pipe))})
        if held_out and (trainer.step % setup.sheet_every == 0 or last):
            from actors.training_sheet import write_sheet

            with trainer.averaged():
                write_sheet(pipe, held_out, Path(setup.out) / SHEETS / f"step-{trainer.step:08d}.png")
        if last or time.monotonic() - saved > 60 * setup.checkpoint_minutes:
            save()
            saved = time.monotonic()
        log.paused(time.monotonic() - began)


def trained_names(setup: TrainingSetup) -> Callable[[str], bool] | None:
    """Which parameters take part; None for all."""
    return paper_tunes if setup.tune == "paper" else None


def paper_tunes(name: str) -> bool:
    """Whether the paper tunes a parameter: self-attention, projector, camera encoders, tokenizers, compressors."""
    parts = ("attn1.", "projector.", "cam_encoder.", "camera_embedding.", "tokenizers.", "compressor.")
    return name.startswith("transformer.") and any(part in name for part in parts)


def _std(pipe: MemoryV2VPipeline) -> float:
    """Grey levels of 1 per unit of the latent, where latents are pixels; else PSNR is that of latents."""
    return float(getattr(pipe.vae.config, "std", 1.0))


def _save_model(pipe: MemoryV2VPipeline, folder: Path) -> None:
    """Write it beside its place and exchange the two: a reader finds a whole model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".model."))
    os.chmod(fresh, 0o755)
    try:
        pipe.save_pretrained(fresh)
        old = fresh.with_name(fresh.name + ".old")
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)

