"""What lies beside a data set for people: a card that says what is in it and how to read it, and a sheet of pictures.

Both follow from the data set alone, so a second run writes the same bytes.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from pipeline.splits import SPLITS, family_of
from storage.atomic import published
from storage.clips import ClipDataset

CARD, SHEET = "README.md", "preview.png"
SHEET_SCENES = 8  # rows of the sheet
TILE = 128  # pixels of the higher side of a picture on it
LINES = 30  # pixels below it for words
GAP = 4


def write_card(data: ClipDataset, url: str) -> None:
    """README.md in Hugging Face's form for data sets."""
    rows = data.rows(["scene", "split", "kind", "licence", "rate", "frames", "height", "width", "variant"])
    config = json.loads(data.metadata["config"])
    licences = sorted(set(rows["licence"].to_pylist()))
    counts = Counter(zip(rows["split"].to_pylist(), rows["kind"].to_pylist(), strict=True))
    extended = any(kind == "extended" for _, kind in counts)
    sizes = sorted(set(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True)))
    lines = [
        "---",
        "license:",
        *(f"- {licence.lower()}" for licence in licences),
        "tags:",
        "- video",
        "- camera",
        "---",
    ]
    lines += [
        "# Clips with exact cameras",
        "",
        f"Made by `memory-v2v synthesize` (generator {data.metadata['generator']}): {len(rows):,} clips of "
        f"{len(set(rows['scene'].to_pylist())):,} scenes, {pc.sum(rows['frames']).as_py() or 0:,} frames of "
        f"{', '.join(f'{width}x{height}' for width, height in sizes)} at "
        f"{', '.join(f'{rate:g}' for rate in sorted(set(rows['rate'].to_pylist())))} frames per second.",
        "",
        "| split | rendered clips | clips of real footage |" + " extended clips |" * extended,
        "|---|---|---|" + "---|" * extended,
        *(
            f"| {split} | {counts[split, 'rendered']:,} | {counts[split, 'real']:,} |"
            + f" {counts[split, 'extended']:,} |" * extended
            for split in SPLITS
        ),
        "",
        "A scene is in one split with all its clips, by the hash of its number; all pieces of a real video are in one.",
        f"Licences: {', '.join(licences) or 'none'} (column `licence`).",
        "",
        "A row is one camera's video of one variant of a scene: variant 0 as it was, 1 and above as its `instruction`",
        "edited it. All clips of a scene are synchronised and share a world; camera 0 is the source's. `c2w` is",
        "camera-to-world (3x4, row-major, metres, OpenCV axes), `intrinsics` fx/W, fy/H, cx/W, cy/H; `shots` numbers",
        "the shots. Blobs are raw: `video` uint8 RGB (T, H, W, 3)"
        + "".join(f", `{name}` {kind}" for name, kind in CHANNEL_WORDS.items() if name in data.channels)
        + ".",
        *(REAL_WORDS if any(counts[split, "real"] for split in SPLITS) else []),
        *(EXTENDED_WORDS + [f"Digest of the model: `{data.metadata.get('model', 'unknown')}`."] if extended else []),
        "",
        "```python",
        "import lance, numpy as np",
        'data = lance.dataset("clips.lance")',
        'rows = data.to_table(columns=["frames", "height", "width"], limit=1).to_pylist()',
        '[(_, blob)] = data.read_blobs("video", indices=[0])',
        'video = np.frombuffer(blob, np.uint8).reshape(rows[0]["frames"], rows[0]["height"], rows[0]["width"], 3)',
        "```",
        "",
        "Settings: " + ", ".join(f"`{key}={json.dumps(value)}`" for key, value in config.items()) + ".",
    ]
    _publish_text(url, "\n".join(lines) + "\n")


REAL_WORDS = [
    "",
    "Clips of `kind` real are views that virtual cameras have of a frame of the video `source`, in which they pan,",
    "tilt and zoom; its lens is taken to be 52.7 degrees wide. Their world is that of the filming camera: rotations",
    "between views of one moment are exact, and where that camera moves, the world does.",
]
EXTENDED_WORDS = [
    "",
    "Clips of `kind` extended were made longer by a model: of their `frames` the last `extended` are not exact but the",
    "model's, each segment from those before it, while the camera goes back the way it came and forth again. They are",
    "there to be shown as memory; a training never asks for them.",
]
CHANNEL_WORDS = {
    "depth": "little-endian float32 (T, H, W), metres along the optical axis, inf for the sky, NaN in real footage",
    "objects": "uint8 (T, H, W), the object that is seen, 0 for room or ground, 255 for the sky",
}


def write_sheet(data: ClipDataset, url: str) -> None:
    """The middle frame of every clip of the first scenes, a scene per row, edited variants with their instruction. Of a
    real video only the first piece."""
    clips = data.clips()
    sources = data.rows(["source"])["source"].to_pylist()
    first: dict[int, int] = {}
    for clip in clips:
        first.setdefault(family_of(clip.scene), clip.scene)
    scenes = list(first.values())[:SHEET_SCENES]
    shown = [[clip for clip in clips if clip.scene == scene] for scene in scenes]
    if not shown:
        return
    scale = TILE / max(max(clip.height, clip.width) for row in shown for clip in row)
    width = max(round(clip.width * scale) for row in shown for clip in row) + GAP
    height = max(round(clip.height * scale) for row in shown for clip in row) + LINES
    sheet = Image.new("RGB", (width * max(map(len, shown)) + GAP, height * len(shown) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(shown):
        for x, clip in enumerate(row):
            [[frame]] = data.read([clip.row], [len(clip) // 2], 1)
            size = (round(clip.width * scale), round(clip.height * scale))
            corner = (GAP + x * width, GAP + y * height)
            sheet.paste(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC), corner)
            name = sources[clip.row].rpartition("/")[2] or f"scene {clip.scene}"
            words = clip.instruction or (name if clip.camera == 0 else f"camera {clip.camera}")
            text = "\n".join(textwrap.wrap(words, max(width // 6, 8))[:2])
            draw.multiline_text((corner[0], corner[1] + size[1] + 2), text, fill="black", spacing=1)
    with published(url) as path:
        sheet.save(path, format="PNG")


def _publish_text(url: str, text: str) -> None:
    with published(url) as path:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
