"""A model in training: parameters by optimizer, averaged weights, and one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.utils._pytree import tree_map

from pipeline.spec import LEARNED

from .batch import Batch
from .muon import Muon
from .network import Network
from .objective import loss, noise_of, noised
from .recipe import Recipe
from .sharding import as_parameter, everywhere, forget, gather, whole
from .tuning import DEPTHS, DETAILS


class DivergedError(RuntimeError):
    """The loss or the gradient is not a number; the parameters are still those of the last good step."""


class Trainer:
    """One process's share of a training.

    A step is a function of the state, the batch and (seed, step, rank): a training that is stopped and resumed from
    `state_dict` goes on bit for bit on one device.
    trainable: whether a parameter of this name takes part; None for all. wrap: what averages gradients over processes,
    or spreads the network over them (then methods below wait for all processes). learned: what it teaches, of LEARNED;
    None for what the recipe says.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        seed: int = 0,
        rank: int = 0,
        trainable: Callable[[str], bool] | None = None,
        wrap: Callable[[Network], Any] = lambda network: network,
        learned: Sequence[str] | None = None,
    ) -> None:
        self.network, self.recipe, self.seed, self.rank = network, recipe, seed, rank
        self.pipe = network.pipe
        self.step = 0
        config = self.pipe.config
        self.begun = config.trained_steps
        self.learned = {*(config.learned if self.begun else ()), *(recipe.teaches if learned is None else learned)}
        if recipe.camera_dropout and self.pipe.transformer.config.positions == "frustum":
            raise ValueError(
                "camera_dropout: this model places tokens on camera rays and has none without; set it to 0"
            )
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trainable is None or trainable(name))
        self.wrapped = wrap(network)
        self.parameters = {name: each for name, each in network.named_parameters() if each.requires_grad}
        if not self.parameters:
            raise ValueError("no parameter is left to train")
        matrix = is_block_matrix if recipe.optimizer == "muon" else lambda name, parameter: False
        matrices = [each for name, each in self.parameters.items() if matrix(name, each)]
        rest = [each for name, each in self.parameters.items() if not matrix(name, each)]
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimizers.append(Muon(matrices, recipe.learning_rate, weight_decay=recipe.weight_decay))
        if rest:
            adam = torch.optim.AdamW(rest, recipe.adam_learning_rate, (0.9, 0.95), weight_decay=recipe.weight_decay)
            self.optimizers.append(adam)
        self.rates = [group["lr"] for each in self.optimizers for group in each.param_groups]
        self.surface, self.details = (
            any(name.startswith(part) for name in self.parameters) for part in (DEPTHS, DETAILS)
        )
        self.alone = all(name.startswith((DEPTHS, DETAILS)) for name in self.parameters)
        self.average = EMAModel(self.parameters.values(), decay=recipe.ema, foreach=True)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One update. Returns the mean loss, the gradient's norm and the rate's multiple.

        Raises DivergedError before anything is changed.
        """
        recipe = self.recipe
        generator = noise_of(batch.clean.device, self.seed, self.step, self.rank)
        batch = noised(batch, recipe.memory_noise, generator)
        self.pipe.transformer.train()
        config = self.pipe.config
        sample = config.prediction == "sample"
        shift = recipe.shift or config.shift
        value = loss(
            self.wrapped, batch, recipe, generator, shift=shift, sample=sample, surface=self.surface,
            details=self.details, alone=self.alone,
        ).mean()  # fmt: skip
        value.backward()
        norm = everywhere(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), recipe.clip))
        if not torch.isfinite(value) or not torch.isfinite(norm):
            self._clear()
            raise DivergedError(
                f"step {self.step}, {batch.draw.task} of scenes "
                f"{list(batch.scenes)}: loss {value.item()}, gradient norm "
                f"{norm.item()}; expected finite numbers: lower learning_rate, or "
                "look at these scenes"
            )
        multiple = recipe.schedule(self.step)
        groups = [group for each in self.optimizers for group in each.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * multiple
        for each in self.optimizers:
            each.step()
        self._clear()
        self.average.step(self.parameters.values())
        self.step += 1
        return {"loss": value.item(), "gradient": norm.item(), "rate": multiple}

    def _clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def register(self, area: int) -> None:
        """Say in the pipeline's configuration what its weights are by now. area: pixels of the frames trained on."""
        learned = tuple(each for each in LEARNED if each in self.learned)
        self.pipe.register_to_config(trained_steps=self.begun + self.step, area=area, learned=learned)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has the averaged weights, which are what is validated and saved."""
        self._exchange()
        gather(self.network)
        self.pipe.transformer.eval()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """The averaged weights and the trained ones change places."""
        forget(self.network)
        for parameter, average in zip(self.parameters.values(), self.average.shadow_params, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and names: loads with `weights_only=True`. Tensors are whole, whatever is spread."""
        state = {
            "step": self.step,
            "optimizer": self.recipe.optimizer,
            "learned": sorted(self.learned),
            "parameters": {name: each.detach() for name, each in self.parameters.items()},
            "optimizers": [each.state_dict() for each in self.optimizers],
            "average": self.average.state_dict(),
        }
        made: dict[str, Any] = tree_map(whole, state)
        return made

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """All but the settings, which are this recipe's. Raises ValueError, naming a parameter, where the state is of
        another model, and where it is of another optimizer."""
        theirs = state["parameters"]
        for name in {**theirs, **self.parameters}:
            expected = tuple(self.parameters[name].shape) if name in self.parameters else None
            got = tuple(theirs[name].shape) if name in theirs else None
            if expected != got:
                raise ValueError(
                    f"checkpoint of another model, tune or lora_rank: {name} has shape {got}, expected {expected}"
                )
        named = state.get("optimizer", self.recipe.optimizer)  # older ones do not say
        if named != self.recipe.optimizer or len(state["optimizers"]) != len(self.optimizers):
            raise ValueError(f"checkpoint of another optimizer, {named}, expected {self.recipe.optimizer}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(as_parameter(theirs[name], parameter))
        for optimizer, each in zip(self.optimizers, state["optimizers"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            placed = {
                index: {key: as_parameter(value, parameters[index]) for key, value in values.items()}
                for index, values in each["state"].items()
            }
            optimizer.load_state_dict({"state": placed, "param_groups": optimizer.state_dict()["param_groups"]})
        shadows = zip(state["average"]["shadow_params"], self.parameters.values(), strict=True)
        shadow_params = [as_parameter(*each) for each in shadows]
        self.average.load_state_dict({**state["average"], "decay": self.recipe.ema, "shadow_params": shadow_params})
        self.learned.update(state.get("learned", ()))  # another recipe may have begun; older ones do not say
        self.step = state["step"]


def is_block_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """What Muon is for: the weights inside the transformer's blocks."""
    return parameter.ndim == 2 and ".blocks." in name
