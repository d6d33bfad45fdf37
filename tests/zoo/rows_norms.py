"""Normalisations and reparametrised weights."""

import warnings
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as P  # noqa: N812
from torch.nn.utils import parametrize

from tests.zoo.nets import CLASSES, Net, classify, conv, mlp
from tests.zoo.row import Kind

NORMS = Kind("Normalisation")
WEIGHTS = Kind("Reparametrised weights")
STATISTICS = {"unroll": False}  # torch writes running statistics without a derivative


def _evaluated() -> nn.Module:
    """A network whose BatchNorm stays in evaluation mode, as in fine-tuning."""

    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(False)
            return self

    return mlp(Frozen(5), nn.Tanh())


def _frozen() -> nn.Module:
    """A network whose BatchNorm has no trainable parameters."""
    norm = nn.BatchNorm1d(5).requires_grad_(False)
    return mlp(norm, nn.Tanh())


def _separate() -> nn.Module:
    """Two networks that share a BatchNorm, which so sees two batches a step."""
    return Net(
        lambda m, x: m.head(torch.tanh(m.norm(m.a(x))) + torch.tanh(m.norm(m.b(x)))),
        a=nn.Linear(4, 5),
        b=nn.Linear(4, 5),
        norm=nn.BatchNorm1d(5),
        head=nn.Linear(5, CLASSES),
    )


NORMS.exact("BatchNorm1d", lambda: classify(mlp(nn.BatchNorm1d(5), nn.Tanh())), **STATISTICS)
NORMS.exact(
    "BatchNorm2d",
    lambda: classify(conv(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), features=18), 1, 5, 5),
    **STATISTICS,
)
NORMS.exact(
    "BatchNorm3d",
    lambda: classify(
        conv(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh(), features=16), 1, 3, 3, 3
    ),
    **STATISTICS,
)
NORMS.exact(
    "BatchNorm of sequences",
    lambda: classify(conv(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), features=9), 2, 4),
    **STATISTICS,
)
NORMS.exact("BatchNorm kept in evaluation mode", lambda: classify(_evaluated()))
NORMS.exact("BatchNorm with frozen parameters", lambda: classify(_frozen()), **STATISTICS)
NORMS.exact("BatchNorm called twice a step", lambda: classify(_separate()), **STATISTICS)
NORMS.exact(
    "BatchNorm without running statistics",
    lambda: classify(mlp(nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh())),
)
NORMS.exact(
    "BatchNorm with cumulative averages",
    lambda: classify(mlp(nn.BatchNorm1d(5, momentum=None), nn.Tanh())),
    **STATISTICS,
)
NORMS.exact(
    "BatchNorm without affine parameters",
    lambda: classify(mlp(nn.BatchNorm1d(5, affine=False), nn.Tanh())),
    **STATISTICS,
)
NORMS.exact("LayerNorm", lambda: classify(mlp(nn.LayerNorm(5), nn.Tanh())))
NORMS.exact("RMSNorm", lambda: classify(mlp(nn.RMSNorm(5), nn.Tanh())))
NORMS.exact("GroupNorm", lambda: classify(mlp(nn.GroupNorm(2, 6), nn.Tanh(), hidden=6)))
NORMS.exact(
    "InstanceNorm",
    lambda: classify(
        conv(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True), nn.Tanh(), features=9), 2, 4
    ),
)
NORMS.exact(
    "InstanceNorm with running statistics",
    lambda: classify(
        conv(
            nn.Conv2d(1, 2, 2),
            nn.InstanceNorm2d(2, track_running_stats=True),
            nn.Tanh(),
            features=18,
        ),
        *(1, 4, 4),
    ),
    **STATISTICS,
)
NORMS.exact(
    "LocalResponseNorm",
    lambda: classify(conv(nn.Conv1d(2, 4, 2), nn.LocalResponseNorm(2), features=12), 2, 4),
)
NORMS.exact(
    "SyncBatchNorm in one process",
    lambda: classify(mlp(nn.SyncBatchNorm(5), nn.Tanh())),
    **STATISTICS,
)


class Symmetric(nn.Module):
    """The symmetric part of a square matrix."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


class Positive(nn.Module):
    """Weights that are positive, with an inverse so that they can be assigned."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x)

    def right_inverse(self, y: Tensor) -> Tensor:
        return (y.abs() + 0.1).expm1().log()


def _parametrized(square: nn.Linear, by: nn.Module) -> nn.Module:
    parametrize.register_parametrization(square, "weight", by)
    return mlp(nn.Tanh(), square, nn.Tanh())


def _old_weight_norm(dim: int | None = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return mlp(nn.Tanh(), torch.nn.utils.weight_norm(nn.Linear(5, 5), dim=dim), nn.Tanh())  # type: ignore[arg-type]


WEIGHTS.exact(
    "spectral_norm",
    lambda: classify(mlp(nn.Tanh(), P.spectral_norm(nn.Linear(5, 5)), nn.Tanh())),
    unroll=False,
)
WEIGHTS.exact(
    "spectral_norm of the old form",
    lambda: classify(mlp(nn.Tanh(), torch.nn.utils.spectral_norm(nn.Linear(5, 5)), nn.Tanh())),
    unroll=False,
    quiet=(".*spectral_norm.* is deprecated",),
)
WEIGHTS.exact(
    "spectral_norm of a convolution",
    lambda: classify(conv(P.spectral_norm(nn.Conv2d(1, 2, 2)), nn.Tanh(), features=18), 1, 4, 4),
    unroll=False,
)
for dim in (0, 1, None):
    WEIGHTS.exact(
        f"weight_norm, dim={dim}",
        lambda dim=dim: classify(
            mlp(nn.Tanh(), P.weight_norm(nn.Linear(5, 5), dim=cast(int, dim)), nn.Tanh())
        ),
        unroll=dim is None,  # of the fused kernel, torch's second derivative is wrong
    )
    WEIGHTS.exact(
        f"weight_norm of the old form, dim={dim}",
        lambda dim=dim: classify(lambda hp: _old_weight_norm(dim)),
        unroll=dim is None,
    )
WEIGHTS.exact(
    "weight_norm of the old form, as a module",
    lambda: classify(_old_weight_norm()),
    unroll=False,
)
WEIGHTS.exact(
    "weight_norm of a recurrent weight",
    lambda: classify(
        Net(
            lambda m, x: m.head(m.cell(x)[0][:, -1]),
            cell=P.weight_norm(nn.GRU(2, 3, batch_first=True), "weight_hh_l0"),
            head=nn.Linear(3, CLASSES),
        ),
        *(3, 2),
    ),
    unroll=False,
    quiet=("RNN module weights are not part of single contiguous chunk",),
)
WEIGHTS.exact(
    "orthogonal weights",
    lambda: classify(mlp(nn.Tanh(), P.orthogonal(nn.Linear(5, 5)), nn.Tanh())),
)
WEIGHTS.exact(
    "orthogonal weights by Cayley's map",
    lambda: classify(
        mlp(nn.Tanh(), P.orthogonal(nn.Linear(5, 5), orthogonal_map="cayley"), nn.Tanh())
    ),
)
WEIGHTS.exact(
    "a parametrization of one's own",
    lambda: classify(_parametrized(nn.Linear(5, 5), Symmetric())),
)
WEIGHTS.exact(
    "a parametrization with an inverse",
    lambda: classify(_parametrized(nn.Linear(5, 5), Positive())),
)
ROWS = [*NORMS.rows, *WEIGHTS.rows]
