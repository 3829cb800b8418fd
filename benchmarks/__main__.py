"""`make bench`: run benchmarks and write their parts of docs/benchmarks.md from the JSON lines that they print.

python -m benchmarks [--quick] [NAME ...]    every one but those that belong to a shipped model, or these
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
# What each figure means and what is aimed for; the figures themselves come from the run alone.
GOALS = {
    "attention": {
        "mini_ours_8_vs_single_joint": "mini: ours with 8 memories over joint without memory (goal: .55 or less)",
        "mini_ours_8_vs_single_joint_counted": "the first by counted operations",
        "mini_ours_1000_vs_ours_0": "ours with 1,000 ancestors in the library over ours with none (goal: 1.15 or less)",
        "mini_merging_saving_joint_64": "share of the time that merging saves, joint, 64 memories (goal: .3)",
        "mini_peak_mb_8": "greatest resident memory of the process during an edit of ours among 8 ancestors, MB",
        "mini_peak_mb_1000": "the same among 1,000 ancestors",
        "responsiveness_rank_correlation": "of R_t between the first step and the later ones (untrained weights)",
        "cache_mb_8": "MB of mini's cached keys and values with 8 memories",
        "wan_ours_8_vs_single_joint": "the 1.3B shape, as above (goal: .62 or less)",
        "wan_ours_1000_vs_ours_0": "the 1.3B shape, as above (goal: 1.25 or less)",
        "wan_merging_saving_joint_16": "the 1.3B shape, with 16 memories (goal: .3)",
        "wan_measured_on": "the accelerator, or `counted` where only operations were counted",
        "wan_cache_mb_8": "MB of the 1.3B shape's cache with 8 memories, bfloat16",
        "wan_share_of_ceiling": "TFLOP/s of a cached pass over those of a plain matrix product (goal: .6)",
        "wan_peak_gb_8": "peak memory of that edit",
    },
    "consistency": {
        "cross_turn_independent": "error between turns where the source saw nothing, every turn by itself",
        "cross_turn_autoregressive": "the same where every turn edits the last one's result",
        "cross_turn_memory": "the same where every turn is shown those before it (goal: half of independent)",
        "memory_vs_autoregressive_12": "between turns 1 and 2, memory over autoregressive (goal: below 1)",
        "memory_vs_autoregressive_13": "the same of turns 1 and 3",
        "memory_vs_autoregressive_23": "the same of turns 2 and 3",
        "memory_vs_independent": "memory over independent (goal: .5)",
        "cross_turn_true_views": "what resampling one true view into another costs: in all of these errors",
        "cross_turn_truth": "where every turn is shown the true views of those before it",
        "cross_turn_random": "memory, with one earlier turn at random",
        "sharpness_memory": "differences of neighbouring pixels over those of the true views (goal: .8)",
        "sharpness_independent": "the same without memory",
        "merging_loss": "what merging adds to the error with 8 true views as memory (goal: .01)",
        "discard_loss": "the same of dropping the frames instead",
        "psnr_seen_memory": "dB to the true view where the source saw it",
        "psnr_seen_memory_minus_independent": "the same, less that without memory (goal: -.3)",
        "cached_vs_joint": "error of cached attention over joint attention, one set of weights (goal: 1.03)",
        "edit_success": "share of clips whose first segment shows the edit (goal: .9)",
        "edit_success_everywhere": "share of all segments that show it",
        "edit_persistence": "share of later segments that keep the look, over that with a true past (goal: .95)",
        "edit_persistence_independent": "that share without memory",
        "edit_persistence_memory": "that share with memory",
        "colour_drift_independent": "distance of the thing's mean colour from the first segment's, without memory",
        "colour_drift_memory": "the same with memory",
        "psnr_outside_edit": "dB to the source where the edit changes nothing",
        "return_to_origin": "error of a repeated first turn over that with the true first view as memory (goal: 1.25)",
        "model": "first digits of the model's digest",
        "quick": "whether this was the quick version",
    },
    "coverage": {
        "speedup_10k_same_points": "bit sets against vectorised Algorithm 1, same points, 10,000 rows (goal: 3,000)",
        "speedup_10k_same_points_swift": "against Algorithm 1 with our own test of what a frame sees, same points",
        "speedup_10k_default": "bit sets of the default 4,096 points against vectorised Algorithm 1 (goal: 30,000)",
        "scores_equal": "1 if the scores on the same points are equal to the last bit (goal: 1)",
        "top3_agreement": "share of 50 queries among 200 memories whose top-3 is Algorithm 1's, ties aside (goal: .97)",
        "top3_tie": "scores closer than this count as tied there: about three of the points inside a view",
        "top3_agreement_exact_ties_only": "the same where only equal scores count as tied",
        "vs_memory_read": "time to score 1,000,000 memories over the time to read their bytes once (goal: 3 or less)",
        "vs_memory_read_all_directions": "the same for a target that sees every direction",
        "seconds_1m": "seconds to score 1,000,000 memories whose bits are counted",
        "select_seconds_1m": "seconds to choose the 8 best of them, in order, counting their bits anew: an edit's call",
    },
    "overhead": {
        "efficiency": "edits/s of the whole job with one worker over those of a bare loop around the model (goal: .95)",
    },
    "scenes": {
        "frames_per_s_64": "frames/s of random rooms on one thread: colour, depth and objects",
        "vs_moderngl_64": "that over a fragment shader that shows the same, with moderngl on one thread of llvmpipe",
        "frames_per_s_64_gpu": "on a GPU, pictures brought to the host",
        "frames_per_s_128": "frames/s at 128x128",
        "vs_moderngl_128": "that over the shader",
        "frames_per_s_256": "frames/s at 256x256",
        "vs_moderngl_256": "that over the shader",
        "lance_windows_per_s": "random windows of 16 frames of 64x64 read by one caller from a data set of clips",
        "vs_hdf5": "that over HDF5 with a chunk per frame and gzip (goal: 5)",
        "vs_hdf5_lzf": "with lzf instead",
        "vs_hdf5_contiguous": "without any compression",
        "vs_mp4_files": "over a folder of H.264 files, decoded with PyAV (goal: 5)",
    },
}


# Run once for every model that is shipped; takes the better part of an hour.
OF_THE_MODEL = ("consistency",)
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"


def main(arguments: list[str]) -> int:
    options = [each for each in arguments if each.startswith("-")]
    names = [each for each in arguments if each not in options] or sorted(set(GOALS) - set(OF_THE_MODEL))
    if unknown := sorted(set(names) - set(GOALS)):
        print(f"no benchmark {unknown[0]}; there are {', '.join(sorted(GOALS))}")
        return 2
    parts = _parts(DOCUMENT.read_text()) if DOCUMENT.exists() else {}
    for name in names:
        print(f"== {name}", flush=True)
        ran = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], stdout=subprocess.PIPE, text=True)
        print(ran.stdout, flush=True)
        if ran.returncode:
            print(f"benchmarks.{name} failed with exit code {ran.returncode}; its part of {DOCUMENT.name} stays")
            return 1
        figures = json.loads(ran.stdout.strip().splitlines()[-1])
        lines = [
            f"Measured on {date.today()}: {platform.machine()}, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, torch {torch.__version__}"
            + (", quick version." if "--quick" in options else "."),
            "",
            "| figure | value | what it is |",
            "|---|---|---|",
        ]
        lines += [  # but what could not be measured here
            f"| `{key}` | {_number(value)} | {GOALS[name].get(key, '')} |"
            for key, value in figures.items()
            if value is not None
        ]
        kept = parts.get(name, "").partition(BY_HAND)[1:]  # what somebody wrote below the figures
        parts[name] = "\n".join(lines) + ("\n\n" + "".join(kept) if kept[0] else "")
        text = "\n\n".join([HEAD, *(f"## {each}\n\n{parts[each]}" for each in sorted(parts))])
        DOCUMENT.write_text(text + "\n")
    return 0


BY_HAND = "<!-- by hand -->"
HEAD = """# Benchmarks

Tables are written by `make bench`. Every figure compares two things inside one run; absolute seconds depend on the
machine."""


def _parts(text: str) -> dict[str, str]:
    """The document's parts by name."""
    found = (part.split("\n", 1) for part in text.split("\n## ")[1:])
    return {name.strip(): body.strip() for name, body in found}


def _number(value: object) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, (int, float))
        else str(value)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
