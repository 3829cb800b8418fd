"""The choices of a training, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any


def choice(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


# Numbers with a fraction that may be more than 1; all others are shares and decays.
_UNBOUNDED = {
    "learning_rate", "adam_learning_rate", "weight_decay", "clip", "shift", "spread", "memory_noise", "own_weight",
    "depth_weight", "detail_weight", "changed_weight",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Shares are probabilities in 0..1. Raises ValueError for values that make no sense."""

    # Optimisation.
    steps: int = choice(20_000, "steps of the whole training")
    batch: int = choice(4, "scenes per step and process")
    targets: int = choice(4, "noisy targets that share a scene's encoding; joint attention takes one")
    optimizer: str = choice("muon", "muon: Muon for the matrices in the blocks, AdamW for the rest; adamw: for all")
    learning_rate: float = choice(1e-3, "learning rate of Muon")
    adam_learning_rate: float = choice(1e-3, "learning rate of AdamW")
    weight_decay: float = choice(0.0, "decoupled weight decay of both")
    warmup: int = choice(200, "steps over which both rates rise")
    decay: float = choice(0.5, "share of the steps, the last ones, over which both rates fall to nothing")
    clip: float = choice(1.0, "greatest norm of the gradient")
    ema: float = choice(0.998, "decay of the averaged weights, which are what is saved")
    # Noise: sigma = sigmoid(N(0, spread) + log shift).
    shift: float = choice(0.0, "shift of the noise levels trained on; 0: the sampler's")
    spread: float = choice(1.2, "standard deviation of the noise level's logit")
    pure_noise: float = choice(0.1, "share of the targets that are noise alone")
    pure_noise_text: float = choice(0.35, "the same of text edits: in noise alone nothing but the words tells")
    # Tasks.
    camera: float = choice(0.5, "share of the steps with novel views")
    text: float = choice(0.35, "share with instructions")
    still: float = choice(0.1, "share of the camera samples whose target's camera is the source's own: nothing changes")
    onward: float = choice(0.15, "share that continues a segment (no source, the preceding one as memory)")
    real: float = choice(0.3, "share of real footage among the scenes, where data and task have some")
    turned: float = choice(
        0.2, "share of the text samples whose source is seen by any camera of the scene, not the target's own"
    )
    glimpses: float = choice(0.0, "share of the steps on short windows, of many more scenes, with an instruction alone")
    guessed: float = choice(
        0.0, "share of the text steps with the model's own guess under the noise, as when it samples"
    )
    # Memory.
    memories: int = choice(6, "memories shown to a sample, at most")
    memory_dropout: float = choice(0.3, "share of the steps without memories")
    memory_dropout_text: float = choice(0.5, "the same of text edits")
    foreign: float = choice(0.1, "share of the memories that show another scene, since retrieval may fail")
    memory_noise: float = choice(0.15, "greatest standard deviation of the noise on them, in units of the latent")
    merge_share: tuple[float, float] = choice((0.3, 0.7), "range of the share that merges, in half of the steps")
    # Guidance.
    source_dropout: float = choice(0.1, "share of the steps with memory that do not see their source")
    text_dropout: float = choice(0.1, "share of the samples whose words, or that there are none, are not known")
    camera_dropout: float = choice(0.0, "share of the steps without any camera; only for models with grid positions")
    own_weight: float = choice(0.3, "weight of the error of what a model that copies along rays makes up itself")
    depth_weight: float = choice(
        0.1, "weight of the error of log depths, where the model copies along rays and the data has depth"
    )
    detail_weight: float = choice(0.03, "weight of the error of painted details, where the model has them")
    changed_weight: float = choice(5.0, "weight of pixels that an instruction changes")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{each.name} must not be negative, got {value}")
            if isinstance(each.default, float) and each.name not in _UNBOUNDED and value > 1:
                raise ValueError(f"{each.name} must lie in 0..1, got {value}")
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer must be muon or adamw, got {self.optimizer!r}")
        if not self.clip:
            raise ValueError("clip must be more than 0, which would leave nothing of the gradient; 1e9 clips nothing")
        for name in ("steps", "batch", "targets", "memories"):  # without memories: memory_dropout=1
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        low, high = self.merge_share
        if not 0 <= low <= high <= 1:
            raise ValueError(f"merge_share must be a range in 0..1, got {low} to {high}")
        if not self.camera + self.text + self.onward > 0:
            raise ValueError("one of camera, text and onward must be more than 0: nothing would be trained")

    def glimpsing(self, times: int) -> Recipe:
        """Of the steps of `glimpses`, whose windows have so many times fewer frames: as many frames of more scenes."""
        batch = self.batch * self.targets * times
        return replace(
            self, batch=batch, targets=1, camera=0.0, text=1.0, onward=0.0, memory_dropout_text=1.0, glimpses=0.0
        )

    @property
    def teaches(self) -> tuple[str, ...]:
        """What a model has learned after it, as `ModelSpec.learned` names it."""
        shown = self.onward or (self.camera and self.memory_dropout < 1) or (self.text and self.memory_dropout_text < 1)
        return tuple(name for name, part in (("camera", self.camera), ("text", self.text), ("memory", shown)) if part)

    def schedule(self, step: int) -> float:
        """What both learning rates are multiplied with at a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return rise * min(1.0, max(0.0, (self.steps - step) / max(1.0, self.decay * self.steps)))
