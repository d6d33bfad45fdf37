#!/usr/bin/env bash
#
# A change of dtype disconnects a parameter from the graphs that were recorded before
# ==================================================================================
# Version: torch 2.13.0.
#
# Expected: `module.double()` keeps its parameters as Python objects (`module.weight is weight`), so
# a loss that was computed before can still be differentiated with respect to them, or one is told
# that it cannot.
#
# Happens: `double()`, like `param.data = ...` with another dtype, gives the parameter a new
# gradient accumulator: a new leaf for autograd. `torch.autograd.grad` then says that the parameter
# was not used; with `materialize_grads=True` it returns zeros. `loss.backward()` on that same graph
# still reaches the old accumulator and fills `weight.grad`, in the old dtype, which one could not
# assign by hand. Converting back does not mend the graph. A gradient edge taken before the change
# (`torch.autograd.graph.get_gradient_edge`) still works.
#
# Seen (the loss is weight @ [1, 2], so its gradient is [1, 2]):
#     same object                        True
#     grad(loss, weight)                 raises: appears to not have been used in the graph
#     grad(.., materialize_grads=True)   [[0.0, 0.0]] torch.float64
#     grad(loss, edge from before)       [[1.0, 2.0]] torch.float32
#     loss.backward(); weight.grad       [[1.0, 2.0]] torch.float32, weight is torch.float64
#     weight.grad = weight.grad          raises: attempting to assign a gradient with dtype 'float'
#     after float() again, grad          raises: appears to not have been used in the graph
#     the same by weight.data = ...      [[0.0, 0.0]] torch.float64
#
# For users: with `allow_unused=True` or `materialize_grads=True` a gradient vanishes silently. Move
# a module to its dtype before the forward pass, and take gradient edges where a module may be
# converted between the forward and the backward pass.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$dir/finding.py" <<'PYTHON'
import torch
from torch.autograd import grad
from torch.autograd.graph import get_gradient_edge


def show(what, tensor, more=""):
    print(f"{what:34} {tensor.tolist()} {tensor.dtype}{more}")


def message(what, ask):
    try:
        ask()
    except RuntimeError as error:
        print(f"{what:34} raises: {error}")
        return str(error)
    print(f"{what:34} raises nothing")
    return ""


module = torch.nn.Linear(2, 1, bias=False)
weight = module.weight
loss = module(torch.tensor([[1.0, 2.0]])).sum()
edge = get_gradient_edge(weight)
truth = torch.tensor([[1.0, 2.0]])

module.double()
same = module.weight is weight
print(f"{'same object':34} {same}")
unused = message("grad(loss, weight)", lambda: grad(loss, weight, retain_graph=True))
(zeros,) = grad(loss, weight, materialize_grads=True, retain_graph=True)
show("grad(.., materialize_grads=True)", zeros)
(by_edge,) = grad(loss, edge, retain_graph=True)
show("grad(loss, edge from before)", by_edge)
loss.backward(retain_graph=True)
show("loss.backward(); weight.grad", weight.grad, f", weight is {weight.dtype}")
filled = weight.grad


def assign():
    weight.grad = filled


refused = message("weight.grad = weight.grad", assign)
weight.grad = None
module.float()
back = message("after float() again, grad", lambda: grad(loss, weight, retain_graph=True))

module = torch.nn.Linear(2, 1, bias=False)
loss = module(torch.tensor([[1.0, 2.0]])).sum()
module.weight.data = module.weight.data.double()
(assigned,) = grad(loss, module.weight, materialize_grads=True)
show("the same by weight.data = ...", assigned)

assert same
assert assigned.count_nonzero() == 0
assert "not have been used" in unused and "not have been used" in back
assert zeros.count_nonzero() == 0
assert torch.equal(by_edge, truth)
assert torch.equal(filled, truth) and filled.dtype is torch.float32
assert "gradient with dtype" in refused
PYTHON
"$dir/venv/bin/python" "$dir/finding.py"
