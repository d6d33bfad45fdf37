"""An option that changes with the step."""

import inspect
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hyperopt_dl.errors import TrainingError


@dataclass(frozen=True)
class Schedule:
    """The value of an option at step ``t`` is ``value * factor(t)``.

    Steps are absolute: ``t`` is 0 at the first update of the run, and a run that resumes at step
    500 asks for ``factor(500)``. So ``factor`` is what ``torch.optim.lr_scheduler.LambdaLR`` takes.

    Args:
        value: A number, or the name of a hyperparameter.
        factor: A function of the step, or of ``(t, hparams)`` if it has two required positional
            parameters. The second kind may use any hyperparameter (a learnable decay, knots) and
            return a 0-dim tensor to be differentiated through.

    Raises:
        TrainingError: ``value`` is neither a finite number nor a name, or ``factor`` does not take
            one or two positional arguments.

    Example:
        >>> cosine = Schedule("lr", lambda t: 0.5 * (1 + math.cos(math.pi * t / 100)))
        >>> decay = Schedule(0.1, lambda t, hparams: hparams["decay"] ** t)
    """

    value: float | str
    factor: Callable[..., float | Tensor]
    takes_hparams: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.value, str) or _is_finite_number(self.value)):
            raise TrainingError(
                f"Schedule needs a finite number or the name of a hyperparameter as value, "
                f"got {self.value!r}. Let `factor` carry what changes with the step."
            )
        object.__setattr__(self, "takes_hparams", _count_positional(self.factor) == 2)

    def factor_at(self, t: int, hparams: Mapping[str, float | Tensor]) -> float | Tensor:
        """The factor of step ``t``, a number or a 0-dim tensor.

        Raises:
            TrainingError: ``factor`` returned something else.
        """
        factor: Any = self.factor(t, hparams) if self.takes_hparams else self.factor(t)
        if isinstance(factor, Tensor) and factor.ndim == 0:
            return factor
        if not isinstance(factor, Tensor) and isinstance(factor, numbers.Real):
            return float(factor)
        got = f"shape {tuple(factor.shape)}" if isinstance(factor, Tensor) else repr(factor)
        raise TrainingError(
            f"Schedule.factor must return a number or a 0-dim tensor, got {got} at step {t}. "
            "Index its knots by the step, or reduce them to one number."
        )


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and abs(float(value)) < float("inf")


def _count_positional(factor: Callable[..., Any]) -> int:
    """How many required positional parameters ``factor`` has, if that is one or two."""
    problem = f"got {factor!r}"
    if callable(factor):
        try:
            parameters = inspect.signature(factor).parameters.values()
        except ValueError:
            problem = f"got {factor!r}, whose signature Python cannot tell"
        else:
            required = [p for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
            if len(required) in (1, 2) and all(p.kind != p.KEYWORD_ONLY for p in required):
                return len(required)
            problem = f"got {factor!r} with {inspect.signature(factor)}"
    raise TrainingError(
        "Schedule.factor must be a function with one required positional parameter, (t), or two, "
        f"(t, hparams); {problem}. Wrap it: `lambda t: ...`."
    )


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
