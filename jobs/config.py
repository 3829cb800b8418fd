"""Every setting of `memory-v2v edit`, `synthesize` and `train`, typed, with its default and whether it can change a bit
of what is made.

A field that `affects_bits` is part of every edit's id: change it and the chain is a new one; a data set of scenes keeps
those it was made with. A field that does not may be changed between two runs of one plan, and the second finds the
first one's work done. There is no third kind.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.training.recipe import Recipe

C = TypeVar("C")
SEEDS = 1 << 40  # of rendered scenes; numbers above are those of real footage


class ConfigError(ValueError):
    """A setting that does not exist or holds a value it cannot hold. One line, with the remedy."""


def bits(default: Any, help: str) -> Any:
    return _field(default, {"affects_bits": True, "help": help})


def free(default: Any, help: str) -> Any:
    return _field(default, {"affects_bits": False, "help": help})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class EditConfig:
    """Settings of an edit job. `None` means the model's own default, which is in the model's digest."""

    # the picture
    size: str = bits("auto", "frame of the model as HEIGHTxWIDTH; auto keeps the source's aspect at the model's area")
    fit: str = bits("letterbox", "letterbox keeps the whole picture, crop fills the frame")
    # time
    segment_frames: int | None = bits(None, "frames of one edit")
    overlap: int = bits(0, "frames that two neighbouring segments share and cross-fade")
    # the memory
    k: int = bits(4, "memories given to an edit, at most")
    policy: str = bits(
        "top_k", "top_k ranks by field of view alone, greedy covers the target's view with as few as it can"
    )
    blend: float = bits(0.5, "lambda of VideoFOV: 1 is intersection over union, 0 is how much of the target was seen")
    radius: float = bits(20.0, "metres from the source's first camera to the sphere on which views are compared")
    points: int = bits(4096, "points of that sphere")
    text_memories: str = bits("same_turn", "where a text turn looks for memories: same_turn or all_turns")
    attention: str | None = bits(None, "cached (what is remembered is computed once) or joint (the paper's)")
    merge: str | None = bits(None, "what becomes of memory frames that matter little: off, merge or discard")
    latent_dtype: str = bits("float16", "how latents are stored: float16, bfloat16 or float32")
    # the sampler
    steps: int | None = bits(None, "denoising steps")
    guidance: float | None = bits(None, "guidance scale; 1 switches it off")
    shift: float | None = bits(None, "shift of the noise schedule")
    seed: int = bits(0, "another seed is another sample of the same plan")
    dtype: str = bits("float32", "what the network computes in: float32 or bfloat16")
    threads: int = bits(1, "torch threads of one editor; fixed, because the order of sums depends on it")
    # the machines
    workers: int = free(0, "editors at work at once; 0: one per GPU, or per `threads` CPUs")
    retries: int = free(2, "how often a failed edit is tried again before its source is given up")
    failure_budget: int | None = free(None, "sources that may fail in a run before it stops; null: any number")
    fingerprint_threads: int = free(8, "sources looked at in parallel before the run")
    # the published files
    crf: int = free(18, "x264 quality of the published videos, lower is better")
    upscale: str = free("none", "none publishes at the model's size, source at that of what is shown of the source")
    audio: bool = free(True, "carry the source's sound into the published videos")
    compare: bool = free(True, "write compare.mp4, source and turns side by side")


@dataclass
class SynthesizeConfig:
    """Settings of a data set of scenes."""

    # the pictures
    height: int = bits(64, "pixels of every frame; models take multiples of their patch, mini of 8")
    width: int = bits(64, "the same")
    frames: int = bits(48, "frames of every clip")
    rates: list[float] = bits([12.0, 24.0], "frames per second; every scene draws one of them")
    samples: int = bits(1, "rays per pixel and axis")
    shots: int = bits(1, "shots of every clip: new viewpoints, and from the third on returns to earlier ones")
    depth: bool = bits(False, "keep the depth of every pixel: four bytes beside three of colour")
    objects: bool = bits(False, "keep which object every pixel shows: one byte more")
    # what is in a scene
    cameras: int = bits(6, "synchronised cameras; the first is the source's")
    edits: int = bits(2, "edited variants, each with its instruction")
    edited_cameras: int = bits(2, "cameras that film a variant, the source's among them")
    # what is made of it
    licence: str = free("", "licence of the videos of --from-videos, kept with every clip; rendered ones are CC0-1.0")
    # the machines
    seed: int = free(0, "seed of the first scene; the others count up from there")
    workers: int = free(0, "renderers at work at once, one thread each; 0: one per CPU")
    retries: int = free(2, "how often a scene whose renderer died is begun again")
    commit_mb: float = free(128.0, "megabytes of clips that are committed at a time, and lost at most by a kill")


@dataclass
class ExtendConfig:
    """Settings of a data set whose edited clips a model makes longer."""

    extension: int = bits(48, "frames that every edited clip is made longer by")
    k: int = bits(4, "segments that the model is shown, at most: the one just before, then earlier ones")
    # the machines
    workers: int = free(0, "models at work at once, one thread each; 0: one per CPU")
    retries: int = free(2, "how often a scene whose worker died is begun again")
    commit_mb: float = free(128.0, "megabytes of clips that are committed at a time, and lost at most by a kill")


@dataclass
class TrainConfig:
    """Settings of a training beside those of its `Recipe`."""

    # what is trained on
    height: int = bits(0, "pixels of the windows, to which clips are brought; 0: the clips' own")
    width: int = bits(0, "the same")
    frames: int = bits(0, "frames of a window; 0: the model's segment")
    seed: int = bits(0, "seed of all that is drawn; of the weights too, where the model begins untrained")
    # how the model is trained
    attention: str | None = bits(None, "cached or joint; null: the model's own")
    tune: str = bits(
        "all", "what moves: all, paper (its choice), words (what reads them), empty (no words), depths, details or lora"
    )
    own_edits: int = bits(
        0, "of tune=details: batches of the model's own edits, made first, of which it learns; 0: drawn parts alone"
    )
    lora_rank: int = bits(16, "rank of the LoRA adapters")
    precision: str = bits("float32", "what matrix products are computed in: float32 or bfloat16")
    # the machines
    workers: int = free(0, "processes on Ray, one per GPU where there are any; 0: this one alone, without Ray")
    threads: int = bits(1, "torch threads per process; changes the order of sums, and so the last bits")
    sharding: str = free("none", "none, or full (FSDP2): parameters spread over processes, where a model does not fit")
    compile: bool = free(False, "torch.compile the blocks")
    gradient_checkpointing: bool = free(False, "compute activations twice instead of keeping them")
    latents: bool = free(False, "encode every window once, ahead of the training: for models with a real VAE")
    retries: int = free(3, "how often processes are started again after one died")
    # what is written
    checkpoint_minutes: float = free(5.0, "minutes of work that a crash loses at most")
    validate_every: int = free(500, "steps between validations")
    validation_batches: int = free(4, "batches of each task in a validation")
    sheet_every: int = free(1000, "steps between sheets of pictures")


CHOICES: dict[str, tuple[str | None, ...]] = {
    "attention": (None, "cached", "joint"),
    "merge": (None, "off", "merge", "discard"),
    "tune": ("all", "paper", "words", "empty", "depths", "details", "lora"),
    "precision": ("float32", "bfloat16"),
    "sharding": ("none", "full"),
    "optimizer": ("muon", "adamw"),
    "fit": ("letterbox", "crop"),
    "policy": ("top_k", "greedy"),
    "text_memories": ("same_turn", "all_turns"),
    "latent_dtype": ("float16", "bfloat16", "float32"),
    "dtype": ("float32", "bfloat16"),
    "upscale": ("none", "source"),
}
MINIMUM = {
    "segment_frames": 1, "overlap": 0, "k": 0, "radius": 1e-6, "points": 64, "steps": 1, "guidance": 0, "shift": 1e-6,
    "threads": 1, "workers": 0, "retries": 0, "failure_budget": 0, "fingerprint_threads": 1, "crf": 0,
    "height": 8, "width": 8, "frames": 1, "samples": 1, "shots": 1, "cameras": 1, "edits": 0, "edited_cameras": 1,
    "commit_mb": 0, "lora_rank": 1, "checkpoint_minutes": 0, "validate_every": 1, "validation_batches": 1,
    "sheet_every": 1, "extension": 1, "own_edits": 0,
}  # fmt: skip


def fields_that(affect_bits: bool, kind: type[Any] = EditConfig) -> list[str]:
    """Names of the fields with that declaration, in the order of the class."""
    return [f.name for f in dataclasses.fields(kind) if f.metadata["affects_bits"] is affect_bits]


def load_config(values: dict[str, Any] | None = None, overrides: Sequence[str] = ()) -> EditConfig:
    """Defaults, then `values` (of a plan file), then `key=value` overrides of the command line.

    Raises ConfigError for an unknown key (naming the nearest), a wrong type or a value out of range.
    """
    config = _assigned(EditConfig, values, overrides, "edit")
    if not 0 <= config.blend <= 1:
        raise ConfigError(f"setting 'blend' is {config.blend!r}, expected 0 to 1")
    if config.crf > 51:
        raise ConfigError(f"setting 'crf' is {config.crf}, expected 0 (lossless) to 51, as H.264 has it")
    if config.points % 64:
        raise ConfigError(
            f"setting 'points' is {config.points}, expected a multiple of 64 (coverage is packed in words)"
        )
    parse_size(config.size)
    return config


def load_synthesize_config(overrides: Sequence[str] = ()) -> SynthesizeConfig:
    """Defaults, then `key=value` overrides. Raises ConfigError as `load_config` does."""
    config = _assigned(SynthesizeConfig, {}, overrides, "synthesize", other=(ExtendConfig, "synthesize --extend"))
    if not config.rates or not all(math.isfinite(rate) and rate > 0 for rate in config.rates):
        raise ConfigError(f"setting 'rates' is {config.rates!r}, expected frames per second such as [12,24]")
    if not 0 <= config.seed < SEEDS:
        raise ConfigError(f"setting 'seed' is {config.seed}, expected 0 to {SEEDS - 1}")
    if config.edited_cameras > config.cameras:
        raise ConfigError(
            f"setting 'edited_cameras' is {config.edited_cameras}, expected at most the {config.cameras} of 'cameras'"
        )
    return config


def load_extend_config(overrides: Sequence[str] = ()) -> ExtendConfig:
    """Defaults, then `key=value` overrides. Raises ConfigError as `load_config` does."""
    config = _assigned(
        ExtendConfig, {}, overrides, "synthesize", other=(SynthesizeConfig, "synthesize without --extend")
    )
    if not config.k:
        raise ConfigError("setting 'k' is 0, expected at least 1: without the segment before nothing could go on")
    return config


def load_train_config(values: dict[str, Any], overrides: Sequence[str] = ()) -> tuple[TrainConfig, Recipe]:
    """Defaults, then a file's values, then overrides."""
    assigned = dict(values) | _read(overrides, {**TrainConfig.__annotations__, **Recipe.__annotations__})
    ours = {key for key in assigned if key in TrainConfig.__annotations__}
    config = _assigned(TrainConfig, {key: value for key, value in assigned.items() if key in ours}, (), "train")
    if config.seed < 0:
        raise ConfigError(f"setting 'seed' is {config.seed}, expected 0 or more")
    rest = {key: value for key, value in assigned.items() if key not in ours}
    try:
        recipe = _assigned(Recipe, rest, (), "train", also=list(TrainConfig.__annotations__))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config, recipe


def _read(overrides: Sequence[str], types: Mapping[str, str]) -> dict[str, Any]:
    """`key=value` texts as values. Text stays as typed: YAML would read a size of 0x8 as a hexadecimal number."""
    values = {}
    for override in overrides:
        key, _, text = override.partition("=")
        try:
            values[key] = text if types.get(key) == "str" else yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"setting '{key}' is {text!r}, which is not a readable value") from None
        if isinstance(values[key], str) and types.get(key) == "float":
            values[key] = _number(text)  # YAML 1.1 takes 1e-3 for a word
    return values


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence that says which known name was probably meant, if any."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"; the nearest is '{found[0]}'" if found else ""


def _assigned(
    kind: type[C],
    values: dict[str, Any] | None,
    overrides: Sequence[str],
    command: str,
    also: Sequence[str] = (),
    other: tuple[type[Any], str] | None = None,
) -> C:
    """`kind` with its defaults, then `values`, then `overrides`; every value checked by itself. also: keys that the
    command knows beside those of `kind`. other: settings of another use of the command, and which."""
    types = kind.__annotations__
    assigned = dict(values or {}) | _read(overrides, types)
    config, defaults = OmegaConf.structured(kind), OmegaConf.structured(kind)
    OmegaConf.set_readonly(config, False)
    for key, value in assigned.items():
        if key not in config:
            elsewhere = other is not None and key in other[0].__annotations__
            wrong = f"belongs to {other[1]}" if elsewhere else f"does not exist{nearest(str(key), [*config, *also])}"
            raise ConfigError(f"setting '{key}' {wrong} (memory-v2v {command} --help lists all)")
        try:
            OmegaConf.update(config, key, str(value) if types[key] == "str" else value)
            found = config[key]  # read here, since ??? and ${...} are taken and have no value
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"setting '{key}' is {value!r}, expected {types[key]}: {str(error).splitlines()[0]}"
            ) from None
        if isinstance(found, float) and not math.isfinite(found):
            raise ConfigError(f"setting '{key}' is {value!r}, expected a finite number")
        if key in CHOICES and found not in CHOICES[key]:
            choices = ", ".join(choice or "null" for choice in CHOICES[key])
            raise ConfigError(f"setting '{key}' is {value!r}, expected one of {choices}")
        # A default may lie below: 0 is said for what the model or the clips decide.
        least = MINIMUM.get(key)
        if least is not None and found not in (None, defaults[key]) and not found >= least:
            raise ConfigError(f"setting '{key}' is {value!r}, expected at least {least:g}")
    loaded: C = OmegaConf.to_object(config)  # type: ignore[assignment]
    return loaded


def parse_size(size: str) -> tuple[int, int] | None:
    """`"96x128"` → (96, 128), `"auto"` → None."""
    if size == "auto":
        return None
    height, _, width = size.partition("x")
    if height.isdigit() and width.isdigit() and int(height) and int(width):
        return int(height), int(width)
    raise ConfigError(f"setting 'size' is {size!r}, expected auto or HEIGHTxWIDTH such as 96x128")


def bits_of(config: EditConfig | SynthesizeConfig | ExtendConfig) -> dict[str, Any]:
    """The part of a configuration that goes into an edit's id, or that a data set is kept with."""
    return {name: getattr(config, name) for name in fields_that(affect_bits=True, kind=type(config))}
