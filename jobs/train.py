"""The train job: a model learns from a data set of clips, alone in this process or on Ray Train.

memory-v2v train --data scenes --out trained --config configs/mini-cpu.yaml
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.command import DONE, FAILED, UsageError, megabytes, say, writable_folder
from jobs.config import TrainConfig
from jobs.model import resolve
from jobs.progress import duration
from pipeline.training.recipe import Recipe
from storage.errors import StorageError
from storage.location import absolute, local_path


@dataclass
class TrainJob:
    """What `memory-v2v train` was asked to do."""

    data: str
    out: str
    model: str = "mini-cpu"
    config: TrainConfig = field(default_factory=TrainConfig)
    recipe: Recipe = field(default_factory=Recipe)
    dry_run: bool = False


def train(job: TrainJob) -> int:
    """Run the job; the exit code: 0 done, 1 the training broke off. Raises ValueErrors of one line before any work."""
    import torch

    from actors.training import CHECKPOINTS, MODEL, TrainingSetup, newest
    from pipeline.training.edited import edits_recipe
    from pipeline.training.samples import Corpus
    from pipeline.transformer import MemoryWanTransformer3DModel
    from storage.checkpoints import Checkpoints
    from storage.clips import ClipDataset

    out = local_path(writable_folder(job.out, create=not job.dry_run))
    if out is None:
        raise UsageError(f"--out is {job.out}, expected a folder that all nodes mount: files are renamed in place")
    model = resolve(job.model, seed=job.config.seed)
    attention = MemoryWanTransformer3DModel.load_config(model.folder, subfolder="transformer")["attention"]
    joint = (job.config.attention or attention) == "joint"  # which has nothing for several targets to share
    recipe = dataclasses.replace(job.recipe, targets=1) if joint else job.recipe
    data = ClipDataset.open(absolute(job.data))  # processes on Ray open it too, from where they are
    clips = data.clips("train")
    if not clips:
        raise UsageError(f"{job.data}: has no clips for training; synthesize more scenes")
    config = dataclasses.replace(
        job.config,
        height=job.config.height or clips[0].height,
        width=job.config.width or clips[0].width,
        frames=job.config.frames or model.spec.segment_frames,
    )
    multiple = model.spec.size_multiple
    if config.height % multiple or config.width % multiple or config.frames != model.spec.frames_for(config.frames):
        raise UsageError(
            f"windows of {config.frames} frames of {config.width}x{config.height}: this model takes multiples of "
            f"{multiple} pixels and, of so many frames, {model.spec.frames_for(config.frames)}; set height, width and "
            "frames"
        )
    if config.tune == "depths" and ("depth" not in data.channels or not recipe.depth_weight):
        raise UsageError(
            f"{job.data}: tune=depths has no depths to learn from, expected clips made with depth=true and "
            "depth_weight above 0"
        )
    if config.own_edits and (config.tune != "details" or config.sharding == "full"):
        raise UsageError(
            f"own_edits is {config.own_edits} with tune={config.tune} and sharding={config.sharding}: expected "
            "tune=details and sharding=none, or own_edits=0"
        )
    if config.own_edits:
        Corpus(clips, config.frames, edits_recipe(recipe))  # refuses clips and shares of which there are no edits
    if config.sharding == "full":
        if job.recipe.optimizer != "adamw":
            raise UsageError("sharding is full and optimizer muon, which takes whole matrices: set optimizer=adamw")
        if not job.config.workers:
            raise UsageError("sharding is full and workers 0, expected processes to spread over: set --workers")
    corpus = Corpus(clips, config.frames, recipe)  # refuses clips that no task can use
    for task in corpus.forgetful:
        say(
            f"{task} is trained without memories: no scene has {config.frames} frames beside those of source and "
            "targets; make longer clips, or more cameras of a scene (for text, edited_cameras)"
        )
    names = {each.name for each in dataclasses.fields(TrainingSetup)}
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key in names}
    setup = TrainingSetup(
        data=data.url,
        out=out,
        model=model.folder,
        model_digest=model.digest,
        recipe=recipe,
        device="cuda" if torch.cuda.is_available() else "cpu",
        **settings,
    )
    _describe(job, setup, model.spec, len(clips))
    if job.dry_run:
        return DONE
    checkpoints = Checkpoints(Path(out) / CHECKPOINTS)
    taken = checkpoints.steps()
    if taken and taken[-1] >= recipe.steps:
        newest(checkpoints, setup)  # refuses another model's
        say(f"nothing to do: {taken[-1]} steps are taken already; for more of them set steps, or choose another --out")
        return DONE
    try:
        _run(job, setup)
    except (RuntimeError, StorageError, OSError, MemoryError) as error:
        say(f"failed: {error}; the newest checkpoint stays, and once that is mended the same command goes on from it")
        return FAILED
    use = "to be given to pipe.load_lora_weights" if setup.tune == "lora" else "to be used as --model"
    say(f"done: {Path(out) / MODEL}, {use}; {Path(out) / 'log.jsonl'} has the figures")
    return DONE


def _run(job: TrainJob, setup: Any) -> None:
    report = TrainingProgress(setup.recipe.steps)
    if not job.config.workers:
        from actors.training import train as loop

        loop(setup, report=report)
        return
    from actors.cluster import connect, nodes, places, training_device
    from actors.training_on_ray import train_on_ray

    connect()
    found = nodes()
    where = places(job.config.workers, setup.threads, found)
    setup = dataclasses.replace(setup, device=training_device(job.config.workers, found))  # theirs, whatever is here
    train_on_ray(setup, job.config.workers, retries=job.config.retries, cpus=where.num_cpus, report=report)


class TrainingProgress:
    """One line for every line of the log."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, figures: dict[str, Any]) -> None:
        step = figures["step"]
        if "loss" in figures:
            # Not by targets: steps of `glimpses` have more of them.
            left = (self.steps - step) * figures["seconds_per_step"]
            line = f"loss {figures['loss']:.4f} | {figures['targets_per_s']:.1f} targets/s | ETA {duration(left)}"
        else:
            line = " | ".join(
                f"{name} {value if isinstance(value, str) else format(value, '.3g')}"
                for name, value in figures.items()
                if name != "step"
            )
        print(f"step {step}/{self.steps} | {line}", file=sys.stderr, flush=True)


def _describe(job: TrainJob, setup: Any, spec: Any, clips: int) -> None:
    """What will be trained, and what it will take."""
    import torch

    from pipeline.training.estimate import estimate, measured_rate
    from pipeline.training.tuning import add_lora, takes_part
    from pipeline.transformer import MemoryWanTransformer3DModel

    processes, recipe = max(1, job.config.workers), setup.recipe
    with torch.device("meta"):
        network = MemoryWanTransformer3DModel.from_config(
            MemoryWanTransformer3DModel.load_config(setup.model, subfolder="transformer")
        )
        if setup.tune == "lora":
            add_lora(network, setup.lora_rank)
    time, scale = spec.compression
    latent = 1 + (setup.frames - 1) // time, setup.height // scale, setup.width // scale
    spread = processes if setup.sharding == "full" else 1
    if setup.tune == "depths" and network.depths is None:
        raise UsageError(
            f"{setup.model}: says no depths that tune=depths could train, expected a model with depth_widths"
        )
    if setup.tune == "details" and network.details is None:
        raise UsageError(
            f"{setup.model}: paints no details that tune=details could train, expected a model with detail_widths"
        )
    found = estimate(network, recipe, latent, takes_part(setup.tune), setup.gradient_checkpointing, spread)
    beside = sum(
        file.stat().st_size
        for part in ("vae", "text_encoder")
        for file in Path(setup.model, part).glob("*.safetensors")
    )
    rate = measured_rate(setup.device, getattr(torch, setup.precision), setup.threads)
    say(
        f"{job.model}: {found.trained / 1e6:.1f} of {found.parameters / 1e6:.1f} M parameters, {recipe.steps} steps of "
        f"{processes} x {recipe.batch} scenes x {recipe.targets} targets, each {setup.frames} frames of "
        f"{setup.width}x{setup.height}, from {clips:,} clips"
        + f", after {setup.own_edits:,} x {recipe.batch} edits of its own"
        * bool(setup.own_edits)
    )
    say(
        f"about {megabytes(found.memory + beside)} of memory per process, and "
        f"{duration(recipe.steps * found.operations / rate)} or more, at the {rate / 1e9:,.0f} GFLOP/s of a matrix "
        "product on this machine"
    )
