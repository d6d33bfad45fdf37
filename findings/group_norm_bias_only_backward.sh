#!/usr/bin/env bash
#
# F.group_norm with a bias and no weight cannot be differentiated by its bias
# ===========================================================================
# Version: torch 2.13.0, on the CPU.
#
# Expected: `weight` and `bias` of `F.group_norm` are optional, each by itself, and the gradient of
# the bias is the sum of the incoming gradient, whatever the weight.
#
# Happens: with a bias and without a weight the forward works, and then a plain `backward()` raises
# an internal message, and another one under `create_graph=True`. `F.layer_norm` has no such
# trouble. With a constant weight of ones it works.
#
# Seen:
#     group_norm, bias only                  tensor does not have a device
#     group_norm, bias only, create_graph    shape '[0]' is invalid for input of size 3
#     group_norm, bias and ones              [8.0, 8.0, 8.0]
#     layer_norm, bias only                  [6.0, 6.0, 6.0, 6.0]
#
# For users: a group norm that learns a shift and no scale cannot be trained at all, and neither
# message names the cause. Pass a constant `torch.ones` as the weight.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$dir/finding.py" <<'PYTHON'
import torch
import torch.nn.functional as F
from torch.autograd import grad

torch.manual_seed(0)
x = torch.randn(2, 3, 4)


def slope(norm, channels, **options):
    bias = torch.zeros(channels, requires_grad=True)
    loss = norm(bias).sum()
    try:
        return grad(loss, bias, **options)[0].tolist()
    except RuntimeError as error:
        return str(error)


def bias_only(bias):
    return F.group_norm(x, 1, None, bias)


seen = {
    "group_norm, bias only": slope(bias_only, 3),
    "group_norm, bias only, create_graph": slope(bias_only, 3, create_graph=True),
    "group_norm, bias and ones": slope(lambda b: F.group_norm(x, 1, torch.ones(3), b), 3),
    "layer_norm, bias only": slope(lambda b: F.layer_norm(x, (4,), None, b), 4),
}
for case, outcome in seen.items():
    print(f"{case:38} {outcome}")

assert seen == {
    "group_norm, bias only": "tensor does not have a device",
    "group_norm, bias only, create_graph": "shape '[0]' is invalid for input of size 3",
    "group_norm, bias and ones": [8.0] * 3,
    "layer_norm, bias only": [6.0] * 4,
}
PYTHON
"$dir/venv/bin/python" "$dir/finding.py"
