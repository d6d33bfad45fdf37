#!/usr/bin/env bash
#
# With a tied table, padding_idx hides derivatives that the gradient has
# ======================================================================
# Version: torch 2.13.0.
#
# Expected: `padding_idx` keeps the padding row of `nn.Embedding` from being trained, and the second
# derivative is the derivative of the gradient that one trains with.
#
# Happens: the look-up masks its share of the gradient, no more. If the table is also the output
# layer (a tied weight), the padding row gets the other share and is trained. And since the mask
# is applied again in the second pass, autograd's Jacobian of the gradient misses how the gradient,
# that of the other rows too, depends on the looked-up padding row: its column below is half the
# true one.
#
# Seen (rows 0, the padding, and 1 are looked up once, and the sum of the table is added):
#     gradient                      [4.0, 8.0]
#     Jacobian of the gradient      autograd [[1.0, 2.0], [2.0, 4.0]]
#                                   quotient [[2.0, 2.0], [4.0, 4.0]]
#     the same without padding_idx  autograd [[4.0, 4.0], [4.0, 4.0]]
#                                   quotient [[4.0, 4.0], [4.0, 4.0]]
#
# For users: with a tied table, padding_idx does not freeze the row, and second derivatives are not
# those of the gradient. Multiply the looked-up rows by a mask in the forward pass instead: then
# the loss itself is as meant, and every derivative follows.
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

tokens = torch.tensor([0, 1])
table = torch.ones(2, 1, dtype=torch.float64)
h = 1e-4


def slope(t, padding):
    t = t if t.requires_grad else t.clone().requires_grad_()
    loss = (F.embedding(tokens, t, padding_idx=padding).sum() + t.sum()).square() / 2
    return grad(loss, t, create_graph=True)[0]


def both(padding):
    steps = h * torch.eye(2, dtype=torch.float64).unsqueeze(2)
    columns = [
        (slope(table + s, padding) - slope(table - s, padding)).detach() / (2 * h) for s in steps
    ]
    exact = jacobian(lambda t: slope(t, padding), table).reshape(2, 2)
    return exact, torch.cat(columns, dim=1)


gradient = slope(table, 0).flatten().tolist()
padded, plain = both(0), both(None)
print("gradient                     ", gradient)
print("Jacobian of the gradient      autograd", padded[0].tolist())
print("                              quotient", padded[1].round(decimals=6).tolist())
print("the same without padding_idx  autograd", plain[0].tolist())
print("                              quotient", plain[1].round(decimals=6).tolist())

assert gradient[0] != 0
assert torch.allclose(*plain)
assert not torch.allclose(*padded)
assert padded[0].tolist() == [[1.0, 2.0], [2.0, 4.0]]
assert padded[1].round(decimals=6).tolist() == [[2.0, 2.0], [4.0, 4.0]]
PYTHON
"$dir/venv/bin/python" "$dir/finding.py"
