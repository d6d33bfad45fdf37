"""The modules that a training has made, by their device and by what their factory has looked at."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.network import Network
from hyperopt_dl.reads import Reads
from hyperopt_dl.seeds import derive, seeded
from hyperopt_dl.training import HParams
from hyperopt_dl.weights import Weights

KEPT = 8


class Networks:
    """The modules of a training, of which the last ones are kept.

    Args:
        model: A module, or a factory of modules.
    """

    def __init__(self, model: nn.Module | Callable[[Mapping[str, Any]], nn.Module]) -> None:
        self._model = model
        self._kept: list[tuple[torch.device, Reads, Network]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": []}

    def looked_at(self) -> frozenset[str]:
        """Return the hyperparameters that the factory of the last module has looked at."""
        return self._kept[0][1].seen if self._kept else frozenset()

    def dependent(
        self,
        weights: Weights,
        seed: int,
        hparams: HParams,
        names: Iterable[str],
        loss: Callable[[Network], Tensor],
    ) -> list[str]:
        """Return those of some hyperparameters that the model itself depends on.

        A factory sees plain numbers: no derivative goes through it. What it has looked at is moved
        a little; where neither the weights nor a loss change, it does not matter.

        Args:
            weights: What the loss is computed at.
            seed: The seed of the run.
            hparams: The hyperparameters, those in question as tensors.
            names: Those in question.
            loss: Computes a loss by the weights that a module holds.
        """
        device, found = weights.params.device, []
        for name in self.looked_at().intersection(names):
            moved = {**hparams, name: hparams[name].detach() * 1.001 + 1e-6}
            made = []
            for given in (hparams, moved):
                network = Networks(self._model).build(given, seed, device)
                start = network.weights(device)
                with network.holding(weights, training=True):
                    value = loss(network)
                others = (*start.frozen.values(), *start.buffers.values())
                made.append((value, start.params, *others))
            same = len(made[0]) == len(made[1]) and all(map(_equal, *made))
            found += [] if same else [name]
        return found

    def of(self, hparams: HParams, seed: int, device: torch.device) -> Network:
        """Return the module that was made last for hyperparameters like these, or make one."""
        for place, reads, network in self._kept:
            if place == device and reads.agree(hparams):
                reads.turn_to(hparams)
                return network
        return self.build(hparams, seed, device)

    def build(self, hparams: HParams, seed: int, device: torch.device) -> Network:
        """Make the module anew, and keep it for the steps to come.

        The loss may look at the module that was made last, so that one is used; what was derived
        from one with the same structure goes on to it.

        Raises:
            TrainingError: The factory returns no module, or one that cannot be trained.
        """
        reads = Reads(hparams)
        if isinstance(self._model, nn.Module):
            for *_, network in self._kept[:1]:
                network.forget()
        with seeded(derive(seed, "init"), torch.device("cpu")):
            module = self._model if isinstance(self._model, nn.Module) else self._model(reads)
        if not isinstance(module, nn.Module):
            raise TrainingError(
                f"The model factory must return an nn.Module, got {type(module).__name__}."
            )
        if device.type == "meta":
            module = copy.deepcopy(module).to(device)
        elif module is not self._model:
            module = module.to(device)
        network = Network(module)
        alike = [entry for entry in self._kept if entry[0] == device and entry[1].agree(hparams)]
        if not network.loose:
            network.derived = next((n.derived for *_, n in alike if n.layout == network.layout), {})
        others = [entry for entry in self._kept if entry not in alike]
        self._kept = [(device, reads, network), *others][:KEPT]
        return network


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
