"""The references of the zoo, made without the library's engine.

A plain loop with ``torch.optim``; its central difference quotients; and autograd through the loop,
unrolled. They share with the library where a batch and a random number come from, and nothing else.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import default_collate

from hyperopt_dl.seeds import derive, seeded
from tests.zoo.row import Case

CPU = torch.device("cpu")
SEED = 0


def drawn(t: int) -> AbstractContextManager[None]:
    """Return the context in which a step draws its random numbers."""
    return seeded(derive(SEED, "step", t), CPU)


def plain_run(case: Case, hp: Mapping[str, Any], steps: int) -> tuple[float, dict[str, Tensor]]:
    """Return the validation loss after a plain loop, and what the module held before it."""
    module = built(case, hp)
    trained = [param for param in module.parameters() if param.requires_grad]
    optimizer = (case.optimizer or _sgd)(trained, hp)
    for t in range(steps):
        with drawn(t):
            inputs, target = batch(case, t)
            optimizer.zero_grad()
            loss = training_loss(case, module(*inputs), target, hp, t)
            loss.backward()
        if case.clip is not None:
            limit = hp[case.clip] if isinstance(case.clip, str) else case.clip
            torch.nn.utils.clip_grad_norm_(trained, limit)
        optimizer.step()
    held = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        value = float(validation(case, module, hp))
    return value, held


def quotients(case: Callable[[], Case], steps: int, size: float) -> dict[str, Tensor]:
    """Return central difference quotients of the plain loop, for a size of the step."""
    found: dict[str, Tensor] = {}
    for name, value in case().hp.items():
        if not isinstance(value, float | Tensor):
            continue
        entries = torch.as_tensor(value, dtype=torch.double).reshape(-1)
        quotient = torch.zeros_like(entries)
        for i, entry in enumerate(entries):
            h = size * max(abs(float(entry)), 0.1)
            ends = []
            for sign in (1, -1):
                made = case()
                moved = entries.clone()
                moved[i] += sign * h
                given = moved.view(value.shape) if isinstance(value, Tensor) else float(moved)
                ends.append(plain_run(made, {**made.hp, name: given}, steps)[0])
            quotient[i] = (ends[0] - ends[1]) / (2 * h)
        found[name] = quotient.view(value.shape if isinstance(value, Tensor) else ())
    return found


def unrolled(case: Case, steps: int) -> dict[str, Tensor]:
    """Return the derivative by autograd through a loop of SGD that is unrolled."""
    hp = {
        name: torch.as_tensor(value, dtype=torch.double).clone().requires_grad_()
        if isinstance(value, float | Tensor)
        else value
        for name, value in case.hp.items()
    }
    leaves = {n: v for n, v in hp.items() if isinstance(v, Tensor) and v.requires_grad}
    module = built(case, case.hp)
    names = [name for name, param in module.named_parameters() if param.requires_grad]
    params = [module.get_parameter(name).detach().requires_grad_() for name in names]
    momenta = [torch.zeros_like(param) for param in params]
    own = [module.get_parameter(name) for name in names]
    for t in range(steps):
        with _twice(module, own, params), drawn(t):
            inputs, target = batch(case, t)
            loss = training_loss(case, module(*inputs), target, hp, t)
            grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        for i, g in enumerate(grads):  # torch leaves a parameter that has no gradient as it is
            if g is not None:
                momenta[i] = hp["momentum"] * momenta[i] + g
                params[i] = params[i] - hp["lr"] * momenta[i]
    with _twice(module, own, params):
        value = validation(case, module, hp)
    found = torch.autograd.grad(value, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def built(case: Case, hp: Mapping[str, Any]) -> nn.Module:
    """Return the module of a case, made under the seed of the run, in training mode."""
    if isinstance(case.model, nn.Module):
        return case.model.train()
    with seeded(derive(SEED, "init"), CPU):
        return case.model(hp).train()


def _sgd(params: Any, hp: Mapping[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=hp["lr"], momentum=hp["momentum"])


def training_loss(case: Case, output: Any, target: Any, hp: Mapping[str, Any], t: int) -> Any:
    """Return the training loss of a step."""
    if "weights" in case.more:
        each = case.loss(output, target, reduction="none")
        return (hp[case.more["weights"]][_order(case, t)] * each).mean()
    return case.loss(output, target, *([hp] if case.reads_hp else []))


def batch(case: Case, t: int) -> tuple[tuple[Any, ...], Any]:
    """Return the inputs and the target of a step."""
    return _examples(case.train, _order(case, t))


def _order(case: Case, t: int) -> Tensor:
    """Return the examples of a step: each epoch has an order of its own."""
    size = len(case.train[0]) if isinstance(case.train, tuple) else len(case.train)
    order = torch.arange(size)
    if case.batch_size is not None:
        epoch, position = divmod(t, -(-size // case.batch_size))
        generator = torch.Generator().manual_seed(derive(SEED, "epoch", epoch))
        order = torch.randperm(size, generator=generator)
        order = order[position * case.batch_size : (position + 1) * case.batch_size]
    return order


def _examples(source: Any, order: Tensor) -> tuple[tuple[Any, ...], Any]:
    parts: Any
    if isinstance(source, tuple):
        parts = [part[order] for part in source]
    else:
        parts = default_collate([source[i] for i in order.tolist()])
    return tuple(parts[:-1]), parts[-1]


def validation(case: Case, module: nn.Module, hp: Mapping[str, Any]) -> Tensor:
    """Return the validation loss of a module, which is put into evaluation mode."""
    module.eval()
    source = case.held_out
    size = len(source[0]) if isinstance(source, tuple) else len(source)
    with seeded(derive(SEED, "evaluate"), CPU):
        inputs, target = _examples(source, torch.arange(size))
        loss = case.validation_loss or case.loss
        more = [hp] if case.reads_hp and case.validation_loss is None else []
        value: Tensor = loss(module(*inputs), target, *more)
    return value


@contextmanager
def _twice(module: nn.Module, own: list[nn.Parameter], params: list[Tensor]) -> Iterator[None]:
    """Have attention computed by the kernel that has second derivatives, too."""
    with _in_place_of(module, own, params), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _in_place_of(
    module: nn.Module, own: list[nn.Parameter], params: list[Tensor]
) -> Iterator[None]:
    """Put tensors with a graph where a module and its submodules hold parameters."""
    given = {id(param): tensor for param, tensor in zip(own, params, strict=True)}
    places = [
        (part, name, param)
        for part in module.modules()
        for name, param in part._parameters.items()
        if id(param) in given
    ]
    for part, name, param in places:
        part._parameters[name] = given[id(param)]  # type: ignore[assignment]
    try:
        yield
    finally:
        for part, name, param in places:
            part._parameters[name] = param
