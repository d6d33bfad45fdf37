"""What else PyTorch lets a module do: checkpoints, compilers, hooks, functions of one's own."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import hyperopt_dl as hd
from tests.zoo.nets import CLASSES, Net, classify, mlp, tokens
from tests.zoo.row import Case, Kind

CHECKPOINTS = Kind("Checkpoints and compilers")
FUNCTIONS = Kind("Functions of one's own")
STOPPED = Kind("Stopped gradients")
HOOKS = Kind("Hooks")
STRUCTURE = Kind("Parameters and buffers")
COMPLEX = Kind("Complex numbers and dtypes")

# --- checkpoints and compilers ---


def _checkpointed(reentrant: bool, dropout: float = 0.0) -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        h = torch.tanh(m.first(x))
        return m.head(checkpoint(m.middle, h, use_reentrant=reentrant))

    middle = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Dropout(dropout))
    return Net(run, first=nn.Linear(4, 5), middle=middle, head=nn.Linear(5, CLASSES))


def _sequential(reentrant: bool) -> nn.Module:
    body = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh())
    return Net(
        lambda m, x: m.head(checkpoint_sequential(m.body, 2, m.first(x), use_reentrant=reentrant)),  # type: ignore[no-untyped-call]
        first=nn.Linear(4, 5),
        body=body,
        head=nn.Linear(5, CLASSES),
    )


AGAIN = {"unroll": False}  # what is computed again needs the weights of its step
REENTRANT: dict[str, Any] = {
    "match": "use_reentrant=False",
    "says": "pass use_reentrant=False",
    "quiet": ("None of the inputs have requires_grad=True",),
}
CHECKPOINTS.exact(
    "checkpoint(use_reentrant=False)", lambda: classify(_checkpointed(False)), **AGAIN
)
CHECKPOINTS.exact(
    "a checkpoint with dropout in it", lambda: classify(_checkpointed(False, 0.3)), **AGAIN
)
CHECKPOINTS.runs(
    "checkpoint(use_reentrant=True)", lambda: classify(_checkpointed(True)), **REENTRANT
)
CHECKPOINTS.exact("checkpoint_sequential", lambda: classify(_sequential(False)), **AGAIN)
CHECKPOINTS.runs(
    "checkpoint_sequential(use_reentrant=True)", lambda: classify(_sequential(True)), **REENTRANT
)


def _compiled(backend: str) -> nn.Module:
    torch.compiler.reset()
    return torch.compile(mlp(), backend=backend)  # type: ignore[return-value]


COMPILED: dict[str, Any] = {
    "fast": False,
    "unroll": False,
    "quiet": ("The .grad attribute of a Tensor", ".*torch.jit.script"),
}
for backend in ("eager", "aot_eager", "inductor"):
    CHECKPOINTS.exact(
        f'torch.compile(backend="{backend}")',
        lambda backend=backend: classify(_compiled(backend)),
        **COMPILED,
    )


def _traced() -> nn.Module:
    return torch.jit.trace(mlp().double(), torch.zeros(2, 4).double())  # type: ignore[no-any-return, no-untyped-call]


SCRIPTED: dict[str, Any] = {
    "unroll": False,
    "quiet": (".*torch.jit", "The .grad attribute of a Tensor"),
}
CHECKPOINTS.exact(
    "torch.jit.script",
    lambda: classify(torch.jit.script(mlp().double()), double=False),
    **SCRIPTED,
)
CHECKPOINTS.exact("torch.jit.trace", lambda: classify(_traced(), double=False), **SCRIPTED)

# --- functions of one's own ---


class Exp(Function):
    """A function whose backward is made of differentiable operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return grad * y


class Once(Exp):
    """The same, declared to be differentiable once."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return grad * y


class Hidden(Exp):
    """The same, whose backward computes with numbers that are cut off."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return grad * y.detach()


class Numpy(Function):
    """A function that is computed by numpy, both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.x = x.detach().numpy()
        return torch.from_numpy(np.sin(ctx.x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * torch.from_numpy(np.cos(ctx.x))


class Stashed(Function):
    """A function that keeps its input on ctx as it is, and not by save_for_backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.x = x
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return 3 * ctx.x**2 * grad


class Reversal(Function):
    """The layer of domain-adversarial training: the identity whose gradient changes its sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return -0.5 * grad


class Sign(Function):
    """A sign with the gradient of the identity: a straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad


class Clamped(Function):
    """The identity whose gradient is clipped, entry by entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.clamp(-0.01, 0.01)


def _applied(function: Any) -> nn.Module:
    return Net(
        lambda m, x: m.head(function.apply(torch.tanh(m.first(x)))),
        first=nn.Linear(4, 5),
        head=nn.Linear(5, CLASSES),
    )


def _adversarial() -> Case:
    """Features that predict a label and hide a domain."""

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        label, domain = output
        return F.cross_entropy(label, target) + F.cross_entropy(domain, target % 2)

    def run(m: Any, x: Tensor) -> Any:
        h = torch.tanh(m.first(x))
        return m.label(h), m.domain(Reversal.apply(h))  # type: ignore[no-untyped-call]

    net = Net(run, first=nn.Linear(4, 5), label=nn.Linear(5, CLASSES), domain=nn.Linear(5, 2))
    return classify(net, loss=loss)


NOT_THE_GRADIENT = {
    "match": "second derivative|autograd.Function|straight-through|backward",
    "says": "its backward is not the derivative of its forward: write it with detach()",
}
FUNCTIONS.exact("a Function with a differentiable backward", lambda: classify(_applied(Exp)))
FUNCTIONS.exact(
    "a Function that keeps its input on ctx", lambda: classify(_applied(Stashed)), unroll=False
)
FUNCTIONS.runs(
    "once_differentiable",
    lambda: classify(_applied(Once)),
    match="once_differentiable.*no second derivative",
    says="write its backward() with differentiable operations, undecorated",
)
FUNCTIONS.runs(
    "a Function whose backward detaches",
    lambda: classify(_applied(Hidden)),
    **{**NOT_THE_GRADIENT, "says": "write its backward() with differentiable operations"},
)
FUNCTIONS.runs(
    "a Function of numpy",
    lambda: classify(_applied(Numpy)),
    **{**NOT_THE_GRADIENT, "says": "write its backward() with differentiable operations"},
)
FUNCTIONS.runs("gradient reversal", _adversarial, **NOT_THE_GRADIENT)
FUNCTIONS.runs(
    "a sign with a straight-through Function",
    lambda: classify(_applied(Sign)),
    **NOT_THE_GRADIENT,
)
FUNCTIONS.runs(
    "a Function that clips the gradient", lambda: classify(_applied(Clamped)), **NOT_THE_GRADIENT
)

# --- stopped gradients ---


def _through(function: Any) -> nn.Module:
    """The straight-through estimator as it is mostly written."""
    return Net(
        lambda m, x: m.head((h := torch.tanh(m.first(x))) + (function(h) - h).detach()),
        first=nn.Linear(4, 5),
        head=nn.Linear(5, CLASSES),
    )


def _quantised() -> Case:
    """VQ-VAE: the nearest code, both of its losses, and a straight-through gradient."""

    def run(m: Any, x: Tensor) -> Any:
        h = m.encoder(x)
        codes = m.codes.weight
        code = codes[(h[:, None] - codes).square().sum(2).argmin(1)]
        extra = F.mse_loss(code, h.detach()) + 0.25 * F.mse_loss(h, code.detach())
        return m.decoder(h + (code - h).detach()), extra

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target) + output[1]

    net = Net(run, encoder=nn.Linear(4, 2), codes=nn.Embedding(5, 2), decoder=nn.Linear(2, 4))
    made = classify(net, loss=loss)
    return Case(
        made.model, (made.train[0], made.train[0]), (made.held_out[0], made.held_out[0]), loss
    )


def _simsiam() -> Case:
    """SimSiam: two views, a predictor and a stopped gradient."""

    def run(m: Any, x: Tensor) -> Any:
        views = (x, x.flip(1))
        z = [m.encoder(view) for view in views]
        return (*z, *(m.predictor(each) for each in z))

    def loss(output: tuple[Tensor, ...], target: Tensor) -> Tensor:
        a, b, pa, pb = output
        first = F.cosine_similarity(pa, b.detach()).mean()
        return -(first + F.cosine_similarity(pb, a.detach()).mean()) / 2

    net = Net(run, encoder=mlp(), predictor=nn.Linear(CLASSES, CLASSES))
    return classify(net, loss=loss)


def _temporal_difference() -> Case:
    """A value, and the value of what comes next as a target without a gradient."""

    def run(m: Any, x: Tensor) -> Any:
        value = m.value(x[:, :4])
        with torch.no_grad():
            after = m.value(x[:, 4:])
        return value, after

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        value, after = output
        reward = target.to(value.dtype)[:, None]
        return F.mse_loss(value, reward + 0.9 * after)

    return classify(Net(run, value=mlp()), 8, loss=loss)


def _focal(output: Tensor, target: Tensor) -> Tensor:
    each = F.cross_entropy(output, target, reduction="none")
    return ((1 - (-each).exp()).detach() ** 2 * each).mean()


def _sampled() -> nn.Module:
    """A hard choice, forwards, with the gradient of a soft one (Gumbel, hard=True)."""
    return Net(
        lambda m, x: m.head(F.gumbel_softmax(m.first(x), hard=True)),
        first=nn.Linear(4, 5),
        head=nn.Linear(5, CLASSES),
    )


def _scaled_by_item() -> nn.Module:
    """Activations divided by a number that left the graph by .item()."""

    def run(m: Any, x: Tensor) -> Any:
        h = m.first(x)
        return m.head(torch.tanh(h / h.abs().mean().item()))

    return Net(run, first=nn.Linear(4, 5), head=nn.Linear(5, CLASSES))


DETACHED = {"unroll": False}  # autograd takes what is detached for a constant, which it is not
STOPPED.exact("SimSiam", _simsiam, **DETACHED)
STOPPED.exact("a target under no_grad (TD)", _temporal_difference, **DETACHED)
STOPPED.exact("focal weights, detached", lambda: classify(mlp(), loss=_focal), **DETACHED)
STOPPED.exact("a VQ-VAE", _quantised, **DETACHED)
STOPPED.exact(
    "round, straight through by detach", lambda: classify(_through(torch.round)), **DETACHED
)
STOPPED.exact(
    "sign, straight through by detach", lambda: classify(_through(torch.sign)), **DETACHED
)
STOPPED.exact("Gumbel softmax, hard", lambda: classify(_sampled()), **DETACHED)
STOPPED.runs(
    "a scale that leaves the graph by .item()",
    lambda: classify(_scaled_by_item()),
    match="item",
    says="keep it a tensor, and detach() it",
    unroll=False,
)
STOPPED.exact(
    "a scale that is detached",
    lambda: classify(
        Net(
            lambda m, x: m.head(torch.tanh((h := m.first(x)) / h.detach().abs().mean())),
            first=nn.Linear(4, 5),
            head=nn.Linear(5, CLASSES),
        )
    ),
    **DETACHED,
)


class Teacher(nn.Module):
    """BYOL in one module: a slow copy of the network, moved in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.predictor = mlp(), nn.Linear(CLASSES, CLASSES)
        self.teacher = mlp().requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(
                    self.teacher.parameters(), self.student.parameters(), strict=True
                ):
                    slow.lerp_(fast, 0.1)
        with torch.no_grad():
            target = self.teacher(x.flip(1))
        return self.predictor(self.student(x)), target


def _distance(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return F.mse_loss(F.normalize(output[0]), F.normalize(output[1]))


STOPPED.exact(
    "a momentum teacher inside the module (BYOL)",
    lambda: classify(Teacher(), loss=_distance),
    **DETACHED,
)


def _own_statistics() -> nn.Module:
    """A norm that is written out: batch statistics in training, those that were kept after it."""

    def run(m: Any, x: Tensor) -> Any:
        h = m.first(x)
        if m.training:
            mean = h.mean(0)
            with torch.no_grad():
                m.mean.mul_(0.7).add_(0.3 * mean)
        return m.head(torch.tanh(h - (mean if m.training else m.mean)))

    return Net(run, mean=torch.zeros(5), first=nn.Linear(4, 5), head=nn.Linear(5, CLASSES))


def _running_scale() -> nn.Module:
    """A scale that follows the activations in a buffer, as quantisers have it."""

    def run(m: Any, x: Tensor) -> Any:
        h = m.first(x)
        if m.training:
            with torch.no_grad():
                m.scale.mul_(0.8).add_(0.2 * h.abs().mean())
        return m.head(torch.tanh(h / m.scale))

    return Net(run, scale=torch.ones(()), first=nn.Linear(4, 5), head=nn.Linear(5, CLASSES))


STOPPED.exact(
    "statistics of one's own, for evaluation", lambda: classify(_own_statistics()), **DETACHED
)
STOPPED.exact("a moving average in a buffer", lambda: classify(_running_scale()), **DETACHED)

# --- hooks ---


def _masked_gradient() -> Case:
    """A pruned layer: a hook on the weight keeps its gradient sparse."""
    net: Any = mlp()
    mask = (torch.arange(20).view(5, 4) % 3 > 0).to(torch.double)
    net[0].weight.register_hook(lambda grad: grad * mask)
    return classify(net)


def _masked_in_factory() -> Case:
    def model(hp: Any) -> Any:
        net: Any = mlp()
        mask = (torch.arange(20).view(5, 4) % 3 > 0).to(torch.double)
        net[0].weight.register_hook(lambda grad: grad * mask)
        return net

    return classify(model)


def _clipped_after() -> Case:
    """A hook that changes .grad once it is there."""
    net: Any = mlp()

    def halve(param: Any) -> None:
        assert param.grad is not None
        param.grad.mul_(0.5)

    net[0].weight.register_post_accumulate_grad_hook(halve)
    return classify(net)


def _halved_backward() -> Any:
    net: Any = mlp()
    net[1].register_full_backward_hook(lambda module, before, after: (before[0] * 0.5,))
    return net


def _clamped_activation() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        h: Any = torch.tanh(m.first(x))
        if h.requires_grad:
            h.register_hook(lambda grad: grad.clamp(-0.02, 0.02))
        return m.head(h)

    return Net(run, first=nn.Linear(4, 5), head=nn.Linear(5, CLASSES))


def _watched() -> nn.Module:
    """Hooks that only look: activations and gradients go to a list."""
    net = mlp()
    seen: list[Any] = []
    net[1].register_forward_hook(lambda module, args, out: seen.append(out.detach().mean()))
    net[1].register_full_backward_hook(lambda module, before, after: seen.append(len(after)))
    return net


def _forward_hook() -> nn.Module:
    net = mlp()
    net[1].register_forward_hook(lambda module, args, out: out * 2)
    net[2].register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))
    return net


CHANGES = {
    "match": "hook",
    "says": "it changes a gradient on its way: change the loss, or use ClipNorm",
}
HOOKS.exact("a mask on a weight's gradient (register_hook)", _masked_gradient, unroll=False)
HOOKS.exact("the same, in a factory", _masked_in_factory, unroll=False)
HOOKS.refused("register_post_accumulate_grad_hook", _clipped_after, **CHANGES)
HOOKS.exact(
    "a full backward hook that changes the gradient",
    lambda: classify(_halved_backward()),
    unroll=False,
)
HOOKS.exact(
    "a hook on an activation that clips its gradient",
    lambda: classify(_clamped_activation()),
    unroll=False,
)
HOOKS.exact("hooks that only look", lambda: classify(_watched()))
HOOKS.exact("forward hooks that change what passes", lambda: classify(_forward_hook()))

# --- parameters and buffers ---


def _penalised() -> Case:
    """L1 over net.parameters(), which the loss takes from outside."""
    net = mlp()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        penalty = sum(param.abs().sum() for param in net.parameters())
        return F.cross_entropy(output, target) + 0.01 * penalty

    return classify(net, loss=loss, validation_loss=F.cross_entropy)


def _penalty_of_hp() -> Case:
    """The same with a hyperparameter as its coefficient."""
    net = mlp()

    def loss(output: Tensor, target: Tensor, hp: Any) -> Any:
        penalty = sum(param.square().sum() for param in net.parameters())
        return F.cross_entropy(output, target) + hp["rho"] * penalty

    hp = {"lr": 0.1, "momentum": 0.5, "rho": 0.01}
    return classify(net, loss=loss, validation_loss=F.cross_entropy, reads_hp=True, hp=hp)


def _proximal() -> Case:
    """A pull towards where the weights began (FedProx, L2-SP): a detached copy of them."""
    net = mlp()
    start = [param.detach().clone().double() for param in net.parameters()]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        moved = zip(net.parameters(), start, strict=True)
        return F.cross_entropy(output, target) + 0.05 * sum(
            (p - q).square().sum() for p, q in moved
        )

    return classify(net, loss=loss, validation_loss=F.cross_entropy)


class Kept(nn.Module):
    """A module that keeps a list of its parameters, for a penalty that it adds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.kept = list(self.net.parameters())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), torch.stack([param.square().sum() for param in self.kept]).sum()


def _with_penalty(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return F.cross_entropy(output[0], target) + 0.02 * output[1]


class Bound(nn.Module):
    """A weight that is bound into a partial function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)
        self.call = functools.partial(F.linear, weight=self.first.weight)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.call(x)))


def _shared() -> nn.Module:
    """One layer in two places, and a weight that its transpose shares (an autoencoder's)."""
    layer = nn.Linear(4, 4)
    return Net(
        lambda m, x: m.head(torch.tanh(F.linear(m.b(torch.tanh(m.a(x))), m.a.weight.T))),
        a=layer,
        b=layer,
        head=nn.Linear(4, CLASSES),
    )


def _frozen_layers() -> Any:
    net: Any = mlp(nn.Tanh(), nn.Linear(5, 5), nn.Tanh())
    net[2].requires_grad_(False)
    net[0].bias.requires_grad_(False)
    return net


def _adapter() -> nn.Module:
    """LoRA: a frozen weight and a trained product of low rank."""
    return Net(
        lambda m, x: m.head(torch.tanh(m.base(x) + (x @ m.a) @ m.b)),
        base=nn.Linear(4, 5).requires_grad_(False),
        a=nn.Parameter(torch.randn(4, 2)),
        b=nn.Parameter(torch.zeros(2, 5)),
        head=nn.Linear(5, CLASSES),
    )


def _unused() -> nn.Module:
    return Net(lambda m, x: m.used(x), used=mlp(), unused=nn.Linear(3, 3))


def _decayed() -> Case:
    """torch.optim leaves a parameter without a gradient as it is: decay and momentum too."""
    rule = hd.optimizers.SGD(lr="lr", momentum="momentum", weight_decay=0.1)
    return classify(
        _unused(),
        rule=rule,
        optimizer=lambda params, hp: torch.optim.SGD(params, hp["lr"], hp["momentum"], 0, 0.1),
    )


def _buffers() -> nn.Module:
    """A mask of bools, a counter of integers, and a table of bytes."""

    def run(m: Any, x: Tensor) -> Any:
        if m.training:
            m.calls += 1
        h = torch.tanh(m.first(x)) * m.mask / (1 + 0.1 * m.calls)
        return m.head(h) + m.table.to(h.dtype)

    return Net(
        run,
        mask=torch.tensor([True, True, False, True, True]),
        calls=torch.zeros((), dtype=torch.long),
        table=torch.arange(CLASSES, dtype=torch.uint8),
        first=nn.Linear(4, 5),
        head=nn.Linear(5, CLASSES),
    )


def _counting() -> nn.Module:
    """A number of one's own that is counted up, and read: warm-up inside the module."""

    def run(m: Any, x: Tensor) -> Any:
        if m.training:
            m.calls = getattr(m, "calls", 0) + 1
        return m.net(x) * min(1.0, getattr(m, "calls", 0) / 4)

    return Net(run, net=mlp())


def _own_generator() -> nn.Module:
    """Noise of a generator that the module keeps."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Any:
            noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
            return self.net(x + 0.1 * noise)

    return Noisy()


STRUCTURE.exact("a penalty over net.parameters() in the loss", _penalised, unroll=False)
STRUCTURE.exact("the same with a hyperparameter as coefficient", _penalty_of_hp, unroll=False)
STRUCTURE.exact("a pull towards the first weights", _proximal, unroll=False)
STRUCTURE.exact(
    "a kept list(self.parameters())",
    lambda: classify(Kept(), loss=_with_penalty),
    unroll=False,
)
STRUCTURE.exact("a weight bound by functools.partial", lambda: classify(Bound()), unroll=False)
STRUCTURE.exact("a layer in two places, and its transpose", lambda: classify(_shared()))
STRUCTURE.exact("frozen layers and biases", lambda: classify(_frozen_layers()))
STRUCTURE.exact("LoRA", lambda: classify(_adapter()))
STRUCTURE.exact("a parameter that nothing uses", lambda: classify(_unused()))
STRUCTURE.exact(
    "a parameter that nothing uses, with weight decay", lambda: _decayed(), unroll=False
)
STRUCTURE.exact("buffers of bools, integers and bytes", lambda: classify(_buffers()))
STRUCTURE.exact("a lazy module after its first batch", lambda: classify(_lazy(called=True)))
STRUCTURE.refused(
    "a lazy module",
    lambda: classify(_lazy(called=False)),
    match="Call the lazy module on one batch first",
    says="call it on one batch first",
    quiet=("Lazy modules are a new feature",),
)
STRUCTURE.runs(
    "a counter kept on self",
    lambda: classify(_counting()),
    match="registered buffer",
    says="keep it in a registered buffer",
)
STRUCTURE.runs(
    "a torch.Generator of one's own",
    lambda: classify(lambda hp: _own_generator()),
    match="torch.Generator",
    says="draw from torch's default generator, which the run's seed starts",
)


def _lazy(called: bool) -> nn.Module:
    net = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(CLASSES))
    if called:
        net(torch.zeros(2, 4))
    return net


# --- complex numbers and dtypes ---


def _complex() -> nn.Module:
    return Net(
        lambda m, x: m.head(torch.tanh((x.to(m.w.dtype) @ m.w).abs())),
        w=nn.Parameter(torch.randn(4, 5, dtype=torch.cdouble)),
        head=nn.Linear(5, CLASSES),
    )


def _spectral() -> nn.Module:
    """A Fourier layer: complex weights on a few frequencies."""

    def run(m: Any, x: Tensor) -> Any:
        return m.head(torch.tanh(torch.fft.irfft(torch.fft.rfft(x) * m.w, n=4)))

    return Net(run, w=nn.Parameter(torch.randn(3, dtype=torch.cdouble)), head=nn.Linear(4, CLASSES))


def _real_spectral() -> nn.Module:
    """The same with pairs of real numbers, which lie at an odd place among the parameters."""

    def run(m: Any, x: Tensor) -> Any:
        weight = torch.view_as_complex(m.pairs)
        out = torch.fft.irfft(torch.fft.rfft(m.shift + x) * weight, n=4)
        return m.head(torch.tanh(out))

    return Net(
        run,
        shift=nn.Parameter(torch.zeros(1)),
        pairs=nn.Parameter(torch.randn(3, 2)),
        head=nn.Linear(4, CLASSES),
    )


def _autocast() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return m.net(x).float()

    return Net(run, net=mlp())


def _half(net: nn.Module) -> Case:
    made = classify(net)
    to = torch.bfloat16
    train, held_out = ((x.to(to), y) for x, y in (made.train, made.held_out))
    return Case(made.model, train, held_out, made.loss, double=False)


COMPLEX.exact("complex parameters", lambda: classify(_complex()))
COMPLEX.exact("a Fourier layer with complex weights", lambda: classify(_spectral()))
COMPLEX.exact("view_as_complex of a real parameter", lambda: classify(_real_spectral()))
COMPLEX.exact(
    "float32",
    lambda: classify(mlp()),
    dtype=torch.float,
    tolerance=1e-4,
)
COMPLEX.exact(
    "float32, LSTM",
    lambda: tokens(
        Net(
            lambda m, x: m.head(m.cell(m.words(x))[0][:, -1]),
            words=nn.Embedding(7, 3),
            cell=nn.LSTM(3, 4, batch_first=True),
            head=nn.Linear(4, CLASSES),
        )
    ),
    dtype=torch.float,
    tolerance=1e-4,
)
COMPLEX.exact(
    "autocast to bfloat16 in the forward pass",
    lambda: classify(_autocast()),
    dtype=torch.float,
    quotients=False,
    tolerance=0.05,
)
COMPLEX.exact(
    "bfloat16 parameters",
    lambda: _half(mlp().bfloat16()),
    quotients=False,
    dtype=torch.bfloat16,
    tolerance=0.1,
)
ROWS = [
    *CHECKPOINTS.rows,
    *FUNCTIONS.rows,
    *STOPPED.rows,
    *HOOKS.rows,
    *STRUCTURE.rows,
    *COMPLEX.rows,
]
