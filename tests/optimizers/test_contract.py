"""What every twin promises; a new twin is one row of `TWINS`."""

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import Optimizer, Schedule
from hyperopt_dl.optimizers.resolve import resolve
from tests.optimizers.twins import ENTRIES, LAYOUT, TWINS, Twin, start, wave

OF_TORCH_ALONE = ("foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay")


@pytest.mark.parametrize("row", TWINS, ids=lambda row: row.name)
class TestTwin:
    """The contract."""

    def test_it_is_an_optimizer(self, row: Twin) -> None:
        assert isinstance(row.twin(), Optimizer)

    def test_its_defaults_are_torchs(self, row: Twin) -> None:
        torchs = {
            name: parameter.default
            for name, parameter in inspect.signature(row.reference).parameters.items()
            if name != "params" and name not in OF_TORCH_ALONE
        }
        ours = inspect.signature(row.twin).parameters
        assert {name: p.default for name, p in ours.items() if name != "groups"} == torchs

    def test_its_options_are_those_of_the_table(self, row: Twin) -> None:
        assert row.build(row.interior).options() == row.interior

    def test_it_names_the_hyperparameters_of_options_groups_and_schedules(self, row: Twin) -> None:
        groups = {"*.bias": {"lr": Schedule("lr/bias", wave)}, "head.*": {"weight_decay": "decay"}}
        optimizer = row.build({**row.interior, "weight_decay": "weight_decay"}, groups=groups)
        assert optimizer.names() == {"lr/bias", "weight_decay", "decay"}
        assert row.build(row.interior).names() == frozenset()

    @pytest.mark.parametrize("t", [0, 3])
    @pytest.mark.parametrize("grouped", [False, True])
    @pytest.mark.parametrize("zeros", [(), ("weight_decay",), ("weight_decay", "momentum")])
    def test_an_update_writes_nowhere_and_shares_no_memory(
        self, row: Twin, zeros: tuple[str, ...], grouped: bool, t: int
    ) -> None:
        settings = {name: 0.0 if name in zeros else x for name, x in row.interior.items()}
        for flags in row.flags:
            optimizer = row.build(
                settings, groups={"head.*": {"lr": 0.2}} if grouped else {}, **flags
            )
            params = start()
            grad = params.cos()
            slots = {k: torch.full_like(s, 2.0) for k, s in optimizer.slots(params).items()}
            options = resolve(optimizer, {}, t, LAYOUT, params)
            given = [params, grad, slots, options]
            before = copy.deepcopy(given)
            new_params, new_slots = optimizer.update(params, grad, slots, options, t)
            torch.testing.assert_close(given, before, rtol=0, atol=0)
            made = [new_params, *new_slots.values()]
            vectors = [o for o in options.values() if isinstance(o, Tensor)]
            everything = [params, grad, *slots.values(), *vectors, *made]
            homes = {x.untyped_storage().data_ptr() for x in everything}
            assert len(homes) == len(everything)
            assert all(x.shape == (ENTRIES,) for x in made)
            assert new_slots.keys() == slots.keys()
            assert not torch.equal(new_params, params)

    def test_its_first_slots_carry_no_graph(self, row: Twin) -> None:
        params = start().requires_grad_()
        slots = row.build(row.interior).slots(params)
        assert all(not slot.requires_grad and slot.shape == (ENTRIES,) for slot in slots.values())

    def test_it_survives_pickling_and_compares_by_value(self, row: Twin) -> None:
        def make(decay: float) -> Optimizer:
            groups = {"*.bias": {"weight_decay": decay, "lr": Schedule("lr", wave)}}
            return row.build({**row.interior, "lr": "lr"}, groups=groups)

        optimizer = make(0.0)
        again = pickle.loads(pickle.dumps(optimizer))
        assert again == optimizer == make(0.0)
        assert hash(again) == hash(optimizer)
        assert make(0.5) != optimizer
        assert dataclasses.replace(optimizer, maximize=True) != optimizer  # type: ignore[type-var]
        assert dataclasses.replace(optimizer, lr="lr") == optimizer  # type: ignore[type-var]
        assert "groups={'*.bias': {'weight_decay': 0.0, 'lr': Schedule(" in repr(optimizer)

    def test_it_does_not_follow_later_changes_of_the_given_groups(self, row: Twin) -> None:
        groups = {"*.bias": {"lr": 0.5}}
        optimizer = row.build(row.interior, groups=groups)
        groups["*.bias"]["lr"] = 0.7
        assert optimizer.groups["*.bias"]["lr"] == 0.5
        with pytest.raises(dataclasses.FrozenInstanceError):
            optimizer.lr = 0.1  # type: ignore[attr-defined]

    def test_a_negative_number_of_any_option_is_refused(self, row: Twin) -> None:
        for name in row.interior:
            if name == "dampening":
                continue
            with pytest.raises(TrainingError, match=f"{row.name} needs {name} >= 0.*got {name}=-1"):
                row.build({**row.interior, name: -1})
            with pytest.raises(TrainingError, match=rf"{row.name}.groups\['x'\] needs {name} >= 0"):
                row.build(row.interior, groups={"x": {name: -1}})

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, True, torch.tensor(0.1)])
    def test_no_option_may_be_anything_but_a_finite_number(self, row: Twin, bad: Any) -> None:
        for name in row.interior:
            with pytest.raises(TrainingError, match=f"{row.name} needs .*{name}"):
                row.build({**row.interior, name: bad})

    def test_a_group_with_an_unknown_option_is_refused(self, row: Twin) -> None:
        with pytest.raises(
            TrainingError, match=r"groups\['\*'\] may set lr, .*got 'learning_rate'"
        ):
            row.build(row.interior, groups={"*": {"learning_rate": 0.1}})
