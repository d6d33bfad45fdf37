"""Which parameters a step moves, and how often each has been moved before.

``torch.optim`` leaves alone what has no gradient in a step, such as an expert that was not chosen
or a layer that was dropped: no weight decay, no momentum, and the parameter's own count of steps,
which Adam corrects its moments by, does not go on. So parameters take turns: those with the same
count are stepped together, by the rule at that count.

Letters: p entries of all parameters; t the step of the run.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.optimizers.optimizer import Optimizer
from hyperopt_dl.optimizers.options import Value


class Turn(NamedTuple):
    """Parameters that a step treats alike.

    ``mask`` is true for their entries, ``[p]``; ``done`` is how often they have been stepped
    before, ``None`` where they are left alone.
    """

    mask: Tensor
    done: int | None


def turns_of(
    before: Tensor, after: Tensor, t: int, sizes: Iterable[int], device: torch.device
) -> Sequence[Turn] | None:
    """Return the turns of step t; ``None`` where it moves all parameters, as did those before.

    Args:
        before: How many steps have left each parameter alone, on the host, before the step.
        after: The same after it.
        t: The step.
        sizes: The numbers of entries of the parameters.
        device: Where the entries are.
    """
    if after is before and not bool(before.any()):
        return None
    stepped = (after == before).tolist()
    counts = [
        t - skipped if moves else None
        for skipped, moves in zip(before.tolist(), stepped, strict=True)
    ]
    if set(counts) == {t}:
        return None
    lengths = torch.tensor(list(sizes))
    turns = []
    for count in dict.fromkeys(counts):
        chosen = torch.tensor([each == count for each in counts])
        turns.append(Turn(torch.repeat_interleave(chosen, lengths).to(device), count))
    return turns


def update_in_turns(
    optimizer: Optimizer,
    turns: Sequence[Turn] | None,
    params: Tensor,
    grad: Tensor,
    slots: Mapping[str, Tensor],
    options: Mapping[str, Value],
    t: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return parameters and slots after a step; args as for ``Optimizer.update``."""
    if turns is None:
        return optimizer.update(params, grad, slots, options, t)
    x, z = params, dict(slots)
    for mask, done in turns:
        if done is not None:
            stepped, after = optimizer.update(params, grad, slots, options, done)
            x = torch.where(mask, stepped, x)
            z = {name: torch.where(mask, after[name], value) for name, value in z.items()}
    return x, z
