"""Does a model remember its own edits? The paper's comparison on rendered scenes, where every answer is known.

    python -m benchmarks.consistency [--quick] [--model NAME] [--processes N] [--seeds N]
                                     [--sheet FILE.png [--footage FILE ...]]

Cameras: held-out scenes, three turns each whose cameras overlap beyond what the source sees, and a fourth that repeats
the first. And one that has hardly begun to move, as in a long video's first segment, where the source is to stay as it
is. Methods, on the same weights and the same noise:
    independent      every turn edits the source and knows nothing of the others.
    autoregressive   every turn edits what the last one made.
    memory           every turn edits the source and is shown the turns before it. Also with joint attention, and with
                     one earlier turn at random.
    truth            as memory, but the turns before it are the true views, with which it is compared: what a perfect
                     past would give.
Merging begins with three memories: it is compared with none and with dropping on a turn with eight true views.
Error: mean squared error over the pixels of corresponding points that the source never saw (grey levels 0..1). Beside
it the sharpness of the pictures against the true ones, so that blur cannot win.
Text: clips of 208 frames with an instruction, in 13 segments. An edit has happened where, inside the edited thing,
the picture is nearer to the edited clip than to the source; it persists where it has happened in a later segment and
the thing's mean colour is within .1 of the first segment's.
Last line: the figures as JSON.
"""

from __future__ import annotations

import os

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import multiprocessing  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Iterable, Sequence  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from benchmarks.consistency_cases import (  # noqa: E402
    RATE,
    SEGMENTS,
    TIMES,
    CameraCase,
    FootageCase,
    TextCase,
    camera_cases,
    film,
    footage_case,
    text_cases,
)
from benchmarks.consistency_sheet import Section, draw  # noqa: E402
from pipeline.coverage import Sphere, coverage  # noqa: E402
from pipeline.descriptor import describe  # noqa: E402
from pipeline.memory_pipeline import MemoryV2VPipeline, MemoryVideo  # noqa: E402
from pipeline.retrieval import Candidates, select  # noqa: E402
from pipeline.scenes import paths  # noqa: E402
from pipeline.scenes.correspondence import sampled  # noqa: E402
from pipeline.trajectory import Trajectory  # noqa: E402

PAIRS = {"12": (0, 1), "13": (0, 2), "23": (1, 2)}
METHODS: dict[str, dict[str, Any]] = {
    "independent": {},
    "autoregressive": {},
    "memory": {},
    "joint": {"attention": "joint"},
    "random": {},
    "truth": {},
}
QUICK = ("independent", "autoregressive", "memory")
TEXT_METHODS = ("independent", "memory", "truth")
KEPT = 4  # memories shown at most, as by default in an edit job
SAME = 0.1  # greatest distance of two mean colours that count as the same

Figures = dict[str, list[float]]
_pipe: MemoryV2VPipeline


def start(folder: str) -> None:
    """Load the model in a process of its own."""
    global _pipe
    torch.set_num_threads(1)
    _pipe = MemoryV2VPipeline.from_pretrained(folder)
    _pipe.set_progress_bar_config(disable=True)


# Cameras.


def camera_turns(case: CameraCase | FootageCase, method: str, seed: int) -> list[torch.Tensor]:
    """Latents of the four turns, (C, T', H', W') each."""
    origin = case.source.c2w[0]
    source, made = case.frames, list[torch.Tensor]()
    for turn, path in enumerate(case.turns):
        generator = torch.Generator().manual_seed(1000 * seed + turn)
        known = [_pipe.encode(each.frames) for each in case.views[1:]] if method == "truth" else made
        shown: list[MemoryVideo] = []
        if method == "random" and turn:
            one = int(np.random.default_rng([seed, turn, case.scene.seed]).integers(turn))
            shown = [MemoryVideo(known[one], case.turns[one].relative_to(origin))]
        elif method not in ("independent", "autoregressive"):
            shown = _ranked(case.turns, turn, known, origin, path)
        last = method == "autoregressive" and turn > 0
        made.append(
            _pipe(
                source=made[-1] if last else source,
                source_trajectory=(case.turns[turn - 1] if last else case.source).relative_to(origin),
                target_trajectory=path.relative_to(origin),
                memories=shown,
                frame_rate=RATE,
                generator=generator,
                **METHODS[method],
            ).latents
        )
    return made


def _ranked(
    past: Sequence[Trajectory],
    count: int,
    latents: Sequence[torch.Tensor],
    origin: np.ndarray,
    target: Trajectory,
    kept: int = KEPT,
) -> list[MemoryVideo]:
    """The first `count` of these, ranked as an edit job ranks them."""
    if not count:
        return []
    sphere = Sphere()
    seen = np.stack([coverage(each.relative_to(origin), sphere) for each in past[:count]])
    zeros = np.zeros(count, np.int64)
    known = Candidates([str(i) for i in range(count)], np.arange(count), zeros, zeros, seen, np.zeros((count, 1)))
    wanted = coverage(target.relative_to(origin), sphere)
    chosen = select(known, k=kept, start=0, turn=count, segment=0, target_coverage=wanted)
    return [MemoryVideo(latents[int(each.id)], past[int(each.id)].relative_to(origin)) for each in chosen]


def measure_camera(case: CameraCase, seed: int, methods: Sequence[str]) -> Figures:
    """Sums of squared errors and counts, by figure and method: "<figure>/<method>" → [sum, count]."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(name: str, method: str, error: torch.Tensor, mask: torch.Tensor) -> None:
        sums[f"{name}/{method}"][0] += float(error[mask].sum())
        sums[f"{name}/{method}"][1] += float(mask.sum())

    truth = [each.frames.float() / 255 for each in case.views[1:]]
    for method in ("true views", *methods):
        if method == "true views":  # what resampling alone costs: no method can be below it
            turns = truth
        else:
            latents = camera_turns(case, method, seed)
            turns = [torch.from_numpy(_pipe.decode(each)).float() / 255 for each in latents]
        pairs = {**PAIRS, "return": (0, 3)}
        before = truth if method == "truth" else turns  # what the later turn was shown, and should agree with
        for name, (one, other) in pairs.items():
            for moments, where, mask in case.shared(one, other):
                there = sampled(turns[other][list(moments)], where)
                add(name, method, (before[one][list(TIMES)] - there).square().mean(-1), mask)
        for turn in range(3):
            error = (turns[turn] - truth[turn])[list(TIMES)].square().mean(-1)
            add("seen", method, error, case.seen[turn])
            add("unseen", method, error, case.unseen[turn])
            sharp, reference = _edges(turns[turn]), _edges(truth[turn])
            sums[f"sharpness/{method}"][0] += sharp
            sums[f"sharpness/{method}"][1] += reference
    (still, source), (pan, wanted) = case.slow
    made = _pipe(
        source=source.frames, source_trajectory=still, target_trajectory=pan, frame_rate=RATE,
        generator=torch.Generator().manual_seed(1000 * seed),
    ).latents  # fmt: skip
    error = (torch.from_numpy(_pipe.decode(made)).float() / 255 - wanted.frames.float() / 255).square().mean(-1)
    add("slow", "independent", error, torch.ones_like(error, dtype=torch.bool))
    if "truth" in methods:
        for merge, made in eight(case, seed).items():
            error = (torch.from_numpy(_pipe.decode(made)).float() / 255 - truth[2])[list(TIMES)].square().mean(-1)
            add("eight", merge, error, case.unseen[2])
    return dict(sums)


def eight(case: CameraCase, seed: int) -> dict[str, torch.Tensor]:
    """Turn 3 with eight other true views as memory, by what is done with the frames that matter little."""
    origin, size = case.source.c2w[0], case.size
    others = [case.turns[0], case.turns[1], *paths(case.scene, case.scene.seed + 1, 7, 16, RATE, 1.0)[1:]]
    videos = [_pipe.encode(film(case.scene, each, size).frames) for each in others]
    shown = _ranked(others, len(others), videos, origin, case.turns[2], kept=8)
    return {
        merge: _pipe(
            source=case.frames,
            source_trajectory=case.source.relative_to(origin),
            target_trajectory=case.turns[2].relative_to(origin),
            memories=shown,
            frame_rate=RATE,
            generator=torch.Generator().manual_seed(1000 * seed + 9),
            merge=merge,
        ).latents
        for merge in ("off", "merge", "discard")
    }


def _edges(frames: torch.Tensor) -> float:
    """Mean absolute difference of neighbouring pixels."""
    return float((frames[:, 1:] - frames[:, :-1]).abs().mean() + (frames[:, :, 1:] - frames[:, :, :-1]).abs().mean())


# Text.


def text_segments(case: TextCase, method: str, seed: int, known: np.ndarray) -> list[np.ndarray]:
    """Frames (16, H, W, 3) uint8 of every segment. known (SEGMENTS, D): descriptors of the source's segments."""
    made: list[torch.Tensor] = []
    for segment in range(SEGMENTS):
        part = slice(16 * segment, 16 * segment + 16)
        origin = case.path.c2w[part.start]
        camera = case.path[part].relative_to(origin)
        shown: list[MemoryVideo] = []
        if method != "independent" and segment:
            numbers = np.arange(segment)
            candidates = Candidates(
                [str(i) for i in numbers], np.zeros(segment, np.int64), numbers, 16 * numbers,
                np.zeros((segment, 8), np.uint8), known[:segment],
            )  # fmt: skip
            chosen = select(
                candidates, k=KEPT, start=part.start, turn=0, segment=segment, target_descriptor=known[segment],
                first=(str(segment - 1), "0"),
            )  # fmt: skip
            for index in (int(each.id) for each in chosen):
                past = slice(16 * index, 16 * index + 16)
                latent = _pipe.encode(case.wanted[past]) if method == "truth" else made[index]
                path: Trajectory = case.path[past].relative_to(origin)
                source = _pipe.encode(case.source[past])
                shown.append(MemoryVideo(latent, path, past.start - part.start, index == segment - 1, source))
        made.append(
            _pipe(
                source=case.source[part],
                source_trajectory=camera,
                target_trajectory=camera,
                prompt=case.edit.instruction,
                memories=shown,
                frame_rate=RATE,
                generator=torch.Generator().manual_seed(1000 * seed + segment),
            ).latents
        )
    return [_pipe.decode(each) for each in made]


def descriptors(case: TextCase) -> np.ndarray:
    """(SEGMENTS, D), of the source's segments."""
    return np.stack([describe(case.source[16 * i : 16 * i + 16]) for i in range(SEGMENTS)])


def measure_text(case: TextCase, seed: int, methods: Sequence[str]) -> Figures:
    """As `measure_camera`."""
    sums: dict[str, list[float]] = {}
    known = descriptors(case)
    for method in methods:
        segments = text_segments(case, method, seed, known)
        happened, colours, outside = list[bool](), list[torch.Tensor](), 0.0
        for index, segment in enumerate(segments):
            part = slice(16 * index, 16 * index + 16)
            made, source, wanted = (
                torch.as_tensor(each).float() / 255 for each in (segment, case.source[part], case.wanted[part])
            )
            inside = case.mask[part]
            same = (wanted - source).abs().amax(-1) < 0.02  # shadows of the edited thing change too
            nearer = (made - wanted)[inside].square().mean() < (made - source)[inside].square().mean()
            happened.append(bool(nearer))
            colours.append(made[inside].mean(0))
            outside += float((made - source)[same & ~inside].square().mean()) / SEGMENTS
        # A true past has its own shade, which the first segment, made without any, cannot know.
        first = colours[0]
        if method == "truth":
            first = (case.wanted[:16].float() / 255)[case.mask[:16]].mean(0)
        distances = [float((each - first).norm()) for each in colours[1:]]
        kept = [edited and distance <= SAME for edited, distance in zip(happened[1:], distances, strict=True)]
        sums[f"edit_success/{method}"] = [float(happened[0]), 1.0]
        sums[f"edit_everywhere/{method}"] = [sum(happened) / SEGMENTS, 1.0]
        sums[f"edit_persistence/{method}"] = [sum(kept) / len(kept), 1.0]
        sums[f"outside/{method}"] = [outside, 1.0]
        sums[f"colour_drift/{method}"] = [sum(distances) / len(distances), 1.0]
    return sums


# All of it.


def measure(job: tuple[str, Any, int, Sequence[str]]) -> Figures:
    kind, case, seed, methods = job
    return (measure_camera if kind == "camera" else measure_text)(case, seed, methods)


def total(parts: Iterable[Figures]) -> Figures:
    """The sums of sums and counts."""
    whole: Figures = defaultdict(lambda: [0.0, 0.0])
    for part in parts:
        for name, values in part.items():
            whole[name] = [a + b for a, b in zip(whole[name], values, strict=True)]
    return whole


def mean(figures: Figures, name: str, method: str) -> float | None:
    found = figures.get(f"{name}/{method}")
    return found[0] / found[1] if found and found[1] else None


def summary(figures: Figures) -> dict[str, float | None]:
    """What the goals are about."""

    def ratio(above: float | None, below: float | None) -> float | None:
        return above / below if above is not None and below else None

    def turns(method: str) -> float | None:
        found = [figures[f"{pair}/{method}"] for pair in PAIRS if f"{pair}/{method}" in figures]
        return sum(each[0] for each in found) / sum(each[1] for each in found) if found else None

    def decibels(method: str, name: str = "seen") -> float:
        return -10 * math.log10(max(mean(figures, name, method) or 1.0, 1e-10))

    memory = turns("memory")
    result: dict[str, float | None] = {
        f"cross_turn_{method}": turns(method) for method in ("independent", "autoregressive", "memory")
    }
    for pair in PAIRS:
        result[f"memory_vs_autoregressive_{pair}"] = ratio(
            mean(figures, pair, "memory"), mean(figures, pair, "autoregressive")
        )
    # A floor that every method shares, the resampling of one true view into another, is part of all errors.
    result["cross_turn_true_views"] = turns("true views")
    result["cross_turn_truth"] = turns("truth")
    result["cross_turn_random"] = turns("random")
    result["memory_vs_independent"] = ratio(memory, result["cross_turn_independent"])
    result["sharpness_memory"] = mean(figures, "sharpness", "memory")
    result["sharpness_independent"] = mean(figures, "sharpness", "independent")
    for name, merge in (("merging_loss", "merge"), ("discard_loss", "discard")):
        found = ratio(mean(figures, "eight", merge), mean(figures, "eight", "off"))
        result[name] = None if found is None else found - 1
    result["psnr_seen_memory"] = decibels("memory")
    result["psnr_seen_memory_minus_independent"] = decibels("memory") - decibels("independent")
    result["psnr_slow"] = decibels("independent", "slow")
    result["cached_vs_joint"] = ratio(memory, turns("joint"))
    result["edit_success"] = mean(figures, "edit_success", "memory")
    result["edit_success_everywhere"] = mean(figures, "edit_everywhere", "memory")
    result["edit_persistence"] = ratio(
        mean(figures, "edit_persistence", "memory"), mean(figures, "edit_persistence", "truth")
    )
    result["edit_persistence_independent"] = mean(figures, "edit_persistence", "independent")
    result["edit_persistence_memory"] = mean(figures, "edit_persistence", "memory")
    result["colour_drift_independent"] = mean(figures, "colour_drift", "independent")
    result["colour_drift_memory"] = mean(figures, "colour_drift", "memory")
    outside = mean(figures, "outside", "memory")
    result["psnr_outside_edit"] = None if outside is None else -10 * math.log10(max(outside, 1e-10))
    result["return_to_origin"] = ratio(mean(figures, "return", "memory"), mean(figures, "return", "truth"))
    return result


def table(figures: Figures, methods: Sequence[str]) -> str:
    """Errors by method, for people."""
    names = ("12", "13", "23", "return", "seen", "unseen", "sharpness")
    lines = ["| method | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for method in methods:
        cells = [mean(figures, name, method) for name in names]
        lines.append(f"| {method} | " + " | ".join("" if cell is None else f"{cell:.4f}" for cell in cells) + " |")
    return "\n".join(lines)


# Pictures.

SAME_COLUMNS = (
    "turn 1", "what it invents", "turn 3, no memory", "turn 3, memory", "differs, no memory", "differs, memory"
)  # fmt: skip
CAMERA_COLUMNS = ("source", "turn 1 invents", "turn 2", "turn 3, no memory", "turn 3, memory", "turn 3, the truth")
TEXT_COLUMNS = (
    "source, segment 1", "edited", "source, segment 13", "13, no memory", "13, memory", "13, the truth"
)  # fmt: skip
FOOTAGE_COLUMNS = ("real footage", "made night") * 3
SHOWN = (15, 7, 7)  # frames of the turns: turn 1 looks far to one side, turn 3 is on the way back


def compared(case: CameraCase | FootageCase) -> dict[str, list[torch.Tensor]]:
    """The turns that the pictures compare, by method."""
    return {method: camera_turns(case, method, 0) for method in ("independent", "memory")}


def camera_row(case: CameraCase | FootageCase, turns: dict[str, list[torch.Tensor]]) -> list[np.ndarray | None]:
    """The last frame of the source, and SHOWN of the turns, the last of them without memory, with it and as it truly
    is."""
    alone, memory = turns["independent"], turns["memory"]
    shown = [*zip(memory[:2], SHOWN, strict=False), (alone[2], SHOWN[2]), (memory[2], SHOWN[2])]
    made = [_pipe.decode(latent)[frame] for latent, frame in shown]
    if isinstance(case, FootageCase):
        return [case.frames[-1], *made, None]
    return [case.frames[-1].numpy(), *made, case.views[3].frames[SHOWN[2]].numpy()]


def same_row(case: CameraCase, turns: dict[str, list[torch.Tensor]]) -> tuple[str, list[np.ndarray | None]]:
    """What turn 1 shows that the source never saw and turn 3 shows, too; turn 3 looked up there, point by point, and
    how far it is off (white: not at all, black: a quarter of all grey levels). All else is grey. With a line that says
    the mean squared errors."""
    found = [(*each[:2], _whole(each[2])) for each in case.shared(0, 2)]
    moments, where, mask = max(found, key=lambda each: int(each[2].flatten(1).sum(1).max()))
    number = int(mask.flatten(1).sum(1).argmax())
    known = mask[number, ..., None]
    first = torch.from_numpy(_pipe.decode(turns["memory"][0])).float()[TIMES[number]] / 255
    again, off, errors = list[torch.Tensor](), list[torch.Tensor](), list[float]()
    for made in turns.values():
        frames = torch.from_numpy(_pipe.decode(made[2])).float() / 255
        again.append(sampled(frames[list(moments)], where)[number])
        squared = (again[-1] - first).square().mean(-1, keepdim=True)
        errors.append(float(squared[known].mean()))
        off.append((1 - 4 * squared.sqrt()).clamp(0, 1).expand(-1, -1, 3))
    tiles = [first, *(torch.where(known, each, 0.5) for each in (first, *again, *off))]
    without, remembered = errors
    title = (
        f"{known.float().mean():.0%} of the picture, squared error {without:.4f} without memory and {remembered:.4f} "
        f"with: {without / remembered:.0f} times less"
    )
    return title, [(255 * tile).round().to(torch.uint8).numpy() for tile in tiles]


def _whole(mask: torch.Tensor) -> torch.Tensor:
    """(N, H, W) bool, without single pixels along the edges of things: those most of whose neighbours are in it."""
    return mask & (F.avg_pool2d(mask[:, None].float(), 7, 1, 3, count_include_pad=False)[:, 0] > 0.5)


def text_row(case: TextCase) -> list[np.ndarray | None]:
    """The middle frames of the first and of the last segment."""
    known = descriptors(case)
    alone, memory = (text_segments(case, method, 0, known) for method in ("independent", "memory"))
    first, last = 8, 16 * SEGMENTS - 8
    source, wanted = case.source.numpy(), case.wanted.numpy()
    return [source[first], memory[0][8], source[last], alone[-1][8], memory[-1][8], wanted[last]]


def footage_edit(case: FootageCase, instruction: str) -> list[np.ndarray]:
    """A real segment and what an instruction makes of it; one segment has no past."""
    made = _pipe(
        source=case.frames, source_trajectory=case.source, target_trajectory=case.source, prompt=instruction,
        frame_rate=RATE, generator=torch.Generator().manual_seed(0), output_type="np",
    ).frames  # fmt: skip
    return [case.frames[8], made[8]]


def sheets(
    turned: Sequence[CameraCase | FootageCase], texts: Sequence[TextCase], edited: Sequence[FootageCase], path: Path
) -> None:
    """Two of them. Into `path` what turns of rendered scenes have in common, and instructions, of real footage as well;
    beside it, with `-turns` behind its name, the turns themselves."""
    words = [case.edit.instruction for case in texts]
    rows = [text_row(case) for case in texts]
    real = [tile for case in edited for tile in footage_edit(case, "make it night")]
    turns = [(case, compared(case)) for case in turned]
    same = [same_row(case, made) for case, made in turns if isinstance(case, CameraCase)]  # it takes depth
    titles, tiles = zip(*same, strict=True)
    sections = [Section(SAME_COLUMNS, tiles, titles), Section(TEXT_COLUMNS, rows, words)]
    if real:
        wide = len(FOOTAGE_COLUMNS)
        sections.append(Section(FOOTAGE_COLUMNS[: len(real)], [real[i : i + wide] for i in range(0, len(real), wide)]))
    draw(sections, str(path))
    draw(
        [Section(CAMERA_COLUMNS, [camera_row(case, made) for case, made in turns])],
        str(path.with_stem(f"{path.stem}-turns")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 scenes, one seed, three methods")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--sheet", help="also draw pictures into this file and one beside it")
    parser.add_argument("--seeds", type=int, default=3, help="of the full version")
    parser.add_argument("--footage", nargs="*", default=[], help="real videos for these")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    from jobs.model import resolve

    model = resolve(given.model)
    size = math.isqrt(model.spec.area)
    scenes, clips, seeds = (10, 6, 1) if given.quick else (40, 20, given.seeds)
    methods = QUICK if given.quick else tuple(METHODS)
    cases, texts = list(camera_cases(scenes, size)), list(text_cases(clips, size))
    jobs: list[tuple[str, Any, int, Sequence[str]]] = []
    for seed in range(seeds):  # what nothing is remembered in is made once, to compare with
        jobs += [("text", case, seed, TEXT_METHODS if not seed else ("memory", "truth")) for case in texts]
    jobs += [("camera", case, seed, methods) for case in cases for seed in range(seeds)]
    figures: Figures = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, context, initializer=start, initargs=(model.folder,)) as pool:
        done = []
        for number, part in enumerate(pool.map(measure, jobs)):
            done.append(part)
            if number % 10 == 9:
                print(f"{number + 1} of {len(jobs)}", flush=True)
        figures = total(done)
    print(
        f"\n{len(cases)} scenes x 3 turns x {seeds} seeds, {len(texts)} clips of {16 * SEGMENTS} frames, {size}x{size}"
    )
    print(table(figures, ("true views", *methods)))
    if given.sheet:
        start(model.folder)
        turned = [*(footage_case(each, 2 * size) for each in given.footage), *camera_cases(5, 2 * size)]
        sheets(turned, texts[:4], [footage_case(each, size) for each in given.footage], Path(given.sheet))
    result = summary(figures) | {"model": model.digest[:16], "quick": given.quick}
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
