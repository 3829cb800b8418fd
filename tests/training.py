"""A data set and a setup for tests of training: small enough that a step takes a thirtieth of a second."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

from actors.renderer import scene_rows
from actors.training import TrainingSetup
from jobs.config import SynthesizeConfig
from jobs.synthesize import filming_of
from pipeline.bases.base import Base
from pipeline.bases.recammaster import RECAMMASTER
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.mini import seeded
from pipeline.splits import scenes_of
from pipeline.training.recipe import Recipe
from pipeline.transformer import MemoryWanTransformer3DModel
from storage.clips import NAME, ClipDataset
from storage.fingerprint import folder_digest

RENDERED = SynthesizeConfig(
    height=32, width=32, frames=32, rates=[12.0], cameras=3, edits=1, edited_cameras=2
)  # fmt: skip


def render_scenes(folder: Path, trained: int = 8, frames: int = 32, depth: bool = False) -> str:
    """A data set of scenes for training and one for validation, with cameras and edits. Returns the folder."""
    data = ClipDataset.create(str(folder / NAME), {"generator": "test"}, ["depth"] if depth else [])
    filming = filming_of(replace(RENDERED, frames=frames, depth=depth))
    for split, count in (("train", trained), ("validation", 1)):
        for seed in scenes_of(split, 0, count):
            data.append(scene_rows(seed, filming))
    return str(folder)


def tiny_base(folder: Path, base: Base = RECAMMASTER) -> str:
    """A pipeline of the classes and the arrangement of a base, at the size of a test. Returns its folder."""
    channels = 8 if base.condition.get("source") == "channels" else 4
    with seeded(0):
        network = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32,
                   "num_layers": 2, "in_channels": channels, "out_channels": 4}  # fmt: skip
        vae = {"base_dim": 3, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
        text = UMT5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=1)
        MemoryV2VPipeline(
            transformer=MemoryWanTransformer3DModel(**{**base.network, **network, **base.condition}),
            vae=AutoencoderKLWan(**vae, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            text_encoder=UMT5EncoderModel(text),
            tokenizer=ByT5Tokenizer(),
            **{**base.defaults, "segment_frames": 9, "text_length": 32, "num_inference_steps": 2},
        ).save_pretrained(folder)
    return str(folder)


def setup(
    data: str, out: Path | str, model: str, recipe: dict[str, Any] | None = None, **changed: Any
) -> TrainingSetup:
    """A short training of the tiny model, which nobody measures: to validate takes as long as a dozen steps."""
    short = {"steps": 6, "batch": 2, "targets": 2, "warmup": 2, "memories": 2}
    plain = {"height": 32, "width": 32, "frames": 16, "validation_batches": 0, "validate_every": 1000}
    return TrainingSetup(
        data=data, out=str(out), model=model, model_digest=folder_digest(model),
        recipe=Recipe(**{**short, **(recipe or {})}),
        **{**plain, "sheet_every": 1000, **changed},
    )  # fmt: skip


def logged(out: Path | str) -> list[dict[str, Any]]:
    """Lines of the log."""
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def validated(out: Path | str) -> dict[int, float]:
    """Validation loss by step."""
    return {line["step"]: line["validation_loss"] for line in logged(out) if "validation_loss" in line}
