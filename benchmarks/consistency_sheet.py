"""The pictures of the consistency benchmark: sections of labelled columns, one row of tiles per case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

TILE, GAP, HEAD = 144, 4, 16  # pixels


@dataclass(frozen=True)
class Section:
    """columns: their names. rows: of tiles (H, W, 3) uint8, None for what nobody knows. titles: a line above each row,
    "" for none."""

    columns: Sequence[str]
    rows: Sequence[Sequence[np.ndarray | None]]
    titles: Sequence[str] = ()


def draw(sections: Sequence[Section], path: str) -> None:
    """All sections below one another, as a PNG."""
    width = max(len(each.columns) for each in sections) * (TILE + GAP) - GAP
    height = sum(HEAD + sum(HEAD * bool(title) + TILE + GAP for title in _titles(each)) for each in sections)
    picture = Image.new("RGB", (width, height), "white")
    pen, top = ImageDraw.Draw(picture), 0
    for section in sections:
        for index, name in enumerate(section.columns):
            pen.text((index * (TILE + GAP), top + 2), name, fill="black")
        top += HEAD
        for title, row in zip(_titles(section), section.rows, strict=True):
            if title:
                pen.text((0, top + 2), title, fill="black")
                top += HEAD
            for index, tile in enumerate(row):
                if tile is not None:
                    scaled = Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BICUBIC)
                    picture.paste(scaled, (index * (TILE + GAP), top))
            top += TILE + GAP
    picture.save(path)


def _titles(section: Section) -> Sequence[str]:
    return section.titles or [""] * len(section.rows)
