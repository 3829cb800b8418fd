"""The trained model as a folder that is there whole or not at all, and is read as any other model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.training.tuning import lora_weights
from storage.atomic import published_folder
from storage.errors import fault


def save_model(
    pipe: MemoryV2VPipeline, weights: Mapping[str, torch.Tensor], begun: str, folder: Path, lora: bool = False
) -> None:
    """Write it beside its place and exchange the two: a reader finds a whole model.

    weights: what was trained, by its name in a `Network`. begun: folder of the model that the training began from; the
    components that it left alone are linked, not written: the text encoder of a base alone has 11 GB. lora: write the
    adapters alone, for `pipe.load_lora_weights`. Raises StorageFault where the disk is full.
    """
    try:
        with published_folder(folder, replace=True) as fresh:
            if lora:
                pipe.save_lora_weights(fresh, transformer_lora_layers=lora_weights(dict(weights)))
            else:
                _write(pipe, weights, Path(begun), fresh)
    except (OSError, SafetensorError) as error:
        raise fault(str(folder), "the model cannot be written", error, "check the free space and the folder") from error


def _write(pipe: MemoryV2VPipeline, weights: Mapping[str, torch.Tensor], begun: Path, folder: Path) -> None:
    pipe.save_config(folder)
    _without_place(folder / "model_index.json")
    trained = {name.partition(".")[0] for name in weights}
    for name, part in pipe.components.items():
        if name in trained:
            # Read again, since the one in training may be compiled, or spread over processes.
            part = type(part).from_pretrained(begun / name)
            own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
            found = part.load_state_dict({key: value.cpu() for key, value in own.items()}, strict=False)
            assert not found.unexpected_keys, found.unexpected_keys
            if name == "transformer":
                part.register_to_config(attention=pipe.transformer.config.attention)
            part.save_pretrained(folder / name)
            _without_place(folder / name / "config.json")
        elif (begun / name).is_dir():
            shutil.copytree(begun / name, folder / name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _without_place(file: Path) -> None:
    """Diffusers writes where a model was read from, which says nothing to whom it is given."""
    values = json.loads(file.read_text())
    values.pop("_name_or_path", None)
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
