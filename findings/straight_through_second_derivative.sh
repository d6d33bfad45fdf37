#!/usr/bin/env bash
#
# A straight-through estimator has a second derivative that its gradient does not have
# ====================================================================================
# Version: torch 2.13.0.
#
# Expected: `x + (q(x) - x).detach()`, and `F.gumbel_softmax(hard=True)`, which is made like it, go
# forward as q and backward as the identity. That defines a gradient, and differentiating it gives
# the derivative of that gradient.
#
# Happens: the estimate is applied anew in the second pass. For (round(x) - 2)**2 the gradient
# 2 (round(x) - 2) is a step function and its derivative is 0, yet autograd says 2, the Hessian of
# the loss without rounding. So differentiating through a step of gradient descent does not give
# what the step does: x - 0.1 * gradient moves by exactly as much as x, and autograd says 0.8 of it.
# In the Gumbel softmax the gradient does move with the soft sample, but autograd adds a term for
# the hard one, which stands still between its jumps.
#
# Seen:
#     rounding, second derivative        autograd 2.0000, quotient 0.0000
#     one step, derivative by the start  autograd 0.8000, quotient 1.0000
#     Gumbel softmax, hard               autograd -0.2166, quotient -0.3117
#     Gumbel softmax, soft               autograd -0.1666, quotient -0.1666
#
# For users: Hessians, gradient penalties and gradients through training in quantised or discretely
# sampled networks are those of an estimate of an estimate. They may serve, but no difference
# quotient confirms them, and `gradgradcheck` fails.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$dir/finding.py" <<'PYTHON'
import torch
import torch.nn.functional as F
from torch.autograd import grad

h = 1e-4


def both(field, x):
    """Autograd's derivative of a field at x, and the difference quotient."""
    z = x.clone().requires_grad_()
    (exact,) = grad(field(z), z)
    ends = [field((x + s).requires_grad_()).item() for s in (h, -h)]
    return exact.item(), (ends[0] - ends[1]) / (2 * h)


def rounding_slope(x):
    q = x + (x.round() - x).detach()
    return grad((q - 2).square(), x, create_graph=True)[0]


def step(x):
    return x - 0.1 * rounding_slope(x)


def gumbel_slope(hard):
    def slope(x):
        torch.manual_seed(0)
        logits = torch.stack((x, torch.zeros_like(x)))
        sample = F.gumbel_softmax(logits, hard=hard, dim=0)
        return grad((sample[0] - 2).square(), x, create_graph=True)[0]

    return slope


x = torch.tensor(0.3, dtype=torch.float64)
seen = {
    "rounding, second derivative": both(rounding_slope, x),
    "one step, derivative by the start": both(step, x),
    "Gumbel softmax, hard": both(gumbel_slope(hard=True), x),
    "Gumbel softmax, soft": both(gumbel_slope(hard=False), x),
}
for case, (exact, quotient) in seen.items():
    print(f"{case:34} autograd {exact:.4f}, quotient {quotient:.4f}")


def close(case, exact, quotient):
    return all(abs(a - b) < 1e-6 for a, b in zip(seen[case], (exact, quotient), strict=True))


assert close("rounding, second derivative", 2.0, 0.0)
assert close("one step, derivative by the start", 0.8, 1.0)
exact, quotient = seen["Gumbel softmax, hard"]
assert abs(exact - quotient) > 1e-2
exact, quotient = seen["Gumbel softmax, soft"]
assert abs(exact - quotient) < 1e-6
PYTHON
"$dir/venv/bin/python" "$dir/finding.py"
