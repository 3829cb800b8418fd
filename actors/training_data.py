"""Windows of a data set of clips as a training takes them: at its size, encoded, and read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pipeline.pixels import Codec
from pipeline.training.batch import Batch
from pipeline.training.samples import Window

if TYPE_CHECKING:
    from storage.clips import ClipDataset


class Windows:
    """Reads windows of a data set, brought to `height` x `width` by averaging over areas."""

    def __init__(self, data: ClipDataset, height: int, width: int) -> None:
        self.data, self.height, self.width = data, height, width

    def __call__(self, windows: Sequence[Window], length: int) -> torch.Tensor:
        """(N, length, height, width, 3) uint8."""
        parts = []
        for run in _of_one_size(windows):
            frames = self.data.read([each.clip.row for each in run], [each.start for each in run], length)
            parts.append(resized(torch.from_numpy(frames), self.height, self.width))
        return torch.cat(parts)


def resized(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(N, T, H, W, 3) uint8 to (N, T, height, width, 3) uint8."""
    if frames.shape[2:4] == (height, width):
        return frames
    planes = frames.permute(0, 1, 4, 2, 3).flatten(1, 2).float()
    planes = F.interpolate(planes, size=(height, width), mode="area").round().to(torch.uint8)
    return planes.unflatten(1, (-1, 3)).permute(0, 1, 3, 4, 2).contiguous()


class WindowDepths:
    """Depths of windows at the size of a `Windows`: where that is not the clips' own, those of single pixels, since a
    mean of two surfaces is neither."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __call__(self, windows: Sequence[Window], length: int) -> torch.Tensor:
        """(N, length, height, width) float32, metres along the optical axis."""
        size, known = (self.windows.height, self.windows.width), dict[tuple[int, int], torch.Tensor]()
        for row, start in {(each.clip.row, each.start) for each in windows}:
            depth = torch.tensor(self.windows.data.channel("depth", row, start, length))
            known[row, start] = depth if depth.shape[1:] == size else F.interpolate(depth[None], size)[0]
        return torch.stack([known[each.clip.row, each.start] for each in windows])


class Encoded:
    """Latents of windows. The codec is this object's own: a Wan VAE keeps state while it works, and windows are encoded
    in a thread of their own."""

    def __init__(self, windows: Windows, codec: Codec) -> None:
        self.windows, self.codec = windows, codec

    def __call__(self, windows: Sequence[Window], length: int) -> torch.Tensor:
        """(N, C, T', H', W') float32."""
        return torch.stack([self.codec.encode(each) for each in self.windows(windows, length)])


def ahead(make: Callable[[int], Batch], first: int, stop: int) -> Iterator[Batch]:
    """make(first), ..., make(stop - 1), each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        coming = thread.submit(make, first) if first < stop else None
        for step in range(first, stop):
            assert coming is not None
            batch = coming.result()
            coming = thread.submit(make, step + 1) if step + 1 < stop else None
            yield batch


def _of_one_size(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Runs of windows whose clips have the same size, in order."""
    run: list[Window] = []
    for each in windows:
        if run and (each.clip.height, each.clip.width) != (run[-1].clip.height, run[-1].clip.width):
            yield run
            run = []
        run.append(each)
    if run:
        yield run
