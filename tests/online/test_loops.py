"""The callbacks of docs/online.md, in small loops with the hooks of Lightning and Hugging Face."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner, HypergradientDescent
from tests.online.runs import loss_of, network

LR = {"lr": hd.Float(1e-5, 10, log=True)}


class Lightning:
    """The order of ``lightning.Trainer``: everything of a step happens in a closure of step()."""

    def __init__(self, module: Any, callbacks: list[Any]) -> None:
        self.module, self.callbacks = module, callbacks

    def call(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook, lambda *_: None)(self, self.module, *args)

    def fit(self, batches: range, accumulate: int = 1, state: Any = None) -> Any:
        """Return what a checkpoint after the last batch holds; begin with such a one."""
        module = self.module
        self.optimizers = [optimizer] = [module.configure_optimizers()]
        scheduler = LambdaLR(optimizer, lambda t: 0.9**t)
        parts = [module.model, optimizer, scheduler]
        for part, own in zip([*self.callbacks, *parts], state or (), strict=False):
            part.load_state_dict(own)
        self.call("on_train_start")
        for t in batches:

            def closure(t: int = t) -> Tensor:
                loss: Tensor = module.training_step(t) / accumulate
                if t % accumulate == 0:
                    optimizer.zero_grad()
                module.backward(loss)
                if t % accumulate == accumulate - 1:
                    self.call("on_before_optimizer_step", optimizer)
                return loss.detach()

            if t % accumulate == accumulate - 1:
                optimizer.step(closure)
                scheduler.step()
            else:
                closure()
            self.call("on_train_batch_end", None, None, t)
        return copy.deepcopy([part.state_dict() for part in [*self.callbacks, *parts]])


class Module:
    """A LightningModule: the second method is the documented one."""

    def __init__(self) -> None:
        self.model = network()
        self.tuner: ForwardTuner | None = None

    def backward(self, loss: Tensor) -> None:
        if self.tuner is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.tuner.backward(loss)

    def training_step(self, t: int) -> Tensor:
        return loss_of(self.model, t)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.5)


class TuneForward:
    """The Lightning callback of the documentation."""

    tuner: ForwardTuner
    moved: int

    def __init__(self, every: int) -> None:
        self.every: int = every
        self.state: Any = None

    def on_train_start(self, trainer: Any, module: Module) -> None:
        optimizer = trainer.optimizers[0]
        self.tuner = ForwardTuner(optimizer, LR)
        if self.state is not None:
            self.tuner.load_state_dict(self.state)
        module.tuner, self.moved = self.tuner, self.tuner.steps

    def on_train_batch_end(self, trainer: Any, module: Module, *_: Any) -> None:
        steps = self.tuner.steps
        if steps > self.moved and steps % self.every == 0:
            self.tuner.step(loss_of(module.model, -1))
            self.moved = steps

    def state_dict(self) -> Any:
        return self.tuner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.state = state


class TuneByDescent:
    """The Lightning callback of the documentation, for the tuners without validation data."""

    state: Any = None
    tuner: HypergradientDescent

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.tuner = HypergradientDescent(trainer.optimizers[0])
        if self.state is not None:
            self.tuner.load_state_dict(self.state)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.tuner.step()

    def state_dict(self) -> Any:
        return self.tuner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def plain_loop(
    tuner_of: Callable[[Any], Any], *, scheduled: bool = False, accumulate: int = 1
) -> tuple[Any, list[Tensor]]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    scheduler = LambdaLR(optimizer, lambda t: 0.9**t) if scheduled else None
    tuner = tuner_of(optimizer)
    for t in range(9):
        optimizer.zero_grad()
        for piece in range(accumulate):
            loss = loss_of(model, accumulate * t + piece) / accumulate
            if isinstance(tuner, ForwardTuner):
                tuner.backward(loss)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
        if not isinstance(tuner, ForwardTuner):
            tuner.step()
        optimizer.step()
        if isinstance(tuner, ForwardTuner) and t % 3 == 2:
            tuner.step(loss_of(model, -1))
        if scheduler is not None:
            scheduler.step()
    return tuner, weights(model)


CALLBACKS: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
    "forward": (lambda optimizer: ForwardTuner(optimizer, LR), lambda: TuneForward(every=3)),
    "descent": (HypergradientDescent, TuneByDescent),
}


@pytest.mark.parametrize("stop", [None, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("tuner_of", "callback_of"), CALLBACKS.values(), ids=CALLBACKS)
def test_a_tuner_in_a_loop_of_closures_does_what_it_does_in_a_plain_one(
    tuner_of: Any, callback_of: Any, accumulate: int, stop: int | None
) -> None:
    """Also from a checkpoint, with a scheduler beside it that knows nothing of the tuner."""
    expected, end = plain_loop(tuner_of, scheduled=True, accumulate=accumulate)
    state, begin = None, 0
    if stop is not None:
        begin = stop * accumulate
        state = Lightning(Module(), [callback_of()]).fit(range(begin), accumulate)
    module, callback = Module(), callback_of()
    Lightning(module, [callback]).fit(range(begin, 9 * accumulate), accumulate, state)
    assert callback.tuner.history == expected.history
    assert callback.tuner.get_last_lr() == expected.get_last_lr()
    assert len(expected.history) in (3, 9)
    assert same(weights(module.model), end)


class Trainer:
    """The order of ``transformers.Trainer``: its ``training_step`` and its callbacks."""

    def __init__(self, model: nn.Module, callbacks: list[Any]) -> None:
        self.model, self.callbacks = model, callbacks
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)

    def training_step(self, model: nn.Module, inputs: int) -> Tensor:
        loss = loss_of(model, inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def call(self, hook: str) -> None:
        for callback in self.callbacks:
            method = getattr(callback, hook, lambda *_, **__: None)
            method(None, None, None, model=self.model, optimizer=self.optimizer)

    def train(self, batches: Iterator[int]) -> None:
        self.call("on_train_begin")
        for batch in batches:
            self.training_step(self.model, batch)
            self.call("on_pre_optimizer_step")
            self.optimizer.step()
            self.call("on_optimizer_step")
            self.optimizer.zero_grad()


class TunedTrainer(Trainer):
    """The Trainer of the documentation."""

    tuner: ForwardTuner

    def training_step(self, model: nn.Module, inputs: int) -> Tensor:
        loss = loss_of(model, inputs)
        self.tuner.backward(loss)
        return loss.detach()


class MoveOnValidation:
    """The Hugging Face callback of the documentation, without its files."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tuner = self.trainer.tuner = ForwardTuner(kwargs["optimizer"], LR)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner.steps % self.every == 0:
            self.tuner.step(loss_of(kwargs["model"], -1))


class Descend:
    """The Hugging Face callback of the documentation, for the tuners without validation data."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tuner = HypergradientDescent(kwargs["optimizer"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tuner.step()


def test_a_forward_tuner_in_a_trainer_does_what_it_does_in_a_plain_loop() -> None:
    expected, end = plain_loop(lambda optimizer: ForwardTuner(optimizer, LR))
    callback = MoveOnValidation(every=3)
    trainer = TunedTrainer(network(), [callback])
    callback.trainer = trainer
    trainer.train(iter(range(9)))
    assert trainer.tuner.history == expected.history
    assert same(weights(trainer.model), end)


def test_hypergradient_descent_in_a_trainer_does_what_it_does_in_a_plain_loop() -> None:
    expected, end = plain_loop(HypergradientDescent)
    callback = Descend()
    trainer = Trainer(network(), [callback])
    trainer.train(iter(range(9)))
    assert callback.tuner.history == expected.history
    assert same(weights(trainer.model), end)
