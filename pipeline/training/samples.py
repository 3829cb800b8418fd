"""What a step trains on: which windows of which clips play source, targets and memories. Pure, from a random state.

All samples of a step have the same shape (task, number of memories, tokenizers, merging), so that they make one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from pipeline.clip import REAL, Clip

from .recipe import Recipe

TASKS = ("camera", "text", "continue")
# The fourth of the numbers that a random state is made of, where edits of the model are (see `edited`): a step's has
# three, which are as good as four with 0.
MADE, UNSEEN, CHOSEN = 1, 2, 3


@dataclass(frozen=True, eq=False)
class Window:
    """Frames [start, start + length) of a clip; the length is the step's."""

    clip: Clip
    start: int

    @property
    def seconds(self) -> float:
        return self.start / self.clip.rate


@dataclass(frozen=True, eq=False)
class Sample:
    """One scene's part of a step. Targets share the conditioning; memories come in order of rank.

    origin: the window whose first camera is the frame of reference and whose first frame is time 0: the source's,
    whether or not the model sees it. before: the picture that the instruction changes, for text.
    """

    origin: Window
    targets: tuple[Window, ...]
    memories: tuple[Window, ...]
    instruction: str = ""
    before: Window | None = None


@dataclass(frozen=True, eq=False)
class Draw:
    """A step's samples and what they have in common.

    source: the model sees the origin's window. preceding: the first memory is the segment just before. tokenizer: index
    among the model's distinct memory kernels of the one that all memories use, None for the usual by rank.
    merge_share: None where nothing merges. cameras: the model is told how cameras move. guessed: the model's own guess
    lies under the noise.
    """

    task: str
    length: int
    samples: tuple[Sample, ...]
    source: bool
    preceding: bool
    tokenizer: int | None
    merge_share: float | None
    cameras: bool = True
    guessed: bool = False


class Corpus:
    """Clips by scene and variant, ready to be drawn from. Raises ValueError where no task of a recipe finds clips.

    recipe: as given, but without memories for tasks that are `forgetful`: no clips have any beside source and targets.
    glimpse: frames of the short windows of `Recipe.glimpses`, 0 for none.
    """

    def __init__(self, clips: Sequence[Clip], length: int, recipe: Recipe, glimpse: int = 0) -> None:
        self.length = length
        # A clip is asked for its windows again and again.
        self.starts, self.filmed, self.pairs = (cache(partial(each, length=length)) for each in (starts, filmed, pairs))
        scenes: dict[int, dict[int, list[Clip]]] = defaultdict(lambda: defaultdict(list))
        for clip in sorted(clips, key=lambda each: each.row):
            if self.starts(clip):
                scenes[clip.scene][clip.variant].append(clip)
        self.scenes = {scene: dict(variants) for scene, variants in sorted(scenes.items())}
        self.groups: dict[str, list[tuple[int, int]]] = {task: [] for task in TASKS}
        for scene, variants in self.scenes.items():
            for variant, views in variants.items():
                if sum(bool(self.filmed(clip)) for clip in views) > 1:
                    self.groups["camera"].append((scene, variant))
                if variant and any(self._in_both(clip) for clip in views):
                    self.groups["text"].append((scene, variant))
                if any(self.pairs(clip) for clip in views):
                    self.groups["continue"].append((scene, variant))
        able = {
            task: [each for each in all_ if self._remembers(task, *each, recipe.targets)]
            for task, all_ in self.groups.items()
        }
        asked = {"camera": recipe.memory_dropout < 1, "text": recipe.memory_dropout_text < 1}
        self.forgetful = tuple(task for task in asked if asked[task] and self.groups[task] and not able[task])
        self.recipe = recipe = replace(
            recipe,
            memory_dropout=recipe.memory_dropout if able["camera"] else 1.0,
            memory_dropout_text=recipe.memory_dropout_text if able["text"] else 1.0,
        )
        shares = {"camera": recipe.camera, "text": recipe.text, "continue": recipe.onward}
        self.shares = {task: shares[task] if self.groups[task] else 0.0 for task in TASKS}
        if not sum(self.shares.values()):
            raise ValueError(
                f"none of the tasks {', '.join(task for task in TASKS if shares[task])} finds clips of {length} frames "
                f"or more in one shot among {len(clips)} clips; camera needs two views of a scene, text an edited one"
            )
        # What may be drawn without memories, and with.
        self.kinds = {task: (_kinds(all_), _kinds(able[task])) for task, all_ in self.groups.items()}
        self.glimpses: Corpus | None = None
        if glimpse and recipe.glimpses and self.shares["text"]:
            self.glimpses = Corpus(clips, glimpse, recipe.glimpsing(length // glimpse))

    @property
    def teaches(self) -> tuple[str, ...]:
        """`Recipe.teaches`, of the tasks that find clips."""
        found = self.shares
        return replace(self.recipe, camera=found["camera"], text=found["text"], onward=found["continue"]).teaches

    def draw(
        self,
        random: np.random.Generator,
        task: str | None = None,
        tokenizers: int = 2,
        common: np.random.Generator | None = None,
    ) -> Draw:
        """The next step's samples. `task` None draws it too; tokenizers: how many distinct ones memories may have.
        common: decides what samples have in common, where several processes must agree on that; None for `random`."""
        recipe, common = self.recipe, common or random
        if task is None and self.glimpses and common.random() < recipe.glimpses:
            return self.glimpses.draw(random, "text", tokenizers, common)
        if task is None:
            weights = np.array([self.shares[each] for each in TASKS])
            task = str(common.choice(TASKS, p=weights / weights.sum()))
        dropout = recipe.memory_dropout_text if task == "text" else recipe.memory_dropout
        count = 0 if common.random() < dropout else int(common.integers(1, recipe.memories + 1))
        count = max(count, 1) if task == "continue" else count
        source = task != "continue" and not (count and common.random() < recipe.source_dropout)
        preceding = task == "continue" or (task == "text" and count > 0)
        alone, merges = common.random() < 0.5, common.random() < 0.5
        chosen = [self._group(random, task, count > 0) for _ in range(recipe.batch)]
        samples = [self._sample(random, task, *each, count, preceding) for each in chosen]
        return Draw(
            task,
            self.length,
            tuple(samples),
            source,
            preceding and all(_just_before(each, self.length) for each in samples),
            int(common.integers(tokenizers)) if alone else None,
            float(common.uniform(*recipe.merge_share)) if merges and count else None,
            not (recipe.camera_dropout and common.random() < recipe.camera_dropout),
            task == "text" and bool(recipe.guessed) and common.random() < recipe.guessed,
        )

    def _remembers(self, task: str, scene: int, variant: int, targets: int) -> bool:
        """Whether a variant has windows for memory beside those that a sample of a task has for source and targets."""
        views = self.scenes[scene][variant]
        taken = min(1 + targets, len(views)) if task == "camera" else 1
        long = any(self.starts(clip)[-1] - self.starts(clip)[0] >= self.length for clip in views)
        return task == "continue" or long or len(views) > taken

    def _group(self, random: np.random.Generator, task: str, shown: bool) -> tuple[int, int]:
        """A scene and variant: real in the recipe's share, where there are both kinds. shown: with memories."""
        kinds = self.kinds[task][shown]
        pool = kinds[-1] if len(kinds) == 1 or random.random() < self.recipe.real else kinds[0]
        return pool[int(random.integers(len(pool)))]

    def _sample(
        self, random: np.random.Generator, task: str, scene: int, variant: int, count: int, preceding: bool
    ) -> Sample:
        views = self.scenes[scene][variant]
        recipe, length = self.recipe, self.length
        if task == "camera":
            able = [clip for clip in views if self.filmed(clip)]
            order = [able[int(each)] for each in random.permutation(len(able))]
            if random.random() < 0.5:  # the camera that people will give; else any may play the source
                order.sort(key=lambda each: each.camera != 0)
            source = order[0]
            start = int(random.choice(self.filmed(source)))
            others = [each for each in order[1:] if start in self.filmed(each)]
            distinct = [Window(each, start) for each in others[: recipe.targets]]
            if not distinct or (recipe.still and random.random() < recipe.still):
                distinct = [Window(source, start)]
            targets = [distinct[each % len(distinct)] for each in range(recipe.targets)]
            memories = self._memories(random, views, source, targets, start, count)
            return Sample(Window(source, start), tuple(targets), memories)
        if task == "text":
            pool = {clip.camera: clip for clip in self.scenes[scene][0]}
            edited = [clip for clip in views if self._in_both(clip)]
            target = edited[int(random.integers(len(edited)))]
            both = self._in_both(target)
            options = [at for at in self.pairs(target) if at in both] if preceding else []
            start = int(random.choice(options or both))
            window = Window(target, start)
            first = [Window(target, start - length)] if preceding and options else []
            rest = self._memories(random, views, None, [window], start, count - len(first))
            before = origin = Window(pool[target.camera], start)
            if random.random() < recipe.turned:  # an instruction together with a camera of its own
                others = [each for each in pool.values() if start in self.filmed(each)]
                origin = Window(others[int(random.integers(len(others)))], start)
            return Sample(origin, (window,) * recipe.targets, (*first, *rest), target.instruction, before)
        possible = [clip for clip in views if self.pairs(clip)]
        target = possible[int(random.integers(len(possible)))]
        start = int(random.choice(self.pairs(target)))
        window = Window(target, start)
        rest = self._memories(random, views, None, [window], start, count - 1)
        return Sample(window, (window,) * recipe.targets, (Window(target, start - length), *rest))

    def _in_both(self, edited: Clip) -> list[int]:
        """Starts of filmed windows of an edited clip that the same camera has of the scene as it was, too."""
        plain = next((each for each in self.scenes[edited.scene].get(0, []) if each.camera == edited.camera), None)
        known = self.filmed(plain) if plain else []
        return [at for at in self.filmed(edited) if at in known]

    def _memories(
        self,
        random: np.random.Generator,
        views: Sequence[Clip],
        source: Clip | None,
        targets: Sequence[Window],
        start: int,
        count: int,
    ) -> tuple[Window, ...]:
        """`count` windows of the variant that show no frame of a target; half of them synchronous where possible."""
        shown = {id(each.clip) for each in targets}
        synchronous = [
            Window(each, start)
            for each in views
            if id(each) not in shown and each is not source and start in self.starts(each)
        ]
        others = [
            Window(each, at)
            for each in views
            if each is not source
            for at in self.starts(each)
            if (id(each) not in shown or abs(at - start) >= self.length) and at != start
        ]
        chosen: list[Window] = []
        for _ in range(max(0, count)):
            pool = synchronous if synchronous and (random.random() < 0.5 or not others) else others
            if not pool or random.random() < self.recipe.foreign:
                pool = self._foreign(random, targets)
            chosen.append(pool[int(random.integers(len(pool)))])
        return tuple(chosen)

    def _foreign(self, random: np.random.Generator, targets: Sequence[Window]) -> list[Window]:
        """Windows of another scene; where there is none, all of this one that show no frame of a target."""
        scene, names = targets[0].clip.scene, list(self.scenes)
        other = names[int(random.integers(len(names)))]
        if other == scene and len(names) > 1:
            other = names[(names.index(other) + 1) % len(names)]
        views = next(iter(self.scenes[other].values()))
        if other == scene:
            views = [clip for variant in self.scenes[scene].values() for clip in variant]
        return [
            Window(each, at)
            for each in views
            for at in self.starts(each)
            if all(each is not target.clip or abs(at - target.start) >= self.length for target in targets)
        ]


def _kinds(groups: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The rendered ones and the real ones, where there are any."""
    kinds = ([each for each in groups if (each[0] >= REAL) is real] for real in (False, True))
    return [kind for kind in kinds if kind]


def starts(clip: Clip, length: int) -> tuple[int, ...]:
    """Starts of windows of `length` frames within one shot, half a window apart so that they coincide across views, and
    every second one begins where another window ends."""
    every = sorted({half * length // 2 for half in range(2 * len(clip) // length + 1)})
    return tuple(
        at for at in every if at + length <= len(clip) and (clip.shots[at] == clip.shots[at : at + length]).all()
    )


def filmed(clip: Clip, length: int) -> list[int]:
    """Starts of windows without a frame that a model made: what else than memory may be."""
    return [at for at in starts(clip, length) if at + length <= len(clip) - clip.extended]


def pairs(clip: Clip, length: int) -> list[int]:
    """Starts of filmed windows that another window precedes within the shot."""
    at = set(filmed(clip, length))
    return [each for each in sorted(at) if each - length in at and clip.shots[each] == clip.shots[each - length]]


def _just_before(sample: Sample, length: int) -> bool:
    target, first = sample.targets[0], sample.memories[0]
    return first.clip is target.clip and first.start == target.start - length
