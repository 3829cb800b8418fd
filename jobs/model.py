"""Finding a model: `mini`, a published base by name, hub id or folder, or a folder in our own layout."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pipeline
from pipeline.bases import BASES, Base, BaseError, find
from pipeline.bases.base import FORMAT
from pipeline.bases.locate import locate, recognise
from pipeline.spec import ModelSpec
from storage.atomic import published_folder
from storage.fingerprint import cache_folder, file_digest, folder_digest

SHIPPED = Path(pipeline.__path__[0]) / "weights" / "mini"
SIZES = ("cpu", "gpu")  # of pipeline.mini, which is slow to import


class ModelError(ValueError):
    """A model that cannot be found or read. One line, with the remedy."""


@dataclass(frozen=True)
class Model:
    """A resolved model: its folder, the digest of its content, and its shapes."""

    folder: str
    digest: str
    spec: ModelSpec


def resolve(name: str, seed: int = 0) -> Model:
    """A model's name → where it lies, the digest of its content, and the shapes it takes. Raises ModelError.

    `mini`; mini-cpu or mini-gpu, its two sizes with random weights (of `seed`), for training; recammaster, lucy-edit,
    memory-v2v or their hub ids, fetched where they are not in the hub's cache; a folder with the files of one of those;
    or a folder written by save_pretrained. Bases are converted into such a folder once.
    """
    try:
        folder = _folder(name, seed)
    except BaseError as error:
        raise ModelError(f"model '{name}': {error}") from error
    try:
        spec = ModelSpec.read(folder)
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"model '{name}' is not a MemoryV2VPipeline in diffusers' layout ({type(error).__name__}: {error})"
        ) from None
    return Model(str(folder.resolve()), folder_digest(str(folder)), spec)


def _folder(name: str, seed: int) -> Path:
    if name == "mini" and SHIPPED.is_dir():
        return SHIPPED
    if name in ("mini", *(f"mini-{size}" for size in SIZES)):
        return _untrained(name.removeprefix("mini").removeprefix("-") or "cpu", seed)
    folder = Path(name)
    if folder.is_dir():
        base = recognise(folder)
        return folder if base is None else _converted(base, folder)
    base = find(name)
    if base is None:
        names = ", ".join(base.name for base in BASES)
        raise ModelError(
            f"model '{name}' is not there: expected mini, {names}, for training mini-cpu or mini-gpu, "
            "a hub id of those, a folder with the files of one, or a folder written by save_pretrained"
        )
    return _converted(base, None)


def _untrained(size: str, seed: int) -> Path:
    """The folder of a `mini` with random weights, built once."""
    # Named by the code that builds it, which is cheaper to read than to import: an edit there builds a new one.
    sources = sorted(Path(pipeline.__path__[0]).rglob("*.py"))
    key = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]

    def build(fresh: Path) -> None:
        from transformers.utils import logging

        from pipeline.mini import build_mini

        logging.disable_progress_bar()
        build_mini(seed, size=size).save_pretrained(fresh)

    return _made(f"mini-{size}-{seed}-untrained-{key}", build)


def _converted(base: Base, place: Path | None) -> Path:
    """The folder of a base in our layout, named by the content of its files: made once, found ever after."""
    parts = locate(base, place)
    content = [[name, file_digest(str(file))] for name, file in parts.files()]
    key = hashlib.sha256(json.dumps([base.name, FORMAT, content]).encode()).hexdigest()[:16]

    def build(fresh: Path) -> None:
        from pipeline.bases.convert import convert

        print(f"converting {base.title} (licence: {base.licence}), once", file=sys.stderr, flush=True)
        placement = convert(base, parts, fresh)
        if placement.unplaced:
            print(
                f"{len(placement.unplaced)} parameters of {parts.weights} have no known place and are left out: "
                + ", ".join(placement.unplaced),
                file=sys.stderr,
                flush=True,
            )

    return _made(f"{base.name}-{key}", build)


def _made(name: str, build: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache, built beside it and moved into place whole where it is not there yet."""
    folder = cache_folder() / "models" / name
    if not folder.is_dir():
        try:
            with published_folder(folder) as fresh:
                build(fresh)
        except OSError:
            if not folder.is_dir():
                raise
            # another process was first, with the same weights
    return folder
