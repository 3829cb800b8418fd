"""Published base models, each one file: what it is, where its weights lie, and how they map onto our classes.

A base is converted once into a folder in `MemoryV2VPipeline`'s own layout, and from there on is a model as any other:

    base = find("recammaster")                # or recognise(folder)
    parts = locate(base)                      # of the hub, or locate(base, folder)
    convert(base, parts, "converted")
    MemoryV2VPipeline.from_pretrained("converted")

This package itself is data and imports nothing heavy; `pipeline.bases.convert` brings in the networks.
"""

from __future__ import annotations

from .base import Base, BaseError
from .lucy_edit import LUCY_EDIT
from .memory_v2v import MEMORY_V2V
from .recammaster import RECAMMASTER

BASES: tuple[Base, ...] = (RECAMMASTER, LUCY_EDIT, MEMORY_V2V)

__all__ = ["BASES", "Base", "BaseError", "find"]


def find(name: str) -> Base | None:
    """The base of this name or hub id, in any case of letters; None where there is none."""
    return next((base for base in BASES if name.lower() in (base.name, base.repository.lower())), None)
