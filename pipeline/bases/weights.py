"""Reading a checkpoint and translating its names, without running anything that it may hold.

Two formats only: safetensors, and torch's own with `weights_only`, which refuses pickled objects. Tensors are mapped
from the file, not read, until they are used.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import SafetensorError
from safetensors.torch import load_file

from .base import BaseError

ANCHOR = "patch_embedding.weight"  # in every Wan transformer, under the original and under diffusers' names
CONTAINERS = ("state_dict", "module", "model")  # what trainers wrap weights in


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint file, or of a folder that diffusers saved a model to (in shards or not).

    What a trainer wrapped around the names is taken off: one of CONTAINERS, and the prefix before ANCHOR.
    Raises BaseError where it is none of the two formats, holds anything but tensors, or no Wan transformer.
    """
    path = Path(path)
    if path.is_dir():
        tensors: dict[str, torch.Tensor] = {}
        for file in _shards(path):
            tensors |= _read_file(file)
    else:
        tensors = _read_file(path)
    anchors = [name for name in tensors if name == ANCHOR or name.endswith("." + ANCHOR)]
    if len(anchors) != 1:
        raise BaseError(
            f"{path} holds {len(tensors)} tensors, {len(anchors)} of them named {ANCHOR}; "
            "expected the weights of one Wan transformer"
        )
    prefix = anchors[0].removesuffix(ANCHOR)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """{name in the checkpoint: name in diffusers}; names that are diffusers' already, or unknown, stay as they are.

    By diffusers' own converter, which looks at names alone for these models. Raises BaseError where two names of the
    checkpoint would become one.
    """
    names = list(names)
    if any(name.startswith("condition_embedder.") for name in names):
        return {name: name for name in names}
    translated: dict[str, str] = convert_wan_transformer_to_diffusers({name: name for name in names})
    if len(translated) != len(names):
        lost = sorted(set(names) - set(translated.values()))
        raise BaseError(f"names in the checkpoint collide after translation: {', '.join(lost)}")
    return {original: new for new, original in translated.items()}


def _shards(folder: Path) -> list[Path]:
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [folder / name for name in names]
    else:
        files = [folder / "diffusion_pytorch_model.safetensors"]
    for file in files:
        # A name in an index is not trusted to stay in the folder.
        if not file.is_file() or file.parent != folder:
            raise BaseError(f"{folder} has no {file.name}; expected all shards that diffusers saved")
    return files


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    held: Any
    try:
        if path.suffix == ".safetensors":
            held = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise BaseError(f"{path} cannot be read ({_line(error)}); is the download complete?") from error
    except pickle.UnpicklingError as error:
        raise BaseError(
            f"{path} holds more than tensors and is not opened: it could run code ({_line(error)})"
        ) from error
    for container in CONTAINERS:
        if isinstance(held, Mapping) and isinstance(held.get(container), Mapping):
            held = held[container]
    if not isinstance(held, Mapping) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise BaseError(f"{path} holds a {type(held).__name__} that is not a mapping of names to tensors")
    return dict(held)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
