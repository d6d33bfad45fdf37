"""Convolutions, resampling and pooling."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.nets import CLASSES, Net, classify, conv
from tests.zoo.row import Case, Kind

CONVOLUTIONS = Kind("Convolutions and resampling")
POOLING = Kind("Pooling")


def _flat(*body: nn.Module, shape: tuple[int, ...]) -> Callable[[], Case]:
    """A body with tanh behind it, and a head on as many features as come out."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        features = nn.Sequential(*body)(torch.zeros(1, *shape)).numel()

    def make() -> Case:
        own = copy.deepcopy(body)
        return classify(conv(*own, nn.Tanh(), features=features), *shape)

    return make


LINE, PLANE, CUBE = (2, 6), (2, 5, 5), (1, 4, 4, 4)
for name, body, shape in (
    ("Conv1d", [nn.Conv1d(2, 3, 3, stride=2)], LINE),
    ("Conv2d", [nn.Conv2d(2, 3, 3)], PLANE),
    ("Conv3d", [nn.Conv3d(1, 2, 2, stride=2)], CUBE),
    ("a grouped convolution", [nn.Conv2d(2, 4, 2, groups=2)], PLANE),
    (
        "a depthwise separable convolution",
        [nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 3, 1)],
        PLANE,
    ),
    ("a dilated convolution", [nn.Conv1d(2, 3, 2, dilation=3)], LINE),
    ("circular padding", [nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")], PLANE),
    ("reflected padding", [nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect")], LINE),
    ('padding="same"', [nn.Conv2d(2, 2, 3, padding="same")], PLANE),
    ("ConvTranspose1d", [nn.ConvTranspose1d(2, 3, 2, stride=2)], LINE),
    ("ConvTranspose2d", [nn.ConvTranspose2d(2, 2, 2, output_padding=1, stride=2)], (2, 3, 3)),
    ("ConvTranspose3d", [nn.ConvTranspose3d(1, 2, 2)], (1, 2, 2, 2)),
    ("PixelShuffle", [nn.Conv2d(2, 4, 2), nn.PixelShuffle(2)], (2, 3, 3)),
    ("PixelUnshuffle", [nn.Conv2d(2, 2, 2), nn.PixelUnshuffle(2)], PLANE),
    ("ChannelShuffle", [nn.Conv2d(2, 4, 2), nn.ChannelShuffle(2)], (2, 3, 3)),
    ("Unfold", [nn.Unfold(2), nn.Conv1d(8, 2, 1)], (2, 3, 3)),
    ("Fold", [nn.Conv1d(4, 8, 1), nn.Fold((3, 3), (2, 2))], (4, 4)),
    ("Upsample, nearest", [nn.Conv1d(2, 2, 2), nn.Upsample(scale_factor=2)], LINE),
    (
        "Upsample, bilinear",
        [nn.Conv2d(2, 2, 2), nn.Upsample(scale_factor=1.5, mode="bilinear")],
        (2, 3, 3),
    ),
    (
        "Upsample, bicubic",
        [nn.Conv2d(2, 1, 2), nn.Upsample(scale_factor=2, mode="bicubic", align_corners=True)],
        (2, 3, 3),
    ),
    ("ZeroPad and crop", [nn.ZeroPad2d((1, 0, -1, 1)), nn.Conv2d(2, 2, 2)], PLANE),
):
    CONVOLUTIONS.exact(name, _flat(*body, shape=shape))

CONVOLUTIONS.exact(
    "grid_sample, a spatial transformer",
    lambda: classify(
        Net(
            lambda m, x: m.head(
                F.grid_sample(
                    x,
                    F.affine_grid(m.where(x.flatten(1)).view(-1, 2, 3), list(x.shape), False),
                    align_corners=False,
                ).flatten(1)
            ),
            where=nn.Linear(16, 6),
            head=nn.Linear(16, CLASSES),
        ),
        *(1, 4, 4),
        hp={"lr": 0.02, "momentum": 0.5},
    ),
    tolerance=1e-4,
)
CONVOLUTIONS.exact(
    "Bilinear",
    lambda: classify(
        Net(
            lambda m, x: m.head(torch.tanh(m.both(x[:, :2], x[:, 2:]))),
            both=nn.Bilinear(2, 2, 4),
            head=nn.Linear(4, CLASSES),
        )
    ),
)

for name, body, shape in (
    ("MaxPool1d", [nn.Conv1d(2, 3, 2), nn.MaxPool1d(2)], LINE),
    ("MaxPool2d, overlapping", [nn.Conv2d(2, 2, 2), nn.MaxPool2d(3, stride=1)], PLANE),
    ("MaxPool3d", [nn.Conv3d(1, 2, 1), nn.MaxPool3d(2)], CUBE),
    ("MaxPool2d behind a ReLU, with ties", [nn.Conv2d(2, 2, 2), nn.ReLU(), nn.MaxPool2d(2)], PLANE),
    ("AvgPool2d", [nn.Conv2d(2, 2, 2), nn.AvgPool2d(2, count_include_pad=False, padding=1)], PLANE),
    ("AdaptiveAvgPool2d", [nn.Conv2d(2, 3, 2), nn.AdaptiveAvgPool2d(1)], PLANE),
    ("AdaptiveMaxPool2d", [nn.Conv2d(2, 3, 2), nn.AdaptiveMaxPool2d(2)], PLANE),
    ("LPPool1d", [nn.Conv1d(2, 3, 2), nn.Sigmoid(), nn.LPPool1d(2, 2)], LINE),
    ("FractionalMaxPool2d", [nn.Conv2d(2, 2, 2), nn.FractionalMaxPool2d(2, output_size=2)], PLANE),
):
    POOLING.exact(name, _flat(*body, shape=shape))


def _unpooled() -> Case:
    pool, back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    return classify(
        Net(
            lambda m, x: m.head(m.back(*m.pool(torch.tanh(m.conv(x)))).flatten(1)),
            conv=nn.Conv2d(2, 2, 2),
            pool=pool,
            back=back,
            head=nn.Linear(32, CLASSES),
        ),
        *PLANE,
    )


POOLING.exact("MaxUnpool2d", _unpooled)
POOLING.exact(
    "max over points, a deep set",
    lambda: classify(
        Net(
            lambda m, x: m.head(torch.relu(m.each(x)).amax(1)),
            each=nn.Linear(3, 5),
            head=nn.Linear(5, CLASSES),
        ),
        *(4, 3),
    ),
)
POOLING.exact(
    "logsumexp over points",
    lambda: classify(
        Net(
            lambda m, x: m.head(torch.logsumexp(m.each(x), 1)),
            each=nn.Linear(3, 5),
            head=nn.Linear(5, CLASSES),
        ),
        *(4, 3),
    ),
)
ROWS = [*CONVOLUTIONS.rows, *POOLING.rows]
