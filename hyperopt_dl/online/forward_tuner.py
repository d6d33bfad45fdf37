"""Hyperparameters that tune themselves while a network trains, by exact forward mode.

Tangents Z, the derivatives of the weights in the hyperparameters, go along with the training
(Franceschi et al. 2017, sections 3.2 and 3.3): ``Z' = A Z + B``, A and B the derivatives of one
optimizer step in its state and in the hyperparameters. The hypergradient of a validation loss E is
``∇E · Z``.

Letters: Z tangents, E validation loss, m coordinates, p parameters of a group.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.backward_pass import BackwardPass
from hyperopt_dl.online.block import Block, split
from hyperopt_dl.online.coordinates import coordinates_of
from hyperopt_dl.online.course import Course, check_numbers, check_processes
from hyperopt_dl.online.discount import Discount, Discounts
from hyperopt_dl.online.history import Move, figure, packed, unpacked
from hyperopt_dl.online.hooks import silenced
from hyperopt_dl.online.in_loss import InLoss, check_in_loss
from hyperopt_dl.online.probes import must_be_the_derivative
from hyperopt_dl.online.products import checked, gradient, vanishes
from hyperopt_dl.online.rates import Rates
from hyperopt_dl.online.rules import options_of, rule_of
from hyperopt_dl.online.snapshot import Snapshot, put_back, taken
from hyperopt_dl.online.tuned_run import TunedRun
from hyperopt_dl.online.values import Values
from hyperopt_dl.online.watch import Watch
from hyperopt_dl.space import Float
from hyperopt_dl.training import HParams, Training


class ForwardTuner:
    """Tune the options of a ``torch.optim`` optimizer during one training run (RTHO).

    ``tuner.backward(loss)`` takes the place of ``loss.backward()``: it fills ``.grad`` with the
    same numbers, and takes one Hessian–vector product a hyperparameter along. ``optimizer.step()``
    carries the tangents through the step. ``tuner.step(validation_loss)`` moves the hyperparameters
    in ``optimizer.param_groups`` against the derivative of that loss (`moves`), in the coordinates
    of their dimensions, log λ where ``log=True``. Model and optimizer stay as they are.

    A loss or a tangent that is not finite puts the weights and the optimizer's state back to where
    the last move was made (twice in a row: to the start), divides the tuned learning rates by 4 and
    sets the tangents to zero. So does a loss beyond ``explosion`` times the first training loss,
    a hypergradient beyond 100 times the validation loss, which is that of a chaotic run, and a
    validation gradient with half as many entries other than 0 as the first gradient, which is that
    of a dying network. With ``hyper_lr=0`` nothing is touched, and training is what it is
    without a tuner. A tuner takes the place of one that was made for the same optimizer before.

    The optimizer is SGD, Adam, AdamW, RMSprop or Adagrad of ``torch.optim`` itself. A torch
    scheduler may run beside: the tuner then moves the base rate, and each step takes the scheduled
    rate times the same factor. A step of an MLP took 2.8, 5.8 and 13.9 times a plain one with 1, 3
    and 8 hyperparameters, and 1.4 times with ``discount=0`` (``docs/online.md``). It needs memory
    for ``m`` copies of parameters and slots, and twice that of the parameters.

    Args:
        optimizer: Knows all parameters that the loss depends on and that are to be trained.
        tune: Names to dimensions: ``"lr"``, ``"momentum"``, ``"weight_decay"``, ``"betas[0]"`` ...
            move the groups together, ``"lr@0"`` group 0 alone; other names are those of
            ``in_loss``. They start at the optimizer's values, and the tensors'.
        hyper_lr: The length of a move along steady derivatives, in log λ or in tenths of a linear
            interval.
        discount: What the tangents are multiplied with at each step: 1 is the derivative of the
            whole run (RTHO), 0 that of the last step alone, without second derivatives; between
            them is that of MARTHE (Donini et al. 2020), ``"adaptive"`` for learning rates.
        in_loss: By name, 0-dim tensors that the training loss reads, such as the weight of a term.
        clip: The largest norm of a hypergradient that counts.
        trust: The longest move of a coordinate.
        explosion: How many times the first training loss is taken as divergence. ``math.inf``, for
            a loss whose size says nothing because it may be negative, leaves only what is not
            finite.

    Raises:
        TrainingError: The optimizer is of another kind, or an argument or a name is wrong.
        SpaceError: A dimension cannot be tuned, or does not hold the optimizer's value.

    Attributes:
        steps: Calls of ``optimizer.step()`` so far.
        history: The moves so far.

    Example:
        >>> import torch, hyperopt_dl as hd
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> tuner = hd.online.ForwardTuner(optimizer, tune={"lr": hd.Float(1e-5, 10, log=True)})
        >>> x, y = torch.ones(8, 3), torch.ones(8, 1)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     tuner.backward(torch.nn.functional.mse_loss(model(x), y))
        ...     optimizer.step()
        ...     if tuner.steps % 10 == 0:
        ...         tuner.step(torch.nn.functional.mse_loss(model(x), y))
        >>> len(tuner.history)
        2
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        tune: Mapping[str, Float],
        hyper_lr: float = 0.1,
        discount: Discount = 1.0,
        *,
        in_loss: Mapping[str, Tensor] | None = None,
        clip: float = 1.0,
        trust: float = 0.5,
        explosion: float = 4.0,
    ) -> None:
        check_numbers(hyper_lr, discount, clip, trust, explosion)
        check_processes()
        self._rule = rule_of(type(optimizer))
        self.optimizer = optimizer
        check_in_loss(in_loss or {}, tune, discount)
        self.coordinates = coordinates_of(tune, optimizer, self._rule, in_loss or {})
        self._in_loss = InLoss(self.coordinates, in_loss or {})
        self.hyper_lr, self.discount = hyper_lr, discount
        self._discounts = Discounts(discount, self.coordinates)
        self.steps = 0
        self.history: list[Move] = []
        m = len(self.coordinates)
        self._course = Course(m, hyper_lr=hyper_lr, clip=clip, trust=trust, explosion=explosion)
        self._blocks = [
            Block([p for p in group["params"] if p.requires_grad], self._rule, m)
            for group in optimizer.param_groups
        ]
        self._backward = BackwardPass(optimizer, self._blocks, self._in_loss)
        self._params, self._gradients = self._backward.params, self._backward.gradients
        self._kept: list[Snapshot] = []  # the start, and the last good one
        self._begun = False
        self._moved_at = 0
        self._rates = Rates(optimizer, self._before_step, lambda: self._watch.after_step())
        self._values = Values(optimizer, self.coordinates, self._rates)
        self._watch = Watch(optimizer, self._values, self._in_loss, any_writes=discount == 0)

    @classmethod
    def from_training(
        cls,
        training: Training,
        hparams: HParams,
        tune: Mapping[str, Float],
        hyper_lr: float = 0.1,
        discount: float = 1.0,
        *,
        every: int = 10,
        batch_size: int | None = None,
        clip: float = 1.0,
        trust: float = 0.5,
        explosion: float = 4.0,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> TunedRun:
        """Return a run of a training that is tuned like a loop, at less cost: call its ``step()``.

        The step of a training is a pure function: it is traced once, and replayed with its
        tangents. The arguments are those of ``TunedRun``, which says what they are.

        Raises:
            TrainingError: An argument is wrong, or the tangents do not fit into memory.
            SpaceError: A dimension cannot be tuned, or does not hold where it starts.
        """
        given: dict[str, Any] = {"clip": clip, "trust": trust, "explosion": explosion}
        given |= {"every": every, "batch_size": batch_size, "compile": compile}
        given |= {"hyper_lr": hyper_lr, "discount": discount, "seed": seed, "device": device}
        return TunedRun(training, hparams, tune, **given)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the training loss to ``.grad``, and carry its tangents along.

        Several calls before one ``optimizer.step()`` accumulate, as with ``loss.backward()``. A
        loss that is not finite or exploded puts the weights back; ``.grad`` is then ``None``, and
        the following ``optimizer.step()`` does nothing.

        Raises:
            TrainingError: The loss is no number with a graph, depends on trained parameters that
                the optimizer does not have, or has no second derivative; or ``.grad`` was changed
                since the last call.
        """
        self._rates.check_in_use()
        self._watch.before_backward()
        value = checked(loss)
        if self.hyper_lr and not self._kept:
            self._kept = [taken(self.optimizer)] * 2
        void = not math.isfinite(value) and self._backward.says_nothing(loss)
        if not void and self._course.explodes(value):
            self._fall_back(f"a training loss of {value:g}")
        elif self.discount == 0:
            loss.backward()  # type: ignore[no-untyped-call]
        elif void:
            self._backward.fill(loss)
        else:
            self._backward.carry(loss, [mu for mu, _ in self._discounts.state], self._watch.made)
        if not self._begun and not void:
            self._course.begin([param.grad for param in self._params])
            self._begun = True

    def check(self, closure: Callable[[], Tensor]) -> None:
        """Raise unless the second derivatives of a training loss are those of its gradients.

        What a loss takes for a constant, by a ``detach()`` say, does not show in its graph. Here it
        is computed again, at weights a little further along. Call it once before training.

        Args:
            closure: Returns the training loss on one batch, the same at each call, and does nothing
                else; up to twelve calls are what BatchNorm's statistics will have seen.

        Raises:
            TrainingError: They are not; or the loss is another one the second time.
        """
        self._watch.before_move()
        with silenced(self._params):
            must_be_the_derivative(closure, self._params)
        self._watch.after_a_look()

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Do what ``torch.nn.utils.clip_grad_norm_`` does, and carry the tangents through it.

        Returns:
            The norm of all gradients before, 0-dim.
        """
        eps = 1e-6  # torch's
        parts = [param.grad for param in self._params]
        rates = torch.zeros(len(self.coordinates), dtype=torch.double)
        for block, own in zip(self._blocks, split(parts, self._blocks), strict=True):
            rates += block.gathered_along(own).cpu()
        norm = torch.nn.utils.get_total_norm([part for part in parts if part is not None])
        scale = (max_norm / (norm + eps)).clamp(max=1.0)
        if scale < 1 and self.discount != 0:
            for block in self._blocks:
                block.clip(rates / float(norm), norm, scale, eps)
        torch.nn.utils.clip_grads_with_norm_(self._params, max_norm, norm)
        self._gradients.mark()
        return norm

    def step(self, validation_loss: Tensor) -> None:
        """Move the hyperparameters along the derivative of a validation loss.

        Args:
            validation_loss: At the present weights, on data that is neither trained nor tested on.

        Raises:
            TrainingError: The loss is no number with a graph; or there was no ``optimizer.step()``
                since the last call, or another write to the weights or to what is tuned.
        """
        self._rates.check_in_use()
        self._watch.before_move()
        value = checked(validation_loss)
        if self._course.steps and self._moved_at == self.steps:
            raise TrainingError(
                f"step() must be called at most once after each optimizer.step(), got a second "
                f"call after step {self.steps}. Count tuner.steps, and not batches."
            )
        with silenced(self._params):  # hooks edit what the optimizer takes, and this it does not
            e = gradient(validation_loss, [*self._params, *self._in_loss.tensors], graph=False)
        if not math.isfinite(value) and vanishes(e):
            return
        h = self._hypergradient(e)
        self._moved_at = self.steps
        if self._course.lost(value, h, e):
            self._fall_back(f"a validation loss of {value:g} with the hypergradient {h}", value)
        elif self._course.steps:
            if self.hyper_lr:
                self._move(self._course.move(h))
                self._kept[1:] = [taken(self.optimizer)]
            self._discounts.adapt(split(e[: len(self._params)], self._blocks), self.get_last_lr())
            self._record(h, value)

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each parameter group, as the next step takes it."""
        return self._rates.last()

    def plot(self) -> Any:
        """Return a plotly figure of the hyperparameters over the steps."""
        return figure(self.history, log={c.name: c.dimension.log for c in self.coordinates})

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, beside the states of model and optimizer.

        It holds the tangents and the last good weights, so it is larger than the model. Save it
        between ``optimizer.step()`` and the next ``backward``.
        """
        return {
            "names": [coordinate.name for coordinate in self.coordinates],
            "steps": self.steps,
            "moved_at": self._moved_at,
            "tangents": [dict(block.dot) for block in self._blocks],
            "discounts": list(self._discounts.state),
            "scales": list(self._rates.scales),
            "in_loss": self._in_loss.values(),
            "course": self._course.state_dict(),
            "snapshots": [tuple(kept) for kept in self._kept],
            "history": packed(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a run where ``state_dict`` left it; model and optimizer load their own.

        Raises:
            TrainingError: The state is of a tuner with other hyperparameters or parameters.
        """
        names = [coordinate.name for coordinate in self.coordinates]
        found = state.get("names")
        shapes = [z["x"].shape for z in state["tangents"]] if found == names else None
        own = [block.dot["x"].shape for block in self._blocks]
        if shapes != own:
            raise TrainingError(
                f"A state must be of a tuner of {names} with tangents of shapes {own}, got "
                f"{found} and {shapes}. Build model, optimizer and tuner as they were."
            )
        self.steps = state["steps"]
        self._course.load_state_dict(state["course"])
        self._begun = self._course.begun
        self._moved_at = state["moved_at"]
        self._backward.look_again()
        self._watch.resume()
        self._rates.scales = list(state["scales"])
        self._in_loss.load(state["in_loss"])
        self._discounts.state = list(state["discounts"])
        self.history = unpacked(state["history"])
        for block, tangents in zip(self._blocks, state["tangents"], strict=True):
            block.dot = {name: value.to(block.g_dot, copy=True) for name, value in tangents.items()}
        if self.hyper_lr:
            self._kept = [Snapshot(*kept).to(self.optimizer) for kept in state["snapshots"]]

    def _before_step(self) -> None:
        """Carry the tangents through the step that the optimizer is about to make."""
        self._watch.before_step()
        groups = self.optimizer.param_groups
        grads = [param.grad for group in groups for param in group["params"]]
        if all(grad is None for grad in grads):
            self.steps += 1
            return
        if self.discount != 0:  # the tangents of one step are right for any gradient
            self._gradients.check(grads)
        self.steps += 1
        self._discounts.see([[param.grad for param in block.params] for block in self._blocks])
        for number, (group, block) in enumerate(zip(groups, self._blocks, strict=True)):
            seeds = self._seeds(number)
            options = {**options_of(group), "lr": self._rates.last()[number]}
            block.advance(self.optimizer.state, options, seeds, self._discounts.factor)
        self._course.steps += 1

    def _seeds(self, number: int) -> dict[str, list[tuple[int, float]]]:
        """Return which coordinate moves which option of a group, and how fast."""
        seeds = {}
        for row, coordinate in enumerate(self.coordinates):
            if number in coordinate.groups:
                slope = coordinate.slope(self._values.value(coordinate, number))
                if coordinate.option == "lr":
                    slope *= self._rates.schedule(number)
                seeds[coordinate.option] = [(row, slope)]
        return seeds

    def _hypergradient(self, e: Sequence[Tensor | None]) -> list[float]:
        total = torch.zeros(len(self.coordinates), dtype=torch.double)
        for block, own in zip(self._blocks, split(e, self._blocks), strict=True):
            total += block.dotted(own).cpu()
        self._in_loss.add_direct(total, e[len(self._params) :])
        return total.tolist()

    def _move(self, by: Sequence[float]) -> None:
        self._values.move(by)
        self._in_loss.move(by)

    def _fall_back(self, why: str, loss: float | None = None) -> None:
        """Put the last good weights back and lower the tuned learning rates."""
        rates = [c for c in self.coordinates if c.option == "lr"]
        before = self.get_last_lr()
        self._move([-c.back_off if c in rates else 0.0 for c in self.coordinates])
        if self.get_last_lr() == before:
            raise TrainingError(
                f"Training diverged ({why}), and no tuned learning rate can go down further, got "
                f"{before}. Tune 'lr', lower its bound, or start the optimizer with a lower one."
            )
        self._kept = self._kept or [taken(self.optimizer)] * 2
        if self._course.fell:  # twice in a row: the weights that were held for good are not
            self._kept[1] = self._kept[0]
        put_back(self._kept[1], self.optimizer)
        self._watch.after_writes()
        self._gradients.mark()
        for block in self._blocks:
            block.reset()
        self._discounts.reset()
        self._course.fall()
        self._record(None, loss)

    def _record(self, h: Sequence[float] | None, loss: float | None) -> None:
        gradients = {} if h is None else {
            c.name: part for c, part in zip(self.coordinates, h, strict=True)
        }  # fmt: skip
        values = {c.name: self._values.value(c, c.groups[0]) for c in self.coordinates if c.groups}
        values |= self._in_loss.values()
        self.history.append(Move(self.steps, gradients, values, restored=h is None, loss=loss))
