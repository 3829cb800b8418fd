"""Floating-point operations of a denoising pass, counted over the architecture.

Matrix products, convolutions and attention, two operations per multiplication and addition; what grows only with the
number of tokens and not with the width (norms, activations, rotary turns) is left out, as in torch's FlopCounterMode,
with which a test compares. Shapes decide everything: merging takes a fixed share of the frames. The camera is a new one
(an edit that keeps the source's has its outlines, see pipeline/outlines.py, which are not counted). Of what is done to
what was made up the filter of its pattern is counted, in every step, and what makes it go on from the source is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.agreement import LEADING
from pipeline.lookup import CELL
from pipeline.merging import fraction, merged_frames
from pipeline.moments import PLACES
from pipeline.tokenizers import Group

# Wan2.1-T2V-1.3B, and the latent of 81 frames of 480x832.
WAN_1_3B: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
    "merge": "merge",
}
WAN_LATENT = (21, 60, 104)


@dataclass(frozen=True)
class Scheme:
    """attention and merge as of the transformer; kernels: of the memories by rank, None for the model's."""

    attention: str
    merge: str
    kernels: Sequence[tuple[int, int, int]] | None = None


class Operations:
    """Counts for one model configuration and one latent (T, H, W) of target, source and every memory.

    text: tokens of the prompt. unguided: of what is there in its place in the second pass, None for as many; a cache
    keeps one where all are alike.
    """

    def __init__(self, config: Any, latent: Sequence[int], text: int, unguided: int | None = None) -> None:
        self.config, self.latent = config, tuple(latent)
        self.text, self.unguided = text, text if unguided is None else unguided
        self.dim = config.num_attention_heads * config.attention_head_dim

    def edit(self, scheme: Scheme, memories: int, steps: int = 20, passes: int = 2) -> int:
        """A whole edit from a source: one pass per step, or two with guidance, the second of which copies. Without
        what networks beside the transformer do: how far away what may be copied is, asked once, and painting."""
        first = self.one(scheme, memories, filling=True)
        later, unguided = (self.one(scheme, memories, False, text) for text in (self.text, self.unguided))
        unguided -= self._even()
        return first + (steps - 1) * later + (passes - 1) * (steps * unguided + self._text(self.unguided))

    def one(self, scheme: Scheme, memories: int, filling: bool = True, text: int | None = None) -> int:
        """One pass. `filling`: the one that fills the cache, with all that never changes.
        text: how many tokens that has, None for the prompt's."""
        config, dim = self.config, self.dim
        text = self.text if text is None else text
        groups = self.groups(scheme, memories)
        target = math.prod(self._counts((1, 1, 1)))
        joint = scheme.attention == "joint"
        total = self._around(target) + self._copying(target) + self._even()
        if filling:
            total += self._sights(memories)
            total += self._cameras((1, 1, 1)) + self._timestep() + self._text(text)
            kernels = [config.source_kernel, *self._kernels(scheme, memories)]
            total += sum(self._embedding(kernel, self.latent_channels) + self._cameras(kernel) for kernel in kernels)
        points = self._points(scheme, memories)
        kept = groups  # what the target meets in later steps, and in the blocks before the first merge point
        for index in range(config.num_layers):
            if index in points:
                before, groups = groups, self._merged(groups, scheme, memories)
                if joint or filling:
                    merging = [group for group in before if group.merges]
                    frames = sum(group.frames for group in merging)
                    total += self._project(target) + self._project(tokens(merging)) + 2 * target * frames * dim
                    total += self._compress(before, scheme, memories)
                if filling and not joint and index == points[0]:
                    again = 2 * self._project(tokens(groups)) + self._compress(before, scheme, memories)
                    total += index * again
            count = tokens(groups)
            if joint:
                total += self._block(target + count, 0, text)
                continue
            if filling:
                last = index == config.num_layers - 1
                total += 2 * self._project(count) if last else self._block(count, 0, 0)
            elif points and index < points[0]:
                kept = self._merged(groups, scheme, memories)
                count = tokens(kept)
            total += self._block(target, count, text)
        return total

    def kept_tokens(self, scheme: Scheme, memories: int) -> int:
        """Tokens whose keys and values a filled cache holds, summed over the blocks."""
        config, groups = self.config, self.groups(scheme, memories)
        points = self._points(scheme, memories)
        if not points:
            return config.num_layers * tokens(groups)
        total, start = 0, 0
        for stop in [*points[1:], config.num_layers]:
            groups = self._merged(groups, scheme, memories)
            total += (stop - start) * tokens(groups)  # what comes before the first point is merged as behind it
            start = stop
        return total

    @property
    def latent_channels(self) -> int:
        return self.config.in_channels // (2 if self.config.source == "channels" else 1)

    def groups(self, scheme: Scheme, memories: int) -> list[Group]:
        """The conditioning's tokens before any merging."""
        kernels = [self.config.source_kernel, *self._kernels(scheme, memories)]
        whole = max(1, self.config.copied_videos)
        return _joined([Group(*self._counts(kernel), rank >= whole) for rank, kernel in enumerate(kernels)])

    def _points(self, scheme: Scheme, memories: int) -> list[int]:
        config = self.config
        merging = fraction(memories) and scheme.merge != "off"
        return sorted({round(depth * config.num_layers) for depth in config.merge_at}) if merging else []

    def _kernels(self, scheme: Scheme, memories: int) -> list[tuple[int, int, int]]:
        table = list(scheme.kernels or self.config.memory_kernels)
        return [tuple(table[min(rank, len(table) - 1)]) for rank in range(memories)]

    def _counts(self, kernel: Sequence[int]) -> tuple[int, int, int]:
        t, h, w = (-(-size // (k * p)) for size, k, p in zip(self.latent, kernel, self.config.patch_size, strict=True))
        return t, h, w

    def _embedding(self, kernel: Sequence[int], channels: int) -> int:
        """Patches to tokens."""
        size = math.prod(kernel) * math.prod(self.config.patch_size)
        return 2 * math.prod(self._counts(kernel)) * self.dim * channels * size

    def _cameras(self, kernel: Sequence[int]) -> int:
        """What a video's tokens are told of their cameras."""
        counts, config, total = self._counts(kernel), self.config, 0
        if config.cameras == "plucker":
            total += 2 * math.prod(counts) * 6 * self.dim
        elif config.cameras == "extrinsics":
            total += 2 * counts[0] * 12 * self.dim
        if config.cameras == "plucker" or config.positions == "frustum":
            total += 18 * self.latent[0] * counts[1] * counts[2]  # rays into the world
        return total

    def _around(self, target: int) -> int:
        """The target's embedding, its timestep, and what comes behind the blocks."""
        config = self.config
        total = self._embedding((1, 1, 1), config.in_channels) + self._timestep()
        return total + 2 * target * self.dim * config.out_channels * math.prod(config.patch_size)

    def _copying(self, target: int) -> int:
        """What a token says of the rays of its cells."""
        config = self.config
        if not config.copied_videos:
            return 0
        said = config.copied_videos * config.copied_points + 1 + config.copied_points
        return 2 * target * self.dim * said * math.prod(config.patch_size) // CELL**2

    def _even(self) -> int:
        """The filter of what is made up where the camera moves and little noise is left: four means over windows as
        products of matrices."""
        if not self.config.copied_videos:
            return 0
        frames, rows, columns = self.latent
        return 4 * self.config.out_channels * frames * 2 * rows * columns * (rows + columns)

    def _sights(self, memories: int) -> int:
        """The target's rays, and how they run through the videos that it copies from, and through its own that lead;
        and a few of them through all frames of memories, to know which of these to look at."""
        if not self.config.copied_videos:
            return 0
        frames, rows, columns = self.latent
        rays = frames * (rows // CELL) * (columns // CELL)
        leaders = len({round(share * (frames - 1)) for share in LEADING})
        copied = min(1 + memories, self.config.copied_videos)
        asked = (copied - 1) * frames**2 * (18 * len(PLACES) ** 2 + 72)
        return 2 * 24 * rays + (copied + leaders) * (18 * rays + 72 * frames) + asked

    def _timestep(self) -> int:
        """The modulation of one timestep."""
        return 2 * (self.config.freq_dim * self.dim + 7 * self.dim**2)

    def _text(self, text: int) -> int:
        """A text's embedding, and its keys and values in every block."""
        return 2 * text * self.dim * (self.config.text_dim + self.dim * (1 + 2 * self.config.num_layers))

    def _project(self, count: int) -> int:
        """One of queries, keys and values."""
        return 2 * count * self.dim**2

    def _block(self, count: int, context: int, text: int) -> int:
        """`count` tokens that attend to themselves, to `context` kept keys, and to the text: kept as one token it is
        attended to without a query."""
        dim = self.dim
        total = 8 * count * dim**2 + 4 * count * (count + context) * dim + 4 * count * dim * self.config.ffn_dim
        if text == 1:
            total += 2 * dim**2
        elif text:
            total += 4 * count * dim**2 + 4 * count * text * dim  # its keys and values: see _text
        return total

    def _merged(self, groups: Sequence[Group], scheme: Scheme, memories: int) -> list[Group]:
        parts: list[Group] = []
        for group in groups:
            count = merged_frames(group, fraction(memories))
            if count:
                parts.append(group._replace(frames=group.frames - count))
                if scheme.merge == "merge":
                    parts.append(self._small(group, count))
            else:
                parts.append(group)
        return _joined(parts)

    def _small(self, group: Group, frames: int) -> Group:
        rows, columns = (-(-n // k) for n, k in zip(group[1:3], self.config.merge_kernel, strict=True))
        return Group(frames, rows, columns, True)

    def _compress(self, groups: Sequence[Group], scheme: Scheme, memories: int) -> int:
        if scheme.merge != "merge":
            return 0
        counts = [self._small(group, merged_frames(group, fraction(memories))).tokens for group in groups]
        return 2 * sum(counts) * self.dim**2 * math.prod(self.config.merge_kernel)


def tokens(groups: Sequence[Group]) -> int:
    return sum(group.tokens for group in groups)


def _joined(groups: Sequence[Group]) -> list[Group]:
    """Neighbours with one grid are one group, as in `Tokens.join`."""
    joined: list[Group] = []
    for group in groups:
        if joined and joined[-1][1:] == group[1:]:
            group = group._replace(frames=joined.pop().frames + group.frames)
        joined.append(group)
    return joined
