"""Loops with an online tuner, and the same loops without one, as their reference."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.online import DeltaBarDelta, ForwardTuner, HypergradientDescent
from tests.zoo.nets import generator

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""An optimizer of two parameter groups."""
STEPS = 9
RATE = hd.Float(1e-6, 1e3, log=True)
FRACTION = hd.Float(1e-6, 0.999, log=True)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batch(t: int) -> tuple[Tensor, Tensor]:
    """Ten examples, other ones at each step; -1 for validation."""
    x = torch.randn(10, 3, generator=generator(t + 1000), dtype=torch.double)
    return x, torch.stack([x[:, 0] * x[:, 1], torch.sin(2 * x[:, 2])], dim=1)


def loss_of(model: Any, t: int) -> Any:
    x, y = batch(t)
    return 3 * (model(x) - y).square().mean()


def groups_of(model: nn.Sequential) -> list[dict[str, Any]]:
    return [{"params": list(model[i].parameters())} for i in (0, 2)]


class Loop:
    """A loop that a person writes, with or without a tuner.

    Args:
        build: The optimizer.
        scheduler: Makes a scheduler of it.
        accumulate: Calls of backward a step.
        clip: The largest norm of the gradient.
        loss: The training loss of a model at a call of backward.
    """

    def __init__(
        self,
        build: Build,
        *,
        scheduler: Callable[[Any], Any] | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        loss: Callable[..., Tensor] = loss_of,
        model: Callable[[], nn.Sequential] = network,
        steps: int = STEPS,
        closure: bool = False,
        after: Callable[[Any], None] = lambda model: None,
    ) -> None:
        self.build, self.scheduler = build, scheduler
        self.accumulate, self.clip, self.loss, self.steps = accumulate, clip, loss, steps
        self.model, self.closure, self.after = model, closure, after

    def plain(self, factors: Mapping[str, float], **numbers: float) -> tuple[float, list[Tensor]]:
        """Return the validation loss, and the weights, with the options times some factors."""
        model = self.model()
        optimizer = self.build(groups_of(model))
        scheduler = self.scheduler(optimizer) if self.scheduler else None
        for t in range(self.steps):
            optimizer.zero_grad()
            for i in range(self.accumulate):
                loss = self.loss(model, t * self.accumulate + i, **numbers) / self.accumulate
                loss.backward()  # type: ignore[no-untyped-call]
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            kept = [dict(group) for group in optimizer.param_groups]
            _multiply(optimizer, factors)
            optimizer.step()
            for group, before in zip(optimizer.param_groups, kept, strict=True):
                group.update({k: v for k, v in before.items() if k != "params"})
            if scheduler:
                scheduler.step(*([1.0] if _by_metric(scheduler) else []))
            self.after(model)
        return float(loss_of(model, -1).detach()), [p.detach().clone() for p in model.parameters()]

    def quotient(self, name: str) -> list[float]:
        """Return the derivative in the logarithm of an option, by two difference quotients."""
        found = []
        for h in (1e-4, 1e-6):
            ends = [self.plain({name: math.exp(sign * h)})[0] for sign in (1, -1)]
            found.append((ends[0] - ends[1]) / (2 * h))
        return found

    def tuned(self, names: Sequence[str], **given: Any) -> tuple[ForwardTuner, list[Tensor]]:
        """Return a tuner that watches the loop and has seen the validation loss at its end."""
        model = self.model()
        optimizer = self.build(groups_of(model))
        scheduler = self.scheduler(optimizer) if self.scheduler else None
        dimensions = {n: FRACTION if n.startswith(("mom", "bet", "al")) else RATE for n in names}
        tuner = ForwardTuner(optimizer, dimensions, hyper_lr=0.0, **given)
        for t in range(self.steps):
            optimizer.zero_grad()
            for i in range(self.accumulate):
                tuner.backward(self.loss(model, t * self.accumulate + i) / self.accumulate)
            if self.clip is not None:
                tuner.clip_grad_norm_(self.clip)
            optimizer.step()
            if scheduler:
                scheduler.step(*([1.0] if _by_metric(scheduler) else []))
            self.after(model)
        tuner.step(loss_of(model, -1))
        return tuner, [p.detach().clone() for p in model.parameters()]

    def check(self, *names: str) -> None:
        """Check weights and hypergradients of a tuner against the loop without one."""
        tuner, weights = self.tuned(names)
        value, expected = self.plain({})
        assert abs((tuner.history[-1].loss or math.nan) - value) < 1e-9
        for found, right in zip(weights, expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-11)
        for name in names:
            got, known = tuner.history[-1].gradient[name], self.quotient(name)
            error = min(abs(got - each) for each in known)
            assert error <= 1e-6 + 1e-5 * abs(got), f"d/dlog {name}: got {got}, right {known}"
            assert abs(got) > 1e-6, f"{name} does not matter"


def _multiply(optimizer: torch.optim.Optimizer, factors: Mapping[str, float]) -> None:
    for name, factor in factors.items():
        option, _, number = name.partition("@")
        for i, group in enumerate(optimizer.param_groups):
            if number and int(number) != i:
                continue
            if option.startswith("betas"):
                betas = list(group["betas"])
                betas[int(option[6])] *= factor
                group["betas"] = tuple(betas)
            else:
                group[option] = group[option] * factor


def _by_metric(scheduler: Any) -> bool:
    return isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)


def check_descent(build: Build, decay: float = 0.0) -> None:
    """Check that HypergradientDescent sees the derivative in the rates of the last step.

    It is the derivative of what the optimizer descends, the penalty of SGD and Adam included.
    """
    model = network()
    optimizer = build(groups_of(model))
    tuner = HypergradientDescent(optimizer, hyper_lr=0.0)
    for t in range(4):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        tuner.step()
        optimizer.step()
    for number in range(2):
        ends = []
        for sign in (1, -1):
            again = network()
            plain = build(groups_of(again))
            for t in range(3):
                plain.zero_grad()
                loss_of(again, t).backward()
                if t == 2:
                    plain.param_groups[number]["lr"] += sign * 1e-6
                plain.step()
            penalty = sum(float(param.square().sum().detach()) for param in again.parameters())
            ends.append(float(loss_of(again, 3).detach()) + decay / 2 * penalty)
        found = tuner.history[-1].gradient[f"lr@{number}"]
        right = (ends[0] - ends[1]) / 2e-6
        assert abs(found - right) <= 1e-6 + 1e-5 * abs(right), f"got {found}, right {right}"


def check_delta(build: Build, closure: bool = False) -> None:
    """Check the rates of DeltaBarDelta against Jacobs' rule, written out."""
    model, kappa, phi, theta = network(), 1e-3, 0.2, 0.6
    optimizer = build(groups_of(model))
    tuner = DeltaBarDelta(optimizer, kappa=kappa, phi=phi, theta=theta)
    rates = [group["lr"] for group in optimizer.param_groups]
    means: dict[int, list[Tensor]] = {}
    for t in range(6):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        for i, group in enumerate(optimizer.param_groups):
            grads = [_dense(param.grad) for param in group["params"]]
            if i in means:
                agreement = sum(float((m * g).sum()) for m, g in zip(means[i], grads, strict=True))
                rates[i] = rates[i] + kappa if agreement > 0 else rates[i] * (1 - phi)
            before = means.get(i, grads)
            means[i] = [theta * m + (1 - theta) * g for m, g in zip(before, grads, strict=True)]
        tuner.step()
        optimizer.step()
        for found, right in zip(tuner.get_last_lr(), rates, strict=True):
            assert abs(found - right) < 1e-12, f"step {t}: got {found}, right {right}"


def _dense(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad.clone()
