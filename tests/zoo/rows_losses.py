"""Losses, and hyperparameters inside of them."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributions
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.nets import (
    CLASSES,
    HELD_OUT,
    TRAIN,
    Net,
    case_of,
    classify,
    integers,
    mlp,
    normal,
)
from tests.zoo.row import Case, Kind

LOSSES = Kind("Losses")
INSIDE = Kind("Hyperparameters in the loss")
N = TRAIN + HELD_OUT
BASE = {"lr": 0.1, "momentum": 0.5}


def _to(y: Tensor, loss: Any, out: int = CLASSES, **more: Any) -> Case:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, out))
    return case_of(model, normal(N, 4), y, loss=loss, **more)


distributions: Any = torch.distributions  # whose methods have no types
CLASS = integers(CLASSES, N, seed=1)
REAL = normal(N, CLASSES, seed=1)
BITS = integers(2, N, CLASSES, seed=1).double()
POSITIVE = normal(N, CLASSES, seed=1).abs()
SIGNS = 2 * integers(2, N, CLASSES, seed=1) - 1
IGNORED = torch.where(torch.arange(N) % 4 == 0, -1, CLASS)
WEIGHT = torch.tensor([0.5, 1.0, 2.0], dtype=torch.double)
SOFT = REAL.softmax(1)

for name, y, loss in (
    ("cross_entropy", CLASS, F.cross_entropy),
    ("CrossEntropyLoss, weights of classes", CLASS, nn.CrossEntropyLoss(weight=WEIGHT)),
    (
        "cross_entropy, label_smoothing and ignore_index",
        IGNORED,
        nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=-1),
    ),
    ("cross_entropy with soft targets", SOFT, F.cross_entropy),
    ("NLLLoss of log_softmax", CLASS, lambda out, y: F.nll_loss(out.log_softmax(1), y)),
    ("BCEWithLogitsLoss, pos_weight", BITS, nn.BCEWithLogitsLoss(pos_weight=WEIGHT)),
    ("BCELoss", BITS, lambda out, y: F.binary_cross_entropy(out.sigmoid(), y)),
    ("mse_loss", REAL, F.mse_loss),
    ("L1Loss", REAL, nn.L1Loss()),
    ("huber_loss", REAL, lambda out, y: F.huber_loss(out, y, delta=0.3)),
    ("SmoothL1Loss", REAL, nn.SmoothL1Loss(beta=0.5)),
    ("KLDivLoss", SOFT, lambda out, y: F.kl_div(out.log_softmax(1), y, reduction="batchmean")),
    ("PoissonNLLLoss", POSITIVE.round(), nn.PoissonNLLLoss()),
    (
        "GaussianNLLLoss",
        REAL[:, :1],
        lambda out, y: F.gaussian_nll_loss(out[:, :1], y, F.softplus(out[:, 1:2])),
    ),
    ("SoftMarginLoss", SIGNS, nn.SoftMarginLoss()),
    ("MultiLabelSoftMarginLoss", BITS, nn.MultiLabelSoftMarginLoss()),
    (
        "HingeEmbeddingLoss",
        SIGNS,
        lambda out, y: F.hinge_embedding_loss(out.abs(), y, margin=0.7),
    ),
    (
        "quantile loss",
        REAL[:, :1],
        lambda out, y: torch.maximum(
            (e := y - out) * torch.tensor([0.1, 0.5, 0.9]).double(),
            e * (torch.tensor([0.1, 0.5, 0.9]).double() - 1),
        ).mean(),
    ),
    (
        "likelihood of a Normal",
        REAL[:, :1],
        lambda out, y: (
            -distributions.Normal(out[:, :1], F.softplus(out[:, 1:2])).log_prob(y).mean()
        ),
    ),
    (
        "likelihood of a mixture",
        REAL[:, 0],
        lambda out, y: (
            -distributions.MixtureSameFamily(
                distributions.Categorical(logits=out),
                distributions.Normal(torch.linspace(-1, 1, 3).double().expand_as(out), 0.5),
            )
            .log_prob(y)
            .mean()
        ),
    ),
    (
        "likelihood of a Gamma",
        POSITIVE[:, :1] + 0.1,
        lambda out, y: (
            -distributions.Gamma(F.softplus(out[:, :1]) + 0.1, F.softplus(out[:, 1:2]) + 0.1)
            .log_prob(y)
            .mean()
        ),
    ),
    (
        "cosine_embedding_loss",
        REAL,
        lambda out, y: F.cosine_embedding_loss(out, y, torch.ones(len(y)).to(y)),
    ),
    (
        "CosineSimilarity",
        REAL,
        lambda out, y: 1 - F.cosine_similarity(out, y).mean(),
    ),
    (
        "dice loss",
        BITS,
        lambda out, y: 1 - 2 * (out.sigmoid() * y).sum() / (out.sigmoid() + y).sum(),
    ),
    (
        "a ranking loss over all pairs",
        REAL[:, 0],
        lambda out, y: F.softplus(
            -(out[:, 0][:, None] - out[:, 0]) * (y[:, None] - y).sign()
        ).mean(),
    ),
    (
        "Cox partial likelihood",
        REAL[:, 0],
        lambda out, y: (out[:, 0].logcumsumexp(0) - out[:, 0])[y.argsort()].mean(),
    ),
):
    LOSSES.exact(name, lambda y=y, loss=loss: _to(y, loss))


def _connectionist() -> Case:
    """CTC: letters in a sequence of frames."""
    x = normal(N, 6, 3)
    y = integers(4, N, 2, low=1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        n = len(target)
        lengths = torch.full((n,), 6), torch.full((n,), 2)
        return F.ctc_loss(output.log_softmax(2).transpose(0, 1), target, *lengths)

    return case_of(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), x, y, loss=loss)


def _siamese(loss: Any, parts: int) -> Case:
    """A network of several inputs, the same for each."""
    inputs = tuple(normal(N, 4, seed=i) for i in range(parts))
    net = Net(lambda m, *xs: tuple(m.net(x) for x in xs), net=mlp())
    return case_of(net, inputs, integers(2, N, seed=9), loss=loss)


def _contrastive(output: tuple[Tensor, Tensor], target: Tensor) -> Any:
    """InfoNCE over the batch (SimCLR, CLIP)."""
    a, b = (F.normalize(part) for part in output)
    return F.cross_entropy(a @ b.T / 0.3, torch.arange(len(a)))


def _pairs(output: tuple[Tensor, Tensor], target: Tensor) -> Any:
    """Hadsell's contrastive loss."""
    distance = F.pairwise_distance(*output)
    near, far = distance.square(), (1 - distance).clamp(min=0).square()
    return torch.where(target == 1, near, far).mean()


def _margin(output: tuple[Tensor, Tensor], target: Tensor) -> Any:
    a, b = (part.sum(1) for part in output)
    return F.margin_ranking_loss(a, b, 2.0 * target - 1, margin=0.2)


LOSSES.runs(
    "CTCLoss",
    _connectionist,
    match="ctc_loss.*no second derivative",
    says="torch has no second derivative of it: write it with logsumexp, or use a sampler",
)
LOSSES.runs(
    "MultiMarginLoss",
    lambda: _to(CLASS, nn.MultiMarginLoss()),
    match="multi_margin_loss.*no second derivative",
    says="torch has no second derivative of it: write it with clamp, or use a sampler",
)
LOSSES.exact(
    "TripletMarginLoss",
    lambda: _siamese(lambda out, y: F.triplet_margin_loss(*out), 3),
)
LOSSES.exact("InfoNCE", lambda: _siamese(_contrastive, 2))
LOSSES.exact("a contrastive loss of pairs", lambda: _siamese(_pairs, 2))
LOSSES.exact("margin_ranking_loss", lambda: _siamese(_margin, 2))
LOSSES.runs(
    "torch.cdist in the loss",
    lambda: _to(REAL, lambda out, y: torch.cdist(out, y).mean()),
    match="cdist.*no second derivative",
    says="write the distance out: (a[:, None] - b[None]).square().sum(-1).sqrt()",
)
LOSSES.exact(
    "AdaptiveLogSoftmaxWithLoss",
    lambda: _adaptive(),
    quiet=("Initializing zero-element tensors",),
)
LOSSES.exact("ArcFace, an angular margin", lambda: _arcface())


def _adaptive() -> Case:
    """A loss that is a module with weights of its own, so a part of the network."""
    net = Net(
        lambda m, x, y: m.out(torch.tanh(m.first(x)), y).loss,
        first=nn.Linear(4, 6),
        out=nn.AdaptiveLogSoftmaxWithLoss(6, 5, cutoffs=[2, 3]),
    )
    x, y = normal(N, 4), integers(5, N, seed=1)
    return case_of(net, (x, y), y, loss=lambda output, target: output)


def _arcface() -> Case:
    """An angular margin, whose target goes into the network."""

    def run(m: Any, x: Tensor, y: Tensor) -> Any:
        cosine = F.normalize(m.net(x)) @ F.normalize(m.classes).T
        angle = torch.acos(cosine.clamp(-0.99, 0.99))
        return 4 * torch.where(F.one_hot(y, CLASSES) == 1, torch.cos(angle + 0.1), cosine)

    net = Net(run, net=mlp(), classes=nn.Parameter(torch.randn(CLASSES, CLASSES)))
    return case_of(net, (normal(N, 4), CLASS), CLASS)


# --- hyperparameters in the loss ---


def _of_hp(loss: Any, hp: Mapping[str, Any], model: Any = None, **more: Any) -> Case:
    return classify(
        model or mlp(),
        **{"validation_loss": F.cross_entropy, **more},
        loss=loss,
        reads_hp=True,
        hp={**BASE, **hp},
    )


def _smoothed(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Any:
    return F.cross_entropy(output, target, label_smoothing=hp["s"])


def _smoothed_by_hand(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Any:
    logp, s = output.log_softmax(1), hp["s"]
    return -((1 - s) * logp.gather(1, target[:, None])[:, 0] + s * logp.mean(1)).mean()


def _focal(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Any:
    each = F.cross_entropy(output, target, reduction="none")
    return ((1 - (-each).exp()) ** hp["gamma"] * each).mean()


def _tempered(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Any:
    return F.cross_entropy(output / hp["temperature"], target)


def _weighed(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Any:
    return F.cross_entropy(output, target, weight=torch.as_tensor(hp["classes"]))


def _weighed_by_hand(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Any:
    each = F.cross_entropy(output, target, reduction="none")
    return (torch.as_tensor(hp["classes"])[target] * each).mean()


def _two_tasks(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Any:
    return F.cross_entropy(output, target) + hp["rho"] * output.square().mean()


def _elastic(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Any:
    """A Huber loss whose threshold is tuned."""
    return F.huber_loss(output, F.one_hot(target, CLASSES).to(output), delta=hp["delta"])


def _mixed_up(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Any:
    """Targets mixed within the batch."""
    hot, a = F.one_hot(target, CLASSES).to(output), hp["a"]
    return F.cross_entropy(output, (1 - a) * hot + a * hot.flip(0))


def _shared_with_factory() -> Case:
    def model(hp: Mapping[str, Any]) -> nn.Module:
        return mlp(nn.Tanh(), nn.Dropout(hp["rho"]))

    return _of_hp(_two_tasks, {"rho": 0.1}, model)


def _constant() -> Case:
    """A number that the factory reads, held constant, beside one of the loss."""
    numbers = {"rho": 0.1, "p": 2}

    def model(hp: Mapping[str, Any]) -> nn.Module:
        return mlp(nn.Tanh(), nn.Dropout(hp["p"] / 10))

    return _of_hp(_two_tasks, numbers, model)


INSIDE.exact(
    'cross_entropy(label_smoothing=hp["s"])', lambda: _of_hp(_smoothed, {"s": 0.1}), unroll=False
)
INSIDE.exact("label smoothing written out", lambda: _of_hp(_smoothed_by_hand, {"s": 0.1}))
INSIDE.exact("focal loss, its exponent", lambda: _of_hp(_focal, {"gamma": 1.5}))
INSIDE.exact("a temperature", lambda: _of_hp(_tempered, {"temperature": 1.5}))
INSIDE.exact("the weight of a second term", lambda: _of_hp(_two_tasks, {"rho": 0.1}))
INSIDE.exact(
    "weights of classes",
    lambda: _of_hp(_weighed_by_hand, {"classes": WEIGHT}),
)
INSIDE.exact(
    'cross_entropy(weight=hp["classes"])',
    lambda: _of_hp(_weighed, {"classes": WEIGHT}),
    unroll=False,
)
INSIDE.runs(
    'huber_loss(delta=hp["delta"])',
    lambda: _of_hp(_elastic, {"delta": 0.4}),
    match="takes no tensor.*write the operation out",
    says="torch takes no tensor there: write the operation out",
)
INSIDE.exact("mixup with a tuned share", lambda: _of_hp(_mixed_up, {"a": 0.3}))
INSIDE.exact("an integer that the factory reads", _constant)
INSIDE.runs(
    "a number that the factory and the loss read",
    _shared_with_factory,
    match="factory",
    says="give the factory a Constant, or a name of its own: structure has no derivative",
)
INSIDE.exact(
    "weights of examples",
    lambda: classify(
        mlp(),
        loss=F.cross_entropy,
        hp={**BASE, "w": 1 + 0.1 * torch.arange(TRAIN, dtype=torch.double)},
        more={"weights": "w"},
        reads_hp=False,
    ),
    unroll=False,
)
ROWS = [*LOSSES.rows, *INSIDE.rows]
