#!/usr/bin/env bash
#
# The second derivative of weight normalisation is wrong
# ======================================================
# Version: torch 2.13.0, on the CPU.
#
# Expected: `nn.utils.parametrizations.weight_norm` computes w = g v / |v|. Differentiating its
# gradient gives the Hessian of that formula: it is symmetric, and agrees with difference quotients
# of the gradient.
#
# Happens: the first derivative is right, the second with respect to v is not, and nothing is said.
# What comes out is the derivative of the gradient with |v| held constant: the norm is an output of
# the fused forward (`torch._weight_norm`), and the double backward takes it for a number. The
# fused path is taken for the first and the last dimension, so for every `nn.Linear`, and for every
# convolution with the default dim=0. A dimension in between takes the plain path and is right.
#
# Seen:
#     gradient          autograd [0.128, -0.096]              formula [0.128, -0.096]
#     Hessian           autograd [[-0.048, 0.0], [-0.032, -0.024]]
#                        formula [[-0.04608, 0.00256], [0.00256, 0.02208]]
#                      quotients [[-0.04608, 0.00256], [0.00256, 0.02208]]
#     |v| held constant  formula [[-0.048, 0.0], [-0.032, -0.024]]
#     nn.Linear         autograd [[-0.048, 0.0], [-0.032, -0.024]]
#     gradgradcheck     dim 0: False, dim 1 of 3: True, dim 2 of 3: False
#
# For users: gradient penalties, Hessian-vector products, influence functions and everything that
# differentiates through a training step are silently wrong in networks with weight_norm; above one
# diagonal entry has the wrong sign. Write g * v / v.norm(...) in a parametrization of one's own
# where second derivatives are needed.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$dir/finding.py" <<'PYTHON'
import torch
from torch.autograd import grad, gradgradcheck
from torch.autograd.functional import hessian

v = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
g = torch.ones(1, 1, dtype=torch.float64)
c = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def fused(v):
    return (c * torch._weight_norm(v, g, 0)).sum()


def plain(v):
    return (c * g * v / v.norm()).sum()


def slope(f, v, **options):
    return grad(f(v), v, **options)[0]


def numbers(tensor):
    return [[round(x, 5) + 0.0 for x in row] for row in tensor.reshape(-1, 2).tolist()]


first = [slope(f, v.clone().requires_grad_()) for f in (fused, plain)]
second = [hessian(f, v).reshape(2, 2) for f in (fused, plain)]

steps = torch.eye(2, dtype=torch.float64).mul(1e-5).unsqueeze(1)
quotients = torch.cat([
    (slope(fused, (v + h).requires_grad_()) - slope(fused, (v - h).requires_grad_())) / 2e-5
    for h in steps
])

# g/n (c - v (c.v) / n^2) differentiated with the number n = |v| held constant.
n, along = v.norm(), (c * v).sum()
constant = -(g / n**3) * (along * torch.eye(2, dtype=torch.float64) + c.mT @ v).mT

linear = torch.nn.utils.parametrizations.weight_norm(
    torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
)
direction = linear.parametrizations.weight.original1
with torch.no_grad():
    linear.parametrizations.weight.original0.copy_(g)
    direction.copy_(v)
row = slope(lambda _: linear(c).sum(), direction, create_graph=True)[0]
module = torch.cat([grad(entry, direction, retain_graph=True)[0] for entry in row])

torch.manual_seed(0)
checks = []
for dim in range(3):
    sizes = [3 if d == dim else 1 for d in range(3)]
    inputs = (
        torch.randn(3, 3, 3, dtype=torch.float64, requires_grad=True),
        torch.rand(sizes, dtype=torch.float64, requires_grad=True),
    )
    checks.append(
        gradgradcheck(
            lambda v, g, dim=dim: torch._weight_norm(v, g, dim), inputs, raise_exception=False
        )
    )

print("gradient          autograd", *numbers(first[0]), "             formula", *numbers(first[1]))
print("Hessian           autograd", numbers(second[0]))
print("                   formula", numbers(second[1]))
print("                 quotients", numbers(quotients))
print("|v| held constant  formula", numbers(constant))
print("nn.Linear         autograd", numbers(module))
print("gradgradcheck     dim 0: {}, dim 1 of 3: {}, dim 2 of 3: {}".format(*checks))

assert torch.allclose(*first)
assert torch.allclose(quotients, second[1], atol=1e-8)
assert not torch.allclose(second[0], second[1], atol=1e-3)
assert torch.allclose(second[0], constant)
assert torch.allclose(module, second[0])
assert checks == [False, True, False]
PYTHON
"$dir/venv/bin/python" "$dir/finding.py"
