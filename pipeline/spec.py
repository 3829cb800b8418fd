"""What a plan must know of a model, read from its configuration files without loading it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEARNED = ("camera", "text", "memory")  # new views, instructions, and what they were shown of earlier edits


@dataclass(frozen=True)
class ModelSpec:
    """Shapes that a model takes, and its defaults.

    compression: (temporal, spatial) pixels per latent. patch: (T, H, W) latents per token. segment_frames: frames of
    one edit. area: pixels of a frame it is meant for. steps: denoising steps. trained: False while the weights are
    random. learned: which of LEARNED they were trained for. caches: its conditioning can be computed once (a source
    that is as noisy as the target cannot). merges: it has a compressor for memory frames. words: those that
    it has tokens for, where these are few; none where it reads any.
    """

    compression: tuple[int, int]
    patch: tuple[int, int, int]
    segment_frames: int
    area: int
    steps: int
    trained: bool
    learned: tuple[str, ...]
    caches: bool
    merges: bool
    words: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        pipeline: Mapping[str, Any],
        transformer: Mapping[str, Any],
        compression: tuple[int, int],
        words: frozenset[str] = frozenset(),
    ) -> ModelSpec:
        """From the configurations of a MemoryV2VPipeline and its transformer."""
        return cls(
            compression=compression,
            patch=tuple(transformer["patch_size"]),  # type: ignore[arg-type]
            segment_frames=pipeline["segment_frames"],
            area=pipeline["area"],
            steps=pipeline["num_inference_steps"],
            trained=pipeline["trained_steps"] > 0,
            learned=tuple(pipeline.get("learned", LEARNED)),  # models of before it was said
            caches=transformer["source"] != "tokens" or transformer["source_modulation"] != "target",
            merges=transformer["merge"] == "merge",
            words=words,
        )

    @classmethod
    def read(cls, folder: str | Path) -> ModelSpec:
        """From a folder in diffusers' layout. Raises OSError, KeyError, ValueError where it is none of ours."""
        read = lambda name: json.loads((Path(folder) / name).read_text())  # noqa: E731
        vae, words = read("vae/config.json"), frozenset[str]()
        encoder = Path(folder) / "text_encoder/config.json"
        if encoder.exists() and json.loads(encoder.read_text()).get("_class_name") == "WordEncoder":
            words = words_of(read("tokenizer/tokenizer.json")["model"]["vocab"])
        return cls.of(read("model_index.json"), read("transformer/config.json"), compression_of(vae), words)

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels must be multiples of this."""
        return self.compression[1] * math.lcm(*self.patch[1:])

    def frames_for(self, frames: int) -> int:
        """The smallest number of frames, at least `frames`, that the codec and the temporal patch take."""
        if frames < 1:
            raise ValueError(f"a segment has at least one frame, got {frames}")
        latent = -(-(frames - 1) // self.compression[0]) + 1
        latent = -(-latent // self.patch[0]) * self.patch[0]
        return 1 + self.compression[0] * (latent - 1)


def words_of(tokens: Iterable[str]) -> frozenset[str]:
    """The words among the tokens of `text_encoder.word_tokenizer`, and its single letters."""
    return frozenset(token for token in tokens if token.isalpha())


def compression_of(vae: Mapping[str, Any]) -> tuple[int, int]:
    """(temporal, spatial) pixels per latent, from the configuration of our pixel codec or of a Wan VAE.

    From Wan's layers themselves: small test configurations leave its stated scale factors at the default.
    """
    if "temperal_downsample" not in vae:
        return 1, 1
    return 2 ** sum(vae["temperal_downsample"]), (vae.get("patch_size") or 1) * 2 ** (len(vae["dim_mult"]) - 1)
