"""One pass through the blocks: the target alone, jointly with its conditioning, or beside a cache of it.

Both kinds of attention are the same loop over the same blocks. They differ in what is put into one call of a block
(see `blocks`), and so does merging: it acts on the conditioning at the entries of the merge points in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from .memory_cache import MemoryCache, once
from .merging import Compressor, Selection, least_responsive, mean_keys, merge, responsiveness
from .positions import Rotary
from .tokenizers import Tokens


@dataclass(frozen=True)
class Merging:
    """points: blocks at whose entry memory frames merge, () for never. share: of the frames. compressor: None drops
    the frames instead."""

    points: tuple[int, ...] = ()
    share: float = 0.0
    compressor: Compressor | None = None


@dataclass
class Pass:
    """What all blocks of a pass share.

    call(block, *arguments) runs a block (through gradient checkpointing, where that is on); rotary gives the factors
    of places. text: (B, L, D), or its number in the cache; modulation (B, 6, D) of the target's timestep, clean
    (1, 6, D) of timestep 0, where conditioning takes part.
    """

    blocks: nn.ModuleList
    call: Callable[..., Any]
    rotary: Callable[[torch.Tensor], Rotary]
    text: torch.Tensor | int
    modulation: torch.Tensor
    clean: torch.Tensor | None
    merging: Merging

    def joint(self, target: Tokens, conditioning: Tokens, noisy: int, cache: MemoryCache | None = None) -> torch.Tensor:
        """The target's states (B, N, D) after all blocks, attending jointly. The first `noisy` tokens of the
        sequence take the target's modulation: its own, and a source's where it is published so. cache: what has the
        text's keys and values, and keeps the rotary factors."""
        count, sequence = len(target), Tokens.join([target, conditioning])
        turn = partial(self.rotary, sequence.places)
        factors = once(cache, "rotary", turn)
        states = sequence.states
        for index, block in enumerate(self.blocks):
            if index in self.merging.points:
                target, conditioning = target.having(states[:, :count]), conditioning.having(states[:, count:])
                selection = self._select(index, block, target, conditioning)
                conditioning = merge(conditioning, selection, self.merging.compressor)
                sequence = Tokens.join([target, conditioning])
                states, factors = sequence.states, self.rotary(sequence.places)
            text = self._words(index, cache, states)
            states = self.call(block, states, text, self.modulation, factors, self.clean, noisy, sequence.cameras)
        if cache is not None:
            cache.complete = True
        return states[:, :count]

    def cached(self, target: Tokens, cache: MemoryCache | None, conditioning: Tokens | None = None) -> torch.Tensor:
        """The target's states (B, N, D) after all blocks, attending to itself and to the cache.

        With `conditioning` the cache is filled on the way, block by block, because merging needs the queries that
        the target has come to at each merge point. Without both the target is alone.
        """
        filling = None
        turn = partial(self.rotary, target.places)
        factors = once(cache, "rotary", turn)
        if conditioning is not None:
            filling = Filling(self, cache or MemoryCache(), conditioning, reused=cache is not None)
            cache = filling.cache
        for index, block in enumerate(self.blocks):
            if filling is not None:
                filling.fill(index, target)
            context = None if cache is None or not cache.has(index) else cache.load(index, target.states)
            text = self._words(index, cache, target.states)
            arguments = (target.states, text, self.modulation, factors, None, 0, target.cameras, context)
            if cache is not None and cache.track and cache.complete and index in cache.mean_keys:
                states, (queries, _, _) = self.call(block, *arguments, "also")
                cache.later.setdefault(index, []).append(responsiveness(queries, cache.mean_keys[index]))
            else:
                states = self.call(block, *arguments)
            target = target.having(states)
        if cache is not None:
            cache.complete = True
        return target.states

    def _words(self, index: int, cache: MemoryCache | None, like: torch.Tensor) -> Any:
        """What a block is given of the text."""
        if cache is None or not isinstance(self.text, int):
            return self.text
        return cache.load((self.text, index), like)

    def projections(self, which: str, block: nn.Module, tokens: Tokens, modulation: torch.Tensor | None) -> Any:
        """A tuple of what a block would attend with: `which` of queries, keys and values, "q", "k" or "kv"."""
        factors = self.rotary(tokens.places)
        return self.call(block, tokens.states, None, modulation, factors, None, 0, tokens.cameras, None, which)

    @torch.no_grad()
    def _select(
        self, index: int, block: nn.Module, target: Tokens, conditioning: Tokens, cache: MemoryCache | None = None
    ) -> Selection:
        """The memory frames to merge at the entry of a block."""
        merges = [part for part in conditioning.split() if part.groups[0].merges]
        if not merges:  # earlier merge points have dropped them all
            return [None for _ in conditioning.groups]
        merging = Tokens.join(merges)
        [queries] = self.projections("q", block, target, self.modulation)
        [keys] = self.projections("k", block, merging, self.clean)
        pooled = mean_keys(keys, merging.groups)
        scores = responsiveness(queries, pooled)
        if cache is not None:
            cache.responsiveness[index], cache.mean_keys[index] = scores, pooled
        return least_responsive(scores, conditioning.groups, self.merging.share)


class Filling:
    """The conditioning on its way through the blocks, leaving its keys and values in the cache."""

    def __init__(self, run: Pass, cache: MemoryCache, conditioning: Tokens, reused: bool) -> None:
        self.run, self.cache, self.tokens, self.reused = run, cache, conditioning, reused
        self.before: list[Tokens] = []  # at the entries of the blocks before the first merge point
        self.factors = run.rotary(conditioning.places)

    def fill(self, index: int, target: Tokens) -> None:
        """Keys and values of this block; `target` is what enters it, whose queries decide what is merged."""
        run, block = self.run, self.run.blocks[index]
        if index in run.merging.points:
            selection = run._select(index, block, target, self.tokens, self.cache)
            self._merge_before(selection)
            self.tokens = merge(self.tokens, selection, run.merging.compressor)
            self.factors = run.rotary(self.tokens.places)
        elif self.reused and run.merging.points and index < run.merging.points[0]:
            self.before.append(self.tokens)
        last = index == len(run.blocks) - 1  # what comes out of the last block nobody reads
        result = run.call(
            block, self.tokens.states, None, run.clean, self.factors, None, 0, self.tokens.cameras, None,
            "kv" if last else "also",
        )  # fmt: skip
        keys, values = result if last else result[1][1:]
        self.cache.store(index, (keys, values))
        if not last:
            self.tokens = self.tokens.having(result[0])

    def _merge_before(self, selection: Selection) -> None:
        """Once it is known which frames matter, the blocks before the first merge point keep no more than the others:
        later steps see their frames through the same compressor. This pass has seen them whole."""
        for index, tokens in enumerate(self.before):
            merged = merge(tokens, selection, self.run.merging.compressor)
            self.cache.store(index, self.run.projections("kv", self.run.blocks[index], merged, self.run.clean))
        self.before = []
