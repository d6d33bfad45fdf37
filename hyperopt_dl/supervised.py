"""Training made from an ``nn.Module``, a loss, an optimizer and data.

Letters: t the step; p the number of trainable parameters; N the number of training examples.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from hyperopt_dl import losses
from hyperopt_dl.batches import Batch, Batches, Source
from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.init_scale import InitScale
from hyperopt_dl.network import Network, Reads, Weights
from hyperopt_dl.optimizers import Optimizer
from hyperopt_dl.optimizers.options import Value
from hyperopt_dl.optimizers.ranges import check_ranges, factors_read
from hyperopt_dl.optimizers.resolve import resolve
from hyperopt_dl.seeds import derive, seeded
from hyperopt_dl.space import Dimension
from hyperopt_dl.supervised_arguments import checked_online, described, positive, steps_of
from hyperopt_dl.training import NOT_REPLAYED, HParams, Online, State

KEPT_NETWORKS = 8
FROZEN, BUFFER, SLOT = "frozen/", "buffer/", "optimizer/"
"""How the names in a state begin, beside ``params`` and ``seed``."""


class Supervised:
    """The training of a network, as a dynamical system that can be replayed and differentiated.

    Everything a step does follows from ``(state, hparams, t)``: the batch and the dropout masks
    from the run's seed and t, BatchNorm's statistics from the state.

    BatchNorm's running statistics are constants to a derivative, as they are to torch. A
    hypergradient of a validation loss that uses them leaves out how they move with the
    hyperparameters; with ``track_running_stats=False``, GroupNorm or LayerNorm it is exact.

    Hyperparameters enter by name, through any of these doors:

    * the optimizer: ``SGD(lr="lr")``, per group of parameters, or as a ``Schedule``;
    * the model: a factory that takes the mapping of hyperparameters;
    * the loss: ``loss(output, target, hp)``;
    * data weights: ``weights="w"``, an ``Array`` with one entry for each training example.

    Args:
        model: An ``nn.Module``, whose present weights every run starts from; or a factory
            ``model(hp) -> nn.Module``, called under the run's seed.
        loss: ``loss(output, target)`` or ``loss(output, target, hp)``, a 0-dim tensor.
        optimizer: A twin from ``hyperopt_dl.optimizers``.
        train: ``(x, ..., y)`` tensors, or an indexable data set of such tuples; the last entry is
            the target, the others are the model's positional arguments. Tensors keep their dtype
            and are moved to the run's device once.
        validation: The same; the trial's value and the outer objective come from it.
        test: The same, or ``None``; looked at once, when a trial ends, and never used for a choice.
        steps: The number of optimizer steps. Give this or ``epochs``.
        epochs: The number of passes over the training data.
        batch_size: Examples a step; ``None`` takes the whole training set at every step.
        drop_last: Whether to leave out the last, smaller batch of an epoch.
        metrics: Functions ``metric(output, target) -> number`` by name, computed on the whole
            validation (and test) set; reported, never differentiated.
        init_scale: Hyperparameters that initial parameters are multiplied by: a mapping of fnmatch
            patterns of parameter names, of which the first match wins, to their names; or one name
            for all.
        weights: The name of a hyperparameter with one weight for each training example: the step's
            loss is then ``1/B * sum_i w[i] * loss[i]`` over the batch.
        validation_loss: The outer objective, where it differs from ``loss``. Give it when ``loss``
            depends on hyperparameters: else they can lower the objective without a better network.
        report_every: Steps between two reports of the validation loss; ``None`` is a tenth of the
            run.
        early_stopping: When a trial may end before its last step.
        online: An online tuner, ``online.Forward`` or ``online.Descent``, that moves the options of
            the optimizer during each trial. Such a training is run by studies alone: a step does
            not follow from its state, so it can be neither replayed nor differentiated.
        evaluation_batch_size: Examples that pass through the model at once in an evaluation;
            outputs are joined before the loss and the metrics are taken, so it changes memory, not
            numbers.

    Raises:
        TrainingError: Anything of this that cannot be, named.
    """

    def __init__(
        self,
        *,
        model: nn.Module | Callable[[Mapping[str, Any]], nn.Module],
        loss: losses.Loss,
        optimizer: Optimizer,
        train: Source,
        validation: Source,
        test: Source | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        drop_last: bool = False,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        init_scale: str | Mapping[str, str] | None = None,
        weights: str | None = None,
        validation_loss: losses.Loss | None = None,
        report_every: int | None = None,
        early_stopping: EarlyStopping | None = None,
        online: Online | None = None,
        evaluation_batch_size: int = 4096,
    ) -> None:
        if not callable(model) or not callable(loss) or isinstance(loss, type):
            raise TrainingError(
                f"model must be an nn.Module or a factory, and loss a function; got "
                f"{type(model).__name__} and {loss!r}."
            )
        if isinstance(optimizer, type) or not isinstance(optimizer, Optimizer):
            raise TrainingError(
                f"optimizer must be a twin such as hyperopt_dl.optimizers.SGD(lr='lr'), got "
                f"{described(optimizer)}. torch.optim writes in place and cannot be replayed."
            )
        if not (weights is None or isinstance(weights, str)):
            raise TrainingError(
                f"weights must be the name of a hyperparameter, got {type(weights).__name__}. "
                f"Pass the weights as that hyperparameter's value."
            )
        if not (metrics is None or isinstance(metrics, Mapping)) or "loss" in (metrics or {}):
            raise TrainingError(
                f"metrics must map names other than 'loss', which is there anyway, to functions; "
                f"got {metrics!r}."
            )
        if not (early_stopping is None or isinstance(early_stopping, EarlyStopping)):
            raise TrainingError(
                f"early_stopping must be EarlyStopping(patience=...), got {early_stopping!r}."
            )
        self._model = model
        self.optimizer = optimizer
        self._weights = weights
        self._init_scale = InitScale(
            {"*": init_scale} if isinstance(init_scale, str) else init_scale
        )
        self._loss = losses.with_hparams(losses.per_example(loss) if weights else loss)
        self._validation_loss = losses.with_hparams(validation_loss or loss)
        self._metrics = dict(metrics or {})
        self._evaluation_batch_size = positive("evaluation_batch_size", evaluation_batch_size)
        self._train = Batches(train, name="train", batch_size=batch_size, drop_last=drop_last)
        self._validation = Batches(validation, name="validation")
        self._test = None if test is None else Batches(test, name="test")
        self.steps = steps_of(steps, epochs, self._train.steps_per_epoch)
        self.report_every = positive(
            "report_every", max(1, self.steps // 10) if report_every is None else report_every
        )
        self.early_stopping = early_stopping
        self._networks: list[tuple[torch.device, Reads, Network]] = []
        known = {"loss", *self._metrics}
        if early_stopping is not None and early_stopping.metric not in known:
            raise TrainingError(
                f"EarlyStopping must watch one of {sorted(known)}, got {early_stopping.metric!r}. "
                f"Add it to metrics=."
            )
        self.online = online
        if online is not None:
            checked_online(online).check(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_networks": []}

    @property
    def hparams(self) -> frozenset[str]:
        """The names that this uses itself; the model, the losses and schedules may read others."""
        named = {self._weights} if self._weights else frozenset()
        tuned = frozenset() if self.online is None else self.online.names()
        return self.optimizer.names() | named | self._init_scale.names | tuned

    @property
    def reads_more(self) -> bool:
        """Whether a factory, a loss or a schedule may read what is not in ``hparams``."""
        return (
            not isinstance(self._model, nn.Module)
            or losses.reads_hparams(self._loss)
            or losses.reads_hparams(self._validation_loss)
            or factors_read(self.optimizer)
        )

    def check_space(self, space: Mapping[str, Dimension]) -> None:
        """Check that what this names can be used for what it is named for.

        Args:
            space: A dimension for each name in ``hparams``.

        Raises:
            TrainingError: A dimension has values out of range, is not one number, or is no Array
                of the shape that is needed.
        """
        check_ranges(self.optimizer, space, self.steps)
        self._init_scale.check_space(space)
        if self._weights is not None:
            losses.check_weights(self._weights, space[self._weights], self._train.size)
        if self.online is not None:
            self.online.check_space(space)

    @property
    def in_memory(self) -> bool:
        """Whether the training data are tensors: to take a batch of them draws nothing."""
        return self._train.in_memory

    @property
    def all_in_memory(self) -> bool:
        """Whether the validation data are tensors too."""
        return self.in_memory and self._validation.in_memory

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        """Return the state before step 0: parameters ``[p]``, slots, buffers and the seed."""
        device = torch.empty(0, device=device).device  # "cuda" is "cuda:0", or another by now
        network = self._build(hparams, seed, device)
        weights = network.weights()
        return {
            "params": self._init_scale(weights.params, network.layout, hparams),
            **{FROZEN + name: value for name, value in weights.frozen.items()},
            **{BUFFER + name: value for name, value in weights.buffers.items()},
            **{SLOT + n: value for n, value in self.optimizer.slots(weights.params).items()},
            "seed": torch.tensor(seed, dtype=torch.int64),
        }

    def step(self, state: State, hparams: HParams, t: int) -> State:
        """Return the state after the update on the batch of step ``t``.

        A graph is recorded only where gradients are enabled and the state or a hyperparameter
        requires one; the gradient of the training loss is then differentiable itself.
        """
        recording = torch.is_grad_enabled() and any(
            isinstance(value, Tensor) and value.requires_grad
            for value in (*state.values(), *hparams.values())
        )
        params = state["params"]
        network = self.network(state, hparams)
        with torch.enable_grad(), self.draws(state, t):
            leaf = params if params.requires_grad else params.detach().requires_grad_()
            weights = unpack(state)._replace(params=leaf)
            loss, buffers = self.inner_loss(network, weights, self.batch(state, t), hparams)
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=recording)
        with torch.set_grad_enabled(recording):
            options = self.options(state, network, hparams, t)
            return self.update(state, gradient, buffers, options, t)

    def network(self, state: State, hparams: HParams) -> Network:
        """Return the structure that a state belongs to."""
        device = state["params"].device
        for place, reads, network in self._networks:
            if place == device and reads.agree(hparams):
                reads.turn_to(hparams)
                return network
        return self._build(hparams, int(state["seed"]), device)

    def draws(self, state: State, t: int) -> AbstractContextManager[None]:
        """Return the context in which everything random of step ``t`` is drawn."""
        return seeded(derive(int(state["seed"]), "step", t), state["params"].device)

    def batch(self, state: State, t: int, *, shared: bool = False) -> Batch:
        """Return the batch of step ``t`` where the state is; ``shared`` as for ``Batches.at``."""
        device = state["params"].device
        return self._train.at(int(state["seed"]), t, device, shared=shared)

    def inner_loss(
        self, network: Network, weights: Weights, batch: Batch, hparams: HParams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss on a batch, and the buffers after the forward pass."""
        output, buffers = network(weights, batch.inputs, training=True)
        loss = self._loss(output, batch.target, hparams)
        if self._weights is None:
            return losses.scalar(loss), buffers
        weight = losses.weights_of(self._weights, hparams, self._train.size).to(
            batch.examples.device
        )
        return losses.weighted_mean(loss, weight[batch.examples]), buffers

    def options(self, state: State, network: Network, hparams: HParams, t: int) -> dict[str, Value]:
        """Return the optimizer's options at step ``t``: numbers, 0-dim tensors or ``[p]``.

        Raises:
            TrainingError: An online tuner moves them.
        """
        if self.online is not None:
            raise TrainingError(NOT_REPLAYED)
        return resolve(self.optimizer, hparams, t, network.layout, state["params"])

    def update(
        self,
        state: State,
        gradient: Tensor,
        buffers: Mapping[str, Tensor],
        options: Mapping[str, Value],
        t: int,
    ) -> State:
        """Return the state after the optimizer's step along a gradient ``[p]``."""
        params, slots = self.optimizer.update(
            state["params"], gradient, slots_of(state), options, t
        )
        return {
            **state,
            "params": params,
            **{BUFFER + name: value for name, value in buffers.items()},
            **{SLOT + name: value for name, value in slots.items()},
        }

    def loss(self, state: State, hparams: HParams) -> Tensor:
        """Return the validation loss, a 0-dim tensor."""
        output, target = self._predict(self._validation, state, hparams)
        return losses.scalar(self._validation_loss(output, target, hparams))

    def held_out(self, batch_size: int | None) -> Batches:
        """Return the validation data in batches, for an online tuner to look at."""
        return self._validation.resized(batch_size)

    def outer_loss(
        self, network: Network, weights: Weights, batch: Batch, hparams: HParams
    ) -> Tensor:
        """Return the validation loss on a batch, a 0-dim tensor."""
        output, _ = network(weights, batch.inputs, training=False)
        return losses.scalar(self._validation_loss(output, batch.target, hparams))

    def metrics(self, state: State, hparams: HParams) -> dict[str, float]:
        """Return the metrics on the validation set."""
        if not self._metrics:
            return {}
        with torch.no_grad():
            return self._measure(*self._predict(self._validation, state, hparams))

    def test_metrics(self, state: State, hparams: HParams) -> dict[str, float]:
        """Return ``"loss"`` and the metrics on the test set; nothing where there is no test set."""
        if self._test is None:
            return {}
        with torch.no_grad():
            output, target = self._predict(self._test, state, hparams)
            loss = losses.scalar(self._validation_loss(output, target, hparams))
            return {"loss": float(loss), **self._measure(output, target)}

    def module(self, state: State, hparams: HParams) -> nn.Module:
        """Return the network with the weights and buffers of a state, in evaluation mode.

        It is an ordinary module of its own: save its ``state_dict``, or train it further.
        """
        return self.network(state, hparams).module(unpack(state))

    def _predict(self, data: Batches, state: State, hparams: HParams) -> tuple[Any, Any]:
        device = state["params"].device
        network = self.network(state, hparams)
        outputs, targets = [], []
        with seeded(derive(int(state["seed"]), "evaluate"), device):
            for batch in data.chunks(self._evaluation_batch_size, device):
                outputs.append(network(unpack(state), batch.inputs, training=False)[0])
                targets.append(batch.target)
        if len(outputs) == 1:
            return outputs[0], targets[0]
        if not isinstance(outputs[0], Tensor):
            raise TrainingError(
                f"A model that returns a {type(outputs[0]).__name__} must be evaluated in one "
                f"piece: set evaluation_batch_size to {data.size} or more."
            )
        return torch.cat(outputs), torch.cat(targets)

    def _measure(self, output: Any, target: Any) -> dict[str, float]:
        return {name: float(metric(output, target)) for name, metric in self._metrics.items()}

    def _build(self, hparams: HParams, seed: int, device: torch.device) -> Network:
        """Make the module anew, and keep its structure for the steps to come if it is a new one."""
        reads = Reads(hparams)
        with seeded(derive(seed, "init"), torch.device("cpu")):
            module = (
                copy.deepcopy(self._model)
                if isinstance(self._model, nn.Module)
                else self._model(reads)
            )
        if not isinstance(module, nn.Module):
            raise TrainingError(
                f"The model factory must return an nn.Module, got {type(module).__name__}."
            )
        network = Network(module.to(device))
        alike = [e for e in self._networks if e[0] == device and e[1].agree(hparams)]
        if network.loose or not alike:
            others = [entry for entry in self._networks if entry not in alike]
            self._networks = [(device, reads, network), *others][:KEPT_NETWORKS]
        return network


def slots_of(state: State) -> dict[str, Tensor]:
    """Return the optimizer's slots in a state of a ``Supervised``."""
    return {n.removeprefix(SLOT): v for n, v in state.items() if n.startswith(SLOT)}


def unpack(state: State) -> Weights:
    """Return what the model's output depends on, in a state of a ``Supervised``."""
    return Weights(
        state["params"],
        {n.removeprefix(FROZEN): v for n, v in state.items() if n.startswith(FROZEN)},
        {n.removeprefix(BUFFER): v for n, v in state.items() if n.startswith(BUFFER)},
    )
