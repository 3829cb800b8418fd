"""Where the files of a base are: in a folder, or on the hub. Nothing is loaded here, except names to recognise."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from . import BASES
from .base import COMPONENTS, Base, BaseError

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")
# ReCamMaster's parameters under diffusers' names. A checkpoint with more than these is Memory-V2V's.
RECAMMASTER_NAMES = re.compile(
    r"(patch_embedding|condition_embedder|proj_out)\.|scale_shift_table$"
    r"|blocks\.\d+\.(attn1|attn2|norm2|ffn|scale_shift_table|cam_encoder|projector)\b"
)


@dataclass(frozen=True)
class Parts:
    """The files of a base: `weights` is a checkpoint file or diffusers' folder of the transformer, the others are
    folders in diffusers' layout."""

    weights: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path

    def files(self) -> list[tuple[str, Path]]:
        """(name, path) of every file, ordered by name; the names do not tell where the parts lie."""
        found = []
        for part in ("weights", *COMPONENTS):
            root: Path = getattr(self, part)
            inside = [root] if root.is_file() else [file for file in root.rglob("*") if file.is_file()]
            found += [(f"{part}/{file.relative_to(root).as_posix()}", file) for file in inside]
        return sorted(found)


def recognise(folder: str | Path) -> Base | None:
    """The base whose weights lie in a local folder; None where there are none that we know.

    Diffusers' layout is told by its class, a checkpoint by its names; a checkpoint may lie in the folder of Wan's own
    pipeline, whose components it needs. Raises BaseError where a checkpoint cannot be read or several lie side by side.
    """
    folder = Path(folder)
    kind = _pipeline_class(folder)
    if kind == "MemoryV2VPipeline":
        return None
    if kind == "LucyEditPipeline":
        return next(base for base in BASES if base.name == "lucy-edit")
    file = _checkpoint(folder)
    if file is None:
        return None
    from .weights import diffusers_names, read_weights

    names = diffusers_names(read_weights(file)).values()
    if not any(".cam_encoder." in name for name in names):
        return None
    known = all(RECAMMASTER_NAMES.match(name) for name in names)
    return next(base for base in BASES if base.name == ("recammaster" if known else "memory-v2v"))


def locate(base: Base, folder: str | Path | None = None) -> Parts:
    """The files of a base: those that lie in `folder`, the others from the hub or its cache.

    Raises BaseError, one line with the remedy, where a part is neither here nor to be had.
    """
    places: dict[str, Path] = {}
    if folder is not None:
        weights = _checkpoint(Path(folder)) if base.checkpoint else Path(folder) / "transformer"
        if weights is None or not weights.exists():
            raise BaseError(f"{folder} has no weights of {base.name}: expected {base.what_is_needed()}")
        places["weights"] = weights
        places |= {part: Path(folder) / part for part in COMPONENTS if (Path(folder) / part).is_dir()}
    if "weights" not in places:
        patterns = [base.checkpoint] if base.checkpoint else ["transformer/*"]
        places["weights"] = _fetch(base, base.repository, patterns) / (base.checkpoint or "transformer")
    if missing := [part for part in COMPONENTS if part not in places]:
        fetched = _fetch(base, base.components, [f"{part}/*" for part in missing])
        places |= {part: fetched / part for part in missing}
    for part, path in places.items():
        if not path.exists():
            raise BaseError(f"{path} is not there, it should hold the {part} of {base.name}: {_remedy(base)}")
    return Parts(**places)


def _pipeline_class(folder: Path) -> str | None:
    try:
        return json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checkpoint(folder: Path) -> Path | None:
    """The one checkpoint of a folder, or of its `checkpoints`, where ReCamMaster's instructions put it."""
    if (folder / "model" / "model_index.json").is_file():
        model = folder / "model"
        raise BaseError(f"{folder} holds a training, whose model is in a folder of its own: name {model}")
    if (folder / "pytorch_lora_weights.safetensors").is_file():
        raise BaseError(
            f"{folder} holds adapters alone: load them into the model that they were trained on (load_lora_weights), "
            "fuse_lora(), unload_lora_weights() and save_pretrained() a folder, and name that"
        )
    for place in (folder, folder / "checkpoints"):
        files = sorted(file for file in place.glob("*") if file.suffix in SUFFIXES and file.is_file())
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise BaseError(f"{place} holds several checkpoints ({names}), expected one: move the others away")
        if files:
            return files[0]
    return None


def _fetch(base: Base, repository: str, patterns: list[str]) -> Path:
    """A snapshot of a hub repository, from the cache where it is there and whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (OSError, ValueError, HTTPError) as error:
        raise BaseError(
            f"{repository} cannot be fetched from the hub ({type(error).__name__}): {_remedy(base)}"
        ) from error


def _remedy(base: Base) -> str:
    return f"go online, or put {base.what_is_needed()} into one folder and name that folder"
