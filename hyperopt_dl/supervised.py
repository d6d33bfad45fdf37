"""Training made from an ``nn.Module``, a loss, an optimizer and data.

Letters: t the step; p the number of trainable parameters; N the number of training examples.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hyperopt_dl import losses
from hyperopt_dl.batches import Batch, Batches, Source
from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.init_scale import InitScale
from hyperopt_dl.network import Network
from hyperopt_dl.networks import Networks
from hyperopt_dl.optimizers import Optimizer
from hyperopt_dl.optimizers.options import Value
from hyperopt_dl.optimizers.ranges import check_ranges, factors_read
from hyperopt_dl.optimizers.resolve import resolve
from hyperopt_dl.optimizers.turns import turns_of, update_in_turns
from hyperopt_dl.plain_step import must_be_plain
from hyperopt_dl.predictions import predictions
from hyperopt_dl.recorded_inputs import gradient_with_graph, records, value_with_graph
from hyperopt_dl.recorded_step import check_value, is_reentrant, plain_gradient
from hyperopt_dl.seeds import BesideTorch, derive, seeded
from hyperopt_dl.space import Dimension
from hyperopt_dl.state_entries import BUFFER, FROZEN, SKIPPED, SLOT, packed, slots_of, unpack
from hyperopt_dl.supervised_arguments import check_parts, checked_online, positive, steps_of
from hyperopt_dl.training import NOT_REPLAYED, HParams, Online, State
from hyperopt_dl.weights import flat


class Supervised:
    """The training of a network, as a dynamical system that can be replayed and differentiated.

    Everything a step does follows from ``(state, hparams, t)``: the batch and the dropout masks
    from the run's seed and t, BatchNorm's statistics from the state.

    Buffers that depend on the weights of earlier steps, such as BatchNorm's running statistics and
    the vectors of spectral normalization, are a part of the state and carry their derivative on.

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
            the target, the others are the model's positional arguments. Each may be a mapping or a
            tuple of tensors. Tensors keep their dtype and are moved to the run's device once.
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
        buffers: Whether buffers (and frozen parameters that a step writes into) are ``"state"``,
            with a derivative, or ``"constant"`` to a hypergradient, which then leaves out how they
            move with the hyperparameters.
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
        buffers: Literal["state", "constant"] = "state",
        evaluation_batch_size: int = 4096,
    ) -> None:
        check_parts(model, loss, optimizer, weights, metrics, early_stopping, buffers)
        self.buffers = buffers
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
        self._networks = Networks(model)
        self.beside = BesideTorch()
        self.checked: dict[Hashable, Any] = {}
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
        return {**self.__dict__, "checked": {}}

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

    evaluates = False
    """Whether the module is in evaluation mode when it computes ``inner_loss``."""

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
        network = self._networks.build(hparams, seed, device)
        weights = network.weights(device)
        return {
            "params": self._init_scale(weights.params, network.layout, hparams),
            **{FROZEN + name: value for name, value in weights.frozen.items()},
            **{BUFFER + name: value for name, value in weights.buffers.items()},
            **{SLOT + n: value for n, value in self.optimizer.slots(weights.params).items()},
            "seed": torch.tensor(seed, dtype=torch.int64),
            SKIPPED: torch.zeros(len(network.params), dtype=torch.int64),
        }

    def step(self, state: State, hparams: HParams, t: int) -> State:
        """Return the state after the update on the batch of step ``t``.

        A graph is recorded only where gradients are enabled and the state or a hyperparameter
        requires one; the gradient of the training loss is then differentiable itself.
        """
        network = self.network(state, hparams)
        if records(state, hparams):
            gradient, others, missed = gradient_with_graph(
                network,
                state,
                hparams,
                lambda given: self.inner_loss(network, self.batch(state, t), given),
                lambda: self.draws(state, t),
                constant=self.buffers == "constant",
            )
            options = self.options(state, network, hparams, t)
            return self.update(network, state, gradient, others, options, t, missed)
        try:
            state, gradient, others, missed = self._forward_and_back(network, state, hparams, t)
        except RuntimeError as error:
            if network.by_backward or not is_reentrant(error):
                raise
            network.by_backward = True
            return self.step(state, hparams, t)
        options = self.options(state, network, hparams, t)
        with torch.no_grad():
            after = self.update(network, state, gradient, others, options, t, missed)
        if t == 0 and (network.layout, "plain") not in self.checked:
            must_be_plain(self, network, state, after, hparams)
            self.checked[network.layout, "plain"] = True
        return after

    def _forward_and_back(
        self, network: Network, state: State, hparams: HParams, t: int
    ) -> tuple[State, Tensor, State, list[bool]]:
        """Return the state that is stepped from, the gradient, what else moved, what is missed."""
        with (
            torch.enable_grad(),
            self.draws(state, t),
            network.holding(unpack(state), training=True) as held,
        ):
            batch = self.batch(state, t)
            with self.beside.watching(t) if self.beside.looks(t) else nullcontext():
                loss = self.inner_loss(network, batch, hparams)
            check_value(loss)
            parts, missed = plain_gradient(loss, held.params, by_backward=network.by_backward)
            if held.written():  # by the forward pass, as an embedding with max_norm does
                state = {**state, "params": held.vector()}
            return state, flat(parts), packed(network.after()), missed

    def network(self, state: State, hparams: HParams) -> Network:
        """Return the structure that a state belongs to."""
        return self._networks.of(hparams, int(state["seed"]), state["params"].device)

    def looked_at(self) -> frozenset[str]:
        """Return the hyperparameters that the model factory has looked at."""
        return self._networks.looked_at()

    def modelled(self, state: State, hparams: HParams, names: Iterable[str]) -> list[str]:
        """Return those of some hyperparameters that the model itself depends on."""

        def loss(network: Network) -> Tensor:
            with torch.enable_grad(), self.draws(state, 0):
                return self.inner_loss(network, self.batch(state, 0), hparams).detach()

        return self._networks.dependent(unpack(state), int(state["seed"]), hparams, names, loss)

    def draws(self, state: State, t: int) -> AbstractContextManager[None]:
        """Return the context in which everything random of step ``t`` is drawn.

        Python's and numpy's generators are started too, but where tensors are the data and the
        steps before have not drawn from them.
        """
        key = derive(int(state["seed"]), "step", t)
        everywhere = not self.in_memory or self.beside.looks(t)
        return seeded(key, state["params"].device, everywhere=everywhere)

    def batch(self, state: State, t: int, *, shared: bool = False) -> Batch:
        """Return the batch of step ``t`` where the state is; ``shared`` as for ``Batches.at``."""
        device = state["params"].device
        return self._train.at(int(state["seed"]), t, device, shared=shared)

    def inner_loss(self, network: Network, batch: Batch, hparams: HParams) -> Tensor:
        """Return the training loss on a batch, by the weights that the module holds."""
        output = network.module(*batch.inputs)
        loss = self._loss(output, batch.target, hparams)
        if self._weights is None:
            return losses.scalar(loss)
        weight = losses.weights_of(self._weights, hparams, self._train.size).to(
            batch.examples.device
        )
        return losses.weighted_mean(loss, weight[batch.examples])

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
        network: Network,
        state: State,
        gradient: Tensor,
        others: Mapping[str, Tensor],
        options: Mapping[str, Value],
        t: int,
        missed: Sequence[bool],
    ) -> State:
        """Return the state after the optimizer's step along a gradient ``[p]``.

        ``others`` are the entries that the forward pass has made, such as buffers; ``missed`` says
        which parameters have no gradient: as in ``torch.optim``, they are left alone.
        """
        x, skipped = state["params"], state[SKIPPED]
        after = skipped + torch.tensor(missed).long() if any(missed) else skipped
        turns = turns_of(skipped, after, t, network.sizes, x.device)
        params, slots = update_in_turns(
            self.optimizer, turns, x, gradient, slots_of(state), options, t
        )
        return {
            **state,
            SKIPPED: after,
            "params": params,
            **others,
            **{SLOT + name: value for name, value in slots.items()},
        }

    def loss(self, state: State, hparams: HParams) -> Tensor:
        """Return the validation loss, a 0-dim tensor."""
        network = self.network(state, hparams)
        if records(state, hparams):
            return value_with_graph(
                network, state, hparams, lambda given: self._validate(network, state, given)
            )
        with torch.no_grad(), network.holding(unpack(state), training=False):
            return self._validate(network, state, hparams)

    def held_out(self, batch_size: int | None) -> Batches:
        """Return the validation data in batches, for an online tuner to look at."""
        return self._validation.resized(batch_size)

    def outer_loss(self, network: Network, batch: Batch, hparams: HParams) -> Tensor:
        """Return the validation loss on a batch, by the weights that the module holds."""
        output = network.module(*batch.inputs)
        return losses.scalar(self._validation_loss(output, batch.target, hparams))

    def metrics(self, state: State, hparams: HParams) -> dict[str, float]:
        """Return the metrics on the validation set."""
        if not self._metrics:
            return {}
        network = self.network(state, hparams)
        with torch.no_grad(), network.holding(unpack(state), training=False):
            return self._measure(*self._predict(self._validation, network, state))

    def test_metrics(self, state: State, hparams: HParams) -> dict[str, float]:
        """Return ``"loss"`` and the metrics on the test set; nothing where there is no test set."""
        if self._test is None:
            return {}
        network = self.network(state, hparams)
        with torch.no_grad(), network.holding(unpack(state), training=False):
            output, target = self._predict(self._test, network, state)
            loss = losses.scalar(self._validation_loss(output, target, hparams))
            return {"loss": float(loss), **self._measure(output, target)}

    def module(self, state: State, hparams: HParams) -> nn.Module:
        """Return the network with the weights and buffers of a state, in evaluation mode.

        It is an ordinary module of its own: save its ``state_dict``, or train it further.
        """
        return self.network(state, hparams).copy(unpack(state))

    def _validate(self, network: Network, state: State, hparams: HParams) -> Tensor:
        output, target = self._predict(self._validation, network, state)
        return losses.scalar(self._validation_loss(output, target, hparams))

    def _predict(self, data: Batches, network: Network, state: State) -> tuple[Any, Any]:
        key, device = derive(int(state["seed"]), "evaluate"), state["params"].device
        with seeded(key, device):
            return predictions(network.module, data, device, self._evaluation_batch_size)

    def _measure(self, output: Any, target: Any) -> dict[str, float]:
        return {name: float(metric(output, target)) for name, metric in self._metrics.items()}
