"""A plan carried out without Ray, one edit after the other: what every run of it must come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from actors.editor import Editor
from actors.publisher import Publisher
from actors.setup import Setup
from jobs.chain import Chain
from jobs.config import EditConfig
from jobs.model import resolve
from jobs.published import compare_video, turn_videos


def new_setup(model: str, library: Path, config: EditConfig | None = None) -> Setup:
    """What actors are built from, with a library that is created there."""
    resolved = resolve(model)
    setup = Setup(resolved.folder, resolved.digest, str(library), dataclasses.asdict(config or EditConfig()))
    setup.open_library(create=True)
    return setup


def edit_by_hand(chains: Iterable[Chain], setup: Setup, out: Path) -> None:
    """Make all memories and videos of the chains."""
    library, config = setup.open_library(), EditConfig(**setup.settings)
    editor, publisher = Editor(setup), Publisher(setup)
    for chain in chains:
        for index in range(len(chain)):
            _, memory = editor.edit(chain.edit(index))
            library.commit([memory])
        videos = turn_videos(chain, str(out), config)
        for video in videos:
            publisher.publish(video)
        publisher.compare(compare_video(chain, videos, str(out)))
