"""Reverse mode: the exact hypergradient by one sweep back through the run.

Letters: T the steps; s[t] the state before step t; E the outer loss; α[t] = dE/ds[t]; A, B the
derivatives of a step in the state and in λ: ``α[t] = α[t + 1] A[t]``, ``dE/dλ = Σ α[t + 1] B[t]``
(Franceschi, Donini, Frasconi, Pontil 2017, section 3.2).
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.estimator import Observer
from hyperopt_dl.hypergrad.memory import available_bytes, size_of
from hyperopt_dl.hypergrad.steps.split_step import SplitStep
from hyperopt_dl.hypergrad.steps.whole_step import WholeStep
from hyperopt_dl.hypergrad.sweeps import trajectory
from hyperopt_dl.hypergrad.sweeps.snapshots import InMemory, TwoLevel
from hyperopt_dl.hypergrad.sweeps.sweep import Plan, WeightedLosses, sweep
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import Training

Memory: TypeAlias = Literal["auto", "activations", "all", "sqrt"] | int | str
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
AUTO_SHARE = 0.25
"""The part of the memory that is free which ``memory="auto"`` takes for itself."""
LIGHT = 2.0
"""A record of so many states or less is kept in place of a state that a sweep comes back to."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reverse:
    """The exact hypergradient by reverse mode, in as much memory as it is given.

    The run is computed forward without a graph; a sweep back from the last step then differentiates
    one step at a time. Its cost does not depend on the number of hyperparameters: thousands of
    data weights cost what a learning rate costs. All settings of ``memory`` give the same bits.

    Args:
        memory: What is kept on the way forward.

            * ``"activations"``: the graph of every step; the fastest, the most memory;
            * ``"all"``: the state before every step;
            * ``"sqrt"``: about ``2 sqrt(T)`` states, for one more run of the steps;
            * an int: so many states (the binomial schedule of Griewank and Walther 2000);
            * a size, such as ``"4GiB"``: as many states as fit into it;
            * ``"auto"``: the first of these that fits into a quarter of the free memory: the graph
              of every step (of a ``Supervised``), every state, as many states as fit.
        last: Differentiate only the last so many steps. Memory and time shrink, and the result is
            *biased*: what earlier steps owe to the hyperparameters is left out (truncated
            back-propagation; Shaban et al. 2019 bound the bias where the inner problem is strongly
            convex). ``None`` differentiates all of them.
        spill: A folder for states that do not fit into the size given as ``memory``; with it all
            states are kept. The files are removed in the end, also after an exception.
        compile: Whether TorchInductor compiles the step of a ``Supervised``: about twice as fast on
            small networks, after a minute or more of compiling that pays over many runs. The code
            is kept for other processes in a folder of its own beside the temporary files, or where
            ``TORCHINDUCTOR_CACHE_DIR`` says. Needs a C++ compiler.
        offload: Whether the states that are kept of a run on a GPU go to pinned memory of the host,
            whose size ``"auto"`` then looks at. No records are kept.

    Raises:
        TrainingError: A setting that is none of these.

    Example:
        >>> import hyperopt_dl as hd
        >>> hd.hypergrad.Reverse(memory="sqrt")
        Reverse(memory='sqrt', last=None, spill=None, compile=False, offload=False)
    """

    memory: Memory = "auto"
    last: int | None = None
    spill: str | os.PathLike[str] | None = None
    compile: bool = False
    offload: bool = False

    def __post_init__(self) -> None:
        if self.last is not None and (type(self.last) is not int or self.last < 1):
            raise TrainingError(f"Reverse needs last >= 1 (steps), got {self.last}.")
        if isinstance(self.memory, int):
            if isinstance(self.memory, bool) or self.memory < 1:
                raise TrainingError(f"Reverse needs memory >= 1 (snapshots), got {self.memory}.")
        elif self.memory not in ("auto", "activations", "all", "sqrt"):
            budget_bytes(self.memory)
        if self.spill is not None and (
            isinstance(self.memory, int) or self.memory in ("activations", "all", "sqrt")
        ):
            raise TrainingError(
                f"spill= goes with a size such as memory='4GiB', which says what stays in memory; "
                f"got memory={self.memory!r}."
            )
        if self.offload and self.memory == "activations":
            raise TrainingError(
                "offload=True moves states to the host, got memory='activations', which keeps "
                "records. Use memory='all', 'sqrt', a number of snapshots, a size or 'auto'."
            )

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
        observe: Observer | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss (0-dim) and its derivative by name, as ``Estimator`` says."""
        place = torch.device(device)
        run = steps_of(training, hparams, seed=seed, device=place, compile=self.compile)
        start = 0 if self.last is None else max(0, training.steps - self.last)
        steps, loss = training.steps, WeightedLosses(run, {training.steps: 1.0})
        swept = sweep(self.plan(run, steps, start), steps, [loss], start=start)
        if observe is not None:
            observe(swept.final)
        return loss.value(), run.gradient(getattr(training, "hparams", frozenset()))

    def cost(self, run: WholeStep, steps: int) -> int:
        """Return what a sweep over a run of so many steps takes, in gradients (``hypergrad.auto``).

        Each step that is run, each that is linearised from its state and each product counts one.
        """
        start = 0 if self.last is None else max(0, steps - self.last)
        plan = self.plan(run, steps, start)
        each = 1 if plan.recording else 2
        return trajectory.cost(plan.actions).forward_steps + each * (steps - start)

    def plan(self, run: WholeStep, steps: int, start: int = 0) -> Plan:
        """Return what is kept on the way, for the first so many steps of a run."""
        match self.memory:
            case "activations":
                return Plan(trajectory.keep_all(steps, start=start), InMemory(), recording=True)
            case "all":
                return Plan(trajectory.keep_all(steps, start=start), self._in_memory())
            case int(slots):
                return Plan(trajectory.binomial(steps, slots, start=start), self._in_memory())
        record = None if self.offload else run.recorded_bytes()
        if self.memory == "sqrt" and record is None:
            return Plan(trajectory.square_root(steps, start=start), self._in_memory())
        state = _state_bytes(run)
        if self.memory == "sqrt":
            light = record is not None and record <= LIGHT * state
            weight = record / state if record is not None and light else 1.0
            schedule = trajectory.square_root(steps, start=start, weight=max(1.0, weight))
            return Plan(schedule, InMemory(), recording=light)
        budget = self._budget(run)
        plan = self._within(budget, steps, start, state, record if self.spill is None else None)
        _logger.info(
            "Reverse: %d steps, states of %d bytes, records of %s bytes, a budget of %d bytes: %s.",
            *(steps - start, state, record, budget, plan.text),
        )
        return plan

    def _within(self, budget: int, steps: int, start: int, state: int, record: int | None) -> Plan:
        """Return the fastest plan within a budget of bytes."""
        kept = steps - start
        if record is not None and kept * record <= budget:
            everything = trajectory.keep_all(steps, start=start)
            return Plan(everything, InMemory(), recording=True, text="records of all steps")
        if self.spill is not None:
            snapshots = TwoLevel(Path(self.spill), budget, offload=self.offload)
            return Plan(
                trajectory.keep_all(steps, start=start), snapshots, text="all states, some on disk"
            )
        light = record is not None and record <= LIGHT * state and (kept + 1) * state > budget
        each = record if record is not None and light else state
        schedule = trajectory.for_budget(steps, each, budget, start=start)
        most = max(0, budget // max(each, 1) - 1)
        return Plan(schedule, self._in_memory(), recording=light, text=f"up to {most} snapshots")

    def _budget(self, run: WholeStep) -> int:
        if self.memory == "auto":
            place = torch.device("cpu") if self.offload else run.device
            return int(AUTO_SHARE * available_bytes(place))
        return budget_bytes(str(self.memory))

    def _in_memory(self) -> InMemory:
        return InMemory(offload=self.offload)


def _state_bytes(run: WholeStep) -> int:
    """Return the bytes that one more state takes."""
    before = run.initial()
    after = run.advance(before, 0)
    return size_of(before, after) - size_of(before)


def steps_of(
    training: Training,
    hparams: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    compile: bool = False,  # noqa: A002
    check: bool = True,
) -> WholeStep:
    """Return the steps of a run and their derivatives, split at the gradient where that can be.

    Args:
        training: The dynamical system.
        hparams: Its hyperparameters.
        seed: Seed of the run.
        device: Device of the run.
        compile: Whether the step is compiled.
        check: Whether two steps are spent on seeing that a step can be computed again.

    Raises:
        TrainingError: ``compile`` for a training that is not split.
    """
    if type(training) is Supervised:  # a subclass may have a step of its own
        return SplitStep(training, hparams, seed=seed, device=device, compile=compile)
    if compile:
        raise TrainingError(
            f"compile=True is for a Supervised, got a {type(training).__name__}, whose steps are "
            f"differentiated as a whole. Leave compile out."
        )
    run = WholeStep(training, hparams, seed=seed, device=device)
    if check:
        run.check()
    return run


def budget_bytes(text: str) -> int:
    """Return the bytes in a size such as ``"4GiB"`` or ``"500 MB"``.

    Raises:
        TrainingError: It is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)\s*", str(text))
    if match is None:
        raise TrainingError(
            f"memory must be 'auto', 'activations', 'all', 'sqrt', a number of snapshots, or a "
            f"size such as '4GiB' or '500MB', got {text!r}."
        )
    return int(float(match[1]) * UNITS[match[2]])
