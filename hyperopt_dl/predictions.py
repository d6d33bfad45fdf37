"""What a module makes of a whole data set, in pieces that fit into memory."""

from typing import Any

import torch
from torch import nn

from hyperopt_dl.batches import Batches
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.nested import joined


def predictions(
    module: nn.Module, data: Batches, device: torch.device, size: int
) -> tuple[Any, Any]:
    """Return the outputs of a module for all examples, and the targets.

    Args:
        module: The module, as it is.
        data: The examples.
        device: Where they are to be.
        size: How many pass through the module at once.

    Raises:
        TrainingError: The outputs of several pieces cannot be joined.
    """
    outputs, targets = [], []
    for batch in data.chunks(size, device):
        outputs.append(module(*batch.inputs))
        targets.append(batch.target)
    if len(outputs) == 1:
        return outputs[0], targets[0]
    try:
        return joined(outputs), joined(targets)
    except ValueError as error:
        raise TrainingError(
            f"A model that returns a {type(outputs[0]).__name__} must be evaluated in one piece: "
            f"set evaluation_batch_size to {data.size} or more."
        ) from error
