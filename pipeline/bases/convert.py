"""From a base's files to a folder in our own layout, once: renamed, checked name by name, and completed.

Only the transformer is written anew. Vae, text encoder and tokenizer are linked file by file (copied where the disk
cannot link), since the text encoder alone has 11 GB.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from pipeline.spec import compression_of
from pipeline.transformer import MemoryWanTransformer3DModel

from .base import COMPONENTS, Base, BaseError
from .locate import Parts
from .weights import diffusers_names, read_weights

REPORT = "conversion.json"
LISTED = 8  # names in an error: enough to see the pattern


@dataclass(frozen=True)
class Placement:
    """Which tensor of a checkpoint becomes which parameter.

    names: {name in the checkpoint: name of the parameter}. initialised: parameters that the checkpoint does not hold
    and that start as their class says. unplaced: {name in the checkpoint: shape} of what fits nowhere.
    """

    names: Mapping[str, str]
    initialised: tuple[str, ...]
    unplaced: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def convert(base: Base, parts: Parts, folder: str | Path) -> Placement:
    """Write the base as a MemoryV2VPipeline to `folder`, which must be new or empty.

    The same files give the same bytes. What became of the checkpoint's names is returned and written to
    `conversion.json`. Raises BaseError where anything does not fit.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_codec(base, parts.vae)
    weights = read_weights(parts.weights)
    transformer, placement = load(base, weights)
    transformer.save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    for part in COMPONENTS:
        _link(getattr(parts, part), folder / part)
    index: dict[str, Any] = {
        "_class_name": "MemoryV2VPipeline",
        "_diffusers_version": diffusers.__version__,
        "transformer": ["pipeline.transformer", "MemoryWanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", _read(parts.text_encoder / "config.json")["architectures"][0]],
        "tokenizer": ["transformers", _read(parts.tokenizer / "tokenizer_config.json")["tokenizer_class"]],
        **base.defaults,
    }
    _write(folder / "model_index.json", index)
    _write(
        folder / REPORT,
        {
            "base": base.name,
            "repository": base.repository,
            "licence": base.licence,
            "placed": len(placement.names),
            "initialised": list(placement.initialised),
            "unplaced": {name: list(shape) for name, shape in placement.unplaced.items()},
        },
    )
    return placement


def load(base: Base, weights: Mapping[str, torch.Tensor]) -> tuple[MemoryWanTransformer3DModel, Placement]:
    """The base's transformer with the weights of a checkpoint in it, on the CPU, in the checkpoint's precision.

    Its parameters are real, its buffers are not: it is for saving, and for reading its parameters.
    """
    model = skeleton(base)
    placement = place(base, model, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    placed = {new: weights[name] for name, new in placement.names.items()}
    stock = set(stock_shapes(base))
    dtype = placed["patch_embedding.weight"].dtype
    # First the stock model and blanks beside it, which our classes fill as they always do for a base; then, over
    # that, what the checkpoint itself brings. Not the other way round: filling works in place.
    blanks = {
        name: torch.full(parameter.shape, torch.nan, dtype=dtype)
        for name, parameter in model.state_dict().items()
        if name not in stock
    }
    model.load_state_dict({**{name: placed[name] for name in stock}, **blanks}, assign=True)
    model.initialise_conditioning()
    model.load_state_dict({name: placed[name] for name in set(placed) - stock}, strict=False, assign=True)
    state = model.state_dict()
    if empty := [name for name in placement.initialised if state[name].isnan().any()]:
        raise BaseError(f"parameters without a value after initialise_conditioning: {_some(empty)}")
    return model.eval(), placement


def place(base: Base, model: MemoryWanTransformer3DModel, shapes: Mapping[str, tuple[int, ...]]) -> Placement:
    """Match a checkpoint's names and shapes with a model's parameters.

    Every parameter of the stock model and every one that the base brings must be in the checkpoint with its shape, and
    nothing else may be, unless the base is partial. Raises BaseError that names what is missing, unknown or misshapen.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    required = set(stock_shapes(base)) | {name for name in wanted if any(part in name for part in base.brings)}
    translated = diffusers_names(shapes)
    names = {name: new for name, new in translated.items() if new in required}
    leftover = {name: shapes[name] for name in translated if name not in names}
    if missing := required - set(names.values()):
        raise BaseError(f"{base.name}: the checkpoint lacks {len(missing)} parameters: {_some(missing)}")
    wrong = [
        f"{name} {list(shapes[name])} where {list(wanted[new])} is expected"
        for name, new in names.items()
        if tuple(shapes[name]) != wanted[new]
    ]
    if wrong:
        raise BaseError(f"{base.name}: {len(wrong)} parameters have other shapes: {_some(wrong)}")
    if base.partial:
        free = {name: shape for name, shape in wanted.items() if name not in required}
        guessed = by_shape(leftover, free)
        names |= guessed
        leftover = {name: shape for name, shape in leftover.items() if name not in guessed}
    elif leftover:
        raise BaseError(f"{base.name}: the checkpoint holds {len(leftover)} unknown parameters: {_some(leftover)}")
    initialised = tuple(sorted(set(wanted) - set(names.values())))
    return Placement(names, initialised, dict(sorted(leftover.items())))


def by_shape(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """{given: wanted} for whole modules whose parameters' shapes fit one module, and only one, on either side."""
    givens, wanteds = _by_signature(given), _by_signature(wanted)
    pairs = {}
    for signature, modules in givens.items():
        ours = wanteds.get(signature, [])
        if len(modules) == len(ours) == 1:
            for leaf, _ in signature:
                pairs[f"{modules[0]}{leaf}"] = f"{ours[0]}{leaf}"
    return pairs


def skeleton(base: Base) -> MemoryWanTransformer3DModel:
    """The base's transformer on the meta device: names and shapes at full size, no memory."""
    with torch.device("meta"):
        return MemoryWanTransformer3DModel(**{**base.network, **base.condition})


def stock_shapes(base: Base) -> dict[str, tuple[int, ...]]:
    """{name: shape} of diffusers' own transformer at the base's size."""
    with torch.device("meta"):
        stock = WanTransformer3DModel(**base.network)
    return {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}


def _by_signature(shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[Any, ...], list[str]]:
    """Prefixes of modules by the names and shapes of the parameters directly in them."""
    modules: dict[str, list[tuple[str, tuple[int, ...]]]] = defaultdict(list)
    for name, shape in shapes.items():
        cut = name.rfind(".") + 1
        modules[name[:cut]].append((name[cut:], tuple(shape)))
    found: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for prefix, leaves in sorted(modules.items()):
        found[tuple(sorted(leaves))].append(prefix)
    return found


def _check_codec(base: Base, vae: Path) -> None:
    config = _read(vae / "config.json")
    try:
        found = (config["z_dim"], *compression_of(config))
    except KeyError as error:
        raise BaseError(f"{vae} is no AutoencoderKLWan: its config.json has no {error}") from None
    if found != base.frame:
        raise BaseError(
            f"{vae} gives {found} channels, frames and pixels per latent, {base.name} needs {base.frame}: "
            f"take the vae of {base.components}"
        )


def _link(source: Path, target: Path) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(os.path.realpath(file), place)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, place)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BaseError(f"{path} cannot be read ({type(error).__name__}): is the download complete?") from error


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
