"""Which parameters a training moves: all, those the paper tunes, those that read words, those of a network
beside the transformer, or low-rank adapters (LoRA)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipeline.mini import seeded

# Self-attention, ReCamMaster's layers around it, camera encoders, tokenizers and compressors; and copying, beside them.
PAPER = ("attn1.", "projector.", "cam_encoder.", "camera_embedding.", "tokenizers.", "compressor.", "copying.")
DEPTHS = "transformer.depths."  # a network of its own, which learns from pictures and depths and nothing else
DETAILS = "transformer.details."  # the same, from pictures and words
# What says which words a token attends to. Where all text is padding, it does not matter which.
WORDS = ("attn2.to_q.", "attn2.to_k.", "attn2.norm_", "norm2.")
ADAPTED = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]


def takes_part(tune: str) -> Callable[[str], bool]:
    """Whether a parameter of a `Network` of this name is trained. tune: "all", "paper", "words", "empty", "depths",
    "details" or "lora".

    After "words", edits without an instruction are the same, bit for bit, where the empty prompt is one token (`mini`).
    """
    parts: tuple[str, ...] = {
        "all": ("",), "paper": PAPER, "words": WORDS, "empty": (), "depths": (DEPTHS,), "details": (DETAILS,),
        "lora": ("lora_",),
    }[tune]  # fmt: skip

    def takes(name: str) -> bool:
        if name.startswith("transformer."):
            return any(part in name for part in parts)
        # Of the text encoder, which has no part in the paper's tuning, what the empty prompt says is no word.
        return tune == "all" or tune == ("empty" if name.endswith(".empty") else "words")

    return takes


def teaches(tune: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """What a training teaches, of LEARNED, by what is trained and what its tasks would teach."""
    return {"words": ("text",), "depths": (), "details": ()}.get(tune, tasks)


def add_lora(transformer: Any, rank: int, seed: int = 0) -> None:
    """Adapters of self-attention that change nothing at first; their weights are random from `seed`.

    Raises ValueError where peft is not installed."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise ValueError("tune=lora needs the package peft, which is not installed: pip install -e '.[lora]'") from None
    with seeded(seed):
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED))


def lora_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's weights by name to those of its adapters as `save_lora_weights` takes them."""
    return {
        name.removeprefix("transformer.").replace(".default.", "."): value
        for name, value in weights.items()
        if "lora_" in name
    }
