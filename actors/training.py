"""The training loop: what every process of a training runs, alone or as one of several.

A process draws its own samples from (seed, step, rank), so what is trained on does not depend on who was restarted
when; several draw alike what decides how long a step takes and which layers run, since they wait for one another. Only
the first process writes log, sheets and checkpoints; whoever starts resumes from the newest one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from actors.training_data import Encoded, WindowDepths, Windows, ahead
from actors.training_edits import Edits
from actors.training_latents import Kept, latents_folder
from actors.training_model import save_model
from pipeline.clip import Clip
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.pixels import load_codec
from pipeline.training.batch import Batch, Encode, collate
from pipeline.training.edited import OWN, all_edited, edited, edits_recipe
from pipeline.training.log import Log
from pipeline.training.network import Network, memory_kernels
from pipeline.training.recipe import Recipe
from pipeline.training.samples import MADE, UNSEEN, Corpus
from pipeline.training.sharding import agreed, same_everywhere, whole
from pipeline.training.trainer import Trainer
from pipeline.training.tuning import add_lora, takes_part, teaches
from pipeline.training.validation import validate, validation_batches, validation_recipe
from storage.checkpoints import Checkpoints

LOG, MODEL, CHECKPOINTS, SHEETS, EDITS = "log.jsonl", "model", "checkpoints", "sheets", "edits"


@dataclass(frozen=True)
class TrainingSetup:
    """Paths and numbers only, so that any process can be started from it.

    data: a data set of clips. out: folder of log, checkpoints, sheets and the trained model. model, model_digest:
    folder of the pipeline to begin from, and what is in it. height, width, frames: of a window. tune: as of
    `takes_part`; "lora" adapters have `lora_rank`. precision: "float32" or "bfloat16" for the matrix products. threads:
    of torch, per process. sharding: "none", or "full" where parameters are spread over the processes. latents: keep
    them on disk. own_edits: batches of these that are made first, of which details are learned.
    """

    data: str
    out: str
    model: str
    model_digest: str
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
    lora_rank: int = 16
    sharding: str = "none"
    latents: bool = False
    own_edits: int = 0


def train(
    setup: TrainingSetup,
    rank: int = 0,
    wrap: Callable[[Network], Any] = lambda network: network,
    report: Callable[[dict[str, Any]], None] = lambda figures: None,
    processes: int = 1,
) -> None:
    """Train to the last step, going on from the newest checkpoint. report: called with every line of the log.

    Raises DivergedError where the loss is no number any more, StorageFault where the disk is full; the newest
    checkpoint stays as it was before.
    """
    # Here and not at the top: Lance does not survive a fork, so only the process that reads may import it.
    from storage.clips import ClipDataset

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if setup.device == "cpu":
        torch.set_num_threads(setup.threads)
    pipe = MemoryV2VPipeline.from_pretrained(setup.model).to(setup.device)
    if setup.attention:  # kept with the weights that are trained for it
        pipe.transformer.register_to_config(attention=setup.attention)
    if setup.tune == "lora":
        add_lora(pipe.transformer, setup.lora_rank, setup.seed)
    if setup.gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    if setup.compile:
        pipe.transformer.compile_repeated_blocks(dynamic=True)
    data = ClipDataset.open(setup.data)
    clips, unseen = data.clips("train"), data.clips("validation")
    corpus = Corpus(clips, setup.frames, setup.recipe, glimpse=pipe.spec.frames_for(1))
    network = Network(pipe, getattr(torch, setup.precision))
    trainer = Trainer(
        network,
        setup.recipe,
        setup.seed,
        rank,
        takes_part(setup.tune),
        wrap,
        teaches(setup.tune, corpus.teaches),
    )
    checkpoints = Checkpoints(Path(setup.out) / CHECKPOINTS)
    if processes > 1:
        same_everywhere(lambda: checkpoints.steps()[-1:], f"checkpoints in {checkpoints.folder}")
    resumed = _resume(trainer, checkpoints, setup)
    log = Log(Path(setup.out) / LOG, trainer.step, report) if rank == 0 else None

    windows = Windows(data, setup.height, setup.width)
    encode: Encode = Encoded(windows, load_codec(setup.model, setup.device))
    copies = pipe.transformer.copying is not None and "depth" in data.channels
    asked = copies and setup.recipe.depth_weight and setup.tune != "details"
    depths = WindowDepths(windows) if asked else None
    every = pipe.codec.temporal_compression
    if setup.latents:
        encode = _kept(setup, encode, data, [*clips, *unseen], log, trainer.step, rank, processes)
    kernels = len(memory_kernels(pipe))
    spread = setup.sharding == "full"
    edits = _edits(setup, network, encode, data, log, trainer.step, rank, processes) if setup.own_edits else None

    def make(step: int) -> Batch:
        random = np.random.default_rng([setup.seed, step, rank])
        common = np.random.default_rng([setup.seed, step, processes]) if processes > 1 else None  # no rank's own
        if edits is not None and (common or random).random() < OWN:
            return edits(int(random.integers(edits.count)))
        return collate(corpus.draw(random, tokenizers=kernels, common=common), encode, every, depths=depths)

    held_out: list[Batch] = []
    if not unseen and log is not None:
        log.write({"step": trainer.step, "no_validation": "no clip is in the validation split: make more scenes"})
    if unseen and (rank == 0 or spread):
        try:
            drawn = edits_recipe(setup.recipe) if setup.own_edits else validation_recipe(setup.recipe)
            corpus_unseen = Corpus(unseen, setup.frames, drawn)
        except ValueError as error:  # few scenes may leave this split without any that serve
            if log is not None:
                log.write({"step": trainer.step, "no_validation": str(error)})
        else:
            held_out = validation_batches(corpus_unseen, encode, setup.validation_batches, every, kernels, depths)

    measured = held_out
    if edits is not None:
        measured = [*all_edited(network, (each.to(setup.device) for each in held_out), setup.seed, UNSEEN)]
        if held_out and not measured and log is not None:
            log.write({"step": trainer.step, "no_validation": "nothing is made up of the validation split"})

    def measure() -> None:
        figures = validate(trainer, measured, _std(pipe))
        if log is not None:
            log.write({"step": trainer.step, **figures})

    def draw_sheet() -> None:
        from actors.training_sheet import write_sheet

        with trainer.averaged():
            path = Path(setup.out) / SHEETS / f"step-{trainer.step:08d}.png"
            write_sheet(pipe, held_out, path if rank == 0 else None)

    def save() -> None:
        # The model first: a training that has its last checkpoint has all that comes before.
        with trainer.averaged():
            weights = {name: whole(each.detach()) for name, each in trainer.parameters.items()}
            if rank == 0:
                trainer.register(setup.height * setup.width)
                save_model(pipe, weights, setup.model, Path(setup.out) / MODEL, lora=setup.tune == "lora")
        state = trainer.state_dict()
        if rank == 0:
            checkpoints.save(trainer.step, state | {"model": setup.model_digest, "tune": setup.tune})

    if not resumed:
        if measured:
            measure()
    elif log is not None:
        log.write({"step": trainer.step, "resumed": 1})
    saved = time.monotonic()
    for batch in ahead(make, trainer.step, setup.recipe.steps):
        figures = trainer.train_step(batch.to(setup.device))
        if rank and not spread:
            continue
        began = time.monotonic()
        last = trainer.step == setup.recipe.steps
        if log is not None:
            log.step(trainer.step, len(batch.clean), figures, last)
        if measured and (trainer.step % setup.validate_every == 0 or last):
            measure()
        if held_out and (trainer.step % setup.sheet_every == 0 or last):
            draw_sheet()
        due = last or time.monotonic() - saved > 60 * setup.checkpoint_minutes
        if agreed(due) if spread else due:
            save()
            saved = time.monotonic()
        if log is not None:
            log.paused(time.monotonic() - began)


def newest(checkpoints: Checkpoints, setup: TrainingSetup) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint and its step, None where there is none. ValueError where it is of other parameters or of
    another model than this training's."""
    if (found := checkpoints.latest()) is None:
        return None
    step, state = found
    path, tuned = checkpoints.path(step), state.get("tune", setup.tune)  # older ones do not say
    if tuned != setup.tune:
        raise ValueError(
            f"{path}: other parameters were trained, those of tune={tuned}, expected are those of "
            f"tune={setup.tune}; set tune={tuned}, or choose another --out"
        )
    begun = state.get("model", setup.model_digest)  # older ones do not say
    if setup.tune != "all" and begun != setup.model_digest:  # what is not tuned is not in it
        raise ValueError(
            f"{path}: began from model {begun[:16]}, expected is {setup.model_digest[:16]}, of --model; choose another "
            "--out"
        )
    return found


def _resume(trainer: Trainer, checkpoints: Checkpoints, setup: TrainingSetup) -> bool:
    """Load the newest checkpoint, where there is one. ValueError where it does not go with this training."""
    if (found := newest(checkpoints, setup)) is None:
        return False
    step, state = found
    try:
        trainer.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{checkpoints.path(step)}: {error}; choose another --out") from None
    return True


def _kept(
    setup: TrainingSetup, encode: Encoded, data: Any, clips: list[Clip], log: Log | None, step: int, *share: int
) -> Encode:
    """`encode` with its latents on disk, after this process has made its share of them."""
    folder = latents_folder(setup.out, setup.model, setup.height, setup.width)
    kept = Kept(encode, folder, data.rows(["sha256"])["sha256"].to_pylist())
    _told(kept.fill(clips, setup.frames, *share), "encoded", log, step)
    return kept


def _edits(
    setup: TrainingSetup, network: Network, encode: Encode, data: Any, log: Log | None, step: int, *share: int
) -> Edits:
    """The model's own edits on disk, after all processes have made theirs. share: which of how many this one is."""
    recipe = edits_recipe(setup.recipe)
    corpus = Corpus(data.clips("train"), setup.frames, recipe)

    def make(number: int, attempt: int) -> Batch | None:
        state = (setup.seed, number, attempt, MADE)
        batch = collate(corpus.draw(np.random.default_rng(state)), encode, network.pipe.codec.temporal_compression)
        return edited(network, batch.to(setup.device), *state)

    names = ("model_digest", "height", "width", "frames", "seed", "attention", "precision")
    key = [asdict(recipe), *(getattr(setup, name) for name in names), data.rows(["sha256"])["sha256"].to_pylist()]
    edits = Edits(Path(setup.out) / EDITS, key, setup.own_edits, make)
    _told(edits.fill(*share), "edited", log, step)
    if share[1] > 1:
        same_everywhere(edits.missing, f"edits missing in {edits.folder}")
    return edits


def _told(made: Iterable[tuple[int, int]], name: str, log: Log | None, step: int) -> None:
    """A line of the log every half minute: how many are made, of how many."""
    said = time.monotonic()
    for done, count in made:
        if log is not None and (done == count or time.monotonic() - said > 30):
            log.write({"step": step, name: done, f"{name}_of": count})
            said = time.monotonic()


def _std(pipe: MemoryV2VPipeline) -> float:
    """Grey levels of 1 per unit of the latent, where latents are pixels; else PSNR is that of latents."""
    return float(getattr(pipe.vae.config, "std", 1.0))
