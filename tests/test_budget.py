"""Budgets: what people write, what it means, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.budget import AbsoluteBudget, Bound, Budget
from edgeprune.errors import InputError


def test_a_relative_latency_is_a_fraction_of_the_dense_one() -> None:
    budget = Budget.parse("latency=60%")
    assert budget == Budget(latency=Bound(0.6, relative=True))
    assert budget.resolve(20.0, 100.0, 90.0) == AbsoluteBudget(12.0, None, None, None, 50, 0.6)


def test_absolute_bounds_stand_whatever_the_dense_model_costs() -> None:
    budget = Budget.parse("latency=12ms, memory=40MB, size=30MB, score=0.7")
    expected = AbsoluteBudget(12.0, 40.0, 30.0, 0.7, 50)
    assert budget.resolve(20.0, 100.0, 90.0) == expected
    assert budget.resolve(2.0, 1.0, 9.0) == expected


def test_units_are_understood() -> None:
    budget = Budget.parse("latency=0.5s,memory=1GB,size=500KB")
    assert budget.resolve(1, 1, 1) == AbsoluteBudget(500.0, 1000.0, 0.5, None, 50)


def test_the_latency_may_name_its_percentile() -> None:
    assert Budget.parse("latency.p90=12ms").percentile == 90
    assert Budget.parse("latency=12ms").percentile == 50


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"latency": "60%"}, "latency=60%"),
        ({"latency": {"p90": "12ms"}, "score": 0.7}, "latency.p90=12ms,score=0.7"),
        ({"memory": "40MB", "size": "50%"}, "memory=40MB,size=50%"),
    ],
)
def test_the_toml_form_means_the_same_as_the_flag(table: dict[str, object], text: str) -> None:
    assert Budget.from_table(table) == Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not of the form key=value"),
        ("fast", "'fast' is not of the form key=value"),
        ("latency=", "not of the form key=value"),
        ("latency=60%,", "not of the form key=value"),
        ("latency=0ms", "got '0ms', wanted more than zero"),
        ("latency=0%", "wanted more than zero"),
        ("latency=-5ms", "got '-5ms', wanted more than zero"),
        ("latency=12", "got '12', wanted a number with %, us, ms, s"),
        ("latency=12MB", "got '12MB', wanted a number with %, us, ms, s"),
        ("memory=12ms", "wanted a number with %, KB, MB, GB"),
        ("latency=1.2.3ms", "got '1.2.3ms'"),
        ("latency=1e999ms", "got '1e999ms'"),
        ("latency=100%", "'100%' of the dense model is not a cut"),
        ("latency=60%,latency=12ms", "latency is given twice"),
        ("latency=60%,latency.p90=12ms", "latency is given twice"),
        ("latency.p0=12ms", "wanted a percentile from p1 to p99"),
        ("latency.p100=12ms", "wanted a percentile from p1 to p99"),
        ("memory.p90=12MB", "there is no 'memory.p90'"),
        ("latencey=60%", "there is no 'latencey'; did you mean 'latency'?"),
        ("score=0.7", "needs a bound on latency, memory or size"),
        ("latency=60%,score=0", "got '0', wanted a number above zero"),
        ("latency=60%,score=nan", "got 'nan', wanted a number above zero"),
        ("latency=60%,score=good", "got 'good', wanted a number above zero"),
    ],
)
def test_what_is_no_budget_is_refused_with_an_example(text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        Budget.parse(text)
    message = str(caught.value)
    assert problem in message
    assert message.startswith(f'budget "{text}": ')
    assert 'for example "latency=60%"' in message


def hundredths(highest: int) -> st.SearchStrategy[float]:
    return st.integers(1, highest).map(lambda number: number / 100)


def bounds() -> st.SearchStrategy[Bound]:
    relative = hundredths(9_999).map(lambda percent: Bound(percent / 100, relative=True))
    return relative | hundredths(10**8).map(Bound)


@given(
    st.builds(
        Budget,
        latency=bounds(),
        peak_memory=st.none() | bounds(),
        size=st.none() | bounds(),
        min_score=st.none() | hundredths(10_000),
        percentile=st.integers(1, 99),
    )
)
def test_a_written_budget_reads_back_the_same(budget: Budget) -> None:
    assert Budget.parse(str(budget)) == budget


def test_a_share_is_of_the_dense_model_measured_beside_it() -> None:
    relative = Budget.parse("latency=60%").resolve(20.0, 100.0, 90.0)
    assert (relative.latency_beside(10.0), relative.latency_beside(None)) == (6.0, 12.0)
    absolute = Budget.parse("latency=12ms").resolve(20.0, 100.0, 90.0)
    assert absolute.latency_beside(10.0) == 12.0
