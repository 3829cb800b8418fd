"""The second recipe of the synthesize job, the paper's: short pairs whose edited clip alone a model makes longer.

memory-v2v synthesize --out extended --extend scenes --model trained extension=48

What is added is remembered by a training while it learns the pair; see `pipeline.extension`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.extension import EXTENDER, Extending, PairsTask, last_shot
from jobs.command import DONE, FAILED, UsageError, megabytes, say, writable_folder
from jobs.config import ExtendConfig, bits_of
from jobs.model import Model, resolve
from jobs.synthesize import begun, check_room, make
from pipeline.clip import Clip
from storage.clips import NAME, ClipDataset
from storage.location import absolute


@dataclass
class ExtendJob:
    """What `memory-v2v synthesize --extend` was asked to do. scenes: a data set with edited clips."""

    out: str
    scenes: str
    model: str = "mini"
    config: ExtendConfig = field(default_factory=ExtendConfig)
    dry_run: bool = False


def extend(job: ExtendJob) -> int:
    """Run the job; the exit code: 0 all done, 1 some scenes failed. Raises ValueErrors of one line before any work."""
    config = job.config
    # Absolute: workers open it too, from where they are.
    scenes = ClipDataset.open(absolute(job.scenes))
    pairs = pairs_of(scenes.clips())
    if not pairs:
        raise UsageError(
            f"{job.scenes}: holds no edited clip beside the same camera's clip before the edit, expected such pairs; "
            "synthesize scenes with edits=1 or more"
        )
    model = resolve(job.model)
    clips = [clip for task in pairs for clip in task.clips]
    _check(clips, model, job)
    out = writable_folder(job.out, create=not job.dry_run)
    url = f"{out}/{NAME}"
    asked = metadata(scenes, model, config)
    data = begun(url, asked, bits_of(ExtendConfig()))
    there = data.scenes() if data is not None else set()
    tasks = [task for task in pairs if task.scene not in there]
    if not model.spec.trained:
        say(f"model '{job.model}' is untrained: its weights are random and what it adds is noise; all else is real")
    _describe(tasks, len(there), job, out)
    if job.dry_run:
        return DONE
    if data is None:
        data = ClipDataset.create(url, asked)
    extending = Extending(scenes.url, model.folder, model.digest, config.extension, config.k)
    return DONE if make(tasks, extending, config, data, len(there), out) else FAILED


def pairs_of(clips: Sequence[Clip]) -> list[PairsTask]:
    """Of every scene the edited clips, and those of the same cameras before the edit."""
    scenes: dict[int, list[Clip]] = {}
    for clip in clips:
        scenes.setdefault(clip.scene, []).append(clip)
    tasks = []
    for found in scenes.values():
        before, after = ({clip.camera for clip in found if bool(clip.variant) is edited} for edited in (False, True))
        if paired := tuple(clip for clip in found if clip.camera in before & after):
            tasks.append(PairsTask(paired))
    return tasks


def metadata(scenes: ClipDataset, model: Model, config: ExtendConfig) -> dict[str, str]:
    """What the data set keeps of how it was made: a second run must agree with it."""
    made = scenes.metadata
    return {
        "generator": f"{made['generator']}+{EXTENDER}",
        "config": json.dumps(json.loads(made.get("config", "{}")) | bits_of(config)),
        "model": model.digest,
    }


def _check(clips: Sequence[Clip], model: Model, job: ExtendJob) -> None:
    """UsageError for clips that this model cannot go on with."""
    multiple, length = model.spec.size_multiple, model.spec.frames_for(model.spec.segment_frames)
    for clip in clips:
        name = f"{job.scenes}: clip {clip.scene}/{clip.variant}/{clip.camera}"
        if clip.extended:
            raise UsageError(f"{name} was extended by {clip.extended} frames before; name the data set it was made of")
        if clip.height % multiple or clip.width % multiple:
            raise UsageError(
                f"{name} is {clip.width}x{clip.height}, expected multiples of {multiple} pixels for model "
                f"'{job.model}': synthesize scenes of another size, or choose another --model"
            )
        if clip.variant and len(clip) - last_shot(clip.shots) < length:
            raise UsageError(
                f"{name} has {len(clip) - last_shot(clip.shots)} frames in its last shot, expected at least the "
                f"{length} of a segment of model '{job.model}': synthesize longer shots, or choose another --model"
            )


def _describe(tasks: Sequence[PairsTask], there: int, job: ExtendJob, out: str) -> None:
    """What will be made and how large it will be. UsageError where the disk has no room for it."""
    clips = [clip for task in tasks for clip in task.clips]
    added = job.config.extension
    longer = sum(bool(clip.variant) for clip in clips)
    size = sum((len(clip) + added * bool(clip.variant)) * clip.height * clip.width * 3 for clip in clips)
    say(f"{out}/{NAME}: {there} scenes there, {len(tasks)} to make: {len(clips):,} clips, of which model '{job.model}' "
        f"makes {longer:,} longer by {added} frames, {longer * added:,} frames, {megabytes(size)}")  # fmt: skip
    check_room(out, size, len(tasks))
