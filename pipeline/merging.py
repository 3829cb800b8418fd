"""Adaptive merging: memory frames that the target hardly responds to shrink to a few tokens.

Responsiveness is the paper's: R_t = max over target queries of softmax_t(q . K_t / sqrt(d)), with K_t the mean key of
memory frame t (so q . K_t is the mean logit of its tokens), averaged over heads. The least responsive frames are
replaced by C_theta(frame), a learnable convolution. The number of frames merged is fixed by the number of memories and
counted within each tokenizer's frames, so that shapes and costs never depend on what is in the videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .tokenizers import Group, Tokens

# (kept, merged) frame indices, (B, .) each, of one group; None for a group that is never merged.
Selection = list[tuple[torch.Tensor, torch.Tensor] | None]

QUERIES = 4096  # taken at once: all of them against all frames would be gigabytes at full size


def fraction(memories: int) -> float:
    """Share of the memory frames that one merge point merges: none with one or two memories, where there is hardly
    anything to save, from .3 with three to .7 with eight or more.

    The paper trains with shares between .3 and .7 and compresses the more the more memories there are.
    """
    return 0.0 if memories < 3 else 0.3 + 0.4 * (min(memories, 8) - 3) / 5


def merged_frames(group: Group, share: float) -> int:
    """How many of a group's frames are merged; a frame of one token has nothing to give."""
    return round(share * group.frames) if group.merges and group.rows * group.columns > 1 else 0


def mean_keys(keys: torch.Tensor, groups: Sequence[Group]) -> torch.Tensor:
    """(B, frames, heads, d): mean key of every frame, from keys (B, M, heads, d) of the groups' tokens."""
    parts = keys.split([group.tokens for group in groups], dim=1)
    means = [part.unflatten(1, (group.frames, -1)).mean(2) for part, group in zip(parts, groups, strict=True)]
    return torch.cat(means, dim=1)


def responsiveness(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """R (B, frames) of target queries (B * n, N, heads, d) to mean keys (B, frames, heads, d).

    Several targets may share one encoding (training): R is then the maximum over them.
    """
    keys = keys.float().permute(0, 2, 3, 1) / math.sqrt(keys.shape[-1])  # (B, heads, d, frames)
    queries = queries.unflatten(0, (keys.shape[0], -1)).flatten(1, 2)
    best = [
        torch.softmax(part.float().transpose(1, 2) @ keys, dim=-1).mean(dim=1).amax(dim=1)
        for part in queries.split(QUERIES, dim=1)
    ]
    return torch.stack(best).amax(dim=0)


def least_responsive(scores: torch.Tensor, groups: Sequence[Group], share: float) -> Selection:
    """Which frames of each group to keep and which to merge, by scores (B, memory frames); both in order of time."""
    chosen: Selection = []
    parts = iter(scores.split([group.frames for group in groups if group.merges], dim=1))
    for group in groups:
        if not group.merges:
            chosen.append(None)
            continue
        order = next(parts).argsort(dim=1, stable=True)
        count = merged_frames(group, share)
        chosen.append((order[:, count:].sort(dim=1).values, order[:, :count].sort(dim=1).values))
    return chosen


class Compressor(nn.Module):
    """C_theta: a convolution over the tokens of a frame, average pooling at initialisation."""

    def __init__(self, dim: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.kernel = size = (kernel[0], kernel[1])  # not asked of the convolution, which an adapter may have wrapped
        self.conv = nn.Conv2d(dim, dim, kernel_size=size, stride=size)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Begin as the mean of the tokens that become one."""
        weight, (rows, columns) = self.conv.weight, self.kernel
        weight.copy_(torch.eye(len(weight), device=weight.device)[..., None, None].expand_as(weight) / (rows * columns))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tokens) -> Tokens:
        """One group of tokens, fewer per frame."""
        [group] = tokens.groups
        rows, columns = (-(-n // k) for n, k in zip((group.rows, group.columns), self.kernel, strict=True))

        def frames(values: torch.Tensor) -> torch.Tensor:
            grid = values.unflatten(1, (group.frames, group.rows, group.columns)).flatten(0, 1).movedim(-1, 1)
            tall, wide = self.kernel
            return F.pad(grid, (0, columns * wide - group.columns, 0, rows * tall - group.rows), mode="replicate")

        def tokens_of(grid: torch.Tensor) -> torch.Tensor:
            return grid.movedim(1, -1).flatten(1, 2).unflatten(0, (-1, group.frames)).flatten(1, 2)

        def mean(values: torch.Tensor) -> torch.Tensor:  # a merged token is at the mean place of what it replaces
            return tokens_of(F.avg_pool2d(frames(values), self.kernel))

        return Tokens(
            tokens_of(self.conv(frames(tokens.states))),
            mean(tokens.places),
            None if tokens.cameras is None else mean(tokens.cameras),
            (group._replace(rows=rows, columns=columns),),
        )


def merge(tokens: Tokens, selection: Selection, compressor: Compressor | None) -> Tokens:
    """The tokens with the selected frames merged, or dropped where there is no compressor; as they are where that would
    drop the last."""
    parts = []
    for part, chosen in zip(tokens.split(), selection, strict=True):
        if chosen is None or not chosen[1].shape[1]:
            parts.append(part)
            continue
        kept, low = (_frames(part, indices) for indices in chosen)
        parts += [kept] if compressor is None else [kept, compressor(low)]
    parts = [part for part in parts if len(part)]
    return Tokens.join(parts) if parts else tokens


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's, between two (frames,) responsivenesses; 1 where the order is the same."""
    ranks = torch.stack([first.argsort().argsort(), second.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1]) if ranks.shape[1] > 1 else 1.0


def _frames(tokens: Tokens, indices: torch.Tensor) -> Tokens:
    """These frames (B, n) of one group."""
    [group] = tokens.groups

    def take(values: torch.Tensor) -> torch.Tensor:
        values = values.unflatten(1, (group.frames, -1)).expand(len(indices), -1, -1, -1)
        return values.take_along_dim(indices[..., None, None], dim=1).flatten(1, 2)

    return Tokens(
        take(tokens.states),
        take(tokens.places),
        None if tokens.cameras is None else take(tokens.cameras),
        (group._replace(frames=indices.shape[1]),),
    )
