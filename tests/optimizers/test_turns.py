"""Parameters that a step does not reach, against ``torch.optim``, and through its derivatives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
Y = torch.arange(24) % 3
STEPS = 9
RULES: dict[str, tuple[Any, Any]] = {
    "momentum": (
        hd.optimizers.SGD(lr="lr", momentum=0.9, dampening=0.3, weight_decay=0.01),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, dampening=0.3, weight_decay=0.01),
    ),
    "adam": (
        hd.optimizers.Adam(lr="lr", weight_decay=0.01),
        lambda p, lr: torch.optim.Adam(p, lr, weight_decay=0.01),
    ),
    "clipped": (
        hd.optimizers.ClipNorm(hd.optimizers.AdamW(lr="lr"), max_norm=0.1),
        lambda p, lr: torch.optim.AdamW(p, lr),
    ),
}


class Experts(nn.Module):
    """Two heads, of which the sign of a batch's mean chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])

    def forward(self, x: Tensor) -> Tensor:
        head = self.heads[int(bool(x.mean() > 0))]
        result: Tensor = head(torch.tanh(self.body(x)))
        return result


def training(rule: Any) -> hd.Supervised:
    torch.manual_seed(0)
    return hd.Supervised(
        model=Experts().double(),
        loss=cross_entropy,
        optimizer=rule,
        train=(X[:16], Y[:16]),
        validation=(X[16:], Y[16:]),
        steps=STEPS,
        batch_size=4,
    )


def plain(made: hd.Supervised, optimizer: Any, lr: float, clip: bool) -> float:
    """The loss after a loop of torch.optim over the same batches."""
    state = made.init({"lr": lr}, seed=0, device="cpu")
    module = made.module(state, {"lr": lr}).train()
    stepper = optimizer(list(module.parameters()), lr)
    chosen = set()
    for t in range(STEPS):
        batch = made.batch(state, t)
        stepper.zero_grad()
        cross_entropy(module(*batch.inputs), batch.target).backward()  # type: ignore[no-untyped-call]
        chosen.add(tuple(p.grad is None for p in module.parameters()))
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        stepper.step()
    assert len(chosen) > 1  # both heads have been left alone
    with torch.no_grad():
        return float(cross_entropy(module(X[16:]), Y[16:]))


@pytest.mark.parametrize("name", RULES)
def test_a_run_leaves_alone_what_torch_leaves_alone(name: str) -> None:
    rule, optimizer = RULES[name]
    made = training(rule)
    found = float(made.loss(hd.rollout(made, {"lr": 0.05}), {"lr": 0.05}))
    assert found == pytest.approx(plain(made, optimizer, 0.05, name == "clipped"), rel=1e-10)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("estimator", [hd.hypergrad.Reverse("all"), hd.hypergrad.Forward()])
def test_its_hypergradient_is_the_difference_quotient_of_the_plain_loop(
    name: str, estimator: Any
) -> None:
    rule, optimizer = RULES[name]
    made = training(rule)
    ends = [plain(made, optimizer, 0.05 + h, name == "clipped") for h in (1e-6, -1e-6)]
    _, gradient = hd.hypergradient(made, {"lr": 0.05}, estimator=estimator)
    assert float(gradient["lr"]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)
