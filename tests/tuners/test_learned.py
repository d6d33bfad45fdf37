"""What the tuner tells of a study: structure, effects in natural units, and their figures."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest

import hyperopt_dl as hd
from hyperopt_dl.tuners.effects import Effect
from hyperopt_dl.tuners.learned import LearnedStructure

SPACE = hd.Space(
    lr=hd.Float(1e-4, 1.0, log=True),
    momentum=hd.Float(0.5, 0.9),
    width=hd.Int(16, 400, log=True),
    wide=hd.Int(1, 10**6, log=True),
    layers=hd.Int(2, 6, step=2),
    act=hd.Categorical(["relu", "gelu", "tanh"]),
)
TERMS: dict[str, Callable[[Any], float]] = {
    "lr": lambda lr: 30 * (math.log10(lr) + 2) ** 2,
    "momentum": lambda m: 400 * (m - 0.6) ** 2,
    "width": lambda width: 10 * math.log2(width),
    "wide": lambda wide: 0.0,
    "layers": lambda layers: 7 * (layers == 4),
    "act": lambda act: {"relu": 0.0, "gelu": 30.0, "tanh": -30.0}[act],
}


def value(params: Mapping[str, Any]) -> float:
    return sum(term(params[name]) for name, term in TERMS.items())


def told(
    space: hd.Space,
    function: Callable[[Mapping[str, Any]], float],
    n: int,
    direction: Any = "minimize",
    **options: Any,
) -> LearnedStructure:
    tuner = hd.AdditiveBO(n_startup=n, **options)
    study = hd.Study(space, tuner=tuner, direction=direction, seed=0)
    for trial in study.ask(n):
        study.tell(trial, function(trial.params))
    structure: LearnedStructure = tuner.structure(study.optuna)
    return structure


@pytest.fixture(scope="module")
def learned() -> LearnedStructure:
    return told(SPACE, value, 64)


def true_effect(name: str, effect: Effect) -> np.ndarray:
    values = np.array([TERMS[name](v) for v in effect.values])
    return np.asarray(values - values.mean())


# Pairs and groups


def test_the_structure_is_told_by_name() -> None:
    """The pair that interacts is the likeliest to share a group."""
    space = hd.Space({name: hd.Float(0, 1) for name in "abcd"})
    got = told(
        space,
        lambda p: math.sin(6 * p["a"] * p["c"]) + math.cos(5 * p["b"]) + p["d"] ** 2,
        32,
    )
    assert got.names == ("a", "b", "c", "d")
    assert got.pairs.shape == got.pairs_error.shape == (4, 4)
    assert got.pairs.diagonal() == pytest.approx(1)
    assert sorted(name for group in got.groups for name in group) == list("abcd")
    assert got.pairs[0, 2] == got.pairs.flatten()[[1, 2, 3, 6, 7, 11]].max()


def test_pairs_and_their_errors_are_means_and_standard_errors_over_chains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuner = hd.AdditiveBO(n_startup=16, chains=3)
    space = hd.Space({name: hd.Float(0, 1) for name in "abc"})
    study = hd.Study(space, tuner=tuner, seed=0)
    for trial in study.ask(16):
        study.tell(trial, trial.params["a"] * trial.params["b"])
    fit = tuner._fitter
    shares = [np.full((3, 3), share) for share in (0.2, 0.5, 0.8)]

    def fitted(*args: Any) -> Any:
        surrogate = fit(*args)
        chains = tuple(
            replace(chain, together=share)
            for chain, share in zip(surrogate.fitted.chains, shares, strict=True)
        )
        return replace(surrogate, fitted=replace(surrogate.fitted, chains=chains))

    monkeypatch.setattr(tuner, "_fitter", fitted)
    got = tuner.structure(study.optuna)
    assert got.pairs == pytest.approx(np.full((3, 3), 0.5))
    assert got.pairs_error == pytest.approx(np.full((3, 3), 0.3 / math.sqrt(3)))


def test_one_chain_has_no_standard_error() -> None:
    got = told(hd.Space(x=hd.Float(0, 1), y=hd.Float(0, 1)), lambda p: p["x"], 12, chains=1)
    assert np.isnan(got.pairs_error).all()


@pytest.mark.parametrize(
    ("structure", "groups"),
    [
        ("full", ()),
        ("additive", (("a",), ("b",), ("c",))),
        ([["c", "a"]], (("a", "c"), ("b",))),
    ],
)
def test_a_given_structure_is_told_as_it_was_given(structure: Any, groups: Any) -> None:
    space = hd.Space({name: hd.Float(0, 1) for name in "abc"})
    got = told(space, lambda p: p["a"] * p["c"], 12, structure=structure)
    assert got.groups == groups
    everything = ("a", "b", "c")
    assert [c.names for c in got.components] == [everything, everything, *groups]
    assert [c.kind for c in got.components] == ["full", "radius", *["group" for _ in groups]]
    together = [[any({i, j} <= set(g) for g in groups) or i == j for j in "abc"] for i in "abc"]
    assert got.pairs.tolist() == together


def test_a_study_without_losses_has_no_structure() -> None:
    tuner = hd.AdditiveBO()
    study = hd.Study(SPACE, tuner=tuner, seed=0)
    with pytest.raises(hd.StudyError, match="at least one complete trial"):
        tuner.structure(study.optuna)
    assert tuner.diagnostics(study.optuna).losses == 0


# Effects


@pytest.mark.parametrize("name", list(SPACE))
def test_an_effect_is_the_term_of_an_additive_value(learned: LearnedStructure, name: str) -> None:
    effect = learned.effects[name]
    error = np.abs(effect.mean - true_effect(name, effect))
    assert error.max() < 6
    assert (error <= 4 * effect.sd + 1).all()


def test_effects_are_told_at_values_of_the_hyperparameters(learned: LearnedStructure) -> None:
    effects = learned.effects
    assert {name: effect.scale for name, effect in effects.items()} == {
        "act": "category",
        "layers": "linear",
        "lr": "log",
        "momentum": "linear",
        "wide": "log",
        "width": "log",
    }
    assert effects["act"].values == ("relu", "gelu", "tanh")
    assert effects["layers"].values == (2, 4, 6)
    assert effects["lr"].values[::20] == pytest.approx((1e-4, 1.0))
    assert np.diff(np.log(effects["lr"].values)) == pytest.approx(math.log(1e4) / 20)
    for name in ("width", "wide"):
        values = effects[name].values
        assert all(isinstance(v, int) for v in values)
        assert len(set(values)) == len(values) > 15
        assert (values[0], values[-1]) == (SPACE[name].low, SPACE[name].high)  # type: ignore[union-attr]


def test_the_components_add_up_to_the_effects(learned: LearnedStructure) -> None:
    assert learned.components[0].names == learned.names
    assert set(learned.components[1].names) == set(learned.names) - {"act"}  # it has no order
    assert tuple(c.names for c in learned.components[2:]) == learned.groups
    for name, effect in learned.effects.items():
        parts = [c.effects[name].mean for c in learned.components if name in c.names]
        assert len(parts) == (2 if name == "act" else 3)
        assert sum(parts) == pytest.approx(effect.mean, abs=1e-9)


def test_the_shares_are_those_of_the_terms_variances(learned: LearnedStructure) -> None:
    """Where the value is additive, a group's share is its terms' share in the variance."""
    rng = np.random.default_rng(0)
    drawn = {
        "lr": 10 ** rng.uniform(-4, 0, 10_000),
        "momentum": rng.uniform(0.5, 0.9, 10_000),
        "width": np.exp(rng.uniform(math.log(15.5), math.log(400.5), 10_000)),
        "wide": np.ones(10_000),
        "layers": rng.choice([2, 4, 6], 10_000),
        "act": rng.choice(["relu", "gelu", "tanh"], 10_000),
    }
    variance = {name: np.var([TERMS[name](v) for v in drawn[name].tolist()]) for name in TERMS}
    assert sum(c.share for c in learned.components) == pytest.approx(1)
    assert learned.components[0].share < 0.1
    for component in learned.components[2:]:
        true = sum(variance[name] for name in component.names) / sum(variance.values())
        assert component.share == pytest.approx(true, abs=0.08)


def test_effects_have_the_unit_and_the_sign_of_the_value() -> None:
    space = hd.Space(x=hd.Float(2, 4), y=hd.Float(0, 1))

    def parabola(p: Mapping[str, Any]) -> float:
        return float((p["x"] - 3) ** 2 + 0.3 * p["y"])

    one = told(space, parabola, 16)
    other = told(space, lambda p: -1000 * parabola(p) + 5, 16, direction="maximize")
    for name in space:
        assert other.effects[name].mean == pytest.approx(-1000 * one.effects[name].mean, rel=1e-6)
        assert other.effects[name].sd == pytest.approx(1000 * one.effects[name].sd, rel=1e-6)


def test_an_effect_is_less_certain_where_no_trial_was() -> None:
    sampler = hd.AdditiveBO(n_startup=12, seed=0, structure="full")
    study = optuna.create_study(sampler=sampler)
    for i in range(12):
        study.enqueue_trial({"x": 0.4 * i / 11})
    study.optimize(lambda trial: math.sin(9 * trial.suggest_float("x", 0, 1)), n_trials=12)
    effect = sampler.structure(study).effects["x"]
    assert effect.sd[-1] > 2 * effect.sd[4]


def test_a_compressed_tail_is_told() -> None:
    space = hd.Space(x=hd.Float(0, 1), y=hd.Float(0, 1))
    got = told(space, lambda p: math.exp(12 * ((p["x"] - 0.3) ** 2 + p["y"] ** 2)), 24)
    assert got.compressed
    assert "compressed" in got.plot_effects().layout.yaxis.title.text


# Figures


def test_the_heat_map_shows_the_pairs_group_by_group(learned: LearnedStructure) -> None:
    pairs = np.arange(36.0).reshape(6, 6) / 36
    error = np.full((6, 6), 0.25)
    structure = replace(
        learned,
        pairs=pairs,
        pairs_error=error,
        groups=(("width", "act"), ("lr", "layers", "momentum"), ("wide",)),
    )
    (heat,) = structure.plot_pairs().data
    order = ["width", "act", "lr", "layers", "momentum", "wide"]
    assert list(heat.x) == list(heat.y) == order
    for i, one in enumerate(order):
        for j, other in enumerate(order):
            expected = pairs[learned.names.index(one), learned.names.index(other)]
            assert heat.z[i][j] == expected
            assert heat.text[i][j] == f"{one}, {other}: {expected:.2f} ± 0.25"


def test_the_heat_map_of_one_chain_names_no_error(learned: LearnedStructure) -> None:
    structure = replace(learned, pairs_error=np.full((6, 6), math.nan), groups=())
    (heat,) = structure.plot_pairs().data
    assert list(heat.x) == list(learned.names)
    assert heat.text[0][0].endswith("1.00, one chain")


def test_the_figure_of_effects_shows_lines_bands_and_parts(learned: LearnedStructure) -> None:
    figure = learned.plot_effects(["lr", "act"])
    assert [note.text for note in figure.layout.annotations] == ["lr", "act"]
    assert [figure.layout.xaxis.type, figure.layout.xaxis2.type] == ["log", "category"]
    panels = {axis: {t.name: t for t in figure.data if t.xaxis == axis} for axis in ("x", "x2")}
    lr = learned.effects["lr"]
    line, band = panels["x"]["sum"], panels["x"]["± 2 sd"]
    assert tuple(line.x) == lr.values
    assert np.asarray(line.y) == pytest.approx(lr.mean)
    assert tuple(band.x) == (*lr.values, *lr.values[::-1])
    edges = [*(lr.mean + 2 * lr.sd), *(lr.mean - 2 * lr.sd)[::-1]]
    assert np.asarray(band.y) == pytest.approx(edges)
    own = next(c for c in learned.components[2:] if "lr" in c.names).effects["lr"]
    assert np.asarray(panels["x"]["group"].y) == pytest.approx(own.mean)
    full = learned.components[0].effects["lr"]
    assert np.asarray(panels["x"]["full component"].y) == pytest.approx(full.mean)
    radius = learned.components[1].effects["lr"]
    assert np.asarray(panels["x"]["radius"].y) == pytest.approx(radius.mean)
    assert "radius" not in panels["x2"]
    act = learned.effects["act"]
    assert tuple(panels["x2"]["sum"].x) == act.values
    assert np.asarray(panels["x2"]["sum"].error_y.array) == pytest.approx(2 * act.sd)


def test_a_legend_names_each_kind_of_line_once(learned: LearnedStructure) -> None:
    shown = [trace.name for trace in learned.plot_effects().data if trace.showlegend]
    assert sorted(shown) == ["full component", "group", "radius", "sum", "± 2 sd"]


def test_the_strongest_effect_comes_first(learned: LearnedStructure) -> None:
    titles = [note.text for note in learned.plot_effects().layout.annotations]
    ranges = [np.ptp(learned.effects[name].mean) for name in titles]
    assert ranges == sorted(ranges, reverse=True)
    assert sorted(titles) == sorted(SPACE)


def test_an_effect_that_is_not_there_is_refused(learned: LearnedStructure) -> None:
    with pytest.raises(hd.StudyError, match=r"can show the dimensions .*'lr'.*, got \['lrr'\]"):
        learned.plot_effects(["lr", "lrr"])
