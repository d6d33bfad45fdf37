#!/usr/bin/env bash
#
# F.batch_norm with a bias and no weight has no second derivative by its bias
# ===========================================================================
# Version: torch 2.13.0, on the CPU.
#
# Expected: `weight` and `bias` of `F.batch_norm` and `F.instance_norm` are optional, each by
# itself. No weight is a weight of ones.
#
# Happens: with a bias and without a weight, the forward and the first derivative work. If the
# gradient of the bias is part of what is differentiated a second time, an internal message is
# raised: the double backward multiplies with the weight that is not there. It works with neither,
# with both, with the weight alone, with a constant weight of ones, and as long as only the gradient
# of the input is differentiated.
#
# Seen (the square of the gradients by input and bias, differentiated once more):
#     neither          works
#     weight only      works
#     bias only        Expected a proper Tensor but got None (or an undefined Tensor in C++) for
#                      argument #1 'other'
#     both             works
#     bias and ones    works
#     bias only, gradient of the input alone: works
#     instance_norm, bias only: the message above
#
# For users: networks that keep only the shift of a batch norm cannot be trained with a gradient
# penalty, or differentiated through a training step, and the message does not say why. Pass a
# constant `torch.ones` as the weight.
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
x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)


def parameter():
    return torch.ones(3, dtype=torch.float64, requires_grad=True)


def batch(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True)


def instance(x, weight, bias):
    return F.instance_norm(x, weight=weight, bias=bias)


def twice(norm, weight, bias, inputs):
    slopes = grad(norm(x, weight, bias).pow(3).sum(), inputs, create_graph=True)
    try:
        grad(sum(slope.square().sum() for slope in slopes), inputs)
    except RuntimeError as error:
        return str(error)
    return "works"


shift, scale, ones = parameter(), parameter(), torch.ones(3, dtype=torch.float64)
seen = {
    "neither": twice(batch, None, None, [x]),
    "weight only": twice(batch, scale, None, [x, scale]),
    "bias only": twice(batch, None, shift, [x, shift]),
    "both": twice(batch, scale, shift, [x, scale, shift]),
    "bias and ones": twice(batch, ones, shift, [x, shift]),
    "bias only, gradient of the input alone": twice(batch, None, shift, [x]),
    "instance_norm, bias only": twice(instance, None, shift, [x, shift]),
}
for case, outcome in seen.items():
    print(f"{case}: {outcome}")

broken = {case for case, outcome in seen.items() if outcome != "works"}
assert broken == {"bias only", "instance_norm, bias only"}
assert all("Expected a proper Tensor but got None" in seen[case] for case in broken)
PYTHON
"$dir/venv/bin/python" "$dir/finding.py"
