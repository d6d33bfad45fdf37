"""A row of the zoo: a network, loss or loop as people write them, and what is expected of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.hypergrad.steps.step_loss import TRACED_FROM

Model: TypeAlias = nn.Module | Callable[[Mapping[str, Any]], nn.Module]
Expectation: TypeAlias = Literal["exact", "runs", "refused"]
"""Exact: the run and all derivatives. Runs: the run is, and derivatives are refused."""


@dataclass(frozen=True)
class Case:
    """A training, for the library and for a plain loop: made anew for each of the two.

    Attributes:
        model: A module, or a factory that is given the hyperparameters.
        train: The training data, as ``Supervised`` takes them.
        held_out: The validation data.
        loss: The training loss; with ``reads_hp`` the hyperparameters are its third argument.
        validation_loss: The outer loss where it is another one.
        hp: The hyperparameters.
        rule: The optimizer of the library.
        optimizer: The same one of ``torch.optim``, of parameters and hyperparameters.
        batch_size: Examples a step.
        clip: The largest norm of a gradient, a number or the name of one.
        more: Further arguments of ``Supervised``.
    """

    model: Model
    train: Any
    held_out: Any
    loss: Callable[..., Tensor]
    validation_loss: Callable[..., Tensor] | None = None
    reads_hp: bool = False
    hp: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.1, "momentum": 0.5})
    rule: hd.optimizers.Optimizer = field(
        default_factory=lambda: hd.optimizers.SGD(lr="lr", momentum="momentum")
    )
    optimizer: Callable[[Any, Mapping[str, Any]], torch.optim.Optimizer] | None = None
    batch_size: int | None = 5
    clip: float | str | None = None
    double: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)

    def training(self, steps: int) -> hd.Supervised:
        """Return the training for the library."""
        return hd.Supervised(
            model=self.model,
            loss=self.loss,
            validation_loss=self.validation_loss,
            optimizer=self.rule,
            train=self.train,
            validation=self.held_out,
            steps=steps,
            batch_size=self.batch_size,
            **self.more,
        )


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: What it is, as a person would say it.
        kind: The heading that it stands under.
        expectation: What is expected.
        make: Makes the case of a ``Supervised``, or
        loop: runs a loop and asserts what must hold of it; where it is refused, it raises.
        match: What the text of a refusal must match.
        says: The sentence for the documentation, where something is refused.
        unroll: Whether autograd through the unrolled loop is a reference too. It is not where a
            step is not differentiated by autograd as it is carried out: stopped gradients,
            statistics written in place, hooks.
        steps: The steps of the short run, which is differentiated step by step.
        long: The steps of the long run, the smallest number that is traced.
        tolerance: How far from a difference quotient a derivative may be, relatively.
        quotients: Whether difference quotients mean something. Of bfloat16 they do not.
        dtype: What the library computes in; the references are always float64.
        fast: Whether the row is checked in the default selection of the tests.
        needs: A package that is not installed with the library.
        quiet: Texts of the row's own warnings.
    """

    name: str
    kind: str
    expectation: Expectation
    make: Callable[..., Case] | None = None
    loop: Callable[..., object] | None = None
    match: str = ""
    says: str = ""
    unroll: bool = True
    fast: bool = True
    steps: int = 6
    long: int = TRACED_FROM
    tolerance: float = 1e-5
    quotients: bool = True
    dtype: torch.dtype = torch.double
    needs: str | None = None
    quiet: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Return what it is called among all rows."""
        return f"{self.kind}: {self.name}"

    def case(self, dtype: torch.dtype = torch.double) -> Case:
        """Return the case, with the weights that a script of its own would draw."""
        assert self.make is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = self.make()
        return cast(made, dtype) if made.double else made


def cast(case: Case, dtype: torch.dtype) -> Case:
    """Return a case whose real floating numbers have a dtype."""
    model = case.model
    if not isinstance(model, nn.Module):
        return replace(case, model=lambda hp: cast_module(model(hp), dtype))
    train, held_out = (
        tuple(x.to(dtype) if x.is_floating_point() else x for x in data)
        if isinstance(data, tuple) and all(isinstance(x, Tensor) for x in data)
        else data
        for data in (case.train, case.held_out)
    )
    return replace(case, model=cast_module(model, dtype), train=train, held_out=held_out)


def cast_module(module: nn.Module, dtype: torch.dtype) -> Any:
    """Return a module in a dtype; complex numbers stay what they are."""
    return module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)  # type: ignore[no-untyped-call]


class Kind:
    """Rows under one heading."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[Row] = []

    def exact(self, name: str, make: Callable[..., Case], **settings: Any) -> None:
        """Add a row whose run and derivatives are exact."""
        self.rows.append(Row(name, self.name, "exact", make, **settings))

    def runs(
        self, name: str, make: Callable[..., Case], match: str, says: str, **settings: Any
    ) -> None:
        """Add a row whose run is exact and whose derivatives are refused."""
        self.rows.append(Row(name, self.name, "runs", make, match=match, says=says, **settings))

    def refused(
        self, name: str, make: Callable[..., Case], match: str, says: str, **settings: Any
    ) -> None:
        """Add a row that is refused altogether."""
        self.rows.append(Row(name, self.name, "refused", make, match=match, says=says, **settings))

    def loop(self, name: str, loop: Callable[..., object], **settings: Any) -> None:
        """Add a loop, which asserts itself what must hold."""
        self.rows.append(Row(name, self.name, "exact", loop=loop, **settings))

    def refused_loop(
        self, name: str, loop: Callable[..., object], match: str, says: str, **settings: Any
    ) -> None:
        """Add a loop that is refused."""
        row = Row(name, self.name, "refused", loop=loop, match=match, says=says, **settings)
        self.rows.append(row)
