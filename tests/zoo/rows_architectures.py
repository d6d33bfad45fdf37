"""Whole networks, and networks that differentiate or solve something themselves."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F  # noqa: N812

from tests.zoo.nets import CLASSES, HELD_OUT, TRAIN, Net, case_of, classify, conv, mlp, normal
from tests.zoo.row import Case, Kind

NETWORKS = Kind("Architectures")
INNER = Kind("Networks that differentiate or solve")
N = TRAIN + HELD_OUT


class Block(nn.Module):
    """A residual block with BatchNorm."""

    def __init__(self, channels: int, norm: Any = nn.BatchNorm2d) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([norm(channels), norm(channels)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Any:
        h = self.relu(self.norms[0](self.a(x)))
        return self.relu(x + self.norms[1](self.b(h)))


def _resnet(norm: Any) -> Case:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        Block(3, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, CLASSES),
    )
    return classify(net, 1, 5, 5)


def _unet() -> Case:
    """A U-Net: pixels in, pixels out."""

    def run(m: Any, x: Tensor) -> Any:
        a = torch.relu(m.down(x))
        b = torch.relu(m.middle(F.max_pool2d(a, 2)))
        return m.out(torch.cat([a, F.interpolate(b, scale_factor=2)], 1))

    net = Net(
        run,
        down=nn.Conv2d(1, 2, 3, padding=1),
        middle=nn.Conv2d(2, 3, 3, padding=1),
        out=nn.Conv2d(5, 1, 1),
    )
    return case_of(net, normal(N, 1, 4, 4), normal(N, 1, 4, 4, seed=1), loss=F.mse_loss)


def _densenet() -> Case:
    def run(m: Any, x: Tensor) -> Any:
        for layer in m.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return m.head(x.mean((2, 3)))

    layers = nn.ModuleList([nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)])
    return classify(Net(run, layers=layers, head=nn.Linear(5, CLASSES)), 1, 4, 4)


def _graph() -> Case:
    """A graph convolution whose adjacency is sparse; every example is a signal on 5 nodes."""
    edges = torch.tensor([[0, 1, 1, 2, 3, 4, 0], [1, 0, 2, 1, 4, 3, 4]])
    adjacency = torch.sparse_coo_tensor(edges, torch.full((7,), 0.5, dtype=torch.double), (5, 5))

    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Linear(2, 3), nn.Linear(15, CLASSES)
            self.adjacency = adjacency.coalesce()

        def forward(self, x: Tensor) -> Any:
            h = self.weight(x)
            flat = h.permute(1, 0, 2).flatten(1)
            moved = torch.sparse.mm(self.adjacency, flat).view(5, len(x), 3).permute(1, 0, 2)
            return self.head(torch.relu(h + moved).flatten(1))

    return classify(Convolution(), 5, 2)


def _sparse_buffer() -> Case:
    """The same adjacency in a registered buffer."""
    edges = torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 1, 0]])
    adjacency = torch.sparse_coo_tensor(edges, torch.ones(5).double(), (4, 4)).coalesce()
    net = Net(
        lambda m, x: m.net(x + 0.3 * torch.sparse.mm(m.adjacency, x.T).T),
        adjacency=adjacency,
        net=mlp(),
    )
    return classify(net)


def _graph_attention() -> Case:
    """Attention over edges, with index_add."""

    def run(m: Any, x: Tensor) -> Any:
        source, sink = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 0, 1, 2, 3])
        h = m.weight(x)
        score = m.score(torch.cat([h[:, source], h[:, sink]], 2)).exp()
        total = torch.zeros_like(h[..., :1]).index_add(1, sink, score) + 1e-6
        out = torch.zeros_like(h).index_add(1, sink, h[:, source] * score / total[:, sink])
        return m.head(F.elu(out).flatten(1))

    net = Net(run, weight=nn.Linear(2, 3), score=nn.Linear(6, 1), head=nn.Linear(12, CLASSES))
    return classify(net, 4, 2)


def _hypernetwork() -> Case:
    """A network that makes the weights of another."""

    def run(m: Any, x: Tensor) -> Any:
        made = m.maker(m.code)
        w, b = made[:20].view(5, 4), made[20:]
        return m.head(torch.tanh(F.linear(x, w, b)))

    net = Net(
        run,
        code=nn.Parameter(torch.randn(3)),
        maker=nn.Linear(3, 25),
        head=nn.Linear(5, CLASSES),
    )
    return classify(net)


def _film() -> Case:
    def run(m: Any, x: Tensor, z: Tensor) -> Any:
        scale, shift = m.film(z).chunk(2, 1)
        return m.head(torch.relu(m.first(x) * (1 + scale) + shift))

    net = Net(run, film=nn.Linear(4, 10), first=nn.Linear(4, 5), head=nn.Linear(5, CLASSES))
    made = classify(net)
    z = normal(N, 4, seed=5)
    train, held_out = (
        (made.train[0], z[:TRAIN], made.train[1]),
        (made.held_out[0], z[TRAIN:], made.held_out[1]),
    )
    return Case(net, train, held_out, made.loss)


def _autoencoder() -> Case:
    x = normal(N, 4)
    net = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 4))
    return case_of(net, x, x, loss=F.mse_loss)


def _highway() -> Case:
    def run(m: Any, x: Tensor) -> Any:
        gate = m.gate(x).sigmoid()
        return m.head(gate * torch.relu(m.body(x)) + (1 - gate) * x)

    return classify(
        Net(run, gate=nn.Linear(4, 4), body=nn.Linear(4, 4), head=nn.Linear(4, CLASSES))
    )


def _wavenet() -> Case:
    def run(m: Any, x: Tensor) -> Any:
        for filt, gate in zip(m.filters, m.gates, strict=True):
            padded = F.pad(x, (filt.dilation[0], 0))
            x = x + torch.tanh(filt(padded)) * gate(padded).sigmoid()
        return m.head(x[:, :, -1])

    def stack() -> nn.ModuleList:
        return nn.ModuleList([nn.Conv1d(2, 2, 2, dilation=d) for d in (1, 2)])

    return classify(Net(run, filters=stack(), gates=stack(), head=nn.Linear(2, CLASSES)), 2, 6)


def _matrix_factorisation() -> Case:
    from tests.zoo.nets import integers  # noqa: PLC0415

    pairs = integers(5, N, 2)
    net = Net(
        lambda m, p: (m.users(p[:, 0]) * m.items(p[:, 1])).sum(1) + m.bias(p[:, 1])[:, 0],
        users=nn.Embedding(5, 3),
        items=nn.Embedding(5, 3),
        bias=nn.Embedding(5, 1),
    )
    return case_of(net, pairs, normal(N, seed=1), loss=F.mse_loss)


NETWORKS.exact("a residual block with BatchNorm", lambda: _resnet(nn.BatchNorm2d), unroll=False)
NETWORKS.exact("a residual block with GroupNorm", lambda: _resnet(lambda c: nn.GroupNorm(1, c)))
NETWORKS.exact("a U-Net", _unet)
NETWORKS.exact("a DenseNet", _densenet)
NETWORKS.exact("a gated WaveNet", _wavenet)
NETWORKS.exact(
    "a MobileNet block",
    lambda: classify(
        conv(
            nn.Conv2d(1, 4, 1),
            nn.BatchNorm2d(4),
            nn.ReLU6(inplace=True),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.BatchNorm2d(4),
            nn.Hardswish(),
            nn.Conv2d(4, 2, 1),
            features=18,
        ),
        *(1, 5, 5),
    ),
    unroll=False,
)
SPARSE = {"quiet": ("Sparse invariant checks", "Sparse CSR")}
NETWORKS.exact("a graph convolution, sparse", _graph, **SPARSE)
NETWORKS.exact("a sparse buffer", _sparse_buffer, **SPARSE)
NETWORKS.exact("graph attention", _graph_attention)
NETWORKS.exact("a hypernetwork", _hypernetwork)
NETWORKS.exact("FiLM, conditioned layers", _film)
NETWORKS.exact("an autoencoder", _autoencoder)
NETWORKS.exact("a highway layer", _highway)
NETWORKS.exact("matrix factorisation", _matrix_factorisation)

# --- networks that differentiate or solve ---


def _ode() -> Case:
    """Euler's steps of a field that a network gives."""

    def run(m: Any, x: Tensor) -> Any:
        for k in range(5):
            x = x + 0.2 * torch.tanh(m.field(torch.cat([x, torch.full_like(x[:, :1], 0.2 * k)], 1)))
        return m.head(x)

    return classify(Net(run, field=nn.Linear(5, 4), head=nn.Linear(4, CLASSES)))


def _physics() -> Case:
    """The residual of u'' = -u, by autograd in the forward pass, which so needs no_grad not."""

    def run(m: Any, x: Tensor) -> Any:
        with torch.enable_grad():
            t = x.detach().requires_grad_()
            u = m.net(t)
            (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
            (ddu,) = torch.autograd.grad(du.sum(), t, create_graph=True)
        return torch.cat([u, ddu + u], 1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output[:, 0], target) + 0.1 * output[:, 1].square().mean()

    t = normal(N, 1)
    net = Net(run, net=nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)))
    return case_of(net, t, t[:, 0].sin(), loss=loss)


def _energy() -> Case:
    """An energy whose gradient is the answer: forces of a molecule."""

    def run(m: Any, x: Tensor) -> Any:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            energy = m.net(at).sum()
            return -torch.autograd.grad(energy, at, create_graph=True)[0]

    net = Net(run, net=nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 1)))
    return case_of(net, normal(N, 4), normal(N, 4, seed=1), loss=F.mse_loss)


def _penalised_gradient() -> Case:
    """A gradient penalty, as in WGAN-GP."""

    def run(m: Any, x: Tensor) -> Any:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            out = m.net(at)
            (slope,) = torch.autograd.grad(out.sum(), at, create_graph=True)
        return out, (slope.norm(dim=1) - 1).square().mean()

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(output[0], target) + 0.1 * output[1]

    return classify(Net(run, net=mlp()), loss=loss)


def _langevin(followed: bool) -> Case:
    """An energy model: steps of Langevin down its own energy, from the data and noise."""

    def run(m: Any, x: Tensor) -> Any:
        z = x + 0.1 * torch.randn_like(x)
        with torch.enable_grad():
            for _ in range(3):
                z = z.detach().requires_grad_()
                (slope,) = torch.autograd.grad(m.net(z).sum(), z, create_graph=followed)
                z = z - 0.1 * slope
        return m.net(x), m.net(z.detach())

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        low, high = output
        return (low - high).mean() + 0.1 * (low.square() + high.square()).mean()

    net = Net(run, net=nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 1)))
    return classify(net, loss=loss)


def _equilibrium(stop: bool) -> Case:
    """A fixed point: iterations, and where ``stop`` only the last is differentiated."""

    def run(m: Any, x: Tensor) -> Any:
        z = torch.zeros_like(x)
        if stop:
            with torch.no_grad():
                for _ in range(8):
                    z = torch.tanh(0.5 * m.again(z) + m.first(x))
        for _ in range(1 if stop else 8):
            z = torch.tanh(0.5 * m.again(z) + m.first(x))
        return m.head(z)

    net = Net(run, first=nn.Linear(4, 4), again=nn.Linear(4, 4), head=nn.Linear(4, CLASSES))
    return classify(net)


def _maml() -> Case:
    """An inner step of gradient descent inside the forward pass."""

    def run(m: Any, x: Tensor, y: Tensor) -> Any:
        weights = dict(m.net.named_parameters())
        with torch.enable_grad():
            inner = F.cross_entropy(functional_call(m.net, weights, x.flip(1)), y)
            slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        moved = {n: w - 0.2 * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
        return functional_call(m.net, moved, x)

    made = classify(Net(run, net=mlp()))
    (x, y), (a, b) = made.train, made.held_out
    return Case(made.model, (x, y, y), (a, b, b), made.loss)


def _functional() -> Case:
    """torch.func inside: a gradient for each example, by vmap."""

    def run(m: Any, x: Tensor) -> Any:
        slopes = vmap(grad(lambda row: m.net(row).square().sum()))(x)
        return m.net(x), slopes.square().mean()

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(output[0], target) + 0.1 * output[1]

    return classify(Net(run, net=mlp()), loss=loss)


def _flow() -> Case:
    """A normalising flow: the logarithm of a determinant of a Jacobian."""

    def run(m: Any, x: Tensor) -> Any:
        jacobian = vmap(jacrev(lambda row: row + 0.3 * torch.tanh(m.net(row))))(x)
        return x + 0.3 * torch.tanh(m.net(x)), torch.linalg.slogdet(jacobian)[1]

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        z, logdet = output
        return (0.5 * z.square().sum(1) - logdet).mean()

    return classify(Net(run, net=nn.Linear(4, 4)), loss=loss)


def _solved(solve: Any, out: int) -> Case:
    """A linear solve or a decomposition in the middle."""

    def run(m: Any, x: Tensor) -> Any:
        a = m.first(x).view(len(x), 3, 3)
        spd = a @ a.mT + torch.eye(3, dtype=x.dtype)
        return m.head(solve(spd).flatten(1))

    return classify(Net(run, first=nn.Linear(4, 9), head=nn.Linear(out, CLASSES)))


def _sinkhorn() -> Case:
    def run(m: Any, x: Tensor) -> Any:
        scores = m.first(x).view(len(x), 3, 3)
        for _ in range(4):
            scores = scores - scores.logsumexp(1, keepdim=True)
            scores = scores - scores.logsumexp(2, keepdim=True)
        return m.head(scores.exp().flatten(1))

    return classify(Net(run, first=nn.Linear(4, 9), head=nn.Linear(9, CLASSES)))


INNER.exact("a neural ODE, Euler's steps", _ode)
INNER.exact("a loss from physics (PINN)", _physics)
INNER.exact("forces from an energy", _energy)
INNER.exact("a gradient penalty", _penalised_gradient)
INNER.runs(
    "an energy model with Langevin steps",
    lambda: _langevin(followed=False),
    match="difference quotients",
    says="give autograd.grad in the forward pass create_graph=True, and detach() what comes of it",
)
INNER.exact(
    "the same with create_graph=True",
    lambda: _langevin(followed=True),
    unroll=False,
)
INNER.exact("a fixed point, unrolled", lambda: _equilibrium(stop=False))
INNER.exact(
    "a fixed point, one step differentiated (DEQ)", lambda: _equilibrium(stop=True), unroll=False
)
INNER.exact("MAML, an inner step", _maml)
INNER.exact("torch.func: vmap of grad", _functional)
INNER.exact("a flow with slogdet of its Jacobian", _flow)
INNER.exact(
    "linalg.solve", lambda: _solved(lambda a: torch.linalg.solve(a, torch.ones_like(a[..., :1])), 3)
)
INNER.exact("cholesky", lambda: _solved(torch.linalg.cholesky, 9))
INNER.exact("eigvalsh", lambda: _solved(torch.linalg.eigvalsh, 3))
INNER.exact("singular values", lambda: _solved(torch.linalg.svdvals, 3))
INNER.exact("matrix_exp", lambda: _solved(lambda a: torch.matrix_exp(-a), 9))
INNER.exact("Sinkhorn's iterations", _sinkhorn)
ROWS = [*NETWORKS.rows, *INNER.rows]
