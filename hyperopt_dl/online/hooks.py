"""Something to do around every ``optimizer.step()``, whether or not the step runs a closure."""

from collections.abc import Callable
from typing import Any

import torch


def around_steps(
    optimizer: torch.optim.Optimizer, before: Callable[[], None], after: Callable[[], None]
) -> None:
    """Call ``before`` when the gradients of a step are there, and ``after`` when it is made.

    A closure, as Lightning passes one, makes the gradients inside ``step``: ``before`` is then
    called at the end of the closure. The optimizers that can be tuned run it once.
    """

    def pre_hook(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        itself, *rest = args
        closure = kwargs.get("closure", rest[0] if rest else None)
        if closure is None:
            before()
            return None

        def then_before() -> Any:
            loss = closure()
            before()
            return loss

        return (itself, then_before), {}

    optimizer.register_step_pre_hook(pre_hook)
    optimizer.register_step_post_hook(lambda *_: after())
