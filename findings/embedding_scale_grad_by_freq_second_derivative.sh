#!/usr/bin/env bash
#
# The gradient of nn.Embedding(scale_grad_by_freq=True) is differentiated without its scale
# =========================================================================================
# Version: torch 2.13.0, on the CPU.
#
# Expected: with `scale_grad_by_freq=True` each row's gradient is divided by how often the row was
# looked up. That is a linear map, so the derivative of this gradient has the same division in it.
#
# Happens: the double backward leaves the division out. A gradient that is plainly l * 1 has the
# derivative 2 for autograd. And where the incoming gradient depends on the table, the division
# turns up in the wrong place: autograd's Jacobian of the gradient is the transpose of the true one.
#
# Seen (row 0 is looked up twice, row 1 once):
#     gradient of row 0 for l = 1 and l = 2    1.0 and 2.0
#     its derivative by l                      autograd 2.0, quotient 1.0
#     the same without scale_grad_by_freq      autograd 2.0, quotient 2.0
#     Jacobian of the gradient by the table    autograd [[4.0, 4.0], [2.0, 2.0]]
#                                              quotient [[4.0, 2.0], [4.0, 2.0]]
#
# For users: what differentiates through a training step (a meta-gradient, a tuned weight of a
# loss) is off by each row's frequency, silently. Look up without the option, and divide the rows of
# the finished gradient by their counts: that division is recorded like any other.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$dir/finding.py" <<'PYTHON'
import torch
import torch.nn.functional as F
from torch.autograd import grad
from torch.autograd.functional import jacobian

tokens = torch.tensor([0, 0, 1])
table = torch.ones(2, 1, dtype=torch.float64)
h = 1e-4


def row_slope(factor, scaled):
    t = table.clone().requires_grad_()
    loss = factor * F.embedding(tokens, t, scale_grad_by_freq=scaled).sum()
    return grad(loss, t, create_graph=True)[0][0, 0]


def table_slope(t):
    t = t if t.requires_grad else t.clone().requires_grad_()
    loss = F.embedding(tokens, t, scale_grad_by_freq=True).sum().square()
    return grad(loss, t, create_graph=True)[0]


one = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
derivatives = {}
for scaled in (True, False):
    (exact,) = grad(row_slope(one, scaled), one)
    quotient = (row_slope(one + h, scaled) - row_slope(one - h, scaled)) / (2 * h)
    derivatives[scaled] = (round(exact.item(), 6), round(quotient.item(), 6))

by_autograd = jacobian(table_slope, table).reshape(2, 2)
steps = h * torch.eye(2, dtype=torch.float64).unsqueeze(2)
columns = [(table_slope(table + s) - table_slope(table - s)).detach() / (2 * h) for s in steps]
by_quotient = torch.cat(columns, dim=1)

slopes = [row_slope(factor * one, True).item() for factor in (1, 2)]
print("gradient of row 0 for l = 1 and l = 2    {} and {}".format(*slopes))
for what, scaled in (("its derivative by l", True), ("the same without scale_grad_by_freq", False)):
    print("{:40} autograd {}, quotient {}".format(what, *derivatives[scaled]))
print("Jacobian of the gradient by the table    autograd", by_autograd.tolist())
print("                                         quotient", by_quotient.round(decimals=6).tolist())

assert slopes == [1.0, 2.0]
assert derivatives == {True: (2.0, 1.0), False: (2.0, 2.0)}
assert torch.allclose(by_autograd, by_quotient.mT)
assert not torch.allclose(by_autograd, by_quotient)
PYTHON
"$dir/venv/bin/python" "$dir/finding.py"
