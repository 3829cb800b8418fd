"""The Editor: holds one loaded model and performs one edit at a time."""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from actors.setup import Setup
from pipeline.coverage import coverage
from pipeline.descriptor import DIMENSION, describe
from pipeline.edit import Edit
from pipeline.retrieval import Choice, select
from storage.fingerprint import check_folder
from storage.memory import Memory
from storage.video import Reader, check_unchanged

# Encoded segments kept: with `input: source` every turn edits the same ones, and the scheduler tends to send a source
# back to the editor that has them.
KEPT_SEGMENTS = 64
# Files kept open where their last read stopped: the next segment then costs no seek.
OPEN_READERS = 4


class Editor:
    """One model on one device. Plain Python: Ray wraps it from outside (`ray.remote(Editor)`).

    An exception leaves the editor as it was: nothing but caches is kept between two edits.
    """

    def __init__(self, setup: Setup):
        # Not above: whoever starts editors would load the model's libraries as well, which takes seconds.
        from pipeline.memory_pipeline import MemoryV2VPipeline

        settings = setup.settings
        # Fixed and not taken from the machine: the order in which a sum is taken depends on it, and so do the bits.
        torch.set_num_threads(settings["threads"])
        self.model_digest = setup.model_digest
        self.settings = settings
        # The VAE stays in float32: it is small beside the transformer, and its errors would be stored.
        dtypes = {"default": getattr(torch, settings["dtype"]), "vae": torch.float32}
        self.pipe = MemoryV2VPipeline.from_pretrained(setup.model, torch_dtype=dtypes)
        check_folder(setup.model, setup.model_digest)
        self.pipe.to(setup.device)
        self.pipe.set_progress_bar_config(disable=True)
        # Diffusers would take it from the environment, and the kernels decide the last bits.
        self.pipe.transformer.set_attention_backend("native")
        self.library = setup.open_library()
        self._readers: OrderedDict[tuple[str, tuple[int, int]], Reader] = OrderedDict()
        self._sources: OrderedDict[tuple[Any, ...], tuple[torch.Tensor, np.ndarray | None]] = OrderedDict()

    def ready(self) -> str:
        """The host's name, once the model is loaded."""
        return socket.gethostname()

    def edit(self, edit: Edit, attempt: int = 1) -> tuple[dict[str, Any], Memory]:
        """Perform one edit: (a small account of it, the memory to be committed).

        Raises storage.video.VideoError where the source cannot be read, storage.library.LibraryError where an ancestor
        cannot.
        """
        from pipeline.memory_pipeline import MemoryVideo  # loaded already, as the model is

        began = time.perf_counter()
        check_unchanged(edit.url, edit.identity)
        # Looking costs a sixth of a second on a core; a plan without words ranks by view alone and stores zeros.
        looks = bool(edit.prompt) or edit.by == "descriptor" or self.settings["text_memories"] == "all_turns"
        source, descriptor = None, np.zeros(DIMENSION, np.float32)
        if looks or not edit.input:
            source, seen = self._source(edit, edit.segment.start, edit.segment.stop, looks)
            descriptor = descriptor if seen is None else seen
        choices = self._retrieve(edit, descriptor)
        # One read for the chosen memories and, where a turn edits the last turn's result, its latent.
        wanted = [choice.id for choice in choices] + ([edit.input] if edit.input else [])
        read = {memory.id: memory for memory in self.library.read(wanted, edit.source)}
        if edit.input:
            source = read[edit.input].latent.float()
        origin, copied = edit.camera.c2w[0], self.pipe.transformer.config.copied_videos - 1
        latent = self.pipe(
            source=source,
            source_trajectory=edit.camera.relative_to(origin),
            target_trajectory=edit.target.relative_to(origin),
            memories=[
                MemoryVideo(
                    latent=read[choice.id].latent.float(),
                    trajectory=read[choice.id].trajectory.relative_to(origin),
                    start=read[choice.id].start - edit.segment.start,
                    preceding=choice.id == edit.preceding,
                    source=self._made_from(edit, read[choice.id]) if rank < copied else None,
                )
                for rank, choice in enumerate(choices)
            ],
            prompt=edit.prompt,
            negative_prompt=edit.negative_prompt,
            num_frames=edit.frames,
            height=edit.fit.height,
            width=edit.fit.width,
            num_inference_steps=self.settings["steps"],
            guidance_scale=self.settings["guidance"],
            shift=self.settings["shift"],
            attention=self.settings["attention"],
            merge=self.settings["merge"],
            frame_rate=edit.rate,
            generator=torch.Generator("cpu").manual_seed(edit.seed),
            output_type="latent",
        ).latents
        seconds = time.perf_counter() - began
        memory = Memory(
            id=edit.id,
            parent=edit.parent,
            source=edit.source,
            turn=edit.turn,
            segment=edit.segment.index,
            shot=edit.segment.shot,
            start=edit.segment.start,
            stop=edit.segment.stop,
            trajectory=edit.target,
            descriptor=descriptor,
            latent=latent.to("cpu", getattr(torch, self.settings["latent_dtype"])),
            model=self.model_digest,
            prompt=edit.prompt,
            seed=edit.seed,
            attempt=attempt,
            memories=tuple(choice.id for choice in choices),
            scores=tuple(choice.score for choice in choices),
            seconds=seconds,
            worker=socket.gethostname(),
        )
        return {"id": edit.id, "seconds": seconds, "memories": len(choices)}, memory

    def _source(self, edit: Edit, start: int, stop: int, looks: bool) -> tuple[torch.Tensor, np.ndarray | None]:
        """Latent of a segment's own frames, the last one repeated up to what the codec takes, and their descriptor,
        or None where nobody looks."""
        key = (edit.source, start, stop, edit.fit)
        known = self._sources.get(key)
        if known is None or (looks and known[1] is None):
            frames = edit.fit.apply(self._reader(edit.url, edit.fit.resize).read(start, stop))
            missing = self.pipe.spec.frames_for(len(frames)) - len(frames)
            frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
            known = self._sources[key] = self.pipe.encode(frames), describe(frames) if looks else None
            if len(self._sources) > KEPT_SEGMENTS:
                self._sources.popitem(last=False)
        self._sources.move_to_end(key)
        return known

    def _made_from(self, edit: Edit, memory: Memory) -> torch.Tensor | None:
        """What a memory of the same turn was made from, where the turn keeps its input's camera."""
        if edit.by != "descriptor" or memory.turn != edit.turn:
            return None
        if edit.inputs:
            return self.library.read([edit.inputs[memory.segment]], edit.source)[0].latent.float()
        return self._source(edit, memory.start, memory.stop, looks=False)[0]

    def _reader(self, url: str, size: tuple[int, int]) -> Reader:
        if (url, size) not in self._readers:
            self._readers[url, size] = Reader(url, size)
            if len(self._readers) > OPEN_READERS:
                self._readers.popitem(last=False)
        self._readers.move_to_end((url, size))
        return self._readers[url, size]

    def _retrieve(self, edit: Edit, descriptor: np.ndarray) -> list[Choice]:
        if not edit.candidates or not self.settings["k"]:
            return []
        looks = edit.by == "descriptor" or bool(edit.prompt)
        return select(
            self.library.candidates(edit.source, edit.candidates, descriptors=looks),
            k=self.settings["k"],
            policy=self.settings["policy"] if edit.by == "coverage" else "top_k",
            blend=self.settings["blend"],
            start=edit.segment.start,
            turn=edit.turn,
            segment=edit.segment.index,
            target_coverage=coverage(edit.target, self.library.sphere) if edit.by == "coverage" else None,
            target_descriptor=descriptor if looks else None,
            first=(edit.preceding, edit.opening) if edit.by == "descriptor" else (),
        )
