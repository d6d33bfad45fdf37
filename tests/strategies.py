"""Random dimensions and spaces for property tests (hypothesis)."""

from hypothesis import strategies as st

from hyperopt_dl.space import Categorical, Float, Int, Space


@st.composite
def plain_floats(draw: st.DrawFn) -> Float:
    low = draw(st.floats(-1e6, 1e6))
    return Float(low, low + draw(st.floats(1e-3, 1e6)))


@st.composite
def log_floats(draw: st.DrawFn) -> Float:
    low = 10 ** draw(st.floats(-12, 6))
    return Float(low, low * 10 ** draw(st.floats(0.01, 12)), log=True)


@st.composite
def stepped_floats(draw: st.DrawFn) -> Float:
    """Decimal grids, such as 0.3, 0.4 ... 0.7, whose points are no doubles."""
    digits = draw(st.integers(0, 4))
    low, cells, pace = (
        draw(st.integers(-999, 999)),
        draw(st.integers(0, 99)),
        draw(st.integers(1, 9)),
    )
    step, start = pace / 10**digits, low / 10**digits
    return Float(start, (low + cells * pace) / 10**digits, step=step)


@st.composite
def plain_ints(draw: st.DrawFn) -> Int:
    step = draw(st.integers(1, 1000))
    cells = draw(st.integers(0, 2**28))
    low = draw(st.integers(-(2**36), 2**36))
    return Int(low, low + cells * step, step=step)


@st.composite
def log_ints(draw: st.DrawFn) -> Int:
    low = draw(st.integers(1, 2**20))
    return Int(low, low + draw(st.integers(0, 2**38)), log=True)


choices = st.lists(
    st.one_of(st.text(max_size=3), st.integers(2, 9), st.sampled_from([None, True, 0.5, -1.5])),
    min_size=1,
    max_size=6,
    unique=True,
)
categoricals = choices.map(Categorical)
scalars = st.one_of(
    plain_floats(), log_floats(), stepped_floats(), plain_ints(), log_ints(), categoricals
)
names = st.text("abc/_é 0", min_size=1, max_size=4)
spaces = st.dictionaries(names, scalars, min_size=1, max_size=5).map(Space)
units = st.floats(0, 1)
