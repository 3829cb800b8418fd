"""Keys and values of the conditioning, computed once per edit and read by every denoising step.

    cache = MemoryCache()
    for t in timesteps:
        prediction = transformer(latents, t, text, source=source, memories=memories, cache=cache).sample

The first call fills it, the others read it: conditioning tokens see neither the noise, nor the timestep, nor the text.
What the target's cameras and the texts come to, and what it may copy, is the same at every step too, and is kept
beside. With joint attention only that is, and the tokens of the conditioning. So a cache serves one target's size and
cameras, and one state of the weights and adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .merging import rank_correlation

if TYPE_CHECKING:
    from .conditioning import ConditioningVideo

Keys = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T")
TEXTS = 4  # kept at most: a callback may give another at every step


@dataclass(eq=False)
class MemoryCache:
    """One pair of keys (after the rotary turn) and values, (B, M, heads, d), per block.

    dtype: what they are kept in, None as they come. torch.float8_e4m3fn halves them, with one scale per head.
    device: where, None as they come; "cpu" keeps them on the host and copies a block's share at each use.
    track: also record the responsiveness of later steps, to be compared with the first's.

    target and attention: of the call that filled it; shown: its source, if any, and memories.
    responsiveness: R (B, memory frames) by merge point, of the pass that filled the cache; its frames are in order
    of the memories that may merge, by rank, then time, until the first merge. later: the same, one entry per tracked
    later pass.
    """

    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    track: bool = False
    complete: bool = False
    target: ConditioningVideo | None = None
    attention: str = ""
    shown: list[ConditioningVideo] = field(default_factory=list)
    responsiveness: dict[int, torch.Tensor] = field(default_factory=dict)
    mean_keys: dict[int, torch.Tensor] = field(default_factory=dict)
    later: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    _blocks: dict[Any, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict)
    _texts: list[tuple[torch.Tensor, int, int]] = field(default_factory=list)  # each with its version and number

    def __post_init__(self) -> None:
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise ValueError(f"a cache keeps floating-point numbers, such as torch.float8_e4m3fn, got {self.dtype!r}")

    @property
    def bytes(self) -> int:
        """What the keys and values take up, the texts' included."""
        return sum(each.numel() * each.element_size() for entry in self._blocks.values() for each in entry)

    def clear(self) -> None:
        """Forget everything: for another edit, or after a pass that broke off."""
        self.complete, self.target = False, None
        for part in (
            self.responsiveness,
            self.mean_keys,
            self.later,
            self.shown,
            self._blocks,
            self._kept,
            self._texts,
        ):
            part.clear()

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` says that no step changes, asked once."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def text(self, states: torch.Tensor, make: Callable[[], Iterable[Keys]]) -> int:
        """The number of a text whose keys and values are kept, under (number, block); made where it is new. The same
        text is the same tensor, not written to since (which those of `torch.inference_mode` cannot tell)."""
        version = 0 if states.is_inference() else states._version
        for place, (known, then, number) in enumerate(self._texts):
            if known is states and then == version:
                self._texts.append(self._texts.pop(place))
                return number
        number = 1 + max((number for _, _, number in self._texts), default=-1)
        if len(self._texts) == TEXTS:
            _, _, oldest = self._texts.pop(0)
            for key in [each for each in self._blocks if isinstance(each, tuple) and each[0] == oldest]:
                del self._blocks[key]
        for block, keys in enumerate(make()):
            self.store((number, block), keys)
        self._texts.append((states, version, number))
        return number

    def store(self, block: int | tuple[int, int], keys: Keys) -> None:
        """Keep a block's keys and values, of the conditioning or of a text."""
        kept = []
        for each in keys:
            if self.dtype is not None and self.dtype.itemsize == 1:
                largest = torch.finfo(self.dtype).max
                scale = each.float().abs().amax(dim=(0, 1, 3), keepdim=True).clamp(min=1e-12) / largest
                kept += [(each / scale).clamp(-largest, largest).to(self.device, self.dtype), scale]
            else:
                kept.append(each.to(self.device, self.dtype))
        self._blocks[block] = tuple(kept)

    def has(self, block: int) -> bool:
        """Whether there is anything that the block may look at: an edit without source and memories has nothing."""
        return block in self._blocks

    def load(self, block: int | tuple[int, int], like: torch.Tensor) -> Keys:
        """A block's keys and values, on the device and in the dtype of `like`."""
        kept = [each.to(like.device, like.dtype, non_blocking=True) for each in self._blocks[block]]
        if len(kept) == 4:
            return kept[0] * kept[1], kept[2] * kept[3]
        return kept[0], kept[1]

    def rank_correlations(self) -> dict[int, list[float]]:
        """By merge point: Spearman's correlation of R between the first pass and every tracked later one."""
        return {
            block: [rank_correlation(first[0].cpu(), other[0].cpu()) for other in self.later.get(block, [])]
            for block, first in self.responsiveness.items()
        }


def once(cache: MemoryCache | None, name: str, make: Callable[[], T]) -> T:
    """What `make` says that no step changes: asked once where there is a cache, and at every step without."""
    return make() if cache is None else cache.once(name, make)
