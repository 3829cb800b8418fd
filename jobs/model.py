"""Finding a model: `mini`, or a folder in diffusers' layout."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pipeline
from jobs.plan import Model
from pipeline.spec import ModelSpec
from storage.fingerprint import cache_folder, folder_digest


class ModelError(ValueError):
    """A model that cannot be found or read. One line, with the remedy."""


def resolve(name: str) -> Model:
    """`mini` or a folder → where it lies, the digest of its content, and the shapes it takes. Raises ModelError."""
    folder = _mini() if name == "mini" else Path(name)
    if not folder.is_dir():
        raise ModelError(f"model '{name}' is not there: expected mini, or a folder written by save_pretrained")
    try:
        spec = ModelSpec.read(folder)
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"model '{name}' is not a MemoryV2VPipeline in diffusers' layout ({type(error).__name__}: {error})"
        ) from None
    return Model(str(folder.resolve()), folder_digest(str(folder)), spec)


def _mini() -> Path:
    """The folder of `mini`: built once with random weights, since no trained ones are shipped yet."""
    # Named by the code that builds it, which is cheaper to read than to import: an edit there builds a new one.
    sources = [
        Path(pipeline.__path__[0]) / name for name in ("mini.py", "codec.py", "transformer.py", "memory_pipeline.py")
    ]
    key = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = cache_folder() / "models" / f"mini-untrained-{key}"
    if not folder.is_dir():
        from transformers.utils import logging

        from pipeline.mini import build_mini

        logging.disable_progress_bar()
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = tempfile.mkdtemp(dir=folder.parent)
        build_mini(seed=0).save_pretrained(fresh)
        try:
            os.replace(fresh, folder)
        except OSError:  # another process was first, with the same weights
            shutil.rmtree(fresh)
    return folder
