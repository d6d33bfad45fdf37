"""Activations and kinds of dropout."""

import copy

import torch
from torch import nn

from tests.zoo.nets import CLASSES, Net, classify, conv, mlp
from tests.zoo.row import Kind

ACTIVATIONS = Kind("Activations")
DROPOUT = Kind("Dropout")

for name, activation in (
    ("ReLU", nn.ReLU()),
    ("ReLU in place", nn.ReLU(inplace=True)),
    ("ReLU6", nn.ReLU6()),
    ("LeakyReLU", nn.LeakyReLU(0.2)),
    ("ELU", nn.ELU()),
    ("CELU in place", nn.CELU(inplace=True)),
    ("SELU", nn.SELU()),
    ("GELU", nn.GELU()),
    ("GELU by tanh", nn.GELU("tanh")),
    ("SiLU", nn.SiLU()),
    ("SiLU in place", nn.SiLU(inplace=True)),
    ("Mish", nn.Mish()),
    ("Hardswish", nn.Hardswish()),
    ("Hardtanh", nn.Hardtanh(-0.5, 0.5)),
    ("Hardshrink", nn.Hardshrink(0.1)),
    ("Softshrink", nn.Softshrink(0.1)),
    ("Tanhshrink", nn.Tanhshrink()),
    ("Threshold", nn.Threshold(0.1, 0.3)),
    ("Softplus", nn.Softplus(2.0)),
    ("Softsign", nn.Softsign()),
    ("LogSigmoid", nn.LogSigmoid()),
    ("Softmax in the middle", nn.Softmax(1)),
    ("Softmin and LogSoftmax", nn.Sequential(nn.Softmin(1), nn.LogSoftmax(1))),
):
    ACTIVATIONS.exact(name, lambda each=activation: classify(mlp(copy.deepcopy(each))))

ACTIVATIONS.runs(
    "Hardsigmoid",
    lambda: classify(mlp(nn.Hardsigmoid())),
    match="hardsigmoid.*no second derivative",
    says="torch has no second derivative of it: use relu6(x + 3) / 6",
)
ACTIVATIONS.exact("PReLU", lambda: classify(mlp(nn.PReLU(5))))
ACTIVATIONS.exact("RReLU, random slopes", lambda: classify(mlp(nn.RReLU())))
ACTIVATIONS.exact(
    "GLU",
    lambda: classify(nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, CLASSES))),
)
ACTIVATIONS.exact(
    "SwiGLU",
    lambda: classify(
        Net(
            lambda m, x: m.out(nn.functional.silu(m.gate(x)) * m.up(x)),
            gate=nn.Linear(4, 5),
            up=nn.Linear(4, 5),
            out=nn.Linear(5, CLASSES),
        )
    ),
)
ACTIVATIONS.exact(
    "maxout",
    lambda: classify(
        Net(
            lambda m, x: m.out(m.first(x).view(len(x), 3, 2).max(2).values),
            first=nn.Linear(4, 6),
            out=nn.Linear(3, CLASSES),
        )
    ),
)
ACTIVATIONS.exact(
    "a sine with a trained frequency (SIREN)",
    lambda: classify(
        Net(
            lambda m, x: m.out(torch.sin(m.omega * m.first(x))),
            omega=nn.Parameter(torch.tensor(2.0)),
            first=nn.Linear(4, 6),
            out=nn.Linear(6, CLASSES),
        )
    ),
)

DROPOUT.exact("Dropout", lambda: classify(mlp(nn.Tanh(), nn.Dropout(0.4))))
DROPOUT.exact("Dropout in place", lambda: classify(mlp(nn.Dropout(0.4, inplace=True), nn.Tanh())))
DROPOUT.exact("AlphaDropout", lambda: classify(mlp(nn.SELU(), nn.AlphaDropout(0.2))))
DROPOUT.exact(
    "FeatureAlphaDropout",
    lambda: classify(
        conv(nn.Conv1d(2, 3, 2), nn.SELU(), nn.FeatureAlphaDropout(0.3), features=9), 2, 4
    ),
)
DROPOUT.exact(
    "Dropout1d",
    lambda: classify(conv(nn.Conv1d(2, 3, 2), nn.Dropout1d(0.4), nn.Tanh(), features=9), 2, 4),
)
DROPOUT.exact(
    "Dropout2d",
    lambda: classify(conv(nn.Conv2d(1, 3, 2), nn.Dropout2d(0.4), nn.Tanh(), features=27), 1, 4, 4),
)
DROPOUT.exact(
    "stochastic depth",
    lambda: classify(
        Net(
            lambda m, x: m.out(
                x + (torch.rand(len(x), 1, dtype=x.dtype) < 0.7) * torch.tanh(m.block(x))
                if m.training
                else x + 0.7 * torch.tanh(m.block(x))
            ),
            block=nn.Linear(4, 4),
            out=nn.Linear(4, CLASSES),
        )
    ),
)
DROPOUT.exact(
    "DropConnect",
    lambda: classify(
        Net(
            lambda m, x: m.out(
                torch.tanh(
                    nn.functional.linear(x, nn.functional.dropout(m.first.weight, 0.3, m.training))
                )
            ),
            first=nn.Linear(4, 5, bias=False),
            out=nn.Linear(5, CLASSES),
        )
    ),
)
DROPOUT.exact(
    "variational dropout over time",
    lambda: classify(
        Net(
            lambda m, x: m.out(
                (x * nn.functional.dropout(torch.ones_like(x[:, :1]), 0.3, m.training)).sum(1)
                @ m.first
            ),
            first=nn.Parameter(torch.randn(3, 5)),
            out=nn.Linear(5, CLASSES),
        ),
        *(4, 3),
    ),
)
DROPOUT.exact(
    "Monte Carlo dropout, on in evaluation too",
    lambda: classify(
        Net(
            lambda m, x: m.out(nn.functional.dropout(torch.tanh(m.first(x)), 0.3, training=True)),
            first=nn.Linear(4, 5),
            out=nn.Linear(5, CLASSES),
        )
    ),
)
DROPOUT.exact(
    "noise on the weights",
    lambda: classify(
        Net(
            lambda m, x: m.out(
                torch.tanh(nn.functional.linear(x, m.w + 0.1 * torch.randn_like(m.w) * m.training))
            ),
            w=nn.Parameter(torch.randn(5, 4)),
            out=nn.Linear(5, CLASSES),
        )
    ),
)
DROPOUT.exact(
    "Gumbel softmax",
    lambda: classify(
        Net(
            lambda m, x: m.out(nn.functional.gumbel_softmax(m.first(x), tau=0.7)),
            first=nn.Linear(4, 5),
            out=nn.Linear(5, CLASSES),
        )
    ),
)
ROWS = [*ACTIVATIONS.rows, *DROPOUT.rows]
