"""The choices of a training, as data."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Shares are probabilities in 0..1.

    Optimisation:
        steps: of the whole training. batch: scenes per step and process. targets: noisy targets that share the
            encoding of their scene (cached attention; joint attention takes one).
        optimizer: "muon" for the matrices in the blocks, which take `learning_rate`, and AdamW with `adam_learning_rate`
            for the rest; or "adamw" for all, with the latter alone. Both rise over `warmup` steps and fall linearly to nothing over the last `decay` share of the steps.
        clip: greatest norm of the gradient. ema: decay of the averaged weights, which are what is saved.
    Noise: sigma = sigmoid(N(0, spread) + log shift), the shift being the sampler's, or exactly 1 in a share of
        `pure_noise` of the samples (`pure_noise_text` where there is an instruction: at 1 nothing but the text tells).
    Tasks: shares `camera`, `text`, `onward` (continue: no source, the preceding segment as memory). turned: share of
        the text samples whose source is seen by another camera than the target.
    Memory: none in a share of `memory_dropout` (`memory_dropout_text`), else 1 to `memories`; `foreign` share of them
        shows another scene, since retrieval may fail; `memory_noise`: greatest standard deviation of the noise on them,
        in units of the latent. Half of the steps use one tokenizer for all memories, half merge with a share in
        `merge_share`.
    Guidance: `source_dropout`, `text_dropout`, `camera_dropout` (models with grid positions only).
    changed_weight: of pixels that the instruction changes, against 1 elsewhere; falls to 1 with the learning rate.
    """

    steps: int = 20_000
    batch: int = 4
    targets: int = 4
    optimizer: str = "muon"
    learning_rate: float = 1e-3
    adam_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 200
    decay: float = 0.5
    clip: float = 1.0
    ema: float = 0.998
    spread: float = 1.2
    pure_noise: float = 0.1
    pure_noise_text: float = 0.35
    camera: float = 0.5
    text: float = 0.35
    onward: float = 0.15
    turned: float = 0.2
    memories: int = 6
    memory_dropout: float = 0.3
    memory_dropout_text: float = 0.5
    foreign: float = 0.1
    memory_noise: float = 0.15
    merge_share: tuple[float, float] = (0.3, 0.7)
    source_dropout: float = 0.1
    text_dropout: float = 0.1
    camera_dropout: float = 0.0
    changed_weight: float = 5.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and value < 0:
                raise ValueError(f"{each.name} must not be negative, got {value}")
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer must be muon or adamw, got {self.optimizer!r}")
        for name in ("steps", "batch", "targets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.camera + self.text + self.onward > 0:
            raise ValueError("one of camera, text and onward must be more than 0: nothing would be trained")

    def schedule(self, step: int) -> float:
        """What both learning rates are multiplied with at a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return rise * self.fall(step)

    def fall(self, step: int) -> float:
        """1, then linearly to 0 over the last `decay` share of the steps."""
        return min(1.0, max(0.0, (self.steps - step) / max(1.0, self.decay * self.steps)))
