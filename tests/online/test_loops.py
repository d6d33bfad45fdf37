"""The callbacks of docs/online.md, in small loops with the hooks of Lightning and Hugging Face."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner, HypergradientDescent
from tests.online.runs import loss_of, network, train

LR = {"lr": hd.Float(1e-5, 10, log=True)}


class Lightning:
    """The order of ``lightning.Trainer``: everything of a step happens in a closure of step()."""

    def __init__(self, module: Any, callbacks: list[Any]) -> None:
        self.module, self.callbacks = module, callbacks

    def call(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook, lambda *_: None)(self, self.module, *args)

    def fit(self, steps: int) -> None:
        self.module.optimizer = optimizer = self.module.configure_optimizers()
        self.call("on_fit_start")
        for t in range(steps):

            def closure(t: int = t) -> Tensor:
                loss: Tensor = self.module.training_step(t)
                optimizer.zero_grad()
                self.module.backward(loss)
                self.call("on_before_optimizer_step", optimizer)
                return loss.detach()

            optimizer.step(closure)
            self.call("on_train_batch_end", None, None, t)


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

    def __init__(self, every: int) -> None:
        self.every = every

    def on_fit_start(self, trainer: Any, module: Module) -> None:
        optimizer: Any = module.optimizer  # type: ignore[attr-defined]
        module.tuner = ForwardTuner(optimizer, LR)

    def on_train_batch_end(self, trainer: Any, module: Module, *_: Any) -> None:
        tuner = module.tuner
        assert tuner is not None
        if tuner.steps % self.every == 0:
            tuner.step(loss_of(module.model, -1))


class TuneByDescent:
    """The Lightning callback of the documentation, for the tuners without validation data."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.tuner = HypergradientDescent(module.optimizer)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.tuner.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def plain_loop(tuner_of: Callable[[Any], Any]) -> tuple[Any, list[Tensor]]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    tuner = tuner_of(optimizer)
    if isinstance(tuner, ForwardTuner):
        train(tuner, model, range(9), every=3)
    else:
        for t in range(9):
            optimizer.zero_grad()
            loss_of(model, t).backward()  # type: ignore[no-untyped-call]
            tuner.step()
            optimizer.step()
    return tuner, weights(model)


def test_a_forward_tuner_in_a_loop_of_closures_does_what_it_does_in_a_plain_one() -> None:
    expected, end = plain_loop(lambda optimizer: ForwardTuner(optimizer, LR))
    module = Module()
    Lightning(module, [TuneForward(every=3)]).fit(9)
    assert module.tuner is not None
    assert module.tuner.history == expected.history
    assert len(expected.history) == 3
    assert same(weights(module.model), end)


def test_hypergradient_descent_in_a_loop_of_closures_does_what_it_does_in_a_plain_one() -> None:
    expected, end = plain_loop(HypergradientDescent)
    module, callback = Module(), TuneByDescent()
    Lightning(module, [callback]).fit(9)
    assert callback.tuner.history == expected.history
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
    """The Hugging Face callback of the documentation."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tuner.steps % self.every == 0:
            self.tuner.step(loss_of(kwargs["model"], -1))

    tuner: ForwardTuner


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
    trainer.tuner = callback.tuner = ForwardTuner(trainer.optimizer, LR)
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
