"""The Jacobian of a step's gradient, beside difference quotients of plain steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.network import Network
from hyperopt_dl.recorded_step import RecordedStep, plain_gradient, record_step
from hyperopt_dl.seeds import seeded
from hyperopt_dl.weights import Weights, flat

DOUBLE, CPU = torch.double, torch.device("cpu")
Loss = Callable[[nn.Module], Tensor]


class Call(nn.Module):
    """A module whose forward pass is a function of it and its input."""

    def __init__(self, call: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)


def entropy(module: nn.Module, x: Tensor) -> Tensor:
    return functional.cross_entropy(module(x), torch.arange(len(x)) % 3)


def on(*shape: int) -> Loss:
    return lambda module: entropy(module, data(*shape))


def tokens(module: nn.Module) -> Tensor:
    ids = torch.randint(0, 5, (8, 4), generator=torch.Generator().manual_seed(2))
    return functional.cross_entropy(module(ids), torch.arange(8) % 3)


def focal(module: nn.Module) -> Tensor:
    each = functional.cross_entropy(module(data(8, 4)), torch.arange(8) % 3, reduction="none")
    result: Tensor = ((1 - (-each).exp().detach()) ** 2 * each).mean()
    return result


def square(module: nn.Module) -> Tensor:
    error: Tensor = (module(data(8, 4)) - data(8, 3)) ** 2
    return (error.detach() * error).mean()


def bootstrapped(module: nn.Module) -> Tensor:
    with torch.no_grad():
        target = 1 + 0.9 * module(data(8, 4).flip(0)).max(1).values
    return functional.smooth_l1_loss(module(data(8, 4))[:, 0], target)


def siamese(module: nn.Module) -> Tensor:
    a, b = module(data(8, 4)), module(data(8, 4).sin())
    return (
        -functional.cosine_similarity(a, b.detach()).mean()
        - functional.cosine_similarity(a.detach(), b).mean()
    )


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), *(middle or (nn.Tanh(),)), nn.Linear(5, 3))


def hooked() -> nn.Module:
    module = mlp()
    mask = torch.arange(20).view(5, 4) % 3
    hook: Any = module.get_parameter("0.weight").register_hook
    hook(lambda grad: grad * mask)
    return module


def double(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return (inputs[0] * 2,)


def backward_hooked() -> nn.Module:
    module = mlp()
    module.get_submodule("1").register_full_backward_hook(double)
    return module


def hook_inside(module: Any, x: Tensor) -> Tensor:
    hidden = torch.tanh(module.a(x))
    hidden.register_hook(lambda grad: grad.clamp(-0.02, 0.02))  # type: ignore[no-untyped-call]
    result: Tensor = module.b(hidden)
    return result


def averaged(module: Any, x: Tensor) -> Tensor:
    hidden = module.a(x)
    with torch.no_grad():
        module.mean.mul_(0.9).add_(hidden.mean(0), alpha=0.1)
    result: Tensor = module.b(torch.tanh(hidden - module.mean))
    return result


def reassigned(module: Any, x: Tensor) -> Tensor:
    hidden = module.a(x)
    module.mean = 0.9 * module.mean + 0.1 * hidden.detach().mean(0)
    result: Tensor = module.b(torch.tanh(hidden - module.mean))
    return result


def taught(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        for own, other in zip(module.a.parameters(), module.teacher.parameters(), strict=True):
            other.mul_(0.9).add_(own, alpha=0.1)
    result: Tensor = module.b(torch.tanh(module.a(x)) * module.teacher(x))
    return result


def words(module: Any, ids: Tensor) -> Tensor:
    result: Tensor = module.b(torch.tanh(module.words(ids).mean(1)))
    return result


def tied(module: Any, ids: Tensor) -> Tensor:
    result: Tensor = torch.tanh(module.words(ids).mean(1)) @ module.words.weight[:3].T
    return result


def quantized(module: Any, x: Tensor) -> Tensor:
    hidden = module.a(x)
    result: Tensor = module.b(hidden + ((3 * hidden).tanh() - hidden).detach())
    return result


def pair() -> dict[str, nn.Module]:
    return {"a": nn.Linear(4, 5), "b": nn.Linear(5, 3)}


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


def embedding(**options: Any) -> nn.Module:
    return Call(words, words=nn.Embedding(5, 5, **options), b=nn.Linear(5, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "focal weights": (mlp, focal),
    "detached square": (mlp, square),
    "bootstrapped target": (mlp, bootstrapped),
    "siamese": (mlp, siamese),
    "straight through by detach": (lambda: Call(quantized, **pair()), on(8, 4)),
    "hook on a weight": (hooked, on(8, 4)),
    "full backward hook": (backward_hooked, on(8, 4)),
    "hook on an activation": (lambda: Call(hook_inside, **pair()), on(8, 4)),
    "batch norm": (lambda: mlp(nn.BatchNorm1d(5), nn.Tanh()), on(8, 4)),
    "plain batch norm": (lambda: mlp(nn.BatchNorm1d(5, affine=False), nn.Tanh()), on(8, 4)),
    "cumulative batch norm": (lambda: mlp(nn.BatchNorm1d(5, momentum=None), nn.Tanh()), on(8, 4)),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
            nn.Tanh(), nn.Flatten(), nn.Linear(12, 3),
        ),
        on(6, 2, 5),
    ),
    "spectral norm": (
        lambda: normed(parametrizations.spectral_norm),
        on(8, 4),
    ),
    "weight norm": (
        lambda: normed(parametrizations.weight_norm),
        on(8, 4),
    ),
    "mean under no_grad": (lambda: Call(averaged, **pair(), mean=torch.zeros(5)), on(8, 4)),
    "mean that is assigned": (lambda: Call(reassigned, **pair(), mean=torch.zeros(5)), on(8, 4)),
    "momentum teacher": (
        lambda: Call(taught, **pair(), teacher=nn.Linear(4, 5).requires_grad_(False)), on(8, 4),
    ),
    "padding": (lambda: embedding(padding_idx=0), tokens),
    "padding from behind": (lambda: embedding(padding_idx=-1), tokens),
    "scaled by frequency": (lambda: embedding(scale_grad_by_freq=True), tokens),
    "sparse": (lambda: embedding(sparse=True), tokens),
    "padding of tied weights": (
        lambda: Call(tied, words=nn.Embedding(5, 5, padding_idx=1)), tokens,
    ),
}  # fmt: skip


class Step:
    """A step as a function of one vector: parameters, then what moves beside them."""

    def __init__(self, make: Callable[[], nn.Module], loss: Loss) -> None:
        with seeded(3, CPU):
            module = make().double()
        self.network, self.loss = Network(module), loss
        self.weights = self.network.weights()
        others = {**self.weights.frozen, **self.weights.buffers}
        self.names = [n for n, v in others.items() if v.is_floating_point()]
        self.x = flat([self.weights.params, *(others[n] for n in self.names)])

    def parts(self, x: Tensor) -> Weights:
        others = {**self.weights.frozen, **self.weights.buffers}
        sizes = [len(self.weights.params), *(others[n].numel() for n in self.names)]
        params, *rest = torch.split(x, sizes)
        moved = {n: part.view_as(others[n]) for n, part in zip(self.names, rest, strict=True)}
        frozen, buffers = ({n: moved.get(n, v) for n, v in p.items()} for p in self.weights[1:])
        return Weights(params, frozen, buffers)

    def plain(self, x: Tensor) -> Tensor:
        with torch.enable_grad(), self.network.holding(self.parts(x), training=True) as held:
            parts, _ = plain_gradient(self.loss(self.network.module), held.params)
            after = self.network.after()
            others = {**after.frozen, **after.buffers}
            return flat([*parts, *(others[n].detach() for n in self.names)])

    def recorded(self, *, pushed: bool) -> RecordedStep:
        weights = self.parts(self.x)
        given = {**weights.frozen, **weights.buffers}
        c = [given[n].clone().requires_grad_() for n in self.names]
        leaves = dict(zip(self.names, c, strict=True))
        frozen, buffers = ({n: leaves.get(n, v) for n, v in p.items()} for p in weights[1:])
        pieces = [*self.network.unflatten(weights.params).values()]
        return record_step(
            self.network,
            Weights(weights.params, frozen, buffers),
            pieces,
            lambda: self.loss(self.network.module),
            moved=self.names,
            c=c,
            pushed=pushed,
        )


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "_"))
def test_pull_and_push_are_the_jacobian_of_the_plain_step(name: str) -> None:
    step, h = Step(*CASES[name]), 1e-6
    rows = torch.eye(len(step.x), dtype=DOUBLE)
    columns = [(step.plain(step.x + h * e) - step.plain(step.x - h * e)) / (2 * h) for e in rows]
    J = torch.stack(columns, 1)
    recorded = step.recorded(pushed=False)
    outputs = recorded.graph.outputs()
    torch.testing.assert_close(flat(outputs).detach(), step.plain(step.x), rtol=1e-12, atol=1e-14)
    shapes = [y.shape for y in outputs]

    def split(vector: Tensor) -> list[Tensor]:
        parts = torch.split(vector, [shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    pulled = torch.stack([flat(recorded.graph.pull(split(e))) for e in rows])
    torch.testing.assert_close(pulled, J, rtol=1e-6, atol=1e-7)
    graph = step.recorded(pushed=True).graph
    pushed = torch.stack([flat(graph.push(split(e))) for e in rows], 1)
    torch.testing.assert_close(pushed, J, rtol=1e-6, atol=1e-7)


def test_a_layer_that_writes_into_its_weight_is_refused_by_name() -> None:
    with pytest.raises(TrainingError, match=r"nn.Embedding\(max_norm=0.5\)"):
        Step(lambda: embedding(max_norm=0.5), tokens).recorded(pushed=False)


def test_a_label_smoothing_may_have_a_derivative() -> None:
    step = Step(mlp, on(8, 4))
    smoothing = torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)

    def value(s: Any) -> Tensor:
        return functional.cross_entropy(
            step.network.module(data(8, 4)), torch.arange(8) % 3, label_smoothing=s
        )

    pieces = [*step.network.unflatten(step.weights.params).values()]
    recorded = record_step(
        step.network, step.weights, pieces, lambda: value(smoothing), c=[smoothing]
    )
    with step.network.holding(step.weights, training=True), torch.no_grad():
        torch.testing.assert_close(recorded.value.detach(), value(0.2))
    bars = [torch.ones_like(g) for g in recorded.graph.g]
    *_, found = recorded.graph.pull(bars)
    gradients = []
    for s in (0.2 + 1e-6, 0.2 - 1e-6):
        with torch.enable_grad(), step.network.holding(step.weights, training=True) as held:
            gradients.append(flat(plain_gradient(value(s), held.params)[0]).sum())
    torch.testing.assert_close(found, (gradients[0] - gradients[1]) / 2e-6, rtol=1e-6, atol=1e-9)
