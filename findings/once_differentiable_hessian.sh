#!/usr/bin/env bash
#
# A second derivative through @once_differentiable is often zero instead of an error
# ==================================================================================
# Version: torch 2.13.0.
#
# Expected: `once_differentiable` marks a `torch.autograd.Function` whose backward cannot be
# differentiated again. Asking for a second derivative through it raises "trying to differentiate
# twice a function that was marked with @once_differentiable".
#
# Happens: the error hangs on the gradient that comes in, not on the saved tensors. It is raised
# only if the second pass walks there. If the incoming gradient is a constant, the outgoing one is a
# constant too and nothing is raised by anyone; if it is not, `backward()` raises, but
# `torch.autograd.grad(..., inputs=x)`, and with it all of `torch.autograd.functional`, leaves out
# the path that does not lead to x, and raises nothing. The missing term counts as zero, in two
# cases all of the Hessian. Even `hessian(..., strict=True)` lets two of the four pass.
#
# Seen (cube is x**3 with a backward of its own, once differentiable; x = 2):
#     cube(x)          true 12.0, hessian 0.0, strict raises another error,
#                      backward raises another error
#     cube(x)**2       true 480.0, hessian 0.0, strict raises another error, backward raises
#     cube(x) + x**2   true 14.0, hessian 2.0, strict 2.0, backward 2.0
#     x * cube(x)      true 48.0, hessian 12.0, strict 12.0, backward raises
#
# For users: many kernels with a hand-written backward are marked like this, and the mark is taken
# for a guard. It is not one: check such a network with `torch.autograd.gradgradcheck`, which sees
# all four.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$dir/finding.py" <<'PYTHON'
import torch
from torch.autograd import grad, gradgradcheck
from torch.autograd.function import once_differentiable
from torch.autograd.functional import hessian


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slope


def by_backward(f):
    z = x.clone().requires_grad_()
    (slope,) = grad(f(z), z, create_graph=True)
    slope.backward()
    return z.grad


def outcome(ask):
    try:
        return ask().item()
    except RuntimeError as error:
        marked = "marked with @once_differentiable" in str(error)
        return "raises" if marked else "raises another error"


x = torch.tensor(2.0, dtype=torch.float64)
functions = {
    "cube(x)": lambda cube, x: cube(x),
    "cube(x)**2": lambda cube, x: cube(x) ** 2,
    "cube(x) + x**2": lambda cube, x: cube(x) + x**2,
    "x * cube(x)": lambda cube, x: x * cube(x),
}
table = {}
for name, function in functions.items():
    marked = lambda x: function(Cube.apply, x)
    table[name] = (
        hessian(lambda x: function(lambda x: x**3, x), x).item(),
        outcome(lambda: hessian(marked, x)),
        outcome(lambda: hessian(marked, x, strict=True)),
        outcome(lambda: by_backward(marked)),
    )
    assert not gradgradcheck(marked, (x.clone().requires_grad_(),), raise_exception=False)
    print(f"{name:16} true {table[name][0]}, hessian {table[name][1]}, "
          f"strict {table[name][2]}, backward {table[name][3]}")

assert table == {
    "cube(x)": (12, 0, "raises another error", "raises another error"),
    "cube(x)**2": (480, 0, "raises another error", "raises"),
    "cube(x) + x**2": (14, 2, 2, 2),
    "x * cube(x)": (48, 12, 12, "raises"),
}
PYTHON
"$dir/venv/bin/python" "$dir/finding.py"
